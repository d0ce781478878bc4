r"""The same attention through torch's fused kernel, for training.

:func:`dsarch.mla.expanded` is what the text explains: it writes down all
scores. The kernel works them off block by block and keeps none of them.
"""

from functools import partial
from types import MethodType

import torch
from einops import rearrange
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dsarch.cache import Cache
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA


def fuse(model: nn.Module) -> None:
    """Let every plain MLA of a model run fused where it has no cache."""
    for module in model.modules():
        if type(module) is MLA:
            plain = MethodType(MLA.forward, module)
            module.forward = partial(  # type: ignore[method-assign]
                _forward, module, plain
            )


def _forward(
    mla: MLA,
    plain: MethodType,
    x: Float[Tensor, "b t d"],
    phase: Complex[Tensor, "b t p"],
    mask: Bool[Tensor, "b t s"],
    cache: Cache | None = None,
) -> Float[Tensor, "b t d"]:
    if cache is not None:
        return plain(x, phase, mask, cache)
    q, q_rope, _ = mla.queries(x, phase)
    c, k_rope = mla.memories(x, phase)
    kv = F.linear(c, mla.kv_b_proj.matrix())
    kv = rearrange(kv, "b s (h n) -> b s h n", n=sum(mla.kv_rows))
    o = fused(torch.cat([q, q_rope], -1), kv, k_rope, mask, mla.scale)
    return mla.o_proj(rearrange(o, "b t h v -> b t (h v)"))


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
