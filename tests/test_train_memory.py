"""Bytes of parallel training against the numbers of the papers."""

import pytest
import torch

from dsarch.train import memory


def test_zero_paper_example(witness):
    """7.5B parameters on 64 ranks: 120, 31.4, 16.6 and 1.9 GB."""
    gigabytes = [
        memory.state_bytes(7.5e9, 64, stage) / 1e9 for stage in range(4)
    ]
    printed = [120, 31.4, 16.6, 1.9]
    assert gigabytes == pytest.approx(printed, abs=0.05)
    witness(
        "eq-zero",
        max(abs(a - b) for a, b in zip(gigabytes, printed, strict=True)),
        code="dsarch.train.memory.state_bytes",
        reference="Rajbhandari et al. 2020, figure 1 (one decimal)",
    )


def test_one_rank_needs_everything():
    for stage in range(4):
        assert memory.state_bytes(1.0, 1, stage) == 16


def test_traffic():
    assert [memory.step_traffic(1.0, s) for s in range(4)] == [2, 2, 2, 3]


def test_activations_of_a_layer():
    """Korthikanti's rows for GPT-3's layer, in units of s b h."""
    s, b, h, a, t = 2048, 4, 12288, 96, 8
    unit = s * b * h

    def per_unit(**options) -> float:
        return memory.activation_bytes(s, b, h, a, **options) / unit

    assert per_unit() == 34 + 5 * a * s / h == 114
    assert per_unit(tensor=t) == 10 + 24 / t + 80 / t
    assert per_unit(tensor=t, sequence_parallel=True) == (34 + 80) / t
    assert per_unit(tensor=t, recompute="selective") == 10 + 24 / t
    both = per_unit(tensor=t, sequence_parallel=True, recompute="selective")
    assert both == 34 / t
    assert per_unit(tensor=t, recompute="full") == 2


def test_v3_layout(witness):
    """2048 devices: experts share the data ranks and do not multiply."""
    layout = memory.Layout(data=128, pipeline=16, expert=64)
    assert layout.devices == 2048
    dense, routed = 17.1e9, 653.9e9
    own = dense / 16 + routed / 16 / 64
    plain = memory.device_state(dense, routed, layout, stage=0)
    assert plain == pytest.approx(16 * own)
    sharded = memory.device_state(dense, routed, layout, stage=1)
    expected = 4 * own + 12 * (dense / 16 / 128 + routed / 16 / 64 / 2)
    assert sharded == pytest.approx(expected)
    dual = memory.device_state(dense, routed, layout, stage=1, copies=2)
    assert dual == pytest.approx(2 * expected)
    small = memory.Layout(data=12, pipeline=4, expert=3)
    counted = dealt_out(small, 2, 5, 480, 960)
    formula = memory.device_state(4 * 480, 4 * 960, small, 1, copies=2)
    assert counted == formula
    witness(
        "eq-device-state",
        abs(counted - formula) / formula,
        code="dsarch.train.memory.device_state",
        reference="identity: parameters dealt out one by one",
    )


def dealt_out(
    layout: memory.Layout, stage: int, rank: int, dense: int, routed: int
) -> int:
    """Every parameter of a DualPipe run given to its holders, one by one.

    A pipeline stage has ``dense`` and ``routed`` parameters; a device at
    ``stage`` holds that one and its mirror image. Bytes of ``rank``: 4 for a
    weight and gradient it holds, 12 for the state that it alone owns.
    """
    total = 0
    for _ in {stage, layout.pipeline - 1 - stage}:
        for number in range(dense):
            total += 4 + 12 * (number % layout.data == rank)
        for number in range(routed):
            if number % layout.expert == rank % layout.expert:
                owner = number // layout.expert
                owner %= layout.data // layout.expert
                total += 4 + 12 * (owner == rank // layout.expert)
    return total


@pytest.mark.parametrize("n", (2, 3, 5))
def test_a_ring_sends_what_the_formula_says(n, witness):
    """Pieces handed round a ring: time and bytes counted message by message."""
    g = torch.Generator().manual_seed(n)
    held = torch.randint(0, 99, (n, n, 7), generator=g)
    want, alpha, bandwidth = held.sum(0), 0.5, 3.0
    clock = 0.0
    for step in range(2 * (n - 1)):
        piece = [(rank - step) % n for rank in range(n)]
        letters = [held[rank, piece[rank]].clone() for rank in range(n)]
        for rank, letter in enumerate(letters):
            at = (rank + 1) % n
            keep = held[at, piece[rank]] if step < n - 1 else 0
            held[at, piece[rank]] = letter + keep
        clock += alpha + 4 * letters[0].numel() / bandwidth
    assert all(torch.equal(mine, want) for mine in held)
    options = {"bandwidth": bandwidth, "latency": alpha}
    told = memory.collective_seconds("all_reduce", 4 * 7 * n, n, **options)
    assert told == pytest.approx(clock, rel=1e-12)
    witness(
        "eq-ring-time",
        abs(told / clock - 1),
        code="dsarch.train.memory.collective_seconds",
        reference="identity: a ring simulated message by message",
    )


def test_collectives():
    ring = memory.collective_seconds
    options = {"bandwidth": 50e9, "latency": 1e-5}
    gather = ring("all_gather", 4e9, 8, **options)
    assert gather == pytest.approx(7e-5 + 7 / 8 * 4e9 / 50e9)
    assert ring("all_reduce", 4e9, 8, **options) == pytest.approx(2 * gather)


def test_bad_layouts_are_named():
    with pytest.raises(ValueError, match="stage 4"):
        memory.state_bytes(1, 2, 4)
    with pytest.raises(ValueError, match="expert 3.*data 8"):
        memory.device_state(1, 1, memory.Layout(data=8, expert=3))
