"""What a walk is made of: stages, each a statement with its values."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsarch.analysis.watch import Moment, find, unwrapped
from dsarch.checkpoint import load_checkpoint
from dsarch.model import DeepSeek
from dsarch.teaching.pages import root
from dsarch.teaching.walks import words
from dsarch.train.tokenizer import BOS, decode, encode

SHOWN = 6
Check = tuple[str, list, object]


class Grid(NamedTuple):
    """A tensor as a table: names, cells as printed, and what stands out.

    ``whole`` holds all values, rounded, where ``cells`` shows only the first
    columns. ``marks`` are pairs of row and column.
    """

    name: str
    rows: list[str]
    columns: list[str]
    cells: list[list[str]]
    whole: list[list[float]]
    marks: list[list[int]]


class Stage(NamedTuple):
    """One step: title, formula, rule, the statement, its values, the news."""

    title: str
    tex: str
    why: str
    moment: Moment
    grids: list[Grid]
    say: str


class Walk(NamedTuple):
    """The stages of one run, the functions it ran, and numbers to check."""

    name: str
    title: str
    hint: str
    functions: list[Callable[..., Any]]
    stages: list[Stage]
    checks: list[Check]


class Run(NamedTuple):
    """The moments of a run, seen from one call of the functions."""

    walk: str
    moments: list[Moment]
    call: int

    def at(self, function: str, name: str, nth: int = 0) -> Moment:
        """The statement that bound ``name`` for the ``nth`` time."""
        return find(self.moments, function, name, nth=nth, call=self.call)

    def stage(
        self, key: str, moment: Moment, grids: list[Grid], say: str
    ) -> Stage:
        """A step with its words."""
        return Stage(*words.ALL[self.walk][key], moment, grids, say)


@cache
def model() -> DeepSeek:
    """The tiny trained DeepSeek in fp64."""
    folder = root() / "weights" / "tiny-pretrained"
    return load_checkpoint(folder, dtype=torch.float64)


def prompt(text: str, copies: int = 1) -> Tensor:
    """Tokens of a text that begins a document."""
    return torch.tensor([[BOS, *encode(text)]] * copies)


def letter(token: int) -> str:
    """A token as it is shown in a table."""
    if token == BOS:
        return "start"
    return decode([token]).replace(" ", "␣").replace("\n", "⏎")


def letters(tokens: Tensor) -> list[str]:
    """One label for each token."""
    return [letter(token) for token in tokens.flatten().tolist()]


def shown(value: float, digits: int) -> str:
    """A number of a table; without a sign where it rounds to zero."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if math.isnan(value):
        return "·"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("-", "−")


def grid(
    name: str,
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    digits: int = 2,
    most: int = SHOWN,
    marks: Sequence[Sequence[int]] = (),
) -> Grid:
    """A matrix as a table of at most ``most`` columns.

    ``ValueError`` if the names do not fit the matrix.
    """
    height, width = values.shape
    names = list(map(str, range(width))) if columns is None else list(columns)
    if len(rows) != height or len(names) != width:
        raise ValueError(
            f"{name} is {height} × {width}, but {len(rows)} rows and "
            f"{len(names)} columns are named"
        )
    cells = [[shown(x, digits) for x in row[:most]] for row in values.tolist()]
    whole = values.tolist() if width > most else []
    short = [[float(f"{x:.2g}") for x in row] for row in whole]
    cuts = [list(mark) for mark in marks]
    return Grid(name, list(rows), names[:most], cells, short, cuts)


def heads(count: int) -> list[str]:
    """Names of heads."""
    return [f"head {head}" for head in range(count)]


def steady(value: Any) -> Any:
    """Numbers to nine digits, on which all processors agree."""
    if isinstance(value, list):
        return [steady(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


@cache
def formulas() -> dict[str, str]:
    """MathML of every formula; ``python -m book.walk_formulas`` writes it."""
    path = files("dsarch.teaching.walks") / "formulas.json"
    return json.loads(path.read_text(encoding="utf8"))


def quoted(function: Callable[..., Any]) -> tuple[str, str, int]:
    """Name of the file, source and first line of a function."""
    bare = unwrapped(function)
    lines, first = inspect.getsourcelines(bare)
    place = bare.__module__.replace(".", "/") + ".py"
    return place, "".join(lines).rstrip(), first
