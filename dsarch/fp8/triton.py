r"""The operations of :mod:`dsarch.fp8.reference` as Triton kernels.

Rounding is written out (:func:`round_e4m3`) before the hardware cast: values
already on the grid are cast exactly everywhere, so the same kernel gives the
same codes on a GPU and in Triton's interpreter, whose own cast is wrong.
Matrices need not be contiguous and may end in smaller tiles.

Needs a CUDA device, or ``TRITON_INTERPRET=1`` set before the first import.
"""
# mypy: disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from dsarch.fp8.layout import check_bytes
from dsarch.fp8.reference import BLOCK, TILE, Block, Quantized

SIDE = 128


@triton.jit
def round_e4m3(y):
    """The nearest E4M3 value as float32, ties to even, clamped to 448."""
    y = tl.minimum(tl.maximum(y, -448.0), 448.0)
    bits = y.to(tl.int32, bitcast=True)
    exponent = tl.maximum((bits >> 23) & 0xFF, 127 - 6)
    # Adding 1.5 * 2^(e + 20) leaves no room below the last E4M3 bit.
    magic = ((exponent + 20) << 23) | 0x400000
    magic = magic.to(tl.float32, bitcast=True)
    size = ((y + magic) - magic).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    # The sum loses the sign of a negative value that rounds to zero.
    sign = bits & -0x80000000
    return (size | sign).to(tl.float32, bitcast=True)


