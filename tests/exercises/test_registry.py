"""Every exercise accepts what is right and answers what is wrong."""

import ast
import inspect
import types
from typing import Any

import pytest
import torch

import dsarch
from dsarch.teaching import exercises, judge, pages
from dsarch.teaching.exercises import Exercise, Verdict, Wrong

MODULES = sorted((pages.root() / "exercises").glob("ch[0-9][0-9].py"))
ALL = [
    exercise
    for path in MODULES
    for exercise in exercises.chapter(path.stem[2:]).values()
]


def answer(exercise: Exercise, source: str) -> Any:
    """What a reader has defined after running this cell."""
    namespace: dict = {"__name__": "__main__"}
    exec(exercises.module(exercise.id[:2]).SETUP, namespace)
    exec(source, namespace)
    return namespace[exercise.name]


def verdict(exercise: Exercise, source: str) -> Verdict:
    given = answer(exercise, source)
    return exercises.check(exercise.id, given, by="book")


def each(items: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("exercise", items, ids=lambda e: e.id)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_chapter_has_five_and_ends_with_the_official_layer(path) -> None:
    number = path.stem[2:]
    ids = list(exercises.chapter(number))
    assert len(ids) >= 5
    assert ids == [f"{number}.{i}" for i in range(1, len(ids) + 1)]
    last = exercises.chapter(number)[ids[-1]]
    assert "dsarch." in last.checks, "the last one names the official code"


@each(ALL)
def test_the_skeleton_is_unsolved(exercise: Exercise) -> None:
    result = verdict(exercise, exercise.skeleton)
    assert result.state == "unsolved", result
    assert f'hint("{exercise.id}", 1)' in repr(result)


@each(ALL)
def test_the_solution_passes(exercise: Exercise) -> None:
    assert verdict(exercise, exercise.solution).state == "solved"


@pytest.mark.parametrize(
    ("exercise", "wrong"),
    [
        pytest.param(exercise, wrong, id=f"{exercise.id}-{wrong.why}")
        for exercise in ALL
        for wrong in exercise.wrong
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(
    exercise: Exercise, wrong: Wrong
) -> None:
    result = verdict(exercise, wrong.source(exercise.solution))
    assert result.state == "wrong"
    assert wrong.says in result.text


@each(ALL)
def test_wrong_answers_get_different_messages(exercise: Exercise) -> None:
    says = [wrong.says for wrong in exercise.wrong]
    assert len(says) >= 2
    assert len(set(says)) >= 2


def signatures(made: Any) -> dict[str, inspect.Signature]:
    """The signature of a function, or of each method of a class."""
    if inspect.isclass(made):
        return {
            name: inspect.signature(member)
            for name, member in vars(made).items()
            if isinstance(member, types.FunctionType)
        }
    return {made.__name__: inspect.signature(made)} if callable(made) else {}


@each(ALL)
def test_skeleton_and_solution_share_their_signature(
    exercise: Exercise,
) -> None:
    skeleton = signatures(answer(exercise, exercise.skeleton))
    solution = signatures(answer(exercise, exercise.solution))
    assert skeleton.items() <= solution.items()


@each(ALL)
def test_the_cells_fit_the_page(exercise: Exercise) -> None:
    for source in (exercise.skeleton, exercise.solution):
        lines = source.strip().splitlines()
        assert len(lines) + 3 <= 25, "three more lines hold the check"
        assert max(map(len, lines)) <= 80
    names = [*exercise.hints, exercise.task, exercise.checks, exercise.title]
    assert all(text.strip() for text in names)
    assert exercise.minutes > 0


@each(ALL)
def test_no_name_hides_what_the_chapter_uses(exercise: Exercise) -> None:
    tree = ast.parse(exercise.solution + exercise.skeleton)
    defined = {getattr(node, "name", "") for node in tree.body}
    assert exercise.name in defined
    namespace: dict = {}
    exec(exercises.module(exercise.id[:2]).SETUP, namespace)
    assert not defined & {*dsarch.__all__, *namespace}


@each(ALL)
def test_a_check_leaves_the_random_state_alone(exercise: Exercise) -> None:
    before = torch.get_rng_state()
    verdict(exercise, exercise.solution)
    assert torch.equal(before, torch.get_rng_state())


def test_judge_reads_numbers_parts_and_shapes() -> None:
    one = torch.ones(2, 3)
    assert judge.agree(one, one + 1e-7)
    assert not judge.agree(one, one + 1e-3)
    assert not judge.agree(one, torch.ones(1, 3))
    assert not judge.agree(torch.tensor([1]), torch.tensor([True]))
    assert judge.agree((1, [one]), (1.0, [one]))
    assert not judge.agree((1, one, 2), (1, one))
    assert not judge.agree(one.double() + 1e-8, one.double())
    assert not judge.agree(torch.full((2, 3), torch.nan), one)
