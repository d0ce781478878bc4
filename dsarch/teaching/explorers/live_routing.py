"""The live panel of routing: the real router, and the rule that evens it."""

from typing import Any

import torch

from dsarch.balance import balance, loads, updated_bias
from dsarch.config import Config
from dsarch.router import affinities, route
from dsarch.teaching.explorers.live import Answer, Field, Panel

WIDTH, TOKENS = 32, 2048
MOST = {"experts": 512, "steps": 2000}


def run(
    experts: int, k: int, groups: int, keep: int, steps: int, speed: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loads of every expert before and after ``steps`` updates of the bias.

    The tokens lean to one side, so an untrained router is uneven at first.
    ``ValueError`` for sizes that contradict each other or are too large.
    """
    _check(experts=experts, steps=steps)
    cfg = Config(
        n_routed_experts=experts,
        num_experts_per_tok=k,
        n_group=groups,
        topk_group=keep,
    )
    scores, bias = _scores(experts), torch.zeros(experts)
    counts = [loads(route(scores, bias, cfg).experts, experts)]
    for _ in range(steps):
        bias = updated_bias(bias, counts[-1], float(speed))
        counts.append(loads(route(scores, bias, cfg).experts, experts))
    return counts[0], counts[-1]


def _check(**values: int) -> None:
    for name, value in values.items():
        if value > MOST[name]:
            raise ValueError(
                f"{name} {value:,} is more than the {MOST[name]:,} "
                "that a panel may use"
            )
        if value < 0:
            raise ValueError(f"{name} must not be negative, found {value}")


def _scores(experts: int) -> torch.Tensor:
    """Affinities of tokens that lean to one side, ``[z, e]``."""
    draw = torch.Generator().manual_seed(0)
    lean = torch.randn(WIDTH, generator=draw)
    x = torch.randn(TOKENS, WIDTH, generator=draw) + 0.5 * lean
    weight = 0.3 * torch.randn(experts, WIDTH, generator=draw)
    return affinities(x, weight)


def compare_loads(**values: Any) -> Answer:
    """How even the load is before and after, in numbers."""
    first, last = run(**values)
    before, after = balance(first), balance(last)
    text = (
        f"{values['experts']} experts, {values['k']} for each of {TOKENS:,} "
        f"tokens: MaxVio {before.max_violation:.2f} without a bias, "
        f"{after.max_violation:.2f} after {values['steps']} updates."
    )
    rows = [
        (name, int(c.max()), int(c.min()), int((c == 0).sum()))
        for name, c in (("without a bias", first), ("with the bias", last))
    ]
    return Answer(text, ("loads", "busiest", "idlest", "idle experts"), rows)


def live_routing(**start: int) -> Panel:
    """The panel of routing; ``start`` sets first values.

    A name that is no field raises ``ValueError``.
    """
    fields: dict[str, tuple[str, Field]] = {
        "experts": ("Experts", 64),
        "k": ("Chosen per token", 8),
        "groups": ("Groups", 8),
        "keep": ("Groups kept", 4),
        "steps": ("Updates of the bias", 200),
        "speed": ("Speed of the bias", ["0.01", "0.001", "0.1"]),
    }
    for name, value in start.items():
        if not isinstance(fields.get(name, ("", ""))[1], int):
            raise ValueError(f"{name!r} is no size of this panel")
        fields[name] = (fields[name][0], value)
    return Panel("Live: what the bias does to loads.", fields, compare_loads)
