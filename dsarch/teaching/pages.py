"""The book's own files: where they lie, and the cells of a chapter."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dsarch


def root() -> Path:
    """The folder that holds the chapters and the exercises.

    Raises ``FileNotFoundError`` where the package was installed without the
    book around it and the working directory lies outside the book.
    """
    here = Path.cwd()
    beside = Path(dsarch.__file__).resolve().parents[1]
    for folder in (beside, here, *here.parents):
        if (folder / "exercises").is_dir() and (folder / "chapters").is_dir():
            return folder
    raise FileNotFoundError(
        f"no book around {here}: open the chapters inside a copy of the book"
    )


def chapters() -> list[Path]:
    """All chapter notebooks in reading order."""
    return sorted((root() / "chapters").glob("[0-9][0-9]-*.ipynb"))


def key(path: Path) -> str:
    """``03`` for a chapter, the stem for a front page."""
    return path.stem[:2] if path.stem[:2].isdigit() else path.stem


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, each source as one string."""
    notebook = json.loads(path.read_text(encoding="utf8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook["cells"]


def prose(path: Path) -> Iterator[tuple[str, str]]:
    """Every piece of Markdown of a page, with the place to report."""
    if path.suffix != ".ipynb":
        yield path.name, path.read_text(encoding="utf8")
        return
    for number, cell in enumerate(cells(path), 1):
        if cell["cell_type"] == "markdown":
            yield f"{path.name}, cell {number}", cell["source"]


def by_tag(path: Path, tag: str) -> list[dict[str, Any]]:
    """The cells of a notebook that carry ``tag``."""
    return [
        cell for cell in cells(path) if tag in cell["metadata"].get("tags", [])
    ]
