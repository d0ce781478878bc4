"""The Rust crate says the same as the package, in the same order."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsarch.teaching.listing import listing

ROOT = Path(__file__).resolve().parents[1]
CRATE = ROOT / "rust"
FILES = sorted([*CRATE.glob("src/**/*.rs"), *CRATE.glob("tests/**/*.rs")])
TWINS = tomllib.loads((CRATE / "twins.toml").read_text(encoding="utf8"))
EINSUM = re.compile(r'einsum\(\s*"([^"]+)"')
# In Rust an enum of its own says what Python says with None and a flag.
ALONE = {"mla.rs#Query", "rope.rs#Layout"}
MAX_FUNCTION, MAX_FILE, MAX_LINE = 40, 300, 80


def contractions(source: str) -> list[str]:
    """The einsum strings of a piece of either language, spaces aside."""
    return [x.replace(" ", "") for x in EINSUM.findall(source)]


def anchors() -> Iterator[str]:
    for path in CRATE.glob("src/**/*.rs"):
        name = path.relative_to(CRATE / "src").as_posix()
        for anchor in re.findall(r"// ANCHOR: (\S+)", path.read_text("utf8")):
            yield f"{name}#{anchor}"


@pytest.mark.parametrize("python", TWINS)
def test_twins_contract_in_the_same_order(python: str) -> None:
    both = listing(python, TWINS[python])
    assert both.rust
    assert contractions(both.rust) == contractions(both.python)
    assert "ANCHOR" not in both.rust


def test_an_exchanged_contraction_is_noticed() -> None:
    both = listing("mla.absorbed", TWINS["mla.absorbed"])
    assert both.rust and len(contractions(both.rust)) == 5
    swapped = both.rust.replace("bthc,bsc->bhts", "bshc,bsc->bhts")
    assert contractions(swapped) != contractions(both.python)
    assert contractions(both.python)[0] == "bthn,hnc->bthc"


def test_every_anchor_is_a_twin() -> None:
    named = list(anchors())
    assert len(named) == len(set(named))
    assert set(named) - ALONE == set(TWINS.values())
    assert ALONE <= set(named)


def quoted() -> Iterator[tuple[str, str, str]]:
    """Chapter, Python name and Rust name of every listing in two tabs."""
    call = re.compile(
        r'listing\(\s*"([^"]+)",\s*(?:rust=)?"([^"]+\.rs#[^"]+)",?\s*\)'
    )
    for path in sorted(ROOT.glob("chapters/*.ipynb")):
        for cell in json.loads(path.read_text("utf8"))["cells"]:
            if cell["cell_type"] == "code":
                for pair in call.findall("".join(cell["source"])):
                    yield path.stem, *pair


def test_chapters_quote_what_is_a_twin() -> None:
    for chapter, python, rust in quoted():
        assert TWINS.get(python) == rust, (chapter, python, rust)


@pytest.mark.parametrize("number", range(1, 15))
def test_every_chapter_has_a_twin_and_a_note(number: int) -> None:
    """In its Implementation: a listing in two tabs, and what differs."""
    path = next(ROOT.glob(f"chapters/{number:02}-*.ipynb"))
    found, heading = {"tab": 0, "note": 0}, ""
    for cell in json.loads(path.read_text("utf8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^## (.*)", text, re.M) or [heading])[-1]
            words = "**Rust note.**" in text
            found["note"] += words and heading == "Implementation"
        elif heading == "Implementation":
            shown = json.dumps(cell["outputs"])
            found["tab"] += "listing(" in text and "{tab-item} Rust" in shown
    assert found["tab"] >= 1 and found["note"] == 1, found


def functions(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Name and length of every function, as rustfmt lays them out."""
    head = re.compile(r"( *)(?:pub(?:\(crate\))? )?(?:const )?fn (\w+)")
    for start, line in enumerate(lines):
        if found := head.match(line):
            end = start
            closing = f"{found[1]}}}"
            while lines[end].rstrip() != closing and "{}" not in lines[end]:
                end += 1
            yield found[2], end - start + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_crate_keeps_its_measures(path: Path) -> None:
    lines = path.read_text(encoding="utf8").splitlines()
    assert len(lines) <= MAX_FILE
    assert max(map(len, lines)) <= MAX_LINE
    assert "unsafe" not in "".join(lines).replace("forbid(unsafe_code)", "")
    long = [x for x in functions(lines) if x[1] > MAX_FUNCTION]
    assert long == []


def test_the_crate_stands_alone() -> None:
    manifest = tomllib.loads((CRATE / "Cargo.toml").read_text("utf8"))
    locked = tomllib.loads((CRATE / "Cargo.lock").read_text("utf8"))
    assert not [key for key in manifest if "dependencies" in key]
    assert [x["name"] for x in locked["package"]] == ["dsarch"]
    library = (CRATE / "src" / "lib.rs").read_text(encoding="utf8")
    assert "#![forbid(unsafe_code)]" in library


def rustfmt() -> tuple[int, int]:
    """Its version; what has no number, or is not there, is version zero."""
    if not shutil.which("rustfmt"):
        return 0, 0
    said = subprocess.run(
        ["rustfmt", "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"(\d+)\.(\d+)", said.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@pytest.mark.skipif(rustfmt() < (1, 8), reason="rustfmt is missing or older")
def test_the_crate_is_formatted() -> None:
    done = subprocess.run(
        ["cargo", "fmt", "--check"],
        cwd=CRATE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
