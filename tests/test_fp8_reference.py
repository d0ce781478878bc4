"""Scaling by tile: against loops, and on input that goes wrong."""

import pytest
import torch

from dsarch.fp8.formats import decode, encode
from dsarch.fp8.reference import (
    BLOCK,
    ROW,
    TENSOR,
    TILE,
    Quantized,
    dequantize,
    difference,
    fp8_gemm,
    power_of_two,
    quantize,
    rounded,
    scale_for,
    weight_dequant,
    weight_quant,
)
from tests.conftest import close

BLOCKS = [TENSOR, ROW, TILE, BLOCK, TILE[::-1], (None, 64)]
F32 = torch.float32


def normal(generator, *shape):
    """Rows of very different size, both signs."""
    x = torch.randn(shape, generator=generator)
    return x * torch.randn(shape[0], 1, generator=generator).exp()


def same(a: Quantized, b: Quantized) -> bool:
    codes = torch.equal(a.values.view(torch.uint8), b.values.view(torch.uint8))
    return codes and torch.equal(a.scale, b.scale) and a.block == b.block


def by_hand(x, block, pow2):
    """Tile after tile, with a logarithm for the power of two."""
    rows, cols = (s or n for s, n in zip(block, x.shape, strict=True))
    codes = torch.zeros(x.shape, dtype=torch.uint8)
    scales = []
    for i in range(0, x.size(0), rows):
        scales.append([])
        for j in range(0, x.size(1), cols):
            part = slice(i, i + rows), slice(j, j + cols)
            s = max(x[part].abs().max(), torch.tensor(1e-4)) / 448
            s = 2 ** s.double().log2().ceil().to(F32) if pow2 else s
            codes[part] = encode((x[part] / s).clamp(-448, 448), "e4m3")
            scales[-1].append(float(s))
    return codes, torch.tensor(scales)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("shape", [(3, 300), (150, 130), (1, 1), (257, 64)])
def test_quantize_equals_a_loop_over_tiles(
    block, pow2, shape, generator, witness
):
    x = normal(generator, *shape)
    x[0, 0] = 1e-6
    codes, scales = by_hand(x, block, pow2)
    q = quantize(x, block, pow2=pow2)
    assert torch.equal(q.values.view(torch.uint8), codes)
    assert torch.equal(q.scale, scales)
    sizes = [s or n for s, n in zip(block, shape, strict=True)]
    wide = scales.repeat_interleave(sizes[0], 0)[: shape[0]]
    wide = wide.repeat_interleave(sizes[1], 1)[:, : shape[1]]
    assert torch.equal(dequantize(q), decode(codes, "e4m3") * wide)
    witness(
        "eq-fp8-scale",
        (dequantize(q) - decode(codes, "e4m3") * wide).abs().max(),
        reference="identity: a loop over tiles",
        code="dsarch.fp8.reference.quantize",
    )


@pytest.mark.parametrize("format", ["e5m2", "e5m6"])
def test_other_formats_fill_their_own_range(format, generator):
    x = normal(generator, 40, 200)
    q = quantize(x, TILE, format=format, pow2=True)
    top = {"e5m2": 57344, "e5m6": 65024}[format]
    assert (q.values.to(F32).abs() <= top).all()
    assert torch.equal(q.scale, scale_for(abs_max(x), format, True))
    near = decode(encode(x / spread(q.scale, x), format), format)
    assert torch.equal(dequantize(q), near * spread(q.scale, x))


def abs_max(x):
    return torch.stack([p.abs().amax(1) for p in x.split(128, 1)], 1)


def spread(scale, x):
    return scale.repeat_interleave(128, 1)[:, : x.size(1)]


def test_rounded_keeps_shape_and_dtype(generator):
    x = normal(generator, 24, 200)
    want = dequantize(quantize(x, TILE, pow2=True))
    cube = rounded(x.reshape(2, 3, 4, 200), pow2=True)
    assert torch.equal(cube.reshape(24, 200), want)
    assert rounded(x[0], BLOCK).shape == (200,)
    assert rounded(x.bfloat16(), format="e5m2").dtype == torch.bfloat16
    assert rounded(x[:0]).shape == (0, 200)


def test_anchor_scales():
    amax = torch.tensor([1.0, 448.0, 449.0, 0.0])
    want = torch.tensor([2.0**-8, 1.0, 2.0, 2.0**-22])
    assert torch.equal(scale_for(amax, pow2=True), want)
    plain = torch.tensor([1 / 448, 1.0, 449 / 448, 1e-4 / 448])
    assert torch.equal(scale_for(amax), plain)


