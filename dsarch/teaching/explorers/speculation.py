"""The speculation explorer: gain by formula, and recorded rounds."""

import json
from functools import cache
from typing import Any

from dsarch.analysis.speculation import (
    best_drafts,
    speedup,
    tokens_per_pass,
)
from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.teaching.pages import root

HINT = (
    "a chance of 0.9 and free drafts, then let one more token cost 0.5: how "
    "many drafts pay? In the recorded rounds, find the first refused draft "
    "and see which tokens may replace it."
)
START = {"chance": 0.85, "draft": 0.05, "extra": 0.0, "drafts": 1}


@cache
def recorded() -> dict[str, Any]:
    """What ``python -m benchmarks.mtp`` wrote, command and seeds inside.

    ``FileNotFoundError`` where the package stands without the book.
    """
    path = root() / "chapters" / "data" / "mtp.json"
    return json.loads(path.read_text(encoding="utf8"))


def keep(p: float, q: float) -> float:
    """The chance that a draft with these probabilities is kept."""
    return min(1.0, p / q)


def _checks() -> list[Check]:
    checks: list[Check] = []
    for chance in (0.5, 0.7, 0.9):
        for drafts in (1, 3, 4):
            args: list[Any] = [chance, drafts]
            checks.append(("tokensPerPass", args, tokens_per_pass(*args)))
            args = [*args, 0.1, 0.2]
            checks.append(("speedup", args, speedup(*args)))
        args = [chance, 0.1, 0.2, 12]
        checks.append(("bestDrafts", args, best_drafts(*args)))
    checks.append(("keep", [0.3, 0.4], keep(0.3, 0.4)))
    return checks


def _rows() -> list[tuple[str, ...]]:
    return [
        (f"{a}", *(f"{tokens_per_pass(a, k):.2f}" for k in (1, 2, 3, 4)))
        for a in (0.5, 0.7, 0.85, 0.9, 0.95)
    ]


def speculation() -> Explorer:
    """Speed-up curves by closed formula; rounds of the tiny DeepSeek.

    ``FileNotFoundError`` without the book.
    """
    shown = recorded()["shown"]
    return Explorer(
        "speculation",
        {**START, "shown": shown, "domains": list(shown)},
        title="How many tokens does one pass give?",
        columns=["chance to be kept", *(f"{k} drafts" for k in (1, 2, 3, 4))],
        rows=_rows(),
        checks=_checks(),
        hint=HINT,
    )
