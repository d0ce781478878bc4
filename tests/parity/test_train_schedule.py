"""Schedules against torch's and transformers' at every step."""

from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import optimization

from dsarch.train import schedule

STEPS = 23


def rates(make) -> list[float]:
    """The rate each optimizer step really uses."""
    w = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = make(optimizer)
    used = []
    for _ in range(STEPS):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def ours(function, **options) -> list[float]:
    return [function(step, **options) for step in range(STEPS)]


def same(a: list[float], b: list[float]) -> None:
    assert a == pytest.approx(b, rel=1e-10, abs=1e-10)


def gap(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_linear_is_transformers():
    make = partial(
        optimization.get_linear_schedule_with_warmup,
        num_warmup_steps=5,
        num_training_steps=19,
    )
    same(ours(schedule.linear, warmup_steps=5, total=19), rates(make))


def test_cosine_is_transformers(witness):
    """Up to the end; afterwards theirs rises again and ours stays down."""
    make = partial(
        optimization.get_cosine_schedule_with_warmup,
        num_warmup_steps=4,
        num_training_steps=18,
    )
    mine = ours(schedule.cosine, warmup_steps=4, total=18)
    same(mine[:19], rates(make)[:19])
    assert mine[18:] == pytest.approx([0.0] * 5)
    witness(
        "eq-cosine",
        gap(mine[:19], rates(make)[:19]),
        code="dsarch.train.schedule.cosine",
        reference="transformers get_cosine_schedule_with_warmup",
    )


def test_constant_is_transformers():
    make = partial(
        optimization.get_constant_schedule_with_warmup, num_warmup_steps=6
    )
    same(ours(schedule.constant, warmup_steps=6), rates(make))


@pytest.mark.parametrize(
    ("theirs", "shape"),
    (("linear", "linear"), ("cosine", "cosine"), ("1-sqrt", "sqrt")),
)
def test_wsd_is_transformers(theirs, shape, witness):
    make = partial(
        optimization.get_wsd_schedule,
        num_warmup_steps=3,
        num_stable_steps=7,
        num_decay_steps=6,
        decay_type=theirs,
        min_lr_ratio=0.0,
    )
    options = {"warmup_steps": 3, "total": 16, "decay_steps": 6}
    mine = ours(schedule.wsd, shape=shape, **options)
    same(mine, rates(make))
    witness(
        "eq-wsd",
        gap(mine, rates(make)),
        code="dsarch.train.schedule.wsd",
        reference="transformers get_wsd_schedule",
    )


def test_wsd_floor_is_transformers_after_warmup():
    """Their warm-up starts at the floor, ours at zero."""
    make = partial(
        optimization.get_wsd_schedule,
        num_warmup_steps=2,
        num_stable_steps=4,
        num_decay_steps=4,
        decay_type="linear",
        min_lr_ratio=0.1,
    )
    options = {"warmup_steps": 2, "total": 10, "decay_steps": 4, "floor": 0.1}
    theirs = rates(make)
    assert theirs[:2] == pytest.approx([0.1, 0.55])
    same(ours(schedule.wsd, **options)[2:], theirs[2:])


def test_cosine_is_torchs():
    options = {"T_max": STEPS, "eta_min": 0.25}
    make = partial(lr_scheduler.CosineAnnealingLR, **options)
    same(ours(schedule.cosine, total=STEPS, floor=0.25), rates(make))


def test_multi_step_is_torchs():
    """Two factors of the root of a tenth give 31.6 % and 10 % of the peak."""
    make = partial(
        lr_scheduler.MultiStepLR, milestones=[16, 18], gamma=0.1**0.5
    )
    options = {"total": 20, "warmup_steps": 0, "factors": (0.1**0.5, 0.1)}
    same(ours(schedule.multi_step, **options), rates(make))


def test_warmup_is_torchs():
    make = partial(
        lr_scheduler.LinearLR,
        start_factor=1 / 8,
        end_factor=1.0,
        total_iters=7,
    )
    same(ours(schedule.constant, warmup_steps=8, first=1), rates(make))


def test_a_schedule_is_a_multiplier():
    """Pure functions serve torch's LambdaLR as they are."""
    function = partial(schedule.wsd, total=20, decay_steps=5, warmup_steps=2)
    make = partial(lr_scheduler.LambdaLR, lr_lambda=function)
    same([function(step) for step in range(STEPS)], rates(make))
