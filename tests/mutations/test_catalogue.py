"""The catalogue fits the package, and the runner tells dead from alive."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dsarch.teaching import exercises, pages
from tests.mutations import (
    HOUSE,
    Mutation,
    catalogue,
    golden,
    problems,
    snippet,
)
from tests.mutations.run import run

ALL = catalogue()


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: m.id)
def test_a_mutation_applies_once_and_names_its_test(
    mutation: Mutation,
) -> None:
    assert problems(mutation) == []


def test_every_chapter_has_at_least_five() -> None:
    assert len({m.id for m in ALL}) == len(ALL)
    count = Counter(m.id[:2] for m in ALL)
    for chapter in {pages.key(path) for path in pages.chapters()} | {*count}:
        assert count[chapter] >= 5, f"chapter {chapter}: {count[chapter]}"


def test_bug_hunts_show_catalogued_mistakes() -> None:
    known = {m.id for m in ALL}
    for path in (HOUSE / "exercises").glob("ch[0-9][0-9].py"):
        for exercise in exercises.chapter(path.stem[2:]).values():
            assert exercise.mutation is None or exercise.mutation in known


SOUND = Mutation(
    id="99.example",
    file="dsarch/attention.py",
    old="groups.mean(1)",
    new="groups.sum(1)",
    story="Pooled heads are too long.",
    tests=("tests/test_attention.py::test_pooling_averages_inside_each_group",),
)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"old": "groups.median(1)"}, "stands 0 times"),
        ({"old": "kv_heads"}, "times"),
        ({"new": "groups.mean(1)"}, "nothing is changed"),
        ({"new": "groups..mean(1)"}, "invalid syntax"),
        ({"file": "dsarch/absent.py"}, "No such file"),
        ({"tests": ("tests/test_attention.py::test_absent",)}, "no test"),
        ({"tests": ()}, "no test is named"),
        ({"story": "bad"}, "no sentence"),
    ],
)
def test_a_faulty_entry_is_noticed(change: dict, problem: str) -> None:
    faulty = Mutation(**{**vars(SOUND), **change})
    assert any(problem in found for found in problems(faulty))
    assert problems(SOUND) == []


def test_the_bug_is_shown_in_its_function_without_the_answer() -> None:
    text = snippet(SOUND)
    assert text.startswith("def pool_heads(")
    assert "groups.sum(1)" in text and "groups.mean(1)" not in text
    assert "Average" not in text, "the docstring would give the bug away"


def test_what_no_vector_can_show_is_catalogued() -> None:
    assert golden.INVISIBLE.keys() <= {m.id for m in ALL}
    assert all(reason.endswith(".") for reason in golden.INVISIBLE.values())


def test_a_mutation_touches_the_vectors_that_run_its_lines() -> None:
    """In signatures and functions by their lines, else by the name."""
    ran = golden.traces("-k", "stale and (rope or cache)")
    tests = [test.split("[")[-1] for test in ran]
    assert sorted(tests) == ["cache]", "rope]"]
    by = {m.id: m.tests for m in golden.aimed(ALL, ran)}
    for id, name in (
        ("04.ramp-not-rounded", "rope]"),
        ("04.pairs-counted-twice", "rope]"),
        ("01.crop-keeps-one", "cache]"),
    ):
        assert [test.split("[")[-1] for test in by[id]] == [name], id
    assert not {"02.pool-adds", "09.epsilon-of-another-library"} & {*by}
    assert golden.aimed(ALL, {"grpo": {"STD_EPS"}})[0].tests == ("grpo",)
    absent = replace(SOUND, old="absent")
    assert golden.aimed([SOUND, absent], {}) == [absent]


def test_new_lines_are_touched_by_those_around_them() -> None:
    assert golden.edited("a\nb\nc", "a\nB\nc") == {2}
    assert golden.edited("a\nb\nc", "a\nc") == {2}
    assert golden.edited("a\nb\nc", "a\nb\nnew\nc") == {2, 3}
    assert golden.edited("a\na\na", "a\na\na\na") == {3, 4}


def test_golden_verdicts_that_are_not_expected_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = replace(SOUND, id="99.hidden")
    monkeypatch.setattr(golden, "INVISIBLE", {"99.hidden": "It is fast."})

    def faults(shown: str | None, listed: str | None) -> list[str]:
        verdicts = {SOUND.id: shown, hidden.id: listed}
        known = {id: verdict for id, verdict in verdicts.items() if verdict}
        return golden.faults([SOUND, hidden], known)

    assert faults("killed", "survived") == faults(None, "survived") == []
    assert faults("survived", "survived") == ["99.example is not caught"]
    assert faults("broken", "survived") == ["99.example is not caught"]
    assert faults("killed", "killed") == [
        "99.hidden is listed, but a vector shows it"
    ]
    assert faults("killed", None) == [
        "99.hidden is listed, but touches no vector"
    ]


@pytest.mark.slow
def test_the_runner_tells_killed_from_survived(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (HOUSE / SOUND.file).read_text(encoding="utf8")
    harmless = Mutation(
        **{**vars(SOUND), "id": "99.harmless", "new": "1 * groups.mean(1)"}
    )
    absent = Mutation(**{**vars(SOUND), "id": "99.absent", "old": "absent"})
    verdicts = run([SOUND, harmless, absent], jobs=2)
    assert verdicts == {
        "99.example": "killed",
        "99.harmless": "survived",
        "99.absent": "broken",
    }, capsys.readouterr().out
    assert (HOUSE / SOUND.file).read_text(encoding="utf8") == before
