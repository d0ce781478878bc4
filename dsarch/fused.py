r"""The same model in fewer steps, for training and for decoding.

:func:`dsarch.mla.expanded` is what the text explains: it writes down all
scores. Torch's kernel works them off block by block and keeps none of them.
:func:`step` is :func:`dsarch.mla.absorbed` for the one query of a decoded
token, with the products that ``einsum`` would have called; :func:`row` is a
linear map of that one token, with work for every core.
"""

import math
from collections.abc import Callable
from functools import partial
from types import MethodType

import torch
from einops import rearrange
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dsarch.cache import Cache, length
from dsarch.layers import (
    Linear,
    causal_mask,
    expect_chunk,
    masked_softmax,
    positions,
)
from dsarch.mla import MLA, absorbs


def fuse(model: nn.Module) -> None:
    """Let every plain MLA and linear map of a model run fast where it can.

    That is a whole sequence, with or without an empty cache, and one token
    behind a cache while no gradients are recorded; else nothing changes.
    """
    faster: dict[type, Callable[..., Tensor]] = {MLA: _attend, Linear: _linear}
    for module in model.modules():
        if fast := faster.get(type(module)):
            plain = MethodType(type(module).forward, module)
            module.forward = partial(fast, module, plain)


def _linear(linear: Linear, plain: MethodType, x: Tensor) -> Tensor:
    return row(x, linear.weight) if is_row(x) else plain(x)


def is_row(x: Tensor) -> bool:
    """Whether this is one token, on a processor and without gradients."""
    one = x.numel() == x.size(-1) and not x.is_cuda
    return one and not torch.is_grad_enabled()


def row(
    x: Float[Tensor, "*one d"], weight: Float[Tensor, "f d"]
) -> Float[Tensor, "*one f"]:
    """$Wx$ of one token, with work for every core.

    Torch's product of one row and a matrix keeps a single core busy. A batch
    of products does not, so every thread gets a piece of the matrix.
    """
    f = len(weight)
    pieces = math.gcd(f, torch.get_num_threads())
    cut = weight.unfold(0, f // pieces, f // pieces)
    y = torch.bmm(x.reshape(1, 1, -1).expand(pieces, -1, -1), cut)
    return y.view(*x.shape[:-1], f)


def against(
    q: Float[Tensor, "b h c"], k: Float[Tensor, "b s c"]
) -> Float[Tensor, "b h s"]:
    """A few rows times the keys of a cache, in two pieces for one sequence.

    If their number is odd, both pieces hold the one in the middle.
    """
    b, s, _ = k.shape
    if b > 1 or s < 256 or k.is_cuda:
        return torch.bmm(q, k.transpose(1, 2))
    half = (s + 1) // 2
    pieces = k[0].unfold(0, half, s - half)
    left, right = torch.bmm(q.expand(2, -1, -1), pieces)
    return torch.cat([left, right[:, 2 * half - s :]], 1)[None]


def _attend(
    mla: MLA,
    plain: MethodType,
    x: Float[Tensor, "b t d"],
    phase: Complex[Tensor, "b t p"],
    mask: Bool[Tensor, "b t s"],
    cache: Cache | None = None,
) -> Float[Tensor, "b t d"]:
    past, one = length(cache), x.size(1) == 1 and not torch.is_grad_enabled()
    if past and not (one and absorbs(mla.cfg, *mask.shape[1:])):
        return plain(x, phase, mask, cache)
    expect_chunk(x, mask, past, mla.cfg.hidden_size)
    q, q_rope, _ = mla.queries(x, phase)
    c, k_rope = mla.memories(x, phase)
    if cache is not None:
        c, k_rope = cache.extend(latent=c, k_rope=k_rope)
    if past:
        o = step(q, q_rope, c, k_rope, *mla.up(), mask, mla.scale)
    else:
        kv = F.linear(c, mla.kv_b_proj.matrix())
        kv = rearrange(kv, "b s (h n) -> b s h n", n=sum(mla.kv_rows))
        o = fused(torch.cat([q, q_rope], -1), kv, k_rope, mask, mla.scale)
    return mla.o_proj(rearrange(o, "b t h v -> b t (h v)"))


def step(
    q: Float[Tensor, "b 1 h n"],
    q_rope: Float[Tensor, "b 1 h r"],
    c: Float[Tensor, "b s c"],
    k_rope: Float[Tensor, "b s r"],
    w_uk: Float[Tensor, "h n c"],
    w_uv: Float[Tensor, "h v c"],
    mask: Bool[Tensor, "b 1 s"],
    scale: float,
) -> Float[Tensor, "b 1 h v"]:
    """One query of each sequence against the latents themselves."""
    q, q_rope = (scale * x.squeeze(1) for x in (q, q_rope))
    q = torch.bmm(q.transpose(0, 1), w_uk).transpose(0, 1)
    score = against(q, c) + torch.bmm(q_rope, k_rope.transpose(1, 2))
    p = masked_softmax(score[:, :, None], mask).squeeze(2)
    o = torch.bmm(p, c)
    o = torch.bmm(o.transpose(0, 1), w_uv.transpose(1, 2))
    return o.transpose(0, 1).unsqueeze(1)


def fused(
    q: Float[Tensor, "b t h n"],
    kv: Float[Tensor, "b s h kv"],
    k_rope: Float[Tensor, "b s r"],
    mask: Bool[Tensor, "b t s"],
    scale: float,
) -> Float[Tensor, "b t h v"]:
    """Attention of whole queries to keys and values that lie together.

    The kernel wants values as wide as keys: zeros fill them up, and what
    becomes of the zeros is cut off.
    """
    rotary, width = k_rope.size(-1), q.size(-1)
    k, v = kv.split([width - rotary, kv.size(-1) - width + rotary], -1)
    shared = k_rope[:, :, None].expand(-1, -1, k.size(2), -1)
    k = torch.cat([k, shared], -1)
    padded = F.pad(v, (0, width - v.size(-1)))
    q, k, padded = (x.transpose(1, 2) for x in (q, k, padded))
    causal = is_causal(mask)
    o = F.scaled_dot_product_attention(
        q,
        k,
        padded,
        attn_mask=None if causal else mask[:, None],
        is_causal=causal,
        scale=scale,
    )
    return o.transpose(1, 2)[..., : v.size(-1)]


def is_causal(mask: Bool[Tensor, "b t s"]) -> bool:
    """Whether a mask says no more than: every token sees those before it."""
    b, t, s = mask.shape
    return t == s and torch.equal(
        mask, causal_mask(positions(b, 0, t, mask.device), s)
    )
