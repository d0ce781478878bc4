"""Notebooks as text and back, for writing chapters in an editor.

The committed truth is the `.ipynb`. While drafting, a chapter is one text
file: Markdown as it is, code between fences, `+++` between two Markdown
cells. Both directions keep every cell and all cell metadata; outputs stay in
the notebook and are made again by `make notebooks`.

    # Title

    First cell.

    +++ {"tags": ["optional-metadata"]}

    Second cell.

    ```{code-cell}
    :tags: [hide-input]
    print("metadata: ':key: value' lines, or YAML between two '---' lines")
    ```
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml

NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
OPEN = re.compile(r"(?P<fence>`{3,})\{code-cell\}[ \w]*$")
OPTION = re.compile(r":(?P<key>[\w.-]+):\s*(?P<value>.*)$")


def split_metadata(lines: list[str]) -> tuple[dict, list[str]]:
    """Take the YAML block or the option lines off the head of a code cell."""
    if lines and lines[0] == "---":
        end = lines.index("---", 1)
        return yaml.safe_load("\n".join(lines[1:end])) or {}, lines[end + 1 :]
    metadata = {}
    while lines and (match := OPTION.match(lines[0])):
        metadata[match["key"]] = yaml.safe_load(match["value"])
        lines = lines[1:]
    return metadata, lines


class Reader:
    """Collects cells while the text form goes by, line by line."""

    def __init__(self) -> None:
        self.cells: list[tuple[str, dict, str]] = []
        self.start({})

    def start(self, metadata: dict) -> None:
        """Begin a Markdown cell."""
        self.prose: list[str] = []
        self.metadata = metadata

    def flush(self) -> None:
        """End the Markdown cell, unless it is empty in every respect."""
        source = "\n".join(self.prose).strip("\n")
        if source or self.metadata:
            self.cells.append(("markdown", self.metadata, source))
        self.start({})

    def code(self, body: list[str]) -> None:
        """Add a code cell."""
        options, lines = split_metadata(body)
        self.cells.append(("code", options, "\n".join(lines).strip("\n")))


def fenced(lines: Iterator[tuple[int, str]], fence: str, start: int) -> list:
    """Take the lines up to the closing fence."""
    body = []
    for _, line in lines:
        if line.rstrip() == fence:
            return body
        body.append(line)
    raise ValueError(f"line {start}: the code cell is not closed")


def to_cells(text: str) -> list[tuple[str, dict, str]]:
    """Read the text form into (kind, metadata, source) triples."""
    reader = Reader()
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if match := OPEN.match(line):
            reader.flush()
            reader.code(fenced(lines, match["fence"], number))
        elif line == "+++" or line.startswith("+++ "):
            reader.flush()
            reader.start(json.loads(line[3:].strip() or "{}"))
        else:
            reader.prose.append(line)
    reader.flush()
    return reader.cells


def to_notebook(text: str) -> nbformat.NotebookNode:
    """Build a notebook; a cell's id hangs on its text alone."""
    notebook = nbformat.v4.new_notebook(metadata=NOTEBOOK_METADATA)
    seen: dict[str, int] = {}
    for kind, metadata, source in to_cells(text):
        make = getattr(nbformat.v4, f"new_{kind}_cell")
        cell = make(source, metadata=metadata)
        digest = hashlib.sha256(f"{kind}\n{source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest + (f"-{seen[digest]}" * (seen[digest] > 1))
        notebook.cells.append(cell)
    nbformat.validate(notebook)
    return notebook


def code_text(metadata: dict, source: str) -> str:
    """Fence a code cell; the fence is longer than any inside it."""
    longest = max((len(run) for run in re.findall("`{3,}", source)), default=2)
    fence = "`" * (longest + 1)
    head = ""
    if set(metadata) == {"tags"}:
        head = f":tags: [{', '.join(metadata['tags'])}]\n"
    elif metadata:
        body = yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False)
        head = f"---\n{body}---\n"
    return f"{fence}{{code-cell}}\n{head}{source}\n{fence}"


def to_text(notebook: nbformat.NotebookNode) -> str:
    """Write the text form of a notebook, without outputs."""
    parts: list[str] = []
    after_prose = False
    for cell in notebook.cells:
        metadata = json.loads(json.dumps(cell.metadata))
        metadata.pop("execution", None)
        if cell.cell_type == "code":
            parts.append(code_text(metadata, cell.source))
        elif cell.cell_type == "markdown":
            if metadata:
                extra = json.dumps(metadata, ensure_ascii=False)
                parts.append(f"+++ {extra}")
            elif after_prose:
                parts.append("+++")
            parts.append(cell.source)
        else:
            raise ValueError(f"a {cell.cell_type} cell has no text form")
        after_prose = cell.cell_type == "markdown"
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Convert one file in the direction that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("direction", choices=["to-ipynb", "to-md"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    text = args.source.read_text(encoding="utf8")
    if args.direction == "to-ipynb":
        nbformat.write(to_notebook(text), args.target)
    else:
        notebook = nbformat.reads(text, as_version=4)
        args.target.write_text(to_text(notebook), encoding="utf8")


if __name__ == "__main__":
    main()
