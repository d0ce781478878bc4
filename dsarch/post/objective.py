r"""The policy losses of the GRPO family, one table of their differences.

$$\ell_{i,t} = -\min\!\big(r_{i,t}\hat A_{i},\
  \mathrm{clip}(r_{i,t}, 1-\varepsilon_l, 1+\varepsilon_h)\,\hat A_{i}\big)
  \cdot M_i + \beta\,D_{i,t}$$

A member of the family chooses what a ratio is (of a token or of the whole
sequence), how far it may move, and what the sum over tokens is divided by.
Sources: DeepSeekMath (arXiv 2402.03300), DeepSeek-V3.2 (2512.02556), Dr. GRPO
(2503.20783), DAPO (2503.14476), GSPO (2507.18071), CISPO (2506.13585).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsarch.post.grpo import kl_estimate, log_ratio
from dsarch.post.logprobs import masked_mean, require_finite


@dataclass(frozen=True, kw_only=True)
class Objective:
    r"""The choices that make a policy loss.

    ``level`` is what a ratio belongs to, ``reduction`` the divisor:
    ``sequence`` averages within each completion and then over completions,
    ``token`` over all tokens alike, ``constant`` divides by rows times
    ``max_length``. ``delta`` bounds the ratio of negative samples (two-sided
    clipping), ``beta`` weighs the divergence ``kl``. With ``detached`` the
    capped ratio only weighs $\log\pi$, so clipped tokens keep a gradient.
    ``scale`` belongs to the advantages and is carried for the loops.
    """

    scale: str = "group"
    level: str = "token"
    reduction: str = "sequence"
    eps_low: float = 0.2
    eps_high: float = 0.2
    delta: float | None = None
    beta: float = 0.0
    kl: str = "k3"
    max_length: int | None = None
    detached: bool = False


OBJECTIVES = {
    "grpo": Objective(),
    "v3.2": Objective(scale="none", kl="unbiased"),
    "dr_grpo": Objective(scale="none", reduction="constant"),
    "bnpo": Objective(reduction="token"),
    "dapo": Objective(reduction="token", eps_high=0.28),
    "gspo": Objective(level="sequence", eps_low=3e-4, eps_high=4e-4),
    "cispo": Objective(reduction="token", detached=True),
}


def objective(variant: str = "grpo", **changes: Any) -> Objective:
    """A member of the family by name, with some choices changed.

    Raises ``ValueError`` for a name that is not in ``OBJECTIVES``.
    """
    if variant not in OBJECTIVES:
        raise ValueError(f"variant {variant!r} is none of {list(OBJECTIVES)}")
    return replace(OBJECTIVES[variant], **changes)


class PolicyLoss(NamedTuple):
    """The loss, and per token ``[b, t]`` what a figure of it needs."""

    loss: Float[Tensor, ""]
    per_token: Float[Tensor, "b t"]
    ratio: Float[Tensor, "b t"]
    clipped: Bool[Tensor, "b t"]
    kl: Float[Tensor, "b t"]


class Samples(NamedTuple):
    r"""What a policy loss reads, in the alignment of the targets.

    ``logp`` carries the gradient; ``old_logp`` is what the sampler gave and
    ``None`` means "just sampled": same values, no gradient. ``advantage`` is
    ``[b]``, or ``[b, t]`` with process supervision. ``keep`` is V3.2's mask
    $M_i$; it silences the surrogate of a row, not its divergence.
    """

    logp: Float[Tensor, "b t"]
    advantage: Float[Tensor, "b *t"]
    mask: Bool[Tensor, "b t"]
    old_logp: Float[Tensor, "b t"] | None = None
    ref_logp: Float[Tensor, "b t"] | None = None
    keep: Bool[Tensor, "b"] | None = None


def policy_loss(
    samples: Samples, choice: Objective, *, tokens: int | None = None
) -> PolicyLoss:
    r"""The clipped surrogate plus $\beta D$, reduced as ``choice`` says.

    ``tokens`` replaces the divisor of the reduction ``token`` where a batch
    is cut into micro-batches. Raises ``ValueError`` for log-probabilities
    that are not finite where unmasked, and for a divergence without a
    reference.
    """
    _check(samples, choice)
    mask = samples.mask
    logp = samples.logp.masked_fill(~mask, 0.0)
    old = logp.detach() if samples.old_logp is None else samples.old_logp
    ratio = log_ratio(logp, old, mask, choice.level).exp()
    advantage = samples.advantage
    if advantage.ndim == 1:
        advantage = advantage[:, None].expand_as(logp)
    per_token, clipped = surrogate(ratio, advantage, logp, choice)
    if samples.keep is not None:
        per_token = per_token * samples.keep[:, None]
    kl = _divergence(samples, logp, ratio, choice)
    per_token = per_token + choice.beta * kl
    loss = reduce(per_token, mask, choice, tokens)
    return PolicyLoss(loss, per_token, ratio, clipped & mask, kl)


def _divergence(
    samples: Samples,
    logp: Float[Tensor, "b t"],
    ratio: Float[Tensor, "b t"],
    choice: Objective,
) -> Float[Tensor, "b t"]:
    """The divergence from the reference, 0 where there is none."""
    if samples.ref_logp is None:
        return torch.zeros_like(logp)
    ref = samples.ref_logp.masked_fill(~samples.mask, 0.0)
    return kl_estimate(logp, ref, choice.kl, ratio)


def surrogate(
    ratio: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    logp: Float[Tensor, "b t"],
    choice: Objective,
) -> tuple[Float[Tensor, "b t"], Bool[Tensor, "b t"]]:
    r"""$-\min(r\hat A, \mathrm{clip}(r)\hat A)$, and where the clip binds.

    A token above $1+\varepsilon_h$ is held only if its advantage is
    positive, one below $1-\varepsilon_l$ only if it is negative. CISPO caps
    the ratio instead and lets $\log\pi$ carry the gradient.
    """
    low, high = 1 - choice.eps_low, 1 + choice.eps_high
    above = (ratio > high) & (advantage > 0)
    if choice.detached:
        cap = ratio.detach().clamp(max=high)
        return -cap * advantage * logp, ratio > high
    clipped = above | ((ratio < low) & (advantage < 0))
    bounded = ratio if choice.delta is None else ratio.clamp(max=choice.delta)
    gain = torch.minimum(
        bounded * advantage, ratio.clamp(low, high) * advantage
    )
    return -gain, clipped


def reduce(
    per_token: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    choice: Objective,
    tokens: int | None = None,
) -> Float[Tensor, ""]:
    r"""One number from the tokens: three different losses.

    $$\frac1b\sum_i\frac{\sum_t \ell_{i,t}}{|o_i|},\qquad
      \frac{\sum_{i,t}\ell_{i,t}}{\sum_i |o_i|},\qquad
      \frac{\sum_{i,t}\ell_{i,t}}{b\,L_{max}}$$

    An empty completion adds 0 and still counts as a row. Raises
    ``ValueError`` for an unknown reduction or a missing ``max_length``.
    """
    if choice.reduction == "sequence":
        return masked_mean(per_token, mask, 1).mean()
    total = per_token.masked_fill(~mask, 0.0).sum()
    if choice.reduction == "token":
        return total / max(1, int(mask.sum()) if tokens is None else tokens)
    if choice.reduction == "constant":
        return total / (len(mask) * _longest(choice))
    raise ValueError(
        f"reduction {choice.reduction!r} is none of 'sequence', 'token', "
        "'constant'"
    )


def _longest(choice: Objective) -> int:
    if choice.max_length is None or choice.max_length < 1:
        raise ValueError(
            "the reduction 'constant' divides by max_length, found "
            f"{choice.max_length}"
        )
    return choice.max_length


def _check(samples: Samples, choice: Objective) -> None:
    for name in ("logp", "old_logp", "ref_logp"):
        value = getattr(samples, name)
        if value is not None:
            require_finite(name, value, samples.mask)
    if choice.beta and samples.ref_logp is None:
        raise ValueError(
            f"beta {choice.beta} weighs a divergence, but ref_logp is None"
        )
