r"""Small shared parts: a linear map, the gated MLP, masks and softmax."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def widen(x: Tensor) -> Tensor:
    """At least fp32: lifts bf16 and leaves fp64, unlike ``x.float()``."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Linear):
    r"""$y = Wx$ without a bias, as everywhere in DeepSeek's models."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def matrix(self) -> Tensor:
        """$W$ for a product made elsewhere, as MLA's; FP8 rounds it."""
        return self.weight


class SwiGLU(nn.Module):
    r"""The gated MLP, dense layer and expert alike.

    $$y = W_{down}\,(\mathrm{SiLU}(W_{gate}\,x) \odot W_{up}\,x)$$

    Shapes: ``x`` is ``[..., d]``, the hidden width is ``f``.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, hidden)
        self.up_proj = Linear(dim, hidden)
        self.down_proj = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*z d"]) -> Float[Tensor, "*z d"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def positions(
    batch: int, start: int, count: int, device: torch.device | None = None
) -> Int[Tensor, "{batch} {count}"]:
    """The positions ``start`` to ``start + count`` for every sequence."""
    row = torch.arange(start, start + count, device=device)
    return row.expand(batch, count)


def causal_mask(
    position: Int[Tensor, "b t"], length: int
) -> Bool[Tensor, "b t {length}"]:
    r"""Which of ``length`` keys each query may see: $s \le$ its position.

    The mask is made from positions, so prefill, a later chunk and a single
    decoded token are one case.
    """
    key = torch.arange(length, device=position.device)
    return key <= position[..., None]


def masked_softmax(
    score: Float[Tensor, "b *h t s"], mask: Bool[Tensor, "b t s"]
) -> Float[Tensor, "b *h t s"]:
    """Softmax over the visible keys, in fp32 or wider, cast back once.

    Every query must see at least one key, as a causal mask grants.
    """
    mask = mask.unflatten(0, (-1, *[1] * (score.ndim - 3)))
    wide = widen(score).where(mask, -math.inf)
    return wide.softmax(-1).type_as(score)


def expect(name: str, x: Tensor, *sizes: int | None) -> None:
    """Raise ``ValueError`` unless ``x`` has these sizes; None fits any."""
    fits = x.ndim == len(sizes) and all(
        want in (None, found)
        for want, found in zip(sizes, x.shape, strict=True)
    )
    if not fits:
        want = ["any" if size is None else str(size) for size in sizes]
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected ({', '.join(want)})"
        )


def expect_chunk(x: Tensor, mask: Tensor, past: int, width: int) -> None:
    """Raise ``ValueError`` unless ``x`` and its mask fit what came before."""
    expect("x", x, None, None, width)
    expect("mask", mask, *x.shape[:2], past + x.size(1))


def initialise(
    module: nn.Module, std: float, generator: torch.Generator | None = None
) -> None:
    r"""Draw every matrix from $\mathcal N(0, \mathrm{std}^2)$, norms to one.

    The generator makes the draw repeatable; buffers are left alone.
    """
    for weight in module.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, 0.0, std, generator=generator)
