r"""Direct preference optimisation and its relatives.

All losses read four numbers per pair: the summed log-probabilities of the
chosen and the rejected completion under the policy and under the frozen
reference. With $h = l - l^{ref}$ and $\Delta = h_c - h_r$ the policy *is* a
reward model, $r = \beta h$ up to a constant per prompt. Sources: DPO (arXiv
2305.18290), SLiC (2305.10425), IPO (2310.12036), robust DPO (2403.00409), EXO
(2402.00856), NCA (2402.05369), BCO (2404.04656), SPPO (2405.00675), APO
(2408.06266).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from dsarch.post.logprobs import require_finite


class Pair(NamedTuple):
    r"""$h_c$ and $h_r$ with the two constants of every variant, ``[b]``."""

    chosen: Tensor
    rejected: Tensor
    beta: float
    smoothing: float

    @property
    def margin(self) -> Tensor:
        r"""$\beta\Delta$: how much further apart the policy sees the two."""
        return self.beta * (self.chosen - self.rejected)


def _sigmoid(p: Pair) -> Tensor:
    return -logsigmoid(p.margin)


def _conservative(p: Pair) -> Tensor:
    flipped = -p.smoothing * logsigmoid(-p.margin)
    return -(1 - p.smoothing) * logsigmoid(p.margin) + flipped


def _robust(p: Pair) -> Tensor:
    kept = -(1 - p.smoothing) * logsigmoid(p.margin)
    flipped = -p.smoothing * logsigmoid(-p.margin)
    return (kept - flipped) / (1 - 2 * p.smoothing)


def _hinge(p: Pair) -> Tensor:
    return relu(1 - p.margin)


def _ipo(p: Pair) -> Tensor:
    return (p.chosen - p.rejected - 1 / (2 * p.beta)).square()


def _exo(p: Pair) -> Tensor:
    smoothing = torch.as_tensor(p.smoothing, dtype=p.chosen.dtype)
    win, lose = logsigmoid(p.margin), logsigmoid(-p.margin)
    return win.exp() * (win - torch.log1p(-smoothing)) + lose.exp() * (
        lose - smoothing.log()
    )


def _nca(p: Pair) -> Tensor:
    chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
    even = logsigmoid(-chosen) + logsigmoid(-rejected)
    return -logsigmoid(chosen) - 0.5 * even


def _bco(p: Pair) -> Tensor:
    return -logsigmoid(p.beta * p.chosen) - logsigmoid(-p.beta * p.rejected)


def _sppo(p: Pair) -> Tensor:
    target = 1 / (2 * p.beta)
    return (p.chosen - target).square() + (p.rejected + target).square()


def _apo_zero(p: Pair) -> Tensor:
    chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def _apo_down(p: Pair) -> Tensor:
    return (p.beta * p.chosen).sigmoid() + 1 - p.margin.sigmoid()


VARIANTS: dict[str, Callable[[Pair], Tensor]] = {
    "sigmoid": _sigmoid,
    "conservative": _conservative,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "bco_pair": _bco,
    "sppo_hard": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}
AVERAGED = ("ipo", "sigmoid_norm")


def dpo_loss(
    policy_chosen: Float[Tensor, "b"],
    policy_rejected: Float[Tensor, "b"],
    ref_chosen: Float[Tensor, "b"],
    ref_rejected: Float[Tensor, "b"],
    *,
    beta: float,
    variant: str = "sigmoid",
    lengths: tuple[Int[Tensor, "b"], Int[Tensor, "b"]] | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Mean preference loss over pairs of summed log-probabilities.

    $$L = -\log\sigma(\beta\Delta),\qquad \Delta =
      (l_c - l_c^{ref}) - (l_r - l_r^{ref})$$

    ``ipo`` and ``sigmoid_norm`` divide each $h$ by its completion's length if
    ``lengths`` (chosen, rejected) are given, as IPO's authors meant it, and
    take the sums as they are if not, as its paper prints it.
    """
    sums = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    _check(sums, beta, variant, smoothing)
    chosen = policy_chosen - ref_chosen
    rejected = policy_rejected - ref_rejected
    if variant in AVERAGED and lengths is not None:
        chosen = chosen / lengths[0].clamp(min=1)
        rejected = rejected / lengths[1].clamp(min=1)
    return VARIANTS[variant](Pair(chosen, rejected, beta, smoothing)).mean()


def _check(
    sums: tuple[Tensor, ...], beta: float, variant: str, smoothing: float
) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is none of {list(VARIANTS)}")
    if beta <= 0:
        raise ValueError(f"beta must be positive, found {beta}")
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"smoothing must be in [0, 0.5), found {smoothing}")
    if variant == "exo_pair" and smoothing == 0:
        raise ValueError("exo_pair takes log(smoothing): smoothing 0 is -inf")
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    for name, value in zip(names, sums, strict=True):
        require_finite(name, value)


class Margins(NamedTuple):
    """What is logged of a batch of pairs: implicit rewards, accuracy."""

    chosen: Float[Tensor, "b"]
    rejected: Float[Tensor, "b"]
    accuracy: Float[Tensor, ""]


def implicit_rewards(
    policy_chosen: Float[Tensor, "b"],
    policy_rejected: Float[Tensor, "b"],
    ref_chosen: Float[Tensor, "b"],
    ref_rejected: Float[Tensor, "b"],
    *,
    beta: float,
) -> Margins:
    r"""The rewards $\beta h$ the policy implies, and how often they agree.

    A tie counts as wrong, so a policy equal to its reference has the accuracy
    0 and the loss $\log 2$.
    """
    chosen = beta * (policy_chosen - ref_chosen).detach()
    rejected = beta * (policy_rejected - ref_rejected).detach()
    accuracy = (chosen > rejected).to(chosen.dtype).mean()
    return Margins(chosen, rejected, accuracy)
