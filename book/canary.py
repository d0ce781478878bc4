"""Would the newest transformers still agree? Reports; changes nothing.

The pins prove the book against one version. This command installs the newest
one beside the environment, in ``_build/canary``, and runs the parity tests
with it, so that a difference is known before anyone meets it.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version

from book.contents import ROOT

FOLDER = ROOT / "_build" / "canary"
PACKAGE = "transformers"


def install() -> str:
    """Put the newest release into a folder of its own; its version."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    words = ["pip", "install", "-q", "--upgrade", "--target", str(FOLDER)]
    subprocess.run([sys.executable, "-m", *words, PACKAGE], check=True)
    found = next(FOLDER.glob(f"{PACKAGE}-*.dist-info")).name
    return found.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info")


def main() -> int:
    """Install, run, report."""
    newest = install()
    paths = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    tests = [sys.executable, "-m", "pytest", "-q", "tests/parity"]
    result = subprocess.run(tests, cwd=ROOT, env=environment).returncode
    verdict = "agrees" if result == 0 else "DIFFERS: see above"
    print(f"{PACKAGE} {newest} (pinned: {version(PACKAGE)}): {verdict}")
    return result


if __name__ == "__main__":
    sys.exit(main())
