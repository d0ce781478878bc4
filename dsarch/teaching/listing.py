"""Show a piece of the package, and its Rust twin where there is one."""

import inspect
from importlib import import_module
from pathlib import Path
from textwrap import dedent

from dsarch.teaching.pages import root


class Listing:
    """Source code as a cell output: one language, or two tabs.

    The text comes from the files themselves, so a stored output that differs
    from the package fails the comparison of outputs.
    """

    def __init__(self, python: str, rust: str | None) -> None:
        self.python, self.rust = python, rust

    def __repr__(self) -> str:
        return self.python

    def _repr_markdown_(self) -> str:
        python = f"```python\n{self.python}\n```"
        if self.rust is None:
            return python
        rust = f"```rust\n{self.rust}\n```"
        tabs = [("Python", python), ("Rust", rust)]
        return "\n".join(
            [
                "`````{tab-set}",
                ":sync-group: language",
                *(_tab(name, code) for name, code in tabs),
                "`````",
            ]
        )


def _tab(name: str, code: str) -> str:
    head = f"````{{tab-item}} {name}\n:sync: {name.lower()}\n"
    return f"{head}\n{code}\n````"


def listing(python: str, rust: str | None = None) -> Listing:
    """Quote ``python`` (``"mla.MLA.forward"``) and its ``rust`` twin.

    ``rust`` is ``"mla.rs#forward"``: a file of the crate and an anchor in
    it. Raises ``ValueError`` if the object or the anchor is not there.
    """
    return Listing(_python(python), rust and _rust(*rust.split("#")))


def _python(name: str) -> str:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = import_module(".".join(["dsarch", *parts[:cut]]))
            for part in parts[cut:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        return dedent(inspect.getsource(found)).rstrip()
    raise ValueError(f"dsarch has no {name!r}")


def _rust(file: str, anchor: str) -> str:
    path: Path = root() / "rust" / "src" / file
    lines = path.read_text(encoding="utf8").splitlines()
    marks = [f"// {word}: {anchor}" for word in ("ANCHOR", "ANCHOR_END")]
    try:
        first, last = (
            next(i for i, line in enumerate(lines) if line.strip() == mark)
            for mark in marks
        )
    except StopIteration:
        raise ValueError(f"{file} has no anchor {anchor!r}") from None
    # A class encloses the marks of its methods, which the reader need not see.
    shown = [
        line
        for line in lines[first + 1 : last]
        if not line.strip().startswith("// ANCHOR")
    ]
    return dedent("\n".join(shown))
