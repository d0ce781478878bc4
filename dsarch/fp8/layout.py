r"""Bytes of a quantised cache: the latent of MLA and the indexer's key.

A latent of 512 values and a rotary key of 64 take 656 bytes instead of
1152 in bf16: 512 of E4M3, 16 of four float32 scales, 128 of bf16, because
the rotary part carries positions and stays as it is. An indexer key of 128
values takes 132.

Source: FlashMLA's FP8 sparse layout; DeepGEMM's paged indexer cache.
"""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from dsarch.fp8.formats import cast, largest
from dsarch.fp8.reference import (
    TILE,
    Quantized,
    dequantize,
    power_of_two,
    quantize,
)
from dsarch.layers import widen

TILE_WIDTH = 128
SMALLEST_SCALE = 1e-4


def latent_scale(amax: Float[Tensor, "*z"]) -> Float[Tensor, "*z"]:
    r"""$2^{\lceil\log_2\max(\mathrm{amax}/448,\ 10^{-4})\rceil}$.

    Here the floor is under the *scale*, not under the magnitude as in
    :func:`reference.scale_for`: no latent scale is below $2^{-13}$.
    """
    s = amax.to(torch.float32) / largest("e4m3")
    return power_of_two(s.clamp(min=SMALLEST_SCALE))


def pack_latent(
    c: Float[Tensor, "*s c"], k_rope: Float[Tensor, "*s r"]
) -> UInt8[Tensor, "*s bytes"]:
    """One cached token per row: values, scales, rotary key.

    ``ValueError`` unless the latent is a multiple of 128 wide and the rotary
    key even, so that every part starts where its dtype may start.
    """
    _check_widths(c.size(-1), k_rope.size(-1))
    tiles = widen(c).unflatten(-1, (-1, TILE_WIDTH))
    s = latent_scale(tiles.abs().amax(-1))
    values = cast(tiles / s[..., None], "e4m3").flatten(-2)
    parts = [values, s, k_rope.to(torch.bfloat16)]
    return torch.cat([_bytes(part) for part in parts], -1)


def unpack_latent(
    packed: Shaped[Tensor, "*s bytes"],
    widths: tuple[int, int] = (512, 64),
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Float[Tensor, "*s c"], Float[Tensor, "*s r"]]:
    """Latent and rotary key; ``ValueError`` unless the bytes add up."""
    c, r = widths
    _check_widths(c, r)
    sizes = [c, 4 * c // TILE_WIDTH, 2 * r]
    check_bytes(packed, sum(sizes))
    values, s, k_rope = packed.split(sizes, -1)
    tiles = _view(values, torch.float8_e4m3fn).to(torch.float32)
    tiles = tiles.unflatten(-1, (-1, TILE_WIDTH))
    latent = tiles * _view(s, torch.float32)[..., None]
    k_rope = _view(k_rope, torch.bfloat16)
    return latent.flatten(-2).to(dtype), k_rope.to(dtype)


def pack_index(
    k: Float[Tensor, "s m"], *, pow2: bool = True, paged: bool = False
) -> UInt8[Tensor, "s bytes"]:
    """Indexer keys, 132 bytes each: 128 of E4M3, four of one float32 scale.

    A page of the paged cache has the values of all its keys first and their
    scales behind them; its rows are then no longer one key each. V3.2 rounds
    the scale to a power of two. ``ValueError`` unless a key is 128 wide.
    """
    if k.size(1) != TILE_WIDTH:
        raise ValueError(
            f"an indexer key is {TILE_WIDTH} wide, not {k.size(1)}"
        )
    q = quantize(k, TILE, pow2=pow2)
    values, s = _bytes(q.values), _bytes(q.scale)
    if not paged:
        return torch.cat([values, s], -1)
    page = torch.cat([values.flatten(), s.flatten()])
    return page.reshape(k.size(0), TILE_WIDTH + 4)


def unpack_index(
    packed: Shaped[Tensor, "s bytes"], *, paged: bool = False
) -> Float[Tensor, "s m"]:
    """Indexer keys in float32; ``paged`` as they were packed."""
    check_bytes(packed, TILE_WIDTH + 4)
    count = packed.size(0)
    if paged:
        sizes = [count * TILE_WIDTH, count * 4]
        values, s = packed.flatten().split(sizes)
        values, s = values.reshape(count, TILE_WIDTH), s.reshape(count, 4)
    else:
        values, s = packed.split([TILE_WIDTH, 4], -1)
    values = _view(values, torch.float8_e4m3fn)
    return dequantize(Quantized(values, _view(s, torch.float32), TILE))


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _view(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format).view(dtype)


def _check_widths(c: int, r: int) -> None:
    if c % TILE_WIDTH or r % 2:
        raise ValueError(
            f"widths are {c} and {r}: the latent must be a multiple of "
            f"{TILE_WIDTH}, the rotary key of 2"
        )


def check_bytes(packed: Tensor, want: int) -> None:
    """Raise ``ValueError`` unless a row is ``want`` bytes."""
    if packed.dtype != torch.uint8 or packed.size(-1) != want:
        raise ValueError(
            f"a row has {packed.size(-1)} values of {packed.dtype}, "
            f"expected {want} of {torch.uint8}"
        )
