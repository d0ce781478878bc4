"""The exercises in the chapters are those of the registry."""

import ast
import json
from pathlib import Path

import pytest

from dsarch.teaching import cells, exercises, pages, progress

CHAPTERS = pages.chapters()


def drift(path: Path) -> list[str]:
    """Where a chapter's exercise cells and the registry differ."""
    found = []
    for exercise in exercises.chapter(pages.key(path)).values():
        for part, source in cells.sources(exercise).items():
            tag = f"{part}-{exercise.id}"
            here = pages.by_tag(path, tag)
            if len(here) != 1:
                found.append(f"{tag}: {len(here)} cells")
            elif here[0]["source"].rstrip() != source.rstrip():
                found.append(f"{tag}: differs from the registry")
    return found


def outputs(path: Path, tag: str) -> str:
    """The text that one tagged cell has stored as its output."""
    (cell,) = pages.by_tag(path, tag)
    return "".join(
        "".join(out.get("data", {}).get("text/plain", out.get("text", "")))
        for out in cell["outputs"]
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_shows_its_exercises(path: Path) -> None:
    assert drift(path) == [], "run: python -m dsarch.teaching.cells " + str(
        path.relative_to(pages.root())
    )
    for id in exercises.chapter(pages.key(path)):
        assert outputs(path, f"exercise-{id}").startswith("○")
        assert outputs(path, f"solution-{id}").startswith("✓")


def imported(code: str) -> set[str]:
    """The names that the import statements of a piece of code bind."""
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_chapter_imports_what_its_exercises_need(path: Path) -> None:
    code = [
        cell["source"]
        for cell in pages.cells(path)
        if cell["cell_type"] == "code"
        and not cells.OURS.search(" ".join(cell["metadata"].get("tags", [])))
    ]
    needed = imported(exercises.module(pages.key(path)).SETUP)
    assert needed <= imported("\n".join(code))


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A chapter whose exercises have not been written in yet."""
    kinds = ["# Title", "## Exercises\n\nIntroduction.", "## Remember"]
    made = [
        {"cell_type": "markdown", "id": str(i), "metadata": {}, "source": text}
        for i, text in enumerate(kinds)
    ]
    path = tmp_path / "03-latent.ipynb"
    whole = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(whole), encoding="utf8")
    return path


def test_cells_are_written_once_and_renewed(notebook: Path) -> None:
    count = cells.insert(notebook)
    assert count == len(exercises.chapter("03")) >= 5
    assert drift(notebook) == []
    first = notebook.read_text(encoding="utf8")
    assert cells.insert(notebook) == count
    assert notebook.read_text(encoding="utf8") == first
    sources = [cell["source"] for cell in pages.cells(notebook)]
    assert sources[1].startswith("## Exercises")
    assert sources[-1] == "## Remember"


def test_a_changed_cell_is_noticed(notebook: Path) -> None:
    cells.insert(notebook)
    text = notebook.read_text(encoding="utf8")
    notebook.write_text(text.replace("w_uk, w_uv", "w_uv, w_uk", 1))
    assert len(drift(notebook)) == 1


def test_a_chapter_without_the_heading_is_refused(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf8")
    notebook.write_text(text.replace("## Exercises", "## Other"))
    with pytest.raises(ValueError, match="0 headings '## Exercises'"):
        cells.insert(notebook)


def test_hints_come_one_by_one(capsys: pytest.CaptureFixture) -> None:
    exercises.hint("03.2", 3)
    assert capsys.readouterr().out.startswith("Hint 3 of 3 for 03.2: ")
    with pytest.raises(ValueError, match="hint 4 does not exist"):
        exercises.hint("03.2", 4)
    with pytest.raises(ValueError, match="there are 03.1, 03.2"):
        exercises.check("03.99", ...)
    with pytest.raises(ValueError, match="chapter '77' has no exercises"):
        exercises.hint("77.1")


def test_errors_of_the_reader_become_a_sentence() -> None:
    def split_up(weight, heads, n):
        return weight.no_such_thing(heads)

    verdict = exercises.check("03.2", split_up)
    assert verdict.state == "wrong"
    assert "split_up stopped with AttributeError" in repr(verdict)
    assert "`return weight.no_such_thing(heads)`" in repr(verdict)
    for gap in (..., None, NotImplemented, lambda *_: None):
        assert exercises.check("03.2", gap).state == "unsolved"


def test_progress_is_kept_only_for_readers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    progress.note("03.2")
    assert not progress.path().exists(), "a test run is no reader"
    monkeypatch.setattr(progress, "enabled", lambda: True)
    for id in ("03.2", "03.1", "03.2"):
        progress.note(id)
    assert json.loads(progress.path().read_text()) == ["03.1", "03.2"]
    exercises.progress()
    assert "Chapter 03: 2 of 7   ✓ 03.1 ✓ 03.2 ○ 03.3" in (
        capsys.readouterr().out
    )
    progress.path().write_text("{not json")
    assert progress.solved() == set()
    progress.note("03.3")
    assert progress.solved() == {"03.3"}


def test_progress_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
    monkeypatch.setattr(progress, "sys", type("Sys", (), {"modules": {}}))
    monkeypatch.delenv("DSARCH_PROGRESS", raising=False)
    assert progress.enabled()
    monkeypatch.setenv("DSARCH_PROGRESS", "off")
    assert not progress.enabled()
