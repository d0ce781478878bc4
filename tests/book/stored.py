"""Chapters as they are stored, read once for all lint tests."""

import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
NOTEBOOKS = CHAPTERS + sorted(ROOT.glob("*.ipynb"))
PAGES = NOTEBOOKS + sorted(ROOT.glob("*.md"))


def stem(path: Path) -> str:
    return path.stem


@cache
def cells(path: Path) -> list[dict]:
    """Return the cells of a notebook with each source as one string."""
    notebook = json.loads(path.read_text(encoding="utf8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook["cells"]


def code(path: Path) -> list[dict]:
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def markdown(path: Path) -> str:
    """Return all Markdown of a page."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf8")
    parts = [c["source"] for c in cells(path) if c["cell_type"] == "markdown"]
    return "\n\n".join(parts)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def data(cell: dict, kind: str) -> list[str]:
    """Return the outputs of one MIME type, each as one string."""
    outputs = (out.get("data", {}) for out in cell["outputs"])
    return ["".join(out[kind]) for out in outputs if kind in out]


FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
NOT_PROSE = re.compile(r"\{(math|literalinclude|code|code-block|code-cell)\}")


def outside_code(text: str) -> str:
    """Return the lines that are not code; what directives hold is prose."""
    kept, fences = [], []
    for line in text.splitlines():
        match = FENCE.match(line)
        if not match:
            if all(fences) and not re.match(r":[\w-]+:", line):
                kept.append(line)
        elif match["info"].strip():
            info = match["info"].strip()
            counts = info.startswith("{") and not NOT_PROSE.match(info)
            fences.append(counts)
        elif fences:
            fences.pop()
        else:
            fences.append(False)
    return "\n".join(kept)


def prose(path: Path) -> str:
    """Return the Markdown without code, formulas and comments."""
    text = outside_code(markdown(path))
    text = re.sub(r"\$\$.*?\$\$(\s*\([\w-]+\))?", " ", text, flags=re.S)
    text = re.sub(r"\$[^$\n]+\$", " ", text)
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)
