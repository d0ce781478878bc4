"""Walks through the package: formula, statement and values, step by step."""

from collections.abc import Callable
from typing import Any

from dsarch.teaching.explorers.base import Explorer
from dsarch.teaching.walks import WALKS, Stage, formulas
from dsarch.teaching.walks.base import quoted


def _sources(functions: list[Callable[..., Any]]) -> dict[str, dict]:
    """Every function of a walk as it stands in its file, by name."""
    found = {}
    for function in functions:
        file, source, _ = quoted(function)
        found[function.__qualname__] = {"file": file, "source": source}
    return found


def _step(stage: Stage, first: dict[str, int]) -> dict[str, Any]:
    """A stage as the widget reads it; lines count from the function's."""
    moment = stage.moment
    return {
        "title": stage.title,
        "math": formulas()[stage.tex],
        "why": stage.why,
        "function": moment.function,
        "line": moment.line - first[moment.function],
        "code": moment.code,
        "grids": [grid._asdict() for grid in stage.grids],
        "say": stage.say,
    }


def _result(stage: Stage) -> str:
    """The first row of the first table, for a reader without scripts."""
    grid = stage.grids[0]
    more = ", …" if grid.whole or len(grid.rows) > 1 else ""
    return f"{grid.name}, {grid.rows[0]}: {', '.join(grid.cells[0])}{more}"


def walk(name: str = "attention") -> Explorer:
    """One of the four walks, recorded while this function runs.

    ``ValueError`` for a walk that does not exist, ``FileNotFoundError``
    where the package stands without the book and its weights.
    """
    if name not in WALKS:
        raise ValueError(f"walk {name!r} is none of {list(WALKS)}")
    found = WALKS[name]()
    first = {f.__qualname__: quoted(f)[2] for f in found.functions}
    return Explorer(
        "walk",
        {
            "steps": [_step(stage, first) for stage in found.stages],
            "sources": _sources(found.functions),
        },
        title=found.title,
        columns=["step", "code", "values", "what it says"],
        rows=[
            (s.title, s.moment.code, _result(s), s.say) for s in found.stages
        ],
        checks=found.checks,
        hint=found.hint,
    )
