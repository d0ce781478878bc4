"""Quantisation kernels, bit for bit against the reference."""

import pytest
import torch

from dsarch.fp8 import ops, reference
from dsarch.fp8.formats import grid
from dsarch.fp8.reference import BLOCK, ROW, TILE, Quantized

kernels = pytest.importorskip("dsarch.fp8.triton")

COLUMN = TILE[::-1]
SHAPES = [(1, 1), (1, 300), (63, 130), (130, 63), (257, 128), (2, 1000)]


def wild(generator, shape, dtype=torch.float32):
    """Values over many orders of magnitude, zeros and both signs."""
    x = torch.randn(shape, generator=generator)
    order = torch.randint(-12, 6, shape, generator=generator)
    x = torch.ldexp(x, order) * (torch.rand(shape, generator=generator) > 0.1)
    x[::5] *= -0.0
    return x.to(dtype)


def same(actual: Quantized, expected: Quantized) -> None:
    assert torch.equal(actual.scale, expected.scale)
    codes = actual.values.view(torch.uint8), expected.values.view(torch.uint8)
    assert torch.equal(*codes)
    assert actual.block == expected.block


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [TILE, BLOCK, COLUMN], ids=str)
@pytest.mark.parametrize("pow2", [False, True])
def test_quantize_is_bit_equal(shape, block, pow2, generator):
    x = wild(generator, shape)
    same(
        kernels.quantize(x, block, pow2=pow2),
        reference.quantize(x, block, pow2=pow2),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input(dtype, generator):
    x = wild(generator, (70, 200), dtype)
    same(kernels.quantize(x), reference.quantize(x))
    same(kernels.quantize(x, BLOCK), reference.quantize(x, BLOCK))


def test_rounding_is_right_on_every_value_and_every_tie():
    """One tile per value, its scale fixed at 1 by a 448."""
    values = grid("e4m3")
    ties = (values[1:] + values[:-1]) / 2
    near = torch.cat([ties.nextafter(ties * 0), ties.nextafter(ties * 999)])
    x = torch.cat([values, ties, near])
    x = torch.stack([x, torch.full_like(x, 448)], 1)
    got = kernels.quantize(x)
    assert (got.scale == 1).all()
    same(got, reference.quantize(x))


def test_strides_do_not_matter(generator):
    x = wild(generator, (140, 150))
    same(kernels.quantize(x.T), reference.quantize(x.T))
    same(kernels.quantize(x[::3, 1::2]), reference.quantize(x[::3, 1::2]))


def test_zero_tiles_and_values_beyond_448():
    x = torch.zeros(3, 256)
    x[1, 130], x[2, 5] = 1e30, -4e5
    same(kernels.quantize(x), reference.quantize(x))
    assert torch.equal(kernels.dequantize(kernels.quantize(x))[0], x[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("block", [TILE, BLOCK], ids=str)
def test_a_fault_spoils_its_own_tile_and_no_other(bad, pow2, block, generator):
    x = wild(generator, (140, 260))
    x[133, 140] = bad
    want = reference.dequantize(reference.quantize(x, block, pow2=pow2))
    got = kernels.dequantize(kernels.quantize(x, block, pow2=pow2))
    assert torch.equal(got.isnan(), want.isnan()) and want.isnan().any()
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [TILE, BLOCK, COLUMN], ids=str)
def test_dequantize_is_equal(shape, block, generator):
    q = reference.quantize(wild(generator, shape), block)
    assert torch.equal(kernels.dequantize(q), reference.dequantize(q))
    flipped = kernels.dequantize(q.t())
    assert torch.equal(flipped, reference.dequantize(q).T)


@pytest.mark.parametrize("shape", [(0, 256), (5, 0)])
def test_empty_matrices(shape):
    q = kernels.quantize(torch.zeros(shape))
    same(q, reference.quantize(torch.zeros(shape)))
    assert kernels.dequantize(q).shape == shape


def test_ops_reach_the_kernels(generator, monkeypatch):
    x = wild(generator, (40, 200))
    same(ops.quantize(x, backend="triton"), reference.quantize(x))
    q = ops.quantize(x)
    got = ops.dequantize(q, backend="triton")
    assert torch.equal(got, reference.dequantize(q))
    monkeypatch.setattr(kernels, "quantize", lambda x, block, pow2: "kernel")
    assert ops.quantize(x, backend="triton") == "kernel"
    same(ops.quantize(x, backend="torch"), reference.quantize(x))


def test_bad_input_is_named(generator):
    x = wild(generator, (4, 256))
    with pytest.raises(ValueError, match=r"blocks of \(1, None\)"):
        kernels.quantize(x, ROW)
    with pytest.raises(ValueError, match="torch.float64"):
        kernels.quantize(x.double())
    with pytest.raises(ValueError, match="3 dimensions"):
        kernels.quantize(x[None])
    with pytest.raises(ValueError, match="torch.float32"):
        kernels.dequantize(Quantized(x, x[:, :2], TILE))
    kernels_off = pytest.MonkeyPatch()
    kernels_off.setattr(kernels, "INTERPRETED", False)
    with kernels_off.context(), pytest.raises(ValueError, match="CUDA tensor"):
        kernels.quantize(x)
    kernels_off.undo()
