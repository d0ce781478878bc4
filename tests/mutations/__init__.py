"""Plausible mistakes, planted one at a time: would the tests notice?"""

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
KINDS = (ast.FunctionDef, ast.ClassDef)
CATALOGUE = Path(__file__).parent / "catalogue"


@dataclass(frozen=True)
class Mutation:
    """One mistake: an exact edit of the package, and who must notice it.

    `old` stands exactly once in `file` and becomes `new`. `story` tells in
    one sentence what a victim of the mistake sees. Every test in `tests` is
    run; the first that fails kills the mutant.
    """

    id: str
    file: str
    old: str
    new: str
    story: str
    tests: tuple[str, ...]

    def plant(self, source: str) -> str:
        """Edit the source; `ValueError` unless the place is unambiguous."""
        if (found := source.count(self.old)) != 1:
            raise ValueError(f"{self.id}: the old text stands {found} times")
        if self.old == self.new:
            raise ValueError(f"{self.id}: nothing is changed")
        return source.replace(self.old, self.new)


def catalogue() -> list[Mutation]:
    """All mutations, in the order of the chapters."""
    found = []
    for path in sorted(CATALOGUE.glob("ch[0-9][0-9].py")):
        name = f"tests.mutations.catalogue.{path.stem}"
        found += importlib.import_module(name).MUTATIONS
    return found


def problems(mutation: Mutation, house: Path = HOUSE) -> list[str]:
    """What is wrong with a catalogue entry, before anything is run."""
    found = []
    try:
        source = (house / mutation.file).read_text(encoding="utf8")
        ast.parse(mutation.plant(source))
    except (OSError, ValueError, SyntaxError) as error:
        found.append(str(error))
    if not mutation.story.strip().endswith("."):
        found.append("the story is no sentence")
    if not mutation.tests:
        found.append("no test is named")
    for name in mutation.tests:
        path, _, test = name.partition("::")
        test = test.partition("[")[0]
        if test not in defined(house / path):
            found.append(f"there is no test {name}")
    return found


def defined(path: Path) -> set[str]:
    """The test functions of a file."""
    if not path.is_file():
        return set()
    body = ast.parse(path.read_text(encoding="utf8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def snippet(mutation: Mutation, house: Path = HOUSE) -> str:
    """The planted function or class, as a "find the bug" exercise shows it."""
    source = (house / mutation.file).read_text(encoding="utf8")
    planted = mutation.plant(source)
    at = source[: source.index(mutation.old)].count("\n") + 1
    last = at + mutation.new.count("\n")
    around = [
        node
        for node in ast.walk(ast.parse(planted))
        if isinstance(node, KINDS)
        and node.lineno <= at
        and last <= (node.end_lineno or 0)
    ]
    inner = max(around, key=lambda node: node.lineno, default=None)
    if inner is None:
        raise ValueError(f"{mutation.id} lies in no function")
    for node in ast.walk(inner):
        if isinstance(node, KINDS) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return ast.unparse(inner)
