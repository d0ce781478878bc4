"""The local values of functions while they run, statement by statement."""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import dedent
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import Tensor

RETURN = "return"


class Moment(NamedTuple):
    """One statement that ran, and what it bound.

    ``code`` is quoted from the file that ran. ``values`` holds copies of the
    locals that the statement bound anew, and under ``return`` what it gave
    back; a change inside an object that keeps its name is not seen. ``call``
    counts the calls of ``function`` from 0.
    """

    function: str
    call: int
    line: int
    code: str
    values: dict[str, Any]


class Source(NamedTuple):
    """A watched function: its name and its statements by line."""

    name: str
    lines: dict[int, tuple[int, str]]


@contextmanager
def watch(*functions: Callable[..., Any]) -> Iterator[list[Moment]]:
    """Collect every statement of ``functions`` that runs in the block.

    Nothing is changed or computed again: the interpreter reports the lines
    of the real functions, generators included. ``ValueError`` for something
    without Python source.
    """
    sources = dict(map(_source, functions))
    moments: list[Moment] = []
    tracer = _Tracer(sources, moments)
    before = sys.gettrace()
    sys.settrace(tracer.enter)
    try:
        yield moments
    finally:
        sys.settrace(before)


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function below its decorators: the one whose lines run."""
    return inspect.unwrap(function)


def _source(function: Callable[..., Any]) -> tuple[CodeType, Source]:
    bare = unwrapped(function)
    if not inspect.isfunction(bare):
        raise ValueError(f"{function!r} is no Python function to watch")
    text, first = inspect.getsourcelines(bare)
    tree = ast.parse(dedent("".join(text)))
    lines: dict[int, tuple[int, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node is not tree.body[0]:
            begin, end = node.lineno, node.end_lineno or node.lineno
            if body := getattr(node, "body", None):
                end = max(begin, body[0].lineno - 1)
            code = dedent("".join(text[begin - 1 : end])).rstrip()
            place = first + begin - 1
            for line in range(place, first + end):
                lines[line] = (place, code)
    return bare.__code__, Source(bare.__qualname__, lines)


class _Tracer:
    """What the interpreter calls for every line of a watched function."""

    def __init__(
        self, sources: dict[CodeType, Source], moments: list[Moment]
    ) -> None:
        self.sources, self.moments = sources, moments
        self.calls: dict[FrameType, int] = {}
        self.counts: dict[CodeType, int] = {}

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Follow a frame only if its function is watched."""
        code = frame.f_code
        if event != "call" or code not in self.sources:
            return None
        if frame not in self.calls:
            self.calls[frame] = self.counts.get(code, 0)
            self.counts[code] = self.calls[frame] + 1
        return self._follow(frame)

    def _follow(self, frame: FrameType) -> Callable[..., Any]:
        source, call = self.sources[frame.f_code], self.calls[frame]
        seen = dict(frame.f_locals)
        running: list[tuple[int, str]] = []

        def note(values: dict[str, Any]) -> None:
            for name, value in frame.f_locals.items():
                if name not in seen or seen[name] is not value:
                    values[name], seen[name] = copied(value), value
            if running:
                line, code = running.pop()
                moment = Moment(source.name, call, line, code, values)
                self.moments.append(moment)

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "line":
                here = source.lines.get(frame.f_lineno)
                if here and running != [here]:
                    note({})
                    running.append(here)
            elif event == "return":
                note({RETURN: copied(arg)})
            return local

        return local


def copied(value: Any) -> Any:
    """Tensors as they are now, also inside tuples and lists."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if isinstance(value, tuple | list):
        return type(value)(map(copied, value))
    return value


def find(
    moments: list[Moment], function: str, name: str, *, nth: int = 0, call: int
) -> Moment:
    """The statement that bound ``name`` for the ``nth`` time in a call.

    ``function`` is the last part of its name. ``ValueError`` if none did.
    """
    fits = [
        moment
        for moment in moments
        if moment.function.split(".")[-1] == function.split(".")[-1]
        and moment.function.endswith(function)
        and moment.call == call
        and name in moment.values
    ]
    if nth >= len(fits):
        raise ValueError(
            f"call {call} of {function} bound {name!r} {len(fits)} times, "
            f"not {nth + 1}"
        )
    return fits[nth]