def test_rounded_scales_do_not_depend_on_how_448_divides():
    """Dividing and multiplying by 1/448 differ in 55 % of bf16 values."""
    bits = torch.arange((127 - 13) << 7, (127 + 14) << 7).to(torch.int16)
    amax = bits.view(torch.bfloat16).to(F32)
    divided, multiplied = amax / 448, amax * (torch.ones(1) / 448)
    share = (divided != multiplied).to(F32).mean()
    assert 0.5 < share < 0.6
    assert torch.equal(power_of_two(divided), power_of_two(multiplied))
    assert torch.equal(scale_for(amax, pow2=True), power_of_two(divided))


def test_power_of_two_rounds_up_and_keeps_nan(generator, witness):
    x = torch.rand(5000, generator=generator).exp2() * 2.0 ** torch.arange(
        -60, 65
    ).repeat(40)
    exact = 2.0 ** torch.arange(-126, 128)
    got = power_of_two(torch.cat([x, exact, exact * (1 + 2**-23)]))
    assert torch.equal(got[:5000], decode(encode(x, "ue8m0"), "ue8m0"))
    assert torch.equal(got[5000:5254], exact)
    assert torch.equal(got[5254:], exact * 2)
    assert power_of_two(torch.tensor([torch.nan])).isnan().all()
    witness(
        "eq-fp8-pow2",
        (got[:5000] - 2 ** x.double().log2().ceil()).abs().max(),
        reference="identity: logarithm in float64",
        code="dsarch.fp8.reference.power_of_two",
    )


def test_the_largest_value_of_a_tile_lands_on_448(generator):
    x = normal(generator, 30, 256) * 1e6
    top = quantize(x).values.to(F32).abs().unflatten(1, (2, 128)).amax(-1)
    assert (top == 448).all()
    top = quantize(x, pow2=True).values.to(F32).abs()
    top = top.unflatten(1, (2, 128)).amax(-1)
    assert ((top >= 224) & (top <= 448)).all()


def test_zero_tiles_stay_zero():
    x = torch.zeros(2, 256)
    x[1, 200] = 5
    q = quantize(x)
    assert torch.equal(dequantize(q), x)
    assert q.scale[0, 0] == torch.tensor(1e-4) / 448


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("block", [TILE, BLOCK, ROW], ids=str)
def test_a_fault_spoils_its_own_tile_and_no_other(bad, pow2, block, generator):
    x = normal(generator, 200, 300)
    clean = dequantize(quantize(x, block, pow2=pow2))
    x[130, 140] = bad
    got = dequantize(quantize(x, block, pow2=pow2))
    rows = slice(130, 131) if block[0] == 1 else slice(128, 200)
    cols = slice(0, 300) if block[1] is None else slice(128, 256)
    spoilt = torch.zeros(x.shape, dtype=torch.bool)
    spoilt[rows, cols] = True
    assert torch.equal(got.isnan(), spoilt)
    assert torch.equal(got[~spoilt], clean[~spoilt])


def test_values_far_beyond_448_are_scaled_not_clipped():
    x = torch.tensor([[1e30, -3e37, 5e33] + [1e36] * 125])
    got = dequantize(quantize(x))
    assert ((got - x).abs() <= x.abs() / 16 + 3e37 / 448 / 512).all()


@pytest.mark.parametrize("block", [TILE, BLOCK, TENSOR], ids=str)
def test_strides_do_not_matter(block, generator):
    x = normal(generator, 140, 150)
    assert same(quantize(x.T, block), quantize(x.T.contiguous(), block))
    every_third = x[::3, ::2]
    assert same(
        quantize(every_third, block), quantize(every_third.clone(), block)
    )


@pytest.mark.parametrize("shape", [(0, 256), (5, 0), (0, 0)])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_empty_matrices(shape, block):
    q = quantize(torch.zeros(shape), block)
    assert dequantize(q).shape == shape
    if block in (TILE, ROW):
        out = fp8_gemm(q, q, promote=128 if block == TILE else None)
        assert torch.equal(out, torch.zeros(shape[0], shape[0]))


def test_transposing_moves_the_scales_along(generator):
    x = normal(generator, 200, 150)
    for block in (TILE, BLOCK, ROW, TENSOR):
        q = quantize(x, block)
        assert torch.equal(dequantize(q.t()), dequantize(q).T)
        assert same(q.t(), quantize(x.T, block[::-1]))


