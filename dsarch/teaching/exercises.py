"""Exercises that check themselves: ``check("03.2", my_function)``.

Their texts, solutions and checks lie in the book's folder ``exercises``, one
module for each chapter; this file knows how to ask and how to answer.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch

from dsarch.teaching import progress as _progress
from dsarch.teaching.judge import Mistake, Unsolved, blank
from dsarch.teaching.pages import root


@dataclass(frozen=True)
class Wrong:
    """A catalogued wrong answer, as an edit of the solution.

    ``old`` stands exactly once in the solution and becomes ``new``; without
    ``old``, ``new`` is the whole answer. ``says`` is a piece of the message
    that a reader with this answer must see.
    """

    why: str
    says: str
    new: str
    old: str | None = None

    def source(self, solution: str) -> str:
        """The wrong answer as code; ``ValueError`` if the edit is unclear."""
        if self.old is None:
            return self.new
        if (found := solution.count(self.old)) != 1:
            raise ValueError(f"{self.old!r} stands {found} times, not once")
        return solution.replace(self.old, self.new)


@dataclass(frozen=True)
class Exercise:
    """One exercise; ``judge`` raises ``Mistake`` or ``Unsolved``.

    ``name`` is what the skeleton and the solution define. ``mutation`` names
    the catalogued mistake that a "find the bug" exercise shows.
    """

    id: str
    title: str
    difficulty: Literal[1, 2, 3, 4, 5]
    minutes: int
    task: str
    checks: str
    name: str
    skeleton: str
    solution: str
    hints: tuple[str, str, str]
    wrong: tuple[Wrong, ...]
    judge: Callable[[Any], None]
    mutation: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What ``check`` answers; a notebook shows its one-line text."""

    id: str
    state: Literal["solved", "unsolved", "wrong"]
    text: str

    def __repr__(self) -> str:
        return self.text


@cache
def module(number: str) -> ModuleType:
    """The exercise module of a chapter; ``ValueError`` if there is none."""
    path = root() / "exercises" / f"ch{number}.py"
    spec = importlib.util.spec_from_file_location(f"exercises{number}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"chapter {number!r} has no exercises")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def chapter(number: str) -> dict[str, Exercise]:
    """The exercises of one chapter, by id."""
    return {exercise.id: exercise for exercise in module(number).EXERCISES}


def find(id: str) -> Exercise:
    """The exercise ``id``; ``ValueError`` names the ids that exist."""
    known = chapter(id.split(".")[0])
    if id not in known:
        raise ValueError(f"no exercise {id!r}; there are {', '.join(known)}")
    return known[id]


def check(
    id: str, answer: Any, by: Literal["reader", "book"] = "reader"
) -> Verdict:
    """Judge an answer and say so in one line.

    A skeleton that nobody touched is "not solved yet", never an error. The
    reader's own solutions are noted for :func:`progress`; the book's, which
    pass ``by="book"``, are not. The global random state stays as it was.
    """
    exercise = find(id)
    verdict = _judge(exercise, answer, by)
    if verdict.state == "solved" and by == "reader":
        _progress.note(id)
    return verdict


def _judge(exercise: Exercise, answer: Any, by: str) -> Verdict:
    id = exercise.id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            if blank(answer):
                raise Unsolved
            exercise.judge(answer)
        except Unsolved:
            text = f'○ {id} is not solved yet. A hint: hint("{id}", 1)'
            return Verdict(id, "unsolved", text)
        except Mistake as mistake:
            text = f"✗ {id} is not right yet: {mistake}"
            return Verdict(id, "wrong", text)
    whose = "" if by == "reader" else "by the book's answer"
    text = f"✓ {id} is solved {whose}".rstrip()
    return Verdict(id, "solved", f"{text}. Checked: {exercise.checks}")


def hint(id: str, step: int = 1) -> None:
    """Print one of three hints, from a nudge (1) to nearly the answer (3).

    Raises ``ValueError`` for any other step.
    """
    hints = find(id).hints
    if not 1 <= step <= len(hints):
        raise ValueError(f"hint {step} does not exist; there are 1 to 3")
    print(f"Hint {step} of {len(hints)} for {id}: {hints[step - 1]}")


def progress() -> None:
    """Print what the reader has solved so far, chapter by chapter."""
    solved = _progress.solved()
    for path in sorted((root() / "exercises").glob("ch[0-9][0-9].py")):
        known = chapter(path.stem[2:])
        row = " ".join(f"{'✓' if i in solved else '○'} {i}" for i in known)
        done = len(solved & known.keys())
        print(f"Chapter {path.stem[2:]}: {done} of {len(known)}   {row}")
