r"""Routers: which experts compute a token, and with what weight.

Every router ends in a :class:`Routing`. What selects an expert and what
weighs its answer are two different scores; only the second has gradients.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dsarch.config import Config
from dsarch.layers import widen

Scoring = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """The chosen experts of each token, their weights, and all scores.

    A slot that was dropped names the expert ``e``, which does not exist, and
    weighs nothing. ``scores`` are those before any selection; the balance
    losses need them.
    """

    weights: Float[Tensor, "z k"]
    experts: Int[Tensor, "z k"]
    scores: Float[Tensor, "z e"]


def affinities(
    x: Float[Tensor, "z d"],
    weight: Float[Tensor, "e d"],
    scoring: Scoring = "sigmoid",
) -> Float[Tensor, "z e"]:
    r"""How well each expert suits a token, in fp32 or wider.

    $$s_i = \sigma(u^\top e_i) \quad\text{(V3)}, \qquad
      s = \mathrm{softmax}_i(u^\top e_i) \quad\text{(V2 and the classics)}$$
    """
    u = gate_logits(x, weight)
    return u.sigmoid() if scoring == "sigmoid" else u.softmax(-1)


def gate_logits(
    x: Float[Tensor, "z d"], weight: Float[Tensor, "e d"]
) -> Float[Tensor, "z e"]:
    r"""$u^\top e_i$ in fp32 or wider: near ties bf16 would choose others."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(widen(x), widen(weight))


def group_scores(
    choice: Float[Tensor, "z e"], n_group: int, best: int
) -> Float[Tensor, "z {n_group}"]:
    """Sum of the ``best`` highest selection scores in each group.

    V3 takes two, V2 the maximum. ``ValueError`` unless equal groups of at
    least ``best`` experts can be formed.
    """
    size, rest = divmod(choice.size(1), n_group)
    if rest or size < best:
        raise ValueError(
            f"{choice.size(1)} experts do not form {n_group} equal groups "
            f"of at least {best}"
        )
    grouped = rearrange(choice, "z (group e) -> z group e", e=size)
    return grouped.topk(best).values.sum(-1)


