r"""What one step of decoding costs a layer: FLOP, bytes, roofline time.

Counted is the attention over ``context`` cached tokens of one sequence, a
multiply-add as two FLOP, and the traffic of the cache. The projections
around it, softmax and weights are left out: every order pays them alike.
"""

import math
from typing import NamedTuple

from dsarch.analysis.presets import Machine
from dsarch.config import Config


class Cost(NamedTuple):
    """FLOP and bytes of one step in one layer for one sequence."""

    flops: int
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOP per byte of memory traffic."""
        return self.flops / self.bytes

    def seconds(self, machine: Machine) -> float:
        r"""Roofline time: $\max(\mathrm{FLOP}/F,\ \mathrm{bytes}/B)$."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)

    def bound(self, machine: Machine) -> str:
        """What limits the step: ``"compute"`` or ``"memory"``."""
        return "compute" if self.intensity > machine.balance else "memory"


def _check(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")


def grouped(
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    queries: int = 1,
    bytes_per_element: float = 2,
) -> Cost:
    r"""MHA, GQA and MQA: each query meets every cached key and value.

    $$\mathrm{FLOP} = 4\,t\,n_h\,d_h\,T,\qquad
      \mathrm{bytes} = 2\,e\,n_{kv}\,d_h\,T$$
    """
    _check(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    _check(context=context, queries=queries)
    flops = 4 * queries * heads * head_dim * context
    return Cost(flops, 2 * bytes_per_element * kv_heads * head_dim * context)


def expanded(
    cfg: Config, context: int, queries: int = 1, bytes_per_element: float = 2
) -> Cost:
    r"""MLA with expanded keys and values in the cache: MHA in disguise.

    $$\mathrm{FLOP} = 2\,t\,n_h\,(d_n + d_r + d_v)\,T,\qquad
      \mathrm{bytes} = e\,n_h\,(d_n + d_r + d_v)\,T$$
    """
    _check(context=context, queries=queries)
    width = cfg.num_attention_heads * (cfg.qk_head_dim + cfg.v_head_dim)
    flops = 2 * queries * width * context
    return Cost(flops, bytes_per_element * width * context)


def reexpanding(
    cfg: Config, context: int, queries: int = 1, bytes_per_element: float = 2
) -> Cost:
    r"""MLA with a latent cache, expanded anew in every step.

    On top of :func:`expanded` comes
    $2\,n_h\,(d_n + d_v)\,d_c\,T$ FLOP, once for all ``queries``. The latent
    is read; what was expanded is written once and read once.
    """
    _check(context=context, queries=queries)
    fresh = cfg.num_attention_heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    flops = expanded(cfg, context, queries).flops
    flops += 2 * fresh * cfg.kv_lora_rank * context
    numbers = (sum(cfg.kv_widths) + 2 * fresh) * context
    return Cost(flops, bytes_per_element * numbers)


def absorbed(
    cfg: Config, context: int, queries: int = 1, bytes_per_element: float = 2
) -> Cost:
    r"""MLA on the latent itself: one wide key-value head for all heads.

    $$\mathrm{FLOP} = 2\,t\,n_h\,\big[(2d_c + d_r)\,T + (d_n + d_v)\,d_c\big],
      \qquad \mathrm{bytes} = e\,(d_c + d_r)\,T$$

    The second term turns queries into latent space and outputs back.
    """
    _check(context=context, queries=queries)
    latent, rotary = cfg.kv_widths
    turn = (cfg.qk_nope_head_dim + cfg.v_head_dim) * latent
    pair = (2 * latent + rotary) * context + turn
    flops = 2 * queries * cfg.num_attention_heads * pair
    return Cost(flops, bytes_per_element * (latent + rotary) * context)


def crossover_queries(cfg: Config, context: int) -> float:
    r"""Queries in one step from which re-expanding needs fewer FLOP.

    $$t^* = \frac{d_c\,(d_n + d_v)\,T}
                 {(2d_c - d_n - d_v)\,T + d_c\,(d_n + d_v)}$$

    The number of heads cancels. Infinite if absorbing is never dearer.
    """
    _check(context=context)
    width = cfg.qk_nope_head_dim + cfg.v_head_dim
    turn = cfg.kv_lora_rank * width
    gap = (2 * cfg.kv_lora_rank - width) * context + turn
    return turn * context / gap if gap > 0 else math.inf
