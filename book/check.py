"""Everything that `make test` does, one step after the other.

A step that fails does not keep the next ones from running. What cannot run
on this machine is said aloud. The last lines are a summary, and the exit
status is zero only if no step failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from book.browser import chromium
from book.contents import ROOT
from book.environment import KERNEL_ENV

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
TWO = ["-n", "2", "--dist", "loadfile"]


@dataclass(frozen=True)
class Step:
    """One command, and the reason why it may be left out here."""

    name: str
    command: list[str]
    missing: Callable[[], str] = lambda: ""
    folder: Path = ROOT


def no_chapters() -> str:
    """Return a reason to leave out the comparison of stored outputs."""
    return "" if notebooks() else "there are no chapters yet"


def no_rust() -> str:
    """Return a reason to leave out the Rust twins."""
    if not (ROOT / "rust" / "Cargo.toml").exists():
        return "there is no rust/Cargo.toml"
    return "" if shutil.which("cargo") else "cargo is not installed"


def no_clippy() -> str:
    """Return a reason to leave out the style of the Rust twins."""
    found = shutil.which("cargo") and shutil.which("cargo-clippy")
    return "" if found else "cargo clippy is not installed"


def no_browser() -> str:
    """Return a reason to leave out the tests in a browser."""
    if not chromium():
        return "no Chromium or Chrome was found (set CHROMIUM to name one)"
    site = ROOT / "_build" / "html" / "index.html"
    return "" if site.exists() else "the site was not built"


def notebooks() -> list[str]:
    """Name all notebooks with outputs to compare."""
    found = [*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("*.ipynb")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def steps() -> list[Step]:
    """List all steps in the order in which they run."""
    python = sys.executable
    ruff = [python, "-m", "ruff"]
    nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "180"]
    sanitize = ["--nbval-sanitize-with", "nbval.cfg"]
    cargo = ["cargo", "test", "--offline", "--locked"]
    clippy = ["cargo", "clippy", "--offline", "--locked", "--all-targets"]
    clippy += ["--", "-D", "warnings"]
    return [
        Step("lint", [*ruff, "check", "."]),
        Step("format", [*ruff, "format", "--check", "."]),
        Step("types", [python, "-m", "mypy"]),
        Step("tests", [*PYTEST, *TWO, "tests", "--ignore=tests/site"]),
        Step(
            "chapters",
            [*PYTEST, *nbval, *sanitize, *TWO, *notebooks()],
            no_chapters,
        ),
        Step("rust", cargo, no_rust, ROOT / "rust"),
        Step("rust-lint", clippy, no_clippy, ROOT / "rust"),
        Step("site", [python, "-m", "book.build", "--strict"]),
        Step("site-tests", [*PYTEST, "tests/site"], no_browser),
    ]


def run(step: Step) -> tuple[str, float]:
    """Run one step and say how it ended and how long it took."""
    print(f"\n=== {step.name} ===", flush=True)
    if reason := step.missing():
        print(f"left out: {reason}", flush=True)
        return f"left out: {reason}", 0.0
    start = time.perf_counter()
    done = subprocess.run(
        step.command,
        cwd=step.folder,
        env={**os.environ, **KERNEL_ENV},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    verdict = "failed" if done.returncode else "passed"
    return verdict, time.perf_counter() - start


def main() -> int:
    """Run the steps that were named, or all, and print the summary."""
    every = steps()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [step.name for step in every]
    parser.add_argument("steps", nargs="*", metavar="step", help=str(names))
    wanted = parser.parse_args().steps or names
    if unknown := set(wanted) - set(names):
        parser.error(f"no such step: {sorted(unknown)}, there are {names}")
    results = {step.name: run(step) for step in every if step.name in wanted}
    print("\n=== summary ===")
    for name, (verdict, seconds) in results.items():
        print(f"{name:12}{seconds:7.1f} s  {verdict}")
    return int(any(verdict == "failed" for verdict, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
