r"""Keeping experts busy: load statistics, balance losses, the bias update.

Losses come without their coefficient $\alpha$. Counting is no function that
gradients could pass; they reach the router through the scores alone.
"""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Rule = Literal["sign", "centred", "proportional"]


def loads(
    experts: Int[Tensor, "*z k"], n_experts: int
) -> Int[Tensor, " {n_experts}"]:
    """How many slots each expert got; dropped slots do not count."""
    return torch.bincount(experts.flatten(), minlength=n_experts)[:n_experts]


class Balance(NamedTuple):
    r"""Four views of how even a load is.

    ``share`` sums to one. ``max_violation`` is $\max_i c_i / \bar c - 1$,
    ``variation`` is the standard deviation over the mean, both zero for an
    even load. ``entropy`` is in nats, at most $\ln e$.
    """

    share: Float[Tensor, " e"]
    max_violation: float
    variation: float
    entropy: float


def balance(counts: Int[Tensor, " e"]) -> Balance:
    """Measure a load; no tokens at all are an even load."""
    counts = counts.double() if counts.any() else torch.ones_like(counts) * 1.0
    share = counts / counts.sum()
    return Balance(
        share,
        float(counts.max() / counts.mean() - 1),
        float(variation_squared(share).sqrt()),
        float(torch.special.entr(share).sum()),
    )


def variation_squared(load: Float[Tensor, " e"]) -> Float[Tensor, ""]:
    r"""$CV^2 = \mathrm{Var}(c) / \bar c^2$, zero for an empty load.

    Of the importance of experts (their summed gates, :func:`dense`) it is
    the importance loss, of their summed chances (``Noisy.probability``) the
    load loss. Source: Shazeer et al. 2017.
    """
    mean = load.mean()
    return load.var(correction=0) / (mean**2).where(mean != 0, 1)


def dense(
    weights: Float[Tensor, "z k"], experts: Int[Tensor, "z k"], n_experts: int
) -> Float[Tensor, "z {n_experts}"]:
    """The sparse gates $G(x)$ written out, zero for experts not chosen."""
    gates = weights.new_zeros(len(weights), n_experts + 1)
    return gates.scatter(1, experts, weights)[:, :n_experts]


def z_loss(logits: Float[Tensor, "z e"]) -> Float[Tensor, ""]:
    r"""Keep the router's logits small, mean of $(\log\sum_j e^{x_j})^2$.

    Source: ST-MoE, Zoph et al. 2022; coefficient $10^{-3}$.
    """
    return logits.logsumexp(1).square().mean() if len(logits) else logits.sum()


def fractions(
    scores: Float[Tensor, "z e"], experts: Int[Tensor, "z k"]
) -> tuple[Float[Tensor, " e"], Float[Tensor, " e"]]:
    r"""$f_i$, the load over its even share, and $P_i$, the mean score.

    $$f_i = \frac{e}{k\,z} \sum_z 1[z \to i], \qquad
      P_i = \frac1z \sum_z s_{iz}$$

    Both are zero without tokens.
    """
    z, e = scores.shape
    slots = max(experts.numel(), 1)
    f = loads(experts, e).type_as(scores) * e / slots
    return f, scores.sum(0) / max(z, 1)


def expert_loss(
    scores: Float[Tensor, "z e"], experts: Int[Tensor, "z k"]
) -> Float[Tensor, ""]:
    r"""$\sum_i f_i P_i$, one for an even load of softmax scores.

    With one expert each it is the Switch loss; with more, DeepSeekMoE's
    expert-level loss (equations 12 to 14).
    """
    f, p = fractions(scores, experts)
    return (f * p).sum()


def gshard_loss(
    scores: Float[Tensor, "z e"], experts: Int[Tensor, "z k"]
) -> Float[Tensor, ""]:
    r"""$\frac1e \sum_i \frac{c_i}{z} m_i$ from first choices only."""
    return expert_loss(scores, experts[:, :1]) / scores.size(1) ** 2


