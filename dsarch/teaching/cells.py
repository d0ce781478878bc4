"""The cells by which an exercise stands in its chapter.

``python -m dsarch.teaching.cells chapters/03-*.ipynb`` writes the exercises
of a chapter below its heading "Exercises", or renews the ones that stand
there; a test keeps them equal to the registry.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from dsarch.teaching.exercises import Exercise, chapter
from dsarch.teaching.pages import key

OURS = re.compile(r"(task|exercise|help|solution|end)-\d\d\.\d+")
HEADING = "## Exercises"


def sources(exercise: Exercise) -> dict[str, str]:
    """The five cells of an exercise: what stands in each."""
    id, name = exercise.id, exercise.name
    own = f'check("{id}", {name})'
    book = f'check("{id}", {name}, by="book")'
    return {
        "task": _task(exercise),
        "exercise": f"{exercise.skeleton.strip()}\n\n\n{own}",
        "help": _help(exercise),
        "solution": f"{exercise.solution.strip()}\n\n\n{book}",
        "end": "```{solution-end}\n```",
    }


def label(exercise: Exercise) -> str:
    """How the text refers to an exercise: ``ex-03-2``."""
    return "ex-" + exercise.id.replace(".", "-")


def _task(exercise: Exercise) -> str:
    level = "●" * exercise.difficulty + "○" * (5 - exercise.difficulty)
    return (
        f"```{{exercise-start}} {exercise.title}\n"
        f":label: {label(exercise)}\n```\n\n"
        f"**Exercise {exercise.id}** · difficulty {level} · about "
        f"{exercise.minutes} minutes · checked: {exercise.checks}\n\n"
        f"{exercise.task.strip()}"
    )


def _help(exercise: Exercise) -> str:
    hints = "\n\n".join(
        f":::{{dropdown}} Hint {step}\n\n{text.strip()}\n\n:::"
        for step, text in enumerate(exercise.hints, 1)
    )
    name = label(exercise)
    return (
        "```{exercise-end}\n```\n\n"
        f"{hints}\n\n"
        f"```{{solution-start}} {name}\n"
        f":label: sol-{name[3:]}\n:class: dropdown\n```"
    )


def make(exercise: Exercise) -> list[dict[str, Any]]:
    """The five cells as a notebook stores them, not executed."""
    made = []
    for part, source in sources(exercise).items():
        code = part in ("exercise", "solution")
        cell: dict[str, Any] = {
            "cell_type": "code" if code else "markdown",
            "id": f"{label(exercise)}-{part}",
            "metadata": {"tags": [f"{part}-{exercise.id}"]},
            "source": source.splitlines(keepends=True),
        }
        if code:
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    return made


def _is_ours(cell: dict[str, Any]) -> bool:
    tags = cell["metadata"].get("tags", [])
    return any(OURS.fullmatch(tag) for tag in tags)


def insert(path: Path) -> int:
    """Write a chapter's exercises into its notebook; return their number.

    Raises ``ValueError`` if the notebook has no heading for them.
    """
    notebook = json.loads(path.read_text(encoding="utf8"))
    exercises = chapter(key(path)).values()
    kept = [c for c in notebook["cells"] if not _is_ours(c)]
    at = [
        number
        for number, cell in enumerate(kept)
        if cell["cell_type"] == "markdown"
        and HEADING in "".join(cell["source"]).splitlines()
    ]
    if len(at) != 1:
        raise ValueError(f"{path.name} has {len(at)} headings {HEADING!r}")
    new = [cell for exercise in exercises for cell in make(exercise)]
    start = at[0] + 1
    # the imports that the exercises need stay in front of them
    while start < len(kept) and kept[start]["cell_type"] == "code":
        start += 1
    notebook["cells"] = kept[:start] + new + kept[start:]
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf8")
    return len(exercises)


def main() -> None:
    """Renew the exercises of the notebooks named on the command line."""
    for name in sys.argv[1:]:
        print(f"{name}: {insert(Path(name))} exercises")


if __name__ == "__main__":
    main()