@pytest.mark.parametrize(
    "blocks",
    [(TILE, BLOCK), (TILE, TILE), (ROW, ROW), (TENSOR, BLOCK)],
    ids=str,
)
@pytest.mark.parametrize("width", [1, 100, 128, 300])
def test_products_equal_the_product_of_the_decoded(blocks, width, generator):
    a = quantize(normal(generator, 37, width), blocks[0])
    b = quantize(normal(generator, 141, width), blocks[1])
    a64, b64 = dequantize(a).double(), dequantize(b).double()
    size = float((a64.abs() @ b64.abs().T).max())
    close(fp8_gemm(a, b) / size, (a64 @ b64.T / size).to(F32))


def test_product_dtype_and_order(generator):
    a = quantize(normal(generator, 5, 256))
    b = quantize(normal(generator, 7, 256), BLOCK)
    assert fp8_gemm(a, b).shape == (5, 7)
    half = fp8_gemm(a, b, dtype=torch.bfloat16)
    assert torch.equal(half, fp8_gemm(a, b).to(torch.bfloat16))


def test_one_token_does_not_touch_another(generator):
    """A tile holds one token, so the future cannot leak into the past."""
    x, w = normal(generator, 16, 256), normal(generator, 40, 256)
    w = quantize(w, BLOCK)
    before = fp8_gemm(quantize(x), w)
    x[15] *= 1000
    after = fp8_gemm(quantize(x), w)
    assert torch.equal(before[:15], after[:15])
    square = fp8_gemm(quantize(x, BLOCK), w)
    assert not torch.equal(before[:15], square[:15])


def test_an_outlier_costs_its_tile_and_not_the_matrix(generator):
    x = torch.randn(64, 512, generator=generator)
    x[5, 300] = 1e6
    rest = torch.ones(64, 512, dtype=torch.bool)
    rest[5, 256:384] = False
    fine = dequantize(quantize(x, TILE))
    coarse = dequantize(quantize(x, TENSOR))
    assert difference(fine[rest], x[rest]) < 1e-3
    # With one scale the step near zero is 1e6 / 448 / 512, above 4.
    assert (coarse[rest] == 0).to(F32).mean() > 0.9


def test_weight_scale_inv_multiplies_in_ragged_blocks(generator):
    weight = normal(generator, 576, 300)
    q, scale_inv = weight_quant(weight)
    assert scale_inv.shape == (5, 3) and scale_inv.dtype == F32
    block = q[512:, 256:].to(F32) * scale_inv[4, 2]
    assert torch.equal(weight_dequant(q, scale_inv)[512:, 256:], block)
    assert scale_inv[4, 2] == weight[512:, 256:].abs().max() / 448
    assert weight_dequant(q, scale_inv, torch.bfloat16).dtype == torch.bfloat16
    assert difference(weight_dequant(q, scale_inv), weight) < 1e-3


def test_bad_input_is_named(generator):
    x = normal(generator, 4, 256)
    with pytest.raises(ValueError, match="3 dimensions"):
        quantize(x[None])
    with pytest.raises(ValueError, match="torch.int64"):
        quantize(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="torch.float8_e4m3fn"):
        quantize(quantize(x).values)
    with pytest.raises(ValueError, match=r"\(1, 0\).*below 1"):
        quantize(x, (1, 0))
    with pytest.raises(ValueError, match="'e3m4'"):
        quantize(x, format="e3m4")
    with pytest.raises(ValueError, match="widths 256 and 128 differ"):
        fp8_gemm(quantize(x), quantize(x[:, :128]))
    with pytest.raises(ValueError, match="chunk of 256.*tile of 128"):
        fp8_gemm(quantize(x), quantize(x), promote=None)
    with pytest.raises(ValueError, match="chunk of 128.*tile of 1:"):
        fp8_gemm(quantize(x, TILE[::-1]), quantize(x))
    with pytest.raises(ValueError, match="promote is 0"):
        fp8_gemm(quantize(x), quantize(x), promote=0)


def test_bad_checkpoint_weights_are_named():
    weight = torch.zeros(576, 256).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"\[4, 2\].*\[576, 256\].*\[5, 2\]"):
        weight_dequant(weight, torch.ones(4, 2))
    with pytest.raises(ValueError, match="torch.bfloat16"):
        weight_dequant(weight.to(torch.bfloat16), torch.ones(5, 2))


def test_difference_is_half_the_squared_relative_error(generator):
    x = torch.randn(10_000, generator=generator)
    noise = torch.randn(10_000, generator=generator)
    error = difference(x, x + 0.02 * noise)
    assert 0.9 < error / (0.5 * 0.02**2) < 1.1
    assert difference(x, x) == 0 == difference(x * 0, x * 0)
