"""The proof registry: which test holds which equation, and how closely.

A test that compares code with something we did not write, or with its own
other form, hands the difference to :func:`witness`. The registry
``proofs.json`` keeps it, rounded up to a power of ten;
``python -m dsarch.teaching.proofs`` writes the page *Proofs* from it.
"""

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

import dsarch
from dsarch.teaching.pages import chapters, key, prose

LABEL = re.compile(r"(?:\$\$\s*\(|:label:\s*)(eq-[\w-]+)")
HOUSE = Path(dsarch.__file__).resolve().parents[1]


@dataclass(frozen=True, order=True)
class Proof:
    """One recorded comparison; ``version`` is that of the reference."""

    equation: str
    code: str
    reference: str
    test: str
    version: str
    difference: float

    @property
    def identity(self) -> tuple[str, ...]:
        return self.equation, self.code, self.reference, self.test


def path() -> Path:
    """Where the registry lies, beside the package."""
    return HOUSE / "proofs.json"


def load() -> list[Proof]:
    """All recorded proofs; none if nothing was recorded yet."""
    if not path().is_file():
        return []
    rows = json.loads(path().read_text(encoding="utf8"))
    return [Proof(**row) for row in rows]


def save(proofs: list[Proof]) -> None:
    """Write the registry, sorted, one field a line."""
    rows = [asdict(proof) for proof in sorted(proofs)]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    draft = path().with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text + "\n", encoding="utf8")
    draft.replace(path())


def bound(difference: float) -> float:
    """The next power of ten; zero stays zero.

    >>> bound(3.1e-16), bound(1e-5), bound(0.0)
    (1e-15, 1e-05, 0.0)
    """
    if difference == 0:
        return 0.0
    return float(f"1e{math.ceil(math.log10(difference) - 1e-9)}")


_largest: dict[tuple[str, ...], float] = {}


def witness(
    equation: str,
    difference: float | Tensor,
    *,
    reference: str,
    code: str,
    test: str,
) -> None:
    """Hold a measured difference against the registry.

    More than ten times what was recorded raises ``AssertionError``: another
    processor may round differently, but not by more. With the environment
    variable ``DSARCH_WITNESS=write`` the largest difference of the run is
    recorded instead. A ``difference`` that is no number is refused.
    """
    found = torch.as_tensor(difference).detach().item()
    if not 0 <= found < math.inf:
        raise AssertionError(f"{equation}: the difference is {found}")
    name = equation, code, reference, test
    if os.environ.get("DSARCH_WITNESS") == "write":
        _largest[name] = max(found, _largest.get(name, 0.0))
        new = Proof(*name, version_of(reference), bound(_largest[name]))
        save([p for p in load() if p.identity != name] + [new])
        return
    limit = recorded().get(name)
    if limit is not None and found > max(10 * limit, 1e-15):
        raise AssertionError(
            f"{equation}: difference {found:.2g}, recorded {limit:.0g}"
        )


@cache
def recorded() -> dict[tuple[str, ...], float]:
    """The recorded difference of each proof."""
    return {proof.identity: proof.difference for proof in load()}


def version_of(reference: str) -> str:
    """The installed version of the package a reference begins with."""
    try:
        return metadata.version(reference.split()[0]).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def labels() -> dict[str, str]:
    """Every numbered equation of the book, with its chapter."""
    return {
        label: key(chapter)
        for chapter in chapters()
        for _, text in prose(chapter)
        for label in LABEL.findall(text)
    }


INTRODUCTION = """\
# Proofs

Every numbered equation of the book has a witness: a test that compares our
code with an implementation that we did not write, or with another form of
itself; the latter is called an *identity*. The column *Difference* holds the
largest one seen, rounded up to a power of ten; a test fails if it grows beyond
ten times that. Sizes in these tests all differ from each other, biases are not
zero, and positions lie beyond the window that YaRN stretches.

`make test` runs all of them. That the tests would notice a mistake is tested
too: `make mutants` plants known mistakes one at a time, and each has to be
caught.
"""


def page() -> str:
    """The page *Proofs* as Markdown."""
    known = labels()
    rows = sorted(load(), key=lambda p: (known.get(p.equation, "~"), p))
    parts = [INTRODUCTION]
    for number, group in groupby(rows, lambda p: known.get(p.equation, "")):
        title = f"Chapter {int(number)}" if number else "Beyond the equations"
        table = "\n".join(_row(proof, bool(number)) for proof in group)
        parts.append(
            f"## {title}\n\n"
            "| Equation | Code | Compared with | Difference | Test |\n"
            f"|---|---|---|---:|---|\n{table}\n"
        )
    return "\n".join(parts)


def _row(proof: Proof, linked: bool) -> str:
    name = proof.equation.removeprefix("eq-").replace("-", " ")
    equation = f"{name} {{eq}}`{proof.equation}`" if linked else name
    package, _, rest = proof.reference.partition(" ")
    against = (
        f"{package} {proof.version} {rest}"
        if proof.version
        else (proof.reference)
    )
    exponent = round(math.log10(proof.difference)) if proof.difference else 0
    size = f"$10^{{{exponent}}}$" if proof.difference else "none"
    file, _, test = proof.test.partition("::")
    return (
        f"| {equation} | `{proof.code}` | {against} | {size} "
        f"| `{Path(file).stem}::{test}` |"
    )


def stands(proof: Proof) -> bool:
    """Whether the test of a proof still exists and takes the witness."""
    name, _, test = proof.test.partition("::")
    file = HOUSE / name
    text = file.read_text(encoding="utf8") if file.is_file() else ""
    return re.search(rf"def {test}\([^)]*\bwitness\b", text) is not None


def main() -> None:
    """Drop proofs whose test is gone, then write the page *Proofs*."""
    save([proof for proof in load() if stands(proof)])
    (HOUSE / "proofs.md").write_text(page(), encoding="utf8")
    print(f"proofs.md: {len(load())} proofs")


if __name__ == "__main__":
    main()
