"""Schedules at their corners, and DeepSeek's real ones."""

import pytest

from dsarch.train import schedule


def test_golden_values():
    """Ten steps, two of warm-up: values read off the definitions."""
    cosine = [schedule.cosine(s, total=10, warmup_steps=2) for s in range(10)]
    expected = (0, 0.5, 1, 0.96194, 0.853553, 0.691342, 0.5, 0.308658)
    assert cosine[:8] == pytest.approx(expected, abs=1e-6)
    options = {"total": 10, "warmup_steps": 2, "decay_steps": 4, "floor": 0.1}
    wsd = [schedule.wsd(s, shape="sqrt", **options) for s in range(11)]
    assert wsd[6:] == pytest.approx(
        (1, 0.55, 0.363604, 0.220577, 0.1), abs=1e-6
    )


@pytest.mark.parametrize(
    "shape", ("linear", "cosine", "sqrt", "square", "exponential")
)
def test_every_decay_falls_from_one_to_the_floor(shape):
    values = [schedule.decay(p / 20, shape, 0.2) for p in range(21)]
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(values, values[1:], strict=False))
    assert schedule.decay(1.7, shape, 0.2) == pytest.approx(0.2)
    assert schedule.decay(-1.0, shape, 0.2) == 1.0


def test_the_quarter_points_tell_the_shapes_apart():
    quarter = [
        schedule.decay(0.25, shape, 0.01)
        for shape in ("linear", "cosine", "sqrt", "square", "exponential")
    ]
    floor = 0.01 + 0.99 * 0.5
    expected = (0.7525, 0.01 + 0.99 * 0.853553, floor, 0.938125, 0.316228)
    assert quarter == pytest.approx(expected, abs=1e-6)


def test_warmup_conventions():
    first = [schedule.warmup(s, 4) for s in range(6)]
    assert first == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.warmup(0, 4, first=1) == 0.25
    assert schedule.warmup(0, 0) == 1.0


def test_multi_step_uses_shares_of_the_peak():
    rates = [
        schedule.multi_step(s, total=100, warmup_steps=0, peak=4.2e-4)
        for s in (0, 79, 80, 89, 90, 99)
    ]
    expected = [4.2e-4, 4.2e-4, 4.2e-4 * 0.316, 4.2e-4 * 0.316, 4.2e-5, 4.2e-5]
    assert rates == pytest.approx(expected)


def test_half_life_halves():
    values = [
        schedule.half_life(s, start=10, steps=5, peak=8.0)
        for s in (0, 10, 15, 25)
    ]
    assert values == [8.0, 8.0, 4.0, 1.0]


def test_v3_rate_by_tokens():
    """The corners printed in section 4.2 of the V3 report."""
    by_tokens = schedule.v3_by_tokens
    assert by_tokens(0) == by_tokens(10e12) == 2.2e-4
    assert by_tokens(12.15e12) == pytest.approx(1.21e-4)
    assert by_tokens(14.3e12) == pytest.approx(2.2e-5)
    assert by_tokens(14.6e12) == pytest.approx(2.2e-5)
    assert by_tokens(14.634e12) == 7.3e-6
    assert schedule.v3_bias_speed(14.2e12) == 0.001
    assert schedule.v3_bias_speed(14.4e12) == 0.0
    assert schedule.v3_mtp_weight(9e12) == 0.3
    assert schedule.v3_mtp_weight(11e12) == 0.1


def test_v3_tokens_are_the_sum_of_the_batches():
    """The closed form equals adding up the growing batches step by step."""
    tokens = 0.0
    for step in range(20_000):
        if step % 2500 == 0:
            assert schedule.v3_tokens(step) == pytest.approx(tokens, rel=1e-3)
        tokens += 4096 * schedule.batch_ramp(tokens)
    assert tokens > 469e9
    late = schedule.v3_tokens(100_001) - schedule.v3_tokens(100_000)
    assert late == pytest.approx(15360 * 4096)


def test_v3_by_step():
    assert schedule.v3(0) == 0.0
    assert schedule.v3(1000) == pytest.approx(1.1e-4)
    assert schedule.v3(2000) == 2.2e-4
    last = next(s for s in range(0, 10**6, 1000) if schedule.v3(s) == 7.3e-6)
    assert 14.634e12 <= schedule.v3_tokens(last) < 14.75e12


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: schedule.cosine(0, total=5, warmup_steps=9), "9.*5"),
        (
            lambda: schedule.wsd(0, total=8, warmup_steps=4, decay_steps=5),
            "9.*8",
        ),
        (lambda: schedule.warmup(-1, 3), "-1"),
        (lambda: schedule.decay(0.5, "round"), "round"),
        (lambda: schedule.decay(0.5, "exponential", 0.0), "exponential"),
        (
            lambda: schedule.multi_step(0, total=9e3, factors=(0.1,)),
            "2.*1",
        ),
    ),
)
def test_contradictions_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