def limit_to_groups(
    choice: Float[Tensor, "z e"], n_group: int, topk_group: int, best: int
) -> Float[Tensor, "z e"]:
    r"""Give the experts outside the best ``topk_group`` groups $-\infty$.

    Zero would not do: with biases a kept expert may score below zero.
    ``ValueError`` if more groups are to be kept than exist.
    """
    if topk_group > n_group:
        raise ValueError(f"topk_group {topk_group} exceeds n_group {n_group}")
    scores = group_scores(choice, n_group, best)
    kept = scores.topk(topk_group).indices
    closed = torch.ones_like(scores, dtype=torch.bool).scatter(1, kept, False)
    closed = closed.repeat_interleave(choice.size(1) // n_group, 1)
    return choice.masked_fill(closed, -math.inf)


def route(
    scores: Float[Tensor, "z e"],
    bias: Float[Tensor, "... e"] | None,
    cfg: Config,
) -> Routing:
    r"""Choose by biased scores within the best groups, weigh by unbiased ones.

    $$\mathcal K = \mathrm{TopK}_i(s_i + b_i), \qquad
      g_i = \lambda\, s_i \Big/ \sum_{j \in \mathcal K} s_j$$

    V2 has no bias and no denominator. $\lambda$ is ``routed_scaling_factor``,
    which the reports' equations leave out. A token with NaN scores gets NaN
    weights and existing experts; no other token notices. ``ValueError`` if
    more experts are to be chosen than exist. Source: DeepSeek-V3 report,
    section 2.1.2; DeepSeek-V2 report, section 2.2.2.
    """
    k = at_most(cfg.num_experts_per_tok, scores.size(1))
    choice = scores.detach() if bias is None else (scores + bias).detach()
    if cfg.topk_method != "greedy" and cfg.topk_group < cfg.n_group:
        best = 2 if cfg.topk_method == "noaux_tc" else 1
        choice = limit_to_groups(choice, cfg.n_group, cfg.topk_group, best)
    experts = choice.topk(k).indices
    weights = scores.gather(1, experts)
    if cfg.norm_topk_prob:
        # All chosen sigmoids may underflow to zero.
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return Routing(weights * cfg.routed_scaling_factor, experts, scores)


def at_most(k: int, n_experts: int) -> int:
    """``k``, or ``ValueError`` if there are not as many experts."""
    if not 1 <= k <= n_experts:
        raise ValueError(f"cannot choose {k} of {n_experts} experts")
    return k


class Router(nn.Module):
    r"""The gate of a DeepSeek layer: one centroid $e_i$ for each expert.

    V3 adds ``e_score_correction_bias``, a buffer that no gradient reaches:
    the training loop moves it (:func:`dsarch.balance.updated_bias`). It stays
    in fp32 whatever the model is cast to.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        shape = cfg.n_routed_experts, cfg.hidden_size
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.weight, 0.0, cfg.initializer_range)
        biased = cfg.topk_method == "noaux_tc"
        bias = torch.zeros(shape[0], dtype=torch.float32) if biased else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Float[Tensor, "z d"]) -> Routing:
        scores = affinities(x, self.weight, self.cfg.scoring_func)
        return route(scores, self.e_score_correction_bias, self.cfg)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> Any:
        # Casts spare integers, moves do not: in bf16 the small steps of the
        # bias would be rounded away.
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if bias is not None:
            self.e_score_correction_bias = fn(bias.view(torch.int32)).view(
                torch.float32
            )
        return self


def top_k(scores: Float[Tensor, "z e"], k: int) -> Routing:
    r"""The classic: the ``k`` best, weights renormalised to sum to one.

    $$g_i = s_i \Big/ \sum_{j \in \mathcal K} s_j$$

    ``ValueError`` if more experts are to be chosen than exist.
    """
    weights, experts = scores.topk(at_most(k, scores.size(1)))
    return Routing(weights / weights.sum(1, keepdim=True), experts, scores)


class Noisy(NamedTuple):
    """A noisy routing, and how likely each expert was to be chosen."""

    routing: Routing
    probability: Float[Tensor, "z e"]


def noisy_top_k(
    clean: Float[Tensor, "z e"],
    spread: Float[Tensor, "z e"],
    k: int,
    generator: torch.Generator | None = None,
) -> Noisy:
    r"""Choose by logits with noise, so that close losers get a chance.

    $$H = x W_g + \epsilon\,\mathrm{softplus}(x W_{noise}), \qquad
      G = \mathrm{softmax}(\mathrm{KeepTopK}(H, k))$$

    ``clean`` is $x W_g$ and ``spread`` is $x W_{noise}$; without a generator
    $\epsilon = 0$. The probability is that of a new draw of one expert's own
    noise, which gives the load a gradient. Source: Shazeer et al. 2017.
    """
    e = clean.size(1)
    noisy, scale = clean, F.softplus(spread)
    if generator is not None:
        drawn = torch.empty_like(clean).normal_(generator=generator)
        noisy = clean + drawn * scale
    best, experts = noisy.topk(min(at_most(k, e) + 1, e))
    routing = Routing(best[:, :k].softmax(1), experts[:, :k], noisy.softmax(1))
    if k == e:
        return Noisy(routing, torch.ones_like(clean))
    chosen = torch.zeros_like(clean, dtype=torch.bool)
    chosen = chosen.scatter(1, routing.experts, True)
    # A chosen expert must beat the best of the others, another the k-th.
    bar = torch.where(chosen, best[:, k:], best[:, k - 1 : k])
    return Noisy(routing, torch.special.ndtr((clean - bar) / scale))


def switch_top1(scores: Float[Tensor, "z e"]) -> Routing:
    r"""One expert each, weighed by its probability, not renormalised.

    $$y = p_i\,\mathrm{FFN}_i(x), \qquad i = \arg\max p$$

    A weight of one would leave the router without a gradient. Source: Fedus
    et al. 2021.
    """
    weights, experts = scores.topk(1)
    return Routing(weights, experts, scores)


def gshard_top2(
    scores: Float[Tensor, "z e"], generator: torch.Generator | None = None
) -> Routing:
    r"""Two experts; the second is kept with probability $2 g_2$.

    $$g_i \leftarrow g_i / (g_1 + g_2), \qquad
      \text{keep the second if } 2 g_2 > u,\; u \sim U(0, 1)$$

    Without a generator both are kept. Source: Lepikhin et al. 2020,
    algorithm 1.
    """
    routing = top_k(scores, 2)
    if generator is None:
        return routing
    u = torch.empty_like(routing.weights[:, 1])
    second = 2 * routing.weights[:, 1] > u.uniform_(generator=generator)
    return drop(routing, torch.stack([torch.ones_like(second), second], 1))


def capacity(tokens: int, k: int, n_experts: int, factor: float) -> int:
    r"""How many slots an expert has, $\lceil c\,z\,k / e \rceil$."""
    if factor < 0 or not math.isfinite(factor):
        raise ValueError(f"capacity factor {factor} is no size")
    return math.ceil(tokens * k / n_experts * factor)


def drop_overflow(routing: Routing, limit: int) -> Routing:
    """Keep the first ``limit`` slots of every expert and drop the others.

    All first choices come before any second choice, and tokens in order. A
    token that loses all its slots passes through the residual stream alone.
    """
    slots = rearrange(routing.experts, "z k -> (k z)")
    taken = F.one_hot(slots, routing.scores.size(1) + 1).cumsum(0)
    rank = taken.gather(1, slots[:, None]).squeeze(1)
    kept = (rank <= limit).unflatten(0, routing.experts.T.shape)
    return drop(routing, kept.T)


def drop(routing: Routing, kept: Tensor) -> Routing:
    """Take the slots that are not ``kept`` from their experts."""
    weights = routing.weights.where(kept, 0.0)
    experts = routing.experts.where(kept, routing.scores.size(1))
    return Routing(weights, experts, routing.scores)
