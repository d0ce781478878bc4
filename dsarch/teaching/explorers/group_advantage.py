"""The group explorer: rewards and ratios to advantages, clips, gradients."""

from collections.abc import Sequence

import torch

from dsarch.post.grpo import advantages
from dsarch.post.objective import (
    OBJECTIVES,
    Objective,
    Samples,
    policy_loss,
    reduce,
)
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "give all four answers the same reward; then set one reward to 1 and "
    "raise the ratio of that answer, and of another, beyond 1.2."
)
NAMES = {
    "grpo": "GRPO",
    "v3.2": "V3.2",
    "dr_grpo": "Dr. GRPO",
    "bnpo": "BNPO",
    "dapo": "DAPO",
    "gspo": "GSPO",
    "cispo": "CISPO",
}
REWARDS, RATIOS, LENGTHS = (1, 0, 0.5, 1), (1.3, 0.7, 1.4, 1.0), (5, 3, 4, 1)
LONGEST = 8


def normalised(rewards: Sequence[float], scale: str) -> list[float]:
    """Advantages of one group."""
    row = torch.tensor([rewards], dtype=torch.float64)
    return advantages(row, scale)[0].tolist()


def one_token(
    ratio: float, advantage: float, low: float, high: float, detached: bool
) -> tuple[float, float]:
    """Loss of one token that moved by ``ratio``, and its slope in log pi."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    read = Samples(
        logp,
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    choice = Objective(eps_low=low, eps_high=high, detached=detached)
    found = policy_loss(read, choice).loss
    (slope,) = torch.autograd.grad(found, logp)
    return found.item(), slope.item()


def loss(ratio: float, advantage: float, low: float, high: float) -> float:
    """The clipped surrogate of one token, to be minimised."""
    return one_token(ratio, advantage, low, high, False)[0]


def slope(
    ratio: float, advantage: float, low: float, high: float, detached: bool
) -> float:
    """How the loss of one token answers to its log-probability."""
    return one_token(ratio, advantage, low, high, detached)[1]


def weight(lengths: Sequence[int], reduction: str, longest: int) -> list[float]:
    """What one token of each answer weighs in the loss of the group."""
    token = torch.arange(max(lengths))
    mask = token < torch.tensor(lengths)[:, None]
    cells = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    choice = Objective(reduction=reduction, max_length=longest)
    total = reduce(cells, mask, choice)
    return torch.autograd.grad(total, cells)[0][:, 0].tolist()


def _variants() -> list[dict[str, object]]:
    return [
        {
            "name": NAMES[name],
            "scale": choice.scale,
            "reduction": choice.reduction,
            "low": choice.eps_low,
            "high": choice.eps_high,
            "detached": choice.detached,
        }
        for name, choice in OBJECTIVES.items()
    ]


def _checks() -> list[Check]:
    checks: list[Check] = [
        ("advantages", [list(REWARDS), s], normalised(REWARDS, s))
        for s in ("group", "none")
    ]
    for ratio, advantage in ((1.5, 1.0), (1.5, -1.0), (0.5, -1.0)):
        args = (ratio, advantage, 0.2, 0.28)
        checks.append(("loss", [*args], loss(*args)))
        for kept in (False, True):
            checks.append(("slope", [*args, kept], slope(*args, kept)))
    for kind in ("sequence", "token", "constant"):
        args_ = [list(LENGTHS), kind, LONGEST]
        checks.append(("weight", args_, weight(LENGTHS, kind, LONGEST)))
    return checks


def group_advantage(variant: str = "grpo") -> Explorer:
    """Four answers to one question, judged by any member of the family.

    ``ValueError`` for a variant that is not in ``OBJECTIVES``.
    """
    if variant not in NAMES:
        raise ValueError(f"variant {variant!r} is none of {list(NAMES)}")
    found = normalised(REWARDS, OBJECTIVES[variant].scale)
    return Explorer(
        "group_advantage",
        {
            "variants": _variants(),
            "start": list(NAMES).index(variant),
            "rewards": REWARDS,
            "ratios": RATIOS,
            "lengths": LENGTHS,
            "longest": LONGEST,
        },
        title="What does a group of four answers teach?",
        columns=["answer", "reward", "advantage"],
        rows=[
            (f"answer {i + 1}", REWARDS[i], f"{found[i]:.3f}")
            for i in range(len(REWARDS))
        ],
        checks=_checks(),
        hint=HINT,
    )
