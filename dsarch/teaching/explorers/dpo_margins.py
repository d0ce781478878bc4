"""The preference explorer: what a pair does to the loss, and to whom."""

from collections.abc import Sequence

import torch

from dsarch.post.dpo import VARIANTS, dpo_loss, implicit_rewards
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "make both answers likelier by the same amount and watch what stays; "
    "raise the margin until the pair stops teaching; compare sigmoid, ipo "
    "and nca_pair at the same four numbers."
)
LABELS = {
    "sigmoid": "sigmoid (DPO)",
    "conservative": "conservative (cDPO)",
    "ipo": "ipo (per token)",
    "sigmoid_norm": "sigmoid_norm (per token)",
}
SMOOTHING = 0.1
START = (-12.0, -9.0, -12.0, -10.0)
LENGTHS = (5, 4)


def _pair(sums: Sequence[float]) -> list[torch.Tensor]:
    """The four sums as leaves of a graph, in the order of `dpo_loss`."""
    return [
        torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in sums
    ]


def pair_loss(
    variant: str,
    sums: Sequence[float],
    beta: float,
    smoothing: float,
    lengths: Sequence[int],
) -> list[float]:
    """Loss of one pair and its slopes for the chosen and the rejected sum."""
    four = _pair(sums)
    loss = dpo_loss(
        *four,
        beta=beta,
        variant=variant,
        smoothing=smoothing,
        lengths=(torch.tensor([lengths[0]]), torch.tensor([lengths[1]])),
    )
    slopes = torch.autograd.grad(loss, four[:2])
    return [x.item() for x in (loss, *slopes)]


def rewards(sums: Sequence[float], beta: float) -> list[float]:
    """What the policy pays for the chosen and the rejected answer."""
    seen = implicit_rewards(*_pair(sums), beta=beta)
    return [seen.chosen.item(), seen.rejected.item()]


def _checks(found: dict[str, list[float]], beta: float) -> list[Check]:
    """The pair shown first under every loss, and one that is ranked well."""
    moved = (-8.0, -13.0, *START[2:])
    checks: list[Check] = [("rewards", [START, beta], rewards(START, beta))]
    for name, value in found.items():
        near = [name, START, beta, SMOOTHING, LENGTHS]
        checks.append(("pairLoss", near, value))
        far = (moved, 5 * beta, SMOOTHING, LENGTHS)
        checks.append(("pairLoss", [name, *far], pair_loss(name, *far)))
    return checks


def dpo_margins(variant: str = "sigmoid", beta: float = 0.1) -> Explorer:
    """One pair, four log-probabilities, and every member of the family.

    An unknown ``variant`` or a ``beta`` that is not positive raises
    ``ValueError``.
    """
    settings = (START, beta, SMOOTHING, LENGTHS)
    pair_loss(variant, *settings)
    found = {name: pair_loss(name, *settings) for name in VARIANTS}
    return Explorer(
        "dpo_margins",
        {
            "variants": [[name, LABELS.get(name, name)] for name in VARIANTS],
            "start": {"variant": variant, "beta": beta, "sums": START},
            "smoothing": SMOOTHING,
            "lengths": LENGTHS,
        },
        title="What does one preference teach?",
        columns=["variant", "loss", "push on chosen", "push on rejected"],
        rows=[
            (LABELS.get(name, name), f"{a:.4f}", f"{-b:.4f}", f"{-c:.4f}")
            for name, (a, b, c) in found.items()
        ],
        checks=_checks(found, beta),
        hint=HINT,
    )
