r"""Grouped-query attention; multi-head and multi-query are its two ends."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, einsum, nn

from dsarch.cache import Cache, length
from dsarch.layers import Linear, expect_chunk, masked_softmax
from dsarch.rope import rotate


class GroupedQueryAttention(nn.Module):
    r"""Attention whose query heads share keys and values in groups.

    Query head $h$ reads key head $\lfloor h\,g/h_{all} \rfloor$. With as many
    key heads as query heads this is multi-head attention, with one it is
    multi-query attention. The cache holds $2 g n$ numbers a token. Names and
    layout are Llama's; ``phase`` turns half-split pairs, None leaves
    positions out. Raises ``ValueError`` if the groups are uneven.
    """

    def __init__(
        self, dim: int, heads: int, kv_heads: int, head_dim: int | None = None
    ) -> None:
        super().__init__()
        check_groups(heads, kv_heads)
        head_dim = dim // heads if head_dim is None else head_dim
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.q_proj = Linear(dim, heads * head_dim)
        self.k_proj = Linear(dim, kv_heads * head_dim)
        self.v_proj = Linear(dim, kv_heads * head_dim)
        self.o_proj = Linear(heads * head_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        phase: Complex[Tensor, "b t p"] | None,
        mask: Bool[Tensor, "b t s"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t d"]:
        expect_chunk(x, mask, length(cache), self.dim)
        q = rearrange(self.q_proj(x), "b t (h n) -> b t h n", h=self.heads)
        k = rearrange(self.k_proj(x), "b t (g n) -> b t g n", g=self.kv_heads)
        v = rearrange(self.v_proj(x), "b t (g v) -> b t g v", g=self.kv_heads)
        if phase is not None:
            q = rotate(q, phase, interleaved=False)
            k = rotate(k, phase, interleaved=False)
        if cache is not None:
            k, v = cache.extend(k=k, v=v)
        o = grouped(q, k, v, mask)
        return self.o_proj(rearrange(o, "b t h v -> b t (h v)"))


def repeated(
    q: Float[Tensor, "b t h n"],
    k: Float[Tensor, "b s g n"],
    v: Float[Tensor, "b s g v"],
    mask: Bool[Tensor, "b t s"],
) -> Float[Tensor, "b t h v"]:
    """Copy each key head to its query heads, then plain attention: naive."""
    copies = q.size(2) // k.size(2)
    k = repeat(k, "b s g n -> b s (g copies) n", copies=copies)
    v = repeat(v, "b s g v -> b s (g copies) v", copies=copies)
    score = einsum("bthn,bshn->bhts", q, k) * q.size(-1) ** -0.5
    return einsum("bhts,bshv->bthv", masked_softmax(score, mask), v)


def grouped(
    q: Float[Tensor, "b t h n"],
    k: Float[Tensor, "b s g n"],
    v: Float[Tensor, "b s g v"],
    mask: Bool[Tensor, "b t s"],
) -> Float[Tensor, "b t h v"]:
    r"""Attention in groups; no key is copied.

    $$o_h = \sum_s \mathrm{softmax}_s\!\big(q_h^\top k_{s,g(h)}/\sqrt n\big)
      \,v_{s,g(h)}$$

    In the strings ``q`` counts the query heads inside a group.
    """
    q = rearrange(q, "b t (g q) n -> b t g q n", g=k.size(2))
    score = einsum("btgqn,bsgn->bgqts", q, k) * q.size(-1) ** -0.5
    o = einsum("bgqts,bsgv->btgqv", masked_softmax(score, mask), v)
    return rearrange(o, "b t g q v -> b t (g q) v")


def check_groups(heads: int, kv_heads: int) -> None:
    """Raise ``ValueError`` unless ``kv_heads`` divides ``heads``."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{kv_heads} key heads cannot serve {heads} query heads evenly"
        )


def head_map(heads: int, kv_heads: int) -> Int[Tensor, " {heads}"]:
    r"""The key head of each query head: $\lfloor h\,g/h_{all}\rfloor$."""
    check_groups(heads, kv_heads)
    return torch.arange(heads) * kv_heads // heads


def pool_heads(
    weight: Float[Tensor, "out d"], heads: int, kv_heads: int
) -> Float[Tensor, "grouped d"]:
    """Average the key (or value) heads of each group: MHA into GQA.

    The start that Ainslie et al. (2023) found best before further training.
    """
    check_groups(heads, kv_heads)
    if weight.size(0) % heads:
        raise ValueError(f"{weight.size(0)} rows are not {heads} equal heads")
    groups = rearrange(
        weight, "(g q n) d -> g q n d", g=kv_heads, q=heads // kv_heads
    )
    return rearrange(groups.mean(1), "g n d -> (g n) d")
