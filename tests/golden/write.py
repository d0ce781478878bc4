"""Write the golden files and their table: ``python -m tests.golden.write``.

With names it writes only those: ``python -m tests.golden.write mla rope``.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from dsarch.checkpoint import save_checkpoint
from tests.golden.models import whole
from tests.golden.vectors import MODULES, make

FOLDER = Path(__file__).parent
HEAD = """\
# Golden vectors

Written by `make golden` from the reference functions with a fixed generator;
Python must regenerate them (`tests/golden/test_golden.py`) and Rust must
reproduce them. Weights stand under the names of the checkpoint, sizes under
`cfg.`, the rest under `in.` and `out.`; everything is fp32. Outputs were
computed in fp64 by the form that a port should not copy: keys repeated for
grouped attention, the expanded form for latent attention, experts in groups.
The weights of `model.safetensors` are those of the folder `model`, a complete
checkpoint in bf16; those of `text.safetensors` are `weights/tiny-pretrained`.

"""


def path(name: str) -> Path:
    """Where the vectors of a module lie."""
    return FOLDER / f"{name}.safetensors"


def table() -> str:
    """The page that names each file and what is in it."""
    rows = [HEAD + "| File | What | Tensors |", "|---|---|---|"]
    for name, function in MODULES.items():
        shapes = ", ".join(
            f"`{key}` {'×'.join(map(str, value.shape))}"
            for key, value in make(name).items()
            if key.startswith(("in.", "out."))
        )
        what = " ".join((function.__doc__ or "").split())
        rows.append(f"| `{name}.safetensors` | {what} | {shapes} |")
    return "\n".join(rows) + "\n"


def checkpoint(folder: Path) -> None:
    """The whole model as a folder; what was there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(whole(), folder)


def main() -> None:
    """Write the named modules, or all."""
    for name in sys.argv[1:] or MODULES:
        save_file(make(name), path(name))
        print(f"{path(name).name}: {path(name).stat().st_size} bytes")
    checkpoint(FOLDER / "model")
    (FOLDER / "README.md").write_text(table(), encoding="utf8")


if __name__ == "__main__":
    main()