def device_loss(
    scores: Float[Tensor, "z e"], experts: Int[Tensor, "z k"], devices: int
) -> Float[Tensor, ""]:
    r"""$\sum_i f'_i P'_i$ over devices that hold neighbouring experts.

    $$f'_i = \frac{1}{|\mathcal E_i|} \sum_{j \in \mathcal E_i} f_j, \qquad
      P'_i = \sum_{j \in \mathcal E_i} P_j$$

    A mean and a sum. Source: DeepSeekMoE, equations 15 to 17.
    """
    f, p = (by_device(x, devices) for x in fractions(scores, experts))
    return (f.mean(1) * p.sum(1)).sum()


def by_device(
    x: Float[Tensor, " e"], devices: int
) -> Float[Tensor, "{devices} size"]:
    """One row per device; ``ValueError`` if they do not divide the experts."""
    if len(x) % devices:
        raise ValueError(f"{devices} devices do not divide {len(x)} experts")
    return rearrange(x, "(device e) -> device e", device=devices)


def devices_of(
    experts: Int[Tensor, "z k"], n_experts: int, devices: int
) -> Int[Tensor, "z {devices}"]:
    """One where any of a token's experts lives, zero elsewhere.

    ``ValueError`` if the devices do not divide the experts.
    """
    if n_experts % devices:
        raise ValueError(f"{devices} devices do not divide {n_experts} experts")
    # A dropped slot names one device more than there are.
    device = experts // (n_experts // devices)
    sent = F.one_hot(device, devices + 1)
    return sent.amax(1)[:, :devices]


def communication_loss(
    scores: Float[Tensor, "z e"],
    experts: Int[Tensor, "z k"],
    devices: int,
    limit: int,
) -> Float[Tensor, ""]:
    r"""$\sum_i f''_i P''_i$: no device should receive too many tokens.

    $$f''_i = \frac{D}{M z} \sum_z 1[z \text{ is sent to } i]$$

    ``limit`` is $M$, the devices a token may reach, and $P''_i = P'_i$.
    Source: DeepSeek-V2 report, equations 29 to 31.
    """
    z, e = scores.shape
    sent = devices_of(experts, e, devices).sum(0).type_as(scores)
    _, p = fractions(scores, experts)
    f = sent * devices / (limit * max(z, 1))
    return (f * by_device(p, devices).sum(1)).sum()


def sequence_loss(
    scores: Float[Tensor, "b t e"],
    k: int,
    experts: Int[Tensor, "b t k"] | None = None,
) -> Float[Tensor, ""]:
    r"""$\sum_i f_i P_i$ within each sequence, averaged over sequences.

    $$f_i = \frac{e}{k\,t} \sum_t 1[s_{it} \in \mathrm{TopK}(s_t, k)], \qquad
      P_i = \frac1t \sum_t \frac{s_{it}}{\sum_j s_{jt}}$$

    As printed, $f$ counts the best *unbiased* scores, whatever groups and
    bias chose; hand in ``experts`` to count the real choice. $P$ is
    normalised over all experts. Source: DeepSeek-V3 report, equations 17 to
    20.
    """
    b, t, e = scores.shape
    if experts is None:
        experts = scores.topk(k).indices
    chosen = F.one_hot(experts, e + 1).sum((1, 2))[:, :e]
    p = (scores / scores.sum(-1, keepdim=True)).sum(1)
    return (chosen * p).sum() * (e / (max(k * t * t * b, 1)))


def updated_bias(
    bias: Float[Tensor, " e"],
    counts: Int[Tensor, " e"],
    speed: float,
    rule: Rule = "sign",
) -> Float[Tensor, " e"]:
    r"""The selection bias after one step: up for idle experts, else down.

    $$b_i \leftarrow b_i + \gamma\,\mathrm{sign}(\bar c - c_i)$$

    Call it once per optimiser step with the counts of the whole batch, and
    copy the result into ``gate.e_score_correction_bias``. For comparison:
    ``centred`` subtracts the mean step, which changes no choice;
    ``proportional`` takes the relative error $(\bar c - c_i) / \bar c$ for
    its sign. Source: DeepSeek-V3 report, section 2.1.2; Wang et al. 2024.
    """
    load = counts.type_as(bias)
    error = load.mean() - load
    if rule == "proportional":
        return bias + speed * error / load.mean().clamp(min=1 / len(load))
    step = speed * error.sign()
    return bias + (step - step.mean() if rule == "centred" else step)
