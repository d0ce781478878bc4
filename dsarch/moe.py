r"""Mixtures of experts: many MLPs, of which a token uses few."""

from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from dsarch.config import Config
from dsarch.dispatch import dispatch_grouped
from dsarch.experts import Experts
from dsarch.layers import Linear, SwiGLU
from dsarch.router import (
    Router,
    Routing,
    at_most,
    capacity,
    drop_overflow,
    gate_logits,
    gshard_top2,
    noisy_top_k,
    switch_top1,
    top_k,
)

Kind = Literal["top_k", "noisy", "gshard", "switch"]
CHOSEN = {"gshard": 2, "switch": 1}


class DeepSeekMoE(nn.Module):
    r"""Shared experts for every token, a few of many small ones for each.

    $$y = \sum_{i \in \mathcal K} g_i\,\mathrm{FFN}_i(x) + \mathrm{FFN}^s(x)$$

    The shared experts are one MLP as wide as all of them together; their
    answer is neither weighed nor scaled. No token is dropped. ``forward``
    writes nothing: a forward hook on ``gate`` sees each :class:`Routing`, or
    call ``gate`` and :meth:`combine` one after the other.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        dim, hidden = cfg.hidden_size, cfg.moe_intermediate_size
        self.gate = Router(cfg)
        self.experts: nn.ModuleList = Experts(
            SwiGLU(dim, hidden) for _ in range(cfg.n_routed_experts)
        )
        shared = cfg.n_shared_experts * hidden
        self.shared_experts = SwiGLU(dim, shared) if shared else None

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        flat = rearrange(x, "b t d -> (b t) d")
        y = self.combine(flat, self.gate(flat))
        return y.unflatten(0, x.shape[:2])

    def combine(
        self, x: Float[Tensor, "z d"], routing: Routing
    ) -> Float[Tensor, "z d"]:
        """The answers of the chosen experts and of the shared ones."""
        y = dispatch_grouped(x, routing, self.experts)
        return y if self.shared_experts is None else y + self.shared_experts(x)


class SparseMoE(nn.Module):
    r"""The classic layer: equal experts, one to ``k`` of them for a token.

    $$y = \sum_{i \in \mathcal K} g_i\,\mathrm{FFN}_i(x)$$

    ``kind`` names the router. With a ``capacity_factor`` an expert serves a
    limited number of tokens of a call; those beyond get zero, so that the
    residual stream alone carries them on. ``generator`` switches on what is
    random in training: the noise, and the fate of GShard's second choice.
    ``ValueError`` if ``k`` exceeds the experts or is not the router's.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        n_experts: int,
        k: int = 2,
        *,
        kind: Kind = "top_k",
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        _check(kind, k)
        capacity(0, at_most(k, n_experts), n_experts, capacity_factor or 0.0)
        self.k, self.kind, self.capacity_factor = k, kind, capacity_factor
        self.gate = Linear(dim, n_experts)
        self.noise = Linear(dim, n_experts) if kind == "noisy" else None
        self.experts = Experts(SwiGLU(dim, hidden) for _ in range(n_experts))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b t d"]:
        flat = rearrange(x, "b t d -> (b t) d")
        y = dispatch_grouped(flat, self.route(flat, generator), self.experts)
        return y.unflatten(0, x.shape[:2])

    def route(
        self,
        x: Float[Tensor, "z d"],
        generator: torch.Generator | None = None,
    ) -> Routing:
        """Where each token goes, after dropping what exceeds the capacity."""
        logits = gate_logits(x, self.gate.weight)
        spread = gate_logits(x, self.noise.weight) if self.noise else None
        routing = choose(self.kind, logits, spread, self.k, generator)
        if self.capacity_factor is None:
            return routing
        z, e = logits.shape
        limit = capacity(z, self.k, e, self.capacity_factor)
        return drop_overflow(routing, limit)


def choose(
    kind: Kind,
    logits: Float[Tensor, "z e"],
    spread: Float[Tensor, "z e"] | None,
    k: int,
    generator: torch.Generator | None = None,
) -> Routing:
    """Where each token would go if every expert had room."""
    if spread is not None:
        return noisy_top_k(logits, spread, k, generator).routing
    scores = logits.softmax(1)
    if kind == "switch":
        return switch_top1(scores)
    if kind == "gshard":
        return gshard_top2(scores, generator)
    return top_k(scores, k)


def _check(kind: Kind, k: int) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"router {kind!r} is none of {get_args(Kind)}")
    if k != CHOSEN.get(kind, k):
        raise ValueError(f"{kind} chooses {CHOSEN[kind]} experts, not {k}")
