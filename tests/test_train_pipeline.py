"""Simulated pipelines: sound schedules whose bubbles equal the formulas."""

import pytest

from dsarch.train import pipeline
from dsarch.train.timeline import order_errors

SIZES = ((2, 4), (4, 8), (4, 10), (6, 14), (8, 20))
# F, B, W and F&B; the published DualPipe formula takes B = 2F = 2W.
TIMES = (
    pipeline.Times(),
    pipeline.Times(3, 5, 2, 7),
    pipeline.Times(1, 2.5, 0.75, 3.25),
)


@pytest.mark.parametrize(("stages", "micros"), SIZES)
@pytest.mark.parametrize("name", ("gpipe", "1f1b", "zero_bubble"))
@pytest.mark.parametrize("times", TIMES)
def test_bubbles_equal_the_formula(name, stages, micros, times):
    line = pipeline.simulate(pipeline.SCHEDULES[name](stages, micros), times)
    expected = pipeline.bubble(name, stages, times)
    assert line.bubble == pytest.approx(expected)
    work = micros * (times.forward + times.backward)
    assert line.makespan == pytest.approx(work + expected)


@pytest.mark.parametrize(("stages", "micros"), SIZES)
@pytest.mark.parametrize("name", ("dualpipe", "dualpipe_v"))
def test_dualpipe_equals_its_formula(name, stages, micros):
    program = pipeline.SCHEDULES[name](stages, micros)
    line = pipeline.simulate(program)
    expected = pipeline.bubble(name, stages)
    assert [line.idle(d) for d in range(line.devices)] == pytest.approx(
        [expected] * line.devices
    )


def test_dualpipes_formula_is_for_its_own_times():
    """With other times the middle devices still meet it or wait less."""
    for times in TIMES[1:]:
        line = pipeline.simulate(pipeline.dualpipe(8, 20), times)
        assert line.bubble <= pipeline.bubble("dualpipe", 8, times) + 1e-9


def test_v3_table_2(witness):
    """Eight stages: 21 for 1F1B, 7 for zero bubble, 6 for DualPipe."""
    bubbles = [
        pipeline.simulate(pipeline.SCHEDULES[name](8, 20)).bubble
        for name in ("1f1b", "zero_bubble", "dualpipe")
    ]
    assert bubbles == [21, 7, 6]
    told = [pipeline.bubble(n, 8) for n in ("1f1b", "zero_bubble", "dualpipe")]
    assert told == bubbles
    witness(
        "eq-bubble",
        max(abs(a - b) for a, b in zip(told, bubbles, strict=True)),
        code="dsarch.train.pipeline.bubble",
        reference="V3 report, table 2, and a simulator without formulas",
    )


def test_a_schedule_without_formula_is_named():
    with pytest.raises(ValueError, match="'spiral'"):
        pipeline.bubble("spiral", 8)


@pytest.mark.parametrize(("stages", "micros"), SIZES)
@pytest.mark.parametrize("name", pipeline.SCHEDULES)
def test_everything_runs_once_and_in_order(name, stages, micros):
    program = pipeline.SCHEDULES[name](stages, micros)
    line = pipeline.simulate(program)
    assert order_errors(line) == []
    ends = {op: slot.end for slot in line.slots for op in slot.item}
    starts = {op: slot.start for slot in line.slots for op in slot.item}
    for m in range(micros):
        for stage in range(stages):
            f = pipeline.Op("F", stage, m)
            back = [pipeline.Op(k, stage, m) for k in "BI"]
            found = [op for op in back if op in ends]
            assert len(found) == 1
            assert starts[found[0]] >= ends[f]
            if found[0].kind == "I":
                w = pipeline.Op("W", stage, m)
                assert starts[w] >= ends[found[0]]
            if stage:
                before = pipeline.Op("F", stage - 1, m)
                assert starts[f] >= ends[before]
                later = [pipeline.Op(k, stage - 1, m) for k in "BI"]
                start = min(starts[op] for op in later if op in starts)
                assert start >= ends[found[0]]
    assert sum(op.kind == "F" for op in ends) == stages * micros


@pytest.mark.parametrize(("stages", "micros"), SIZES[1:])
def test_activations(stages, micros):
    """GPipe holds all, 1F1B and ZB as many as stages, DualPipe one more."""

    def peak(name: str) -> list[int]:
        line = pipeline.simulate(pipeline.SCHEDULES[name](stages, micros))
        return [line.peak_activations(d) for d in range(line.devices)]

    assert peak("gpipe") == [micros] * stages
    assert peak("1f1b") == list(range(stages, 0, -1))
    assert peak("zero_bubble") == list(range(stages, 0, -1))
    assert peak("dualpipe") == [stages + 1] * stages
    assert peak("dualpipe_v") == [stages + 1] * (stages // 2)


@pytest.mark.parametrize("chunks", (1, 2, 3))
def test_interleaving_divides_the_bubble(chunks):
    program = pipeline.interleaved(4, 12, chunks)
    line = pipeline.simulate(program, share=1 / chunks)
    assert order_errors(line) == []
    assert line.bubble == pytest.approx(3 * 3 / chunks)


def test_share_of_a_long_run():
    """(p - 1) / (m + p - 1) for 1F1B: 25.9 % at 8 stages, 20 micros."""
    line = pipeline.simulate(pipeline.one_f_one_b(8, 20))
    assert line.bubble_share == pytest.approx(7 / 27)


def test_a_program_that_waits_for_itself_is_refused():
    f0, f1 = pipeline.Op("F", 0, 0), pipeline.Op("F", 1, 0)
    with pytest.raises(ValueError, match="deadlock after 0"):
        pipeline.simulate([[(f1,), (f0,)]])


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: pipeline.dualpipe(5, 20), "5 stages"),
        (lambda: pipeline.dualpipe(8, 14), "at least 16"),
        (lambda: pipeline.interleaved(4, 10, 2), "4 stages.*10"),
    ),
)
def test_sizes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
