"""Learning rate schedules: their shape, and what a longer run can reuse."""

from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.train import schedule

HINT = (
    "cosine, then WSD: how much of this run could one of twice the length "
    "reuse? Then DeepSeek-V3, and look at the batch during the first 469B "
    "tokens."
)
KINDS = ("constant", "linear", "cosine", "wsd", "multi-step")


def rate(
    kind: str,
    step: float,
    total: int,
    warm: int,
    tail: int,
    floor: float,
    shape: str,
) -> float:
    """A schedule's share of the peak at a step, first update at 1/warm-up."""
    if kind == "constant":
        return schedule.constant(step, warmup_steps=warm, first=1)
    if kind == "multi-step":
        return schedule.multi_step(
            step, total=total, warmup_steps=warm, first=1
        )
    if kind == "wsd":
        return schedule.wsd(
            step,
            total=total,
            decay_steps=tail,
            warmup_steps=warm,
            floor=floor,
            shape=shape,
            first=1,
        )
    function = {"linear": schedule.linear, "cosine": schedule.cosine}[kind]
    return function(step, total=total, warmup_steps=warm, floor=floor, first=1)


def reusable(kind: str, total: int, warm: int, tail: int) -> int:
    """Steps that are the same in a run of twice the length."""
    if kind == "constant":
        return total
    if kind == "multi-step":
        return max(0, -(-8 * total // 10))
    return total - tail if kind == "wsd" else warm


def _checks() -> list[Check]:
    checks: list[Check] = []
    for kind in KINDS:
        for step in (0, 30, 700, 950):
            args = (kind, step, 1000, 50, 200, 0.1, "sqrt")
            checks.append(("rate", [*args], rate(*args)))
        checks.append(
            ("reusable", [kind, 1000, 50, 200], reusable(kind, 1000, 50, 200))
        )
    for tokens in (1e12, 12e12, 14.4e12, 14.7e12):
        checks.append(("v3Rate", [tokens], schedule.v3_by_tokens(tokens)))
        checks.append(("v3Batch", [tokens], schedule.batch_ramp(tokens)))
    return checks


def _rows() -> list[tuple[str, ...]]:
    shown: list[tuple[str, ...]] = []
    for kind in KINDS:
        args = (1000, 50, 200, 0.1, "sqrt")
        values = [rate(kind, s, *args) for s in (100, 500, 850, 999)]
        cells = [f"{value:.3f}" for value in values]
        shown.append((kind, *cells, f"{reusable(kind, 1000, 50, 200)}"))
    return shown


def schedule_designer(kind: str = "wsd") -> Explorer:
    """A schedule beside the cosine of the same length, and V3's real one.

    ``kind`` is one of constant, linear, cosine, wsd, multi-step and v3, else
    ``ValueError``.
    """
    if kind not in (*KINDS, "v3"):
        raise ValueError(f"schedule {kind!r} is none of {(*KINDS, 'v3')}")
    return Explorer(
        "schedule_designer",
        {"kind": kind},
        title="Design a learning rate schedule",
        columns=[
            "share of the peak, 1,000 steps",
            "step 100",
            "step 500",
            "step 850",
            "step 999",
            "reusable",
        ],
        rows=_rows(),
        checks=_checks(),
        hint=HINT,
    )
