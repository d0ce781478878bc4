"""Which planted mistakes the golden vectors have to show.

A mutation touches a vector if a statement that it edits runs in a golden
test: while Python makes the vector again, or compares another form with it.
Then that test has to fail; else a port could make the same mistake and still
reproduce the file. What no vector can show is in ``INVISIBLE``.

    python -m tests.mutations --golden
"""

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest

from tests.mutations import HOUSE, Mutation

PACKAGE = str(HOUSE / "dsarch") + os.sep
# Mutations that run for a vector and yet leave it as it is, and why.
GRADIENT = "Only a gradient differs, one that the port does not have."
REFUSAL = "A refusal, not a value; the port's own tests have theirs."
SPEED = "The other form, of equal value, at another speed."
INVISIBLE = {
    "01.softmax-narrows": "It costs digits of fp64; the files hold fp32.",
    "02.uneven-groups-pass": REFUSAL,
    "03.form-chosen-backwards": SPEED,
    "06.block-of-any-matrices": "It shows once a matrix was exchanged.",
    "06.gradient-through-the-bias": GRADIENT,
    "06.vectors-cut-in-half": "It shows with two threads, in the last bit.",
    "07.state-cut-off": GRADIENT,
    "08.float64-rounded-twice": "It takes a number that fp32 does not have.",
    "14.dense-after-all": SPEED,
    "14.trunk-not-detached": GRADIENT,
    "14.window-into-the-file": "It shows when the file is overwritten.",
    "14.nan-let-in": REFUSAL,
    "14.copies-believed": REFUSAL,
    "14.end-not-checked": REFUSAL,
    "14.shape-not-checked": REFUSAL,
    "14.half-written-folder": "It shows when the machine stops halfway.",
}


class Tracer:
    """A plugin of pytest: what of the package each test runs, how long.

    Lines as ``dsarch/rope.py:33``, and the names that their code uses.
    """

    def __init__(self) -> None:
        self.ran: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_setup(self) -> None:
        from tests.golden import models

        models.whole.cache_clear()  # or the first test alone would make it

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.now = self.ran[item.nodeid] = set()
        start, before = time.monotonic(), sys.gettrace()
        sys.settrace(self.note)
        try:
            return (yield)
        finally:
            sys.settrace(before)
            self.seconds[item.nodeid] = time.monotonic() - start

    def note(self, frame: FrameType, event: str, value: object) -> Any:
        """Called by the interpreter for every call and every line."""
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        if event == "call":
            self.now.update(code.co_names)
        file = Path(code.co_filename).relative_to(HOUSE).as_posix()
        self.now.add(f"{file}:{frame.f_lineno}")
        return self.note


def traces(*options: str) -> dict[str, set[str]]:
    """What each golden test runs, the fastest first.

    In a new interpreter: the forks of the runner would inherit the package.
    """
    with TemporaryDirectory() as place:
        path = Path(place) / "traces.json"
        module = [sys.executable, "-m", "tests.mutations.golden", str(path)]
        done = subprocess.run(
            [*module, *options], cwd=HOUSE, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"golden tests fail: {done.stdout[-2000:]}")
        found = json.loads(path.read_text(encoding="utf8"))
    return {test: {*ran} for test, ran in found.items()}


def places(mutation: Mutation) -> set[str]:
    """What a trace holds one of if the mutation touches it.

    Lines of the edited statements; outside of functions, which run on import
    and not for a vector, the names that they bind.
    """
    source = (HOUSE / mutation.file).read_text(encoding="utf8")
    tree, edit = ast.parse(source), edited(source, mutation.plant(source))
    nodes = [*ast.walk(tree)]
    inside = {
        line
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    found = set()
    for node in nodes:
        if isinstance(node, ast.stmt) and (lines := span(node)) & edit:
            found |= {f"{mutation.file}:{line}" for line in lines}
            found |= bound(node) if not lines & inside else set()
    return found


def edited(before: str, after: str) -> set[int]:
    """The lines that differ; both neighbours of lines that are only new."""
    old, new = before.splitlines(), after.splitlines()
    same = len(os.path.commonprefix([old, new]))
    ends = [lines[same:][::-1] for lines in (old, new)]
    last = len(old) - len(os.path.commonprefix(ends))
    return {*range(min(same + 1, last), max(same + 1, last) + 1)}


def span(node: ast.stmt) -> set[int]:
    """The lines of a statement, without those of the ones in it."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(x.lineno for x in decorators)])
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if body else node.end_lineno or 0
    return {*range(first, max(node.lineno, last) + 1)}


def bound(node: ast.stmt) -> set[str]:
    """The names that an assignment gives a value."""
    return {
        x.id
        for x in ast.walk(node)
        if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
    }


def aimed(
    mutations: list[Mutation], ran: dict[str, set[str]]
) -> list[Mutation]:
    """Those that touch a vector, each with the golden tests it touches.

    One that does not apply is kept, for the runner to say so.
    """
    found = []
    for mutation in mutations:
        try:
            where = places(mutation)
        except (OSError, ValueError):
            found.append(mutation)
            continue
        if tests := tuple(test for test in ran if where & ran[test]):
            found.append(replace(mutation, tests=tests))
    return found


def faults(mutations: list[Mutation], verdicts: dict[str, str]) -> list[str]:
    """What is not as it has to be: hidden, shown after all, not touched."""
    found = []
    for id in (mutation.id for mutation in mutations):
        verdict, expected = verdicts.get(id), id in INVISIBLE
        if verdict is None and expected:
            found.append(f"{id} is listed, but touches no vector")
        elif verdict == "killed" and expected:
            found.append(f"{id} is listed, but a vector shows it")
        elif verdict not in (None, "killed") and not expected:
            found.append(f"{id} is not caught")
    return found


def main(path: str, *options: str) -> int:
    """Write what each golden test runs to a file."""
    tracer = Tracer()
    plain = ["-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    status = pytest.main(
        [*plain, *options, "tests/golden/test_golden.py"], plugins=[tracer]
    )
    fastest = sorted(tracer.ran, key=lambda test: tracer.seconds[test])
    found = {test: sorted(tracer.ran[test]) for test in fastest}
    Path(path).write_text(json.dumps(found), encoding="utf8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
