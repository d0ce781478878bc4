r"""Tile and block scaling, the scaled product and its accumulator.

One scale per tile makes eight bits enough: $x \approx s \cdot q$ with $q$ in
FP8 and $s$ such that the tile's largest magnitude lands on the format's
largest value. Everything here is plain PyTorch and defines the numbers that
the kernels in :mod:`dsarch.fp8.triton` have to reproduce.

Source: DeepSeek-V3 report, section 3.3, and the released inference code.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from dsarch.fp8.formats import cast, check_float, largest
from dsarch.layers import widen

# Rows and columns under one scale; None is the whole extent.
Block = tuple[int | None, int | None]
TENSOR: Block = (None, None)
ROW: Block = (1, None)
TILE: Block = (1, 128)
BLOCK: Block = (128, 128)

SMALLEST_AMAX = 1e-4
STEP = 32
FRACTION_BITS = 13

Accumulator = Literal["fp32", "fp22"]


class Quantized(NamedTuple):
    r"""A matrix as 8-bit values and one scale per block: $x \approx s q$."""

    values: Float[Tensor, "z d"]
    scale: Float[Tensor, "rows cols"]
    block: Block

    def t(self) -> "Quantized":
        """The transposed matrix; its blocks are transposed with it."""
        flipped = (self.block[1], self.block[0])
        return self._replace(
            values=self.values.T, scale=self.scale.T, block=flipped
        )


def quantize(
    x: Shaped[Tensor, "*z"],
    block: Block = TILE,
    *,
    format: str = "e4m3",
    pow2: bool = False,
) -> Quantized:
    r"""Scale each block by its largest magnitude, then round.

    $$s = \max(\mathrm{amax}, 10^{-4}) / x_{max}, \qquad
      q = \mathrm{cast}(x / s)$$

    Scales are float32, made from the current values and nothing else. The
    floor of $10^{-4}$ keeps an all-zero block from dividing zero by zero.
    Blocks at the right and lower edge may be smaller. A block with a NaN or
    an infinity decodes to NaN as a whole: the fault shows, and stays there.
    ``ValueError`` unless ``x`` is a floating-point matrix and the block has
    positive sides.
    """
    _check_matrix(x)
    tiles = _split(widen(x), block)
    amax = tiles.abs().amax((1, 3))
    s = scale_for(amax, format, pow2)
    q = cast(tiles / s[:, None, :, None], format)
    return Quantized(_join(q, x.shape), s, block)


def dequantize(
    q: Quantized, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "z d"]:
    r"""$s q$, multiplied in float32."""
    tiles = _split(q.values.to(torch.float32), q.block)
    return _join(tiles * q.scale[:, None, :, None], q.values.shape).to(dtype)


def rounded(
    x: Float[Tensor, "*z d"],
    block: Block = TILE,
    *,
    format: str = "e4m3",
    pow2: bool = False,
) -> Float[Tensor, "*z d"]:
    """What is left of ``x`` after FP8: quantised and decoded again.

    Leading axes count as rows; shape and dtype stay.
    """
    matrix = x.reshape(x.shape[:-1].numel(), x.size(-1))
    q = quantize(matrix, block, format=format, pow2=pow2)
    return dequantize(q, x.dtype).reshape(x.shape)


def scale_for(
    amax: Float[Tensor, "*z"], format: str = "e4m3", pow2: bool = False
) -> Float[Tensor, "*z"]:
    """The scale of a block whose largest magnitude is ``amax``.

    NaN where that is infinite or NaN, which marks the block as spoilt.
    """
    s = amax.to(torch.float32).clamp(min=SMALLEST_AMAX) / largest(format)
    s = power_of_two(s) if pow2 else s
    return s.masked_fill(~s.isfinite(), torch.nan)


def power_of_two(s: Float[Tensor, "*z"]) -> Float[Tensor, "*z"]:
    r"""$2^{\lceil \log_2 s \rceil}$ for positive float32, without a logarithm.

    Adding all mantissa bits carries into the exponent unless the mantissa
    is zero. Rounding up, never to the nearest: a smaller scale would push
    the largest value of the block out of range. NaN stays NaN.
    """
    bits = s.view(torch.int32)
    up = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(s.isnan(), s, up)


def fp8_gemm(
    a: Quantized,
    b: Quantized,
    *,
    promote: int | None = 128,
    accumulator: Accumulator = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "z f"]:
    r"""$a b^\top$ of two scaled matrices.

    $$C = \sum_j \left(A_j B_j^\top\right) \cdot s^A_j\, s^B_j$$

    Each chunk $j$ of ``promote`` columns is multiplied unscaled, scaled and
    added in float32; ``None`` keeps all columns in one chunk. ``"fp22"``
    multiplies a chunk as :func:`tensor_core` does. ``ValueError`` unless
    the inner widths agree and no scale changes inside a chunk.
    """
    z, width = a.values.shape
    chunk = max(width, 1) if promote is None else promote
    _check_product(a, b, chunk)
    product = tensor_core if accumulator == "fp22" else _exact
    out = a.scale.new_zeros(z, b.values.size(0))
    for start in range(0, width, chunk):
        part = slice(start, start + chunk)
        left = a.values[:, part].to(torch.float32)
        right = b.values[:, part].to(torch.float32)
        partial = product(left, right) * _column(a, start)[:, None]
        out += partial * _column(b, start)
    return out.to(dtype)


def tensor_core(
    a: Float[Tensor, "z d"], b: Float[Tensor, "f d"]
) -> Float[Tensor, "z f"]:
    r"""$a b^\top$ as Hopper's FP8 unit accumulates it, emulated.

    An instruction takes 32 products and the running sum, aligns all of them
    to the largest exponent, cuts each after 13 fraction bits, adds, and
    keeps 13 fraction bits of the sum ("FP22"). Cutting is towards zero.
    The alignment and the widths are those that DeepSeek published; NVIDIA
    documents neither. Inputs must hold FP8 values, whose products are exact.
    """
    total = a.new_zeros(a.size(0), b.size(0))
    for start in range(0, a.size(1), STEP):
        part = slice(start, start + STEP)
        terms = a[:, None, part] * b[None, :, part]
        terms = torch.cat([terms, total[..., None]], -1)
        top = torch.frexp(terms.abs().amax(-1)).exponent - 1
        unit = FRACTION_BITS - top
        steps = torch.ldexp(terms, unit[..., None]).trunc().sum(-1)
        total = cut(torch.ldexp(steps, -unit))
    return total


def cut(x: Float[Tensor, "*z"], bits: int = FRACTION_BITS) -> Tensor:
    """Drop all but ``bits`` fraction bits of float32, towards zero."""
    dropped = (1 << (23 - bits)) - 1
    return (x.view(torch.int32) & ~dropped).view(torch.float32)


def weight_quant(
    weight: Float[Tensor, "f d"], pow2: bool = False
) -> tuple[Float[Tensor, "f d"], Float[Tensor, "rows cols"]]:
    """``weight`` and ``weight_scale_inv`` as a checkpoint stores them."""
    q = quantize(weight, BLOCK, pow2=pow2)
    return q.values, q.scale


def weight_dequant(
    weight: Shaped[Tensor, "f d"],
    scale_inv: Shaped[Tensor, "rows cols"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "f d"]:
    r"""A checkpoint's FP8 weight: despite the name, ``scale_inv`` multiplies.

    One scale per 128×128 block, the last ones smaller, so 576 rows have 5.
    ``ValueError`` unless the weight is E4M3 and the shapes fit.
    """
    if weight.dtype != torch.float8_e4m3fn:
        raise ValueError(
            f"an FP8 weight is {torch.float8_e4m3fn}, found {weight.dtype}"
        )
    want = [-(-size // 128) for size in weight.shape]
    if list(scale_inv.shape) != want:
        raise ValueError(
            f"weight_scale_inv has shape {list(scale_inv.shape)}, a weight "
            f"of {list(weight.shape)} needs {want}: one per 128x128 block"
        )
    q = Quantized(weight, scale_inv.to(torch.float32), BLOCK)
    return dequantize(q, dtype)


def difference(x: Float[Tensor, "*z"], y: Float[Tensor, "*z"]) -> float:
    r"""One number for how far two results are apart, in float64.

    $$1 - 2\langle x, y\rangle / (\|x\|^2 + \|y\|^2)$$

    Zero for equal inputs; about half the squared relative error.
    """
    x, y = x.to(torch.float64), y.to(torch.float64)
    norms = (x * x + y * y).sum()
    return 0.0 if norms == 0 else float(1 - 2 * (x * y).sum() / norms)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


def _sides(block: Block, shape: torch.Size) -> tuple[int, int]:
    if any(side is not None and side < 1 for side in block):
        raise ValueError(f"block {block} has a side below 1")
    rows, cols = (
        max(extent, 1) if side is None else side
        for side, extent in zip(block, shape, strict=True)
    )
    return rows, cols


def _split(x: Tensor, block: Block) -> Tensor:
    rows, cols = _sides(block, x.shape)
    down, across = -(-x.size(0) // rows), -(-x.size(1) // cols)
    missing = (0, across * cols - x.size(1), 0, down * rows - x.size(0))
    return F.pad(x, missing).reshape(down, rows, across, cols)


def _join(tiles: Tensor, shape: torch.Size) -> Tensor:
    down, rows, across, cols = tiles.shape
    return tiles.reshape(down * rows, across * cols)[: shape[0], : shape[1]]


def _column(q: Quantized, start: int) -> Tensor:
    rows, cols = _sides(q.block, q.values.shape)
    scale = q.scale[:, start // cols].repeat_interleave(rows)
    return scale[: q.values.size(0)]


def _check_matrix(x: Tensor) -> None:
    check_float(x)
    if x.ndim != 2:
        raise ValueError(
            f"quantize takes a matrix, found {x.ndim} dimensions; "
            "flatten the leading ones"
        )


def _check_product(a: Quantized, b: Quantized, chunk: int) -> None:
    width = a.values.size(1)
    if b.values.size(1) != width:
        raise ValueError(
            f"inner widths {width} and {b.values.size(1)} differ: "
            "both operands are [rows, inner]"
        )
    if chunk < 1:
        raise ValueError(f"promote is {chunk}, expected at least 1 or None")
    for q in (a, b):
        cols = _sides(q.block, q.values.shape)[1]
        if cols % chunk and cols < width:
            raise ValueError(
                f"a chunk of {chunk} columns does not divide the scaled tile "
                f"of {cols}: no scale may change inside a chunk"
            )