@triton.jit
def tile_scale(peak, POW2: tl.constexpr):
    """The scale, from the bits of the largest magnitude.

    As integers, magnitudes keep their order, and from 0x7F800000 on they
    are infinite or NaN: the maximum cannot miss them. 0x38D1B717 is 1e-4.
    """
    amax = tl.maximum(peak, 0x38D1B717).to(tl.float32, bitcast=True)
    s = tl.div_rn(amax, 448.0)
    if POW2:
        up = (s.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        s = up.to(tl.float32, bitcast=True)
    return tl.where(peak < 0x7F800000, s, float("nan"))


@triton.jit
def quantize_kernel(
    x, y, s, z, d, x_row, x_col,
    GROUP: tl.constexpr, POW2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Scale and round ROWS x 128 values, GROUP rows under one scale."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1).to(tl.int64) * 128 + tl.arange(0, 128)[None, :]
    inside = (row < z) & (col < d)
    wide = tl.load(x + row * x_row + col * x_col, inside, 0.0).to(tl.float32)
    bits = wide.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    peak = tl.max(bits, 1, keep_dims=True)  # [ROWS, 1]
    if GROUP > 1:
        peak = tl.max(peak, 0, keep_dims=True)  # [1, 1]
    scale = tl.broadcast_to(tile_scale(peak, POW2), (ROWS, 1))
    if POW2:
        # A power of two has an exact reciprocal.
        ratio = wide * tl.div_rn(1.0, scale)
    else:
        ratio = tl.div_rn(wide, tl.broadcast_to(scale, (ROWS, 128)))
    tl.store(y + row * d + col, round_e4m3(ratio).to(tl.float8e4nv), inside)
    place = row // GROUP * tl.num_programs(1) + tl.program_id(1)
    tl.store(s + place, scale, row < z)


@triton.jit
def dequantize_kernel(
    y, s, x, z, d, y_row, y_col, s_row, s_col,
    GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Multiply ROWS x 128 values by their scales."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1).to(tl.int64) * 128 + tl.arange(0, 128)[None, :]
    inside = (row < z) & (col < d)
    values = tl.load(y + row * y_row + col * y_col, inside, 0.0)
    place = row // GROUP * s_row + tl.program_id(1) * s_col
    wide = values.to(tl.float32) * tl.load(s + place, row < z, 0.0)
    tl.store(x + row * d + col, wide.to(x.dtype.element_ty), inside)


@triton.jit
def output_tile(z, f, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Which tile this program computes: eight rows of tiles at a time.

    Programs that run together then share operands in the L2 cache.
    """
    down, across = tl.cdiv(z, ROWS), tl.cdiv(f, COLS)
    band = tl.program_id(0) // (8 * across)
    height = tl.minimum(down - band * 8, 8)
    inside = tl.program_id(0) % (8 * across)
    return band * 8 + inside % height, inside // height


@triton.jit
def gemm_kernel(
    a, a_scale, b, b_scale, c, z, f, d, size_class,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One tile of a b^T: every 128 columns scaled and added in float32."""
    down, across = output_tile(z, f, ROWS, COLS)
    row = down.to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    col = across.to(tl.int64) * COLS + tl.arange(0, COLS)  # [COLS]
    inner = tl.arange(0, 128)
    # Rows past the end are read from the start again and never stored.
    a += (row % z)[:, None] * d + inner[None, :]
    b += (col % f)[None, :] * d + inner[:, None]
    chunks = tl.cdiv(d, 128)
    a_scale += row % z * chunks
    b_scale += col % f // GROUP * chunks
    total = tl.zeros((ROWS, COLS), tl.float32)
    for j in range(chunks):
        left = tl.load(a, inner[None, :] < d - j * 128, 0.0)
        right = tl.load(b, inner[:, None] < d - j * 128, 0.0)
        scaled = tl.dot(left, right) * tl.load(a_scale + j)[:, None]
        total += scaled * tl.load(b_scale + j)[None, :]
        a += 128
        b += 128
    place = row[:, None] * f + col[None, :]
    inside = (row < z)[:, None] & (col < f)[None, :]
    tl.store(c + place, total.to(c.dtype.element_ty), inside)


@triton.jit
def decode_kernel(
    q, q_rope, values, scales, k_rope, length, o, h, s, factor,
    C: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Online softmax of HEADS queries over the latents of one sequence."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    c, r = tl.arange(0, C)[None, :], tl.arange(0, R)[None, :]
    query = tl.load(q + (row * h + head) * C + c, head < h, 0.0)
    turned = tl.load(q_rope + (row * h + head) * R + r, head < h, 0.0)
    peak = tl.full((HEADS, 1), -float("inf"), tl.float32)
    total, out = tl.zeros_like(peak), tl.zeros((HEADS, C), tl.float32)
    last, width = tl.minimum(tl.load(length + row), s), C + C // 32 + 2 * R
    for start in range(0, last, KEYS):
        key = start + tl.arange(0, KEYS)[:, None]
        token, seen = row * s + key, key < last
        latent = tl.load(values + token * width + c, seen, 0.0).to(tl.float32)
        step = tl.load(scales + token * (width // 4) + c // 128, seen, 0.0)
        latent = (latent * step).to(query.dtype)  # exact, also in bf16
        rope = tl.load(k_rope + token * (width // 2) + r, seen, 0.0)
        score = tl.dot(turned, tl.trans(rope.to(turned.dtype)))
        score += tl.dot(query, tl.trans(latent))
        score = tl.where(tl.trans(seen), score * factor, -float("inf"))
        best = tl.maximum(peak, tl.max(score, 1, keep_dims=True))
        p, kept, peak = tl.exp(score - best), tl.exp(peak - best), best
        total = total * kept + tl.sum(p, 1, keep_dims=True)
        out = out * kept + tl.dot(p.to(latent.dtype), latent)
    out = out / tl.where(total > 0, total, 1.0)
    tl.store(o + (row * h + head) * C + c, out, head < h)


CONFIGS = [
    triton.Config({"ROWS": rows, "COLS": cols}, warps, stages)
    for rows, cols, warps in ((64, 64, 4), (64, 128, 4), (128, 128, 8))
    + ((128, 64, 4), (128, 128, 4), (128, 256, 8))
    for stages in (3, 4)
]
tuned_gemm = triton.autotune(CONFIGS, ["size_class", "f", "d"])(gemm_kernel)


def quantize(
    x: Float[Tensor, "z d"], block: Block = TILE, *, pow2: bool = False
) -> Quantized:
    """:func:`reference.quantize` in E4M3 for the three 128-wide blocks."""
    if block == TILE[::-1]:
        return quantize(x.T, TILE, pow2=pow2).t()
    group = _group(block)
    _check(x, (torch.float32, torch.bfloat16, torch.float16))
    z, d = x.shape
    y = torch.empty(z, d, dtype=torch.float8_e4m3fn, device=x.device)
    shape = triton.cdiv(z, group), triton.cdiv(d, SIDE)
    s = torch.empty(shape, dtype=torch.float32, device=x.device)
    rows = max(group, 32)
    if x.numel():
        quantize_kernel[triton.cdiv(z, rows), shape[1]](
            x, y, s, z, d, *x.stride(), GROUP=group, POW2=pow2, ROWS=rows
        )
    return Quantized(y, s, block)


def dequantize(
    q: Quantized, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "z d"]:
    """:func:`reference.dequantize` for the three 128-wide blocks."""
    if q.block == TILE[::-1]:
        return dequantize(q.t(), dtype).T
    group = _group(q.block)
    _check(q.values, (torch.float8_e4m3fn,))
    z, d = q.values.shape
    x = torch.empty(z, d, dtype=dtype, device=q.values.device)
    if x.numel():
        dequantize_kernel[triton.cdiv(z, 32), triton.cdiv(d, SIDE)](
            q.values, q.scale, x, z, d, *q.values.stride(),
            *q.scale.stride(), GROUP=group, ROWS=32,
        )  # fmt: skip
    return x


def fp8_gemm(
    a: Quantized, b: Quantized, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "z f"]:
    """:func:`reference.fp8_gemm`: ``a`` in 1x128 tiles, ``b`` those or blocks.

    ``ValueError`` when the inner widths differ.
    """
    if _group(a.block) != 1:
        raise ValueError(f"the left operand has blocks {a.block}, not {TILE}")
    group = _group(b.block)
    (z, d), (f, width) = a.values.shape, b.values.shape
    if d != width:
        raise ValueError(f"inner widths {d} and {width} differ")
    for operand in (a.values, b.values):
        _check(operand, (torch.float8_e4m3fn,))
    c = torch.empty(z, f, dtype=dtype, device=a.values.device)
    if not c.numel():
        return c
    # FP8 tensor cores read both operands along the summed axis.
    parts = [part.contiguous() for part in (*a[:2], *b[:2])]
    sizes = (z, f, d, triton.next_power_of_2(z), group)
    if INTERPRETED:
        gemm_kernel[_grid(z, f, 32, 32)](*parts, c, *sizes, 32, 32)
    else:
        tuned_gemm[lambda m: _grid(z, f, m["ROWS"], m["COLS"])](
            *parts, c, *sizes
        )
    return c


def mla_decode(
    q: Float[Tensor, "b h c"],
    q_rope: Float[Tensor, "b h r"],
    packed: UInt8[Tensor, "b s bytes"],
    length: Int[Tensor, " b"],
    factor: float,
) -> Float[Tensor, "b h c"]:
    """One absorbed query per sequence over :func:`layout.pack_latent`'s bytes.

    A sequence of length 0 gives zeros. Sizes ``c`` and ``r`` are powers of
    two, at least 128 and 16; the bytes of a token are checked.
    """
    (b, h, c), r = q.shape, q_rope.size(-1)
    check_bytes(packed, c + c // 32 + 2 * r)
    flat = packed.contiguous().flatten()
    parts = (
        flat.view(torch.float8_e4m3fn),
        flat.view(torch.float32)[c // 4 :],
        flat.view(torch.bfloat16)[(c + c // 32) // 2 :],
    )
    o = torch.empty_like(q, dtype=torch.float32)
    decode_kernel[b, triton.cdiv(h, 16)](
        q.contiguous(), q_rope.contiguous(), *parts, length, o,
        h, packed.size(1), factor, C=c, R=r, HEADS=16, KEYS=32,
    )  # fmt: skip
    return o.to(q.dtype)


INTERPRETED = isinstance(gemm_kernel, InterpretedFunction)


def _grid(z: int, f: int, rows: int, cols: int) -> tuple[int]:
    return (triton.cdiv(z, rows) * triton.cdiv(f, cols),)


def _group(block: Block) -> int:
    groups = {TILE: 1, BLOCK: SIDE}
    if block not in groups:
        raise ValueError(f"blocks of {block}: the kernel takes {TILE}, {BLOCK}")
    return groups[block]


def _check(x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if x.ndim != 2 or x.dtype not in dtypes:
        raise ValueError(
            f"the kernel takes a matrix of {dtypes}, found {x.dtype} "
            f"with {x.ndim} dimensions"
        )
    if not (x.is_cuda or INTERPRETED):
        raise ValueError(
            f"the kernel needs a CUDA tensor, found one on {x.device}; "
            "set TRITON_INTERPRET=1 before the import to run on the CPU"
        )
