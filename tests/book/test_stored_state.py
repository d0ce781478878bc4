"""What nbval cannot see: the state in which notebooks are stored."""

import json
from pathlib import Path

import pytest

from book.inline_svg import alt_text
from tests.book.stored import NOTEBOOKS, code, data, stem, tags

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
WIDTH, HEIGHT = 80, 25


@notebooks
def test_every_cell_was_run_once_and_in_order(path: Path) -> None:
    """Nbval never compares a cell without an execution count."""
    counts = [cell["execution_count"] for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1))


@notebooks
def test_nothing_random_is_stored(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf8"))
    assert notebook["nbformat"] == 4
    assert notebook["nbformat_minor"] >= 5
    assert "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    for cell in notebook["cells"]:
        assert "execution" not in cell["metadata"]
    for number, cell in enumerate(code(path), 1):
        for out in cell["outputs"]:
            where = f"code cell {number}"
            assert " at 0x" not in json.dumps(out), f"{where}: an address"
            assert "application/vnd.jupyter.widget-view+json" not in out.get(
                "data", {}
            ), f"{where}: a widget, which has random ids"


@notebooks
def test_no_output_is_an_error_that_was_not_announced(path: Path) -> None:
    for number, cell in enumerate(code(path), 1):
        kinds = {out["output_type"] for out in cell["outputs"]}
        streams = {out.get("name") for out in cell["outputs"]}
        if "error" in kinds:
            assert "raises-exception" in tags(cell), f"code cell {number}"
        assert "stderr" not in streams, f"code cell {number} warns"


@notebooks
def test_cells_fit_the_page(path: Path) -> None:
    for number, cell in enumerate(code(path), 1):
        lines = cell["source"].splitlines()
        assert lines, f"code cell {number} is empty"
        assert len(lines) <= HEIGHT, f"code cell {number}: {len(lines)} lines"
        wide = [line for line in lines if len(line) > WIDTH]
        assert not wide, f"code cell {number}: {wide}"


@notebooks
def test_cells_do_not_end_with_a_semicolon(path: Path) -> None:
    """Nbval runs cells so that a semicolon does not hide the value."""
    for number, cell in enumerate(code(path), 1):
        ends = cell["source"].rstrip().endswith(";")
        assert not ends, f"code cell {number}"


@notebooks
def test_every_figure_has_an_alt_text(path: Path) -> None:
    for number, cell in enumerate(code(path), 1):
        given = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
        for svg in data(cell, "image/svg+xml"):
            text = given or alt_text(svg)
            assert len(text) >= 20, f"code cell {number}: alt text {text!r}"
        for kind in ("image/png", "image/jpeg"):
            assert given or not data(cell, kind), f"code cell {number}"
