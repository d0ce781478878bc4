r"""Schedules as pure functions: the step goes in, the value comes out.

A step counts optimizer updates from zero. Every schedule has a ``peak`` that
is one by default, so it serves as a multiplier for ``LambdaLR`` as well.
"""

import math

Number = int | float
SHAPES = ("linear", "cosine", "sqrt", "square", "exponential")


def warmup(step: Number, steps: Number, *, first: int = 0) -> float:
    r"""The share $\min(1, (s + \mathrm{first})/W)$ of the peak.

    With ``first=0`` the very first update has rate zero (transformers'
    convention), with ``first=1`` it has $1/W$ (torchtitan's).
    """
    if step < 0 or steps < 0:
        raise ValueError(f"step {step} and warm-up {steps} start at zero")
    return min(1.0, (step + first) / steps) if steps else 1.0


def decay(
    progress: Number, shape: str = "linear", floor: Number = 0.0
) -> float:
    r"""From one to ``floor`` while ``progress`` $p$ runs from zero to one.

    linear $1-p$, cosine $(1+\cos\pi p)/2$, sqrt $1-\sqrt p$, square
    $1-p^2$, each squeezed into $[\mathrm{floor}, 1]$; exponential
    $\mathrm{floor}^p$. Outside [0, 1] the ends are held.
    """
    p = min(1.0, max(0.0, progress))
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r} is none of {SHAPES}")
    if shape == "exponential":
        if floor <= 0:
            raise ValueError(f"an exponential never reaches floor {floor}")
        return floor**p
    falls = {
        "linear": 1 - p,
        "cosine": (1 + math.cos(math.pi * p)) / 2,
        "sqrt": 1 - math.sqrt(p),
        "square": 1 - p * p,
    }
    return floor + (1 - floor) * falls[shape]


def constant(
    step: Number,
    *,
    peak: Number = 1.0,
    warmup_steps: Number = 0,
    first: int = 0,
) -> float:
    """Warm-up, then the peak for ever."""
    return peak * warmup(step, warmup_steps, first=first)


def linear(
    step: Number,
    *,
    total: Number,
    peak: Number = 1.0,
    warmup_steps: Number = 0,
    floor: Number = 0.0,
    first: int = 0,
) -> float:
    """Warm-up, then a straight line to ``floor`` times the peak."""
    _check_lengths(total, warmup_steps)
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    rise = warmup(step, warmup_steps, first=first)
    return peak * rise * decay(progress, "linear", floor)


def cosine(
    step: Number,
    *,
    total: Number,
    peak: Number = 1.0,
    warmup_steps: Number = 0,
    floor: Number = 0.0,
    first: int = 0,
) -> float:
    r"""Warm-up, then half a cosine to ``floor`` times the peak.

    After ``total`` it stays there: torch's ``CosineAnnealingLR`` rises again.
    """
    _check_lengths(total, warmup_steps)
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    rise = warmup(step, warmup_steps, first=first)
    return peak * rise * decay(progress, "cosine", floor)


def wsd(
    step: Number,
    *,
    total: Number,
    decay_steps: Number,
    peak: Number = 1.0,
    warmup_steps: Number = 0,
    floor: Number = 0.0,
    shape: str = "linear",
    first: int = 0,
) -> float:
    """Warm-up, stable, decay over the last ``decay_steps`` (MiniCPM).

    The stable part does not know how long the run is: it can be continued,
    or decayed at several points to compare lengths.
    """
    _check_lengths(total, warmup_steps + decay_steps)
    start = total - decay_steps
    progress = (step - start) / decay_steps if decay_steps else 0.0
    rise = warmup(step, warmup_steps, first=first)
    return peak * rise * decay(progress, shape, floor)


def half_life(
    step: Number, *, start: Number, steps: Number, peak: Number = 1.0
) -> float:
    r"""MiniCPM's decay, $0.5^{(s-s_0)/\tau}$, constant before ``start``."""
    return peak * 0.5 ** (max(0.0, step - start) / steps)


def multi_step(
    step: Number,
    *,
    total: Number,
    peak: Number = 1.0,
    warmup_steps: Number = 2000,
    milestones: tuple[Number, ...] = (0.8, 0.9),
    factors: tuple[Number, ...] = (0.316, 0.1),
    first: int = 0,
) -> float:
    r"""DeepSeek LLM's staircase: 31.6 % of the peak at 80 %, 10 % at 90 %.

    Each factor is a share of the peak, so the second one is 0.1 and not
    another 0.316. V2 uses milestones (0.6, 0.9).
    """
    _check_lengths(total, warmup_steps)
    if len(milestones) != len(factors):
        raise ValueError(
            f"{len(milestones)} milestones need as many factors, "
            f"found {len(factors)}"
        )
    share = 1.0
    for milestone, factor in zip(milestones, factors, strict=True):
        share = factor if step >= milestone * total else share
    return peak * warmup(step, warmup_steps, first=first) * share


def batch_ramp(
    tokens: Number,
    *,
    start: Number = 3072,
    end: Number = 15360,
    ramp_tokens: Number = 469e9,
) -> float:
    """Sequences per batch after ``tokens``: V3 grows linearly, then holds."""
    return start + (end - start) * min(1.0, tokens / ramp_tokens)


def v3_tokens(step: Number, *, length: int = 4096) -> float:
    r"""How many tokens V3 has seen before optimizer step ``step``.

    While the batch grows, $dT/ds = \ell\,(B_0 + (B_1-B_0)\,T/T_1)$, so the
    tokens grow exponentially up to $T_1$ = 469 billion and linearly after.
    The report states the ends of the ramp; that it is linear in tokens is
    our reading.
    """
    b0, b1, ramp = 3072, 15360, 469e9
    rate = length * (b1 - b0) / ramp
    ramp_steps = math.log(b1 / b0) / rate
    if step < ramp_steps:
        return ramp * b0 / (b1 - b0) * math.expm1(rate * step)
    return ramp + (step - ramp_steps) * length * b1


def v3_by_tokens(tokens: Number) -> float:
    """V3's learning rate after warm-up, as a function of tokens seen.

    2.2e-4 for 10T tokens, a cosine to 2.2e-5 over 4.3T, 2.2e-5 for 333B and
    7.3e-6 for the last 167B (V3 report, section 4.2).
    """
    if tokens >= 14.3e12 + 333e9:
        return 7.3e-6
    return 2.2e-4 * decay((tokens - 10e12) / 4.3e12, "cosine", 0.1)


def v3(step: Number) -> float:
    """V3's learning rate at an optimizer step: warm-up, then by tokens."""
    return warmup(step, 2000) * v3_by_tokens(v3_tokens(step))


def v3_bias_speed(tokens: Number) -> float:
    """V3's step of the routing biases: 0.001, frozen after 14.3T tokens."""
    return 0.001 if tokens < 14.3e12 else 0.0


def v3_mtp_weight(tokens: Number) -> float:
    """V3's weight of the MTP loss: 0.3 for 10T tokens, then 0.1."""
    return 0.3 if tokens < 10e12 else 0.1


def _check_lengths(total: Number, parts: Number) -> None:
    if total <= 0 or parts > total:
        raise ValueError(
            f"warm-up and decay take {parts} steps, the run has {total}"
        )
