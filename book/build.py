"""Build the site from the stored outputs of the notebooks."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from book import contents

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def command(strict: bool) -> list[str]:
    """Return the call of Jupyter Book; `strict` makes warnings errors."""
    tool = Path(sys.executable).parent / "jupyter-book"
    gate = ["-W", "-n", "--keep-going"] if strict else []
    return [str(tool), "build", str(contents.ROOT), "--all", *gate]


def main() -> int:
    """Build, quietly unless something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true")
    strict = parser.parse_args().strict
    contents.main()
    if strict:
        shutil.rmtree(contents.ROOT / "_build", ignore_errors=True)
    done = subprocess.run(
        command(strict),
        cwd=contents.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    text = COLOUR.sub("", done.stdout + done.stderr)
    if done.returncode:
        print(text)
        return done.returncode
    for line in text.splitlines():
        if "WARNING" in line or "build succeeded" in line:
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
