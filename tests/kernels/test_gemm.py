"""The block-scaled product kernel against the reference."""

import pytest
import torch

from dsarch.fp8 import ops, reference
from dsarch.fp8.linear import FP8Linear, Recipe
from dsarch.fp8.reference import BLOCK, ROW, TILE, difference, quantize
from tests.conftest import close

kernels = pytest.importorskip("dsarch.fp8.triton")

# rows of a, rows of b, inner width
SHAPES = [(1, 1, 1), (63, 130, 130), (130, 63, 300), (33, 257, 128)]


def integers(generator, rows, cols, block):
    """Codes whose products and sums float32 holds exactly, scales 2^k."""
    x = torch.randint(-7, 8, (rows, cols), generator=generator).float()
    q = quantize(x, block)
    order = torch.randint(-3, 4, q.scale.shape, generator=generator)
    scale = torch.ldexp(torch.ones_like(q.scale), order)
    return q._replace(values=x.to(torch.float8_e4m3fn), scale=scale)


@pytest.mark.parametrize("z, f, d", SHAPES)
@pytest.mark.parametrize("block", [TILE, BLOCK], ids=str)
def test_gemm_is_bit_equal_where_sums_are_exact(z, f, d, block, generator):
    a = integers(generator, z, d, TILE)
    b = integers(generator, f, d, block)
    assert torch.equal(kernels.fp8_gemm(a, b), reference.fp8_gemm(a, b))


@pytest.mark.parametrize("z, f, d", SHAPES)
@pytest.mark.parametrize("block", [TILE, BLOCK], ids=str)
def test_gemm_is_equal_to_rounding_elsewhere(z, f, d, block, generator):
    a = quantize(torch.randn(z, d, generator=generator), TILE)
    b = quantize(torch.randn(f, d, generator=generator), block)
    want = reference.fp8_gemm(a, b)
    size = want.abs().max()
    close(kernels.fp8_gemm(a, b) / size, want / size)


def test_more_than_one_band_of_tiles(generator):
    """Every tile of the output is computed by exactly one program."""
    a = integers(generator, 300, 128, TILE)
    b = integers(generator, 200, 128, TILE)
    assert torch.equal(kernels.fp8_gemm(a, b), reference.fp8_gemm(a, b))


def test_transposed_operands(generator):
    """As the two gradients use them."""
    w = integers(generator, 200, 150, BLOCK)
    dy = integers(generator, 40, 200, TILE)
    want = reference.fp8_gemm(dy, w.t())
    assert torch.equal(kernels.fp8_gemm(dy, w.t()), want)
    columns = integers(generator, 200, 40, TILE[::-1])
    want = reference.fp8_gemm(columns.t(), columns.t())
    assert torch.equal(kernels.fp8_gemm(columns.t(), columns.t()), want)


def test_every_configuration_computes_the_same(generator):
    """The autotuner chooses between these on a GPU."""
    a = integers(generator, 70, 256, TILE)
    b = integers(generator, 150, 256, BLOCK)
    want = reference.fp8_gemm(a, b)
    sizes = {(c.kwargs["ROWS"], c.kwargs["COLS"]) for c in kernels.CONFIGS}
    for rows, cols in sizes:
        c = torch.empty(70, 150)
        kernels.gemm_kernel[kernels._grid(70, 150, rows, cols)](
            *a[:2], *b[:2], c, 70, 150, 256, 128, 128, rows, cols
        )
        assert torch.equal(c, want), (rows, cols)


@pytest.mark.parametrize("z, f, d", [(0, 5, 128), (4, 0, 128), (4, 5, 0)])
def test_empty_operands(z, f, d):
    a, b = quantize(torch.zeros(z, d)), quantize(torch.zeros(f, d), BLOCK)
    assert torch.equal(kernels.fp8_gemm(a, b), torch.zeros(z, f))


def test_a_nan_tile_spoils_its_row_only(generator):
    x = torch.randn(20, 260, generator=generator)
    x[3, 200] = torch.nan
    b = quantize(torch.randn(30, 260, generator=generator), BLOCK)
    got = kernels.fp8_gemm(kernels.quantize(x), b)
    assert got[3].isnan().all() and got.isnan().any(1).sum() == 1


def test_the_layer_gives_the_same_on_both_backends(generator):
    linear = torch.nn.Linear(200, 150, bias=False)
    x = torch.randn(70, 200, generator=generator)
    dy = torch.randn(70, 150, generator=generator)
    found = {}
    for backend in ("torch", "triton"):
        module = FP8Linear(linear, Recipe(backend=backend))
        module.weight.grad, leaf = None, x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        found[backend] = y.detach(), leaf.grad, module.weight.grad
    for ours, theirs in zip(*found.values(), strict=True):
        assert difference(ours, theirs) < 1e-11


def test_bad_input_is_named(generator):
    a = integers(generator, 4, 256, TILE)
    with pytest.raises(ValueError, match="256 and 128"):
        kernels.fp8_gemm(a, integers(generator, 4, 128, TILE))
    with pytest.raises(ValueError, match="left operand"):
        kernels.fp8_gemm(integers(generator, 4, 256, BLOCK), a)
    with pytest.raises(ValueError, match=r"blocks of \(1, None\)"):
        kernels.fp8_gemm(a, integers(generator, 4, 256, ROW))
    with pytest.raises(ValueError, match="torch.float32"):
        kernels.fp8_gemm(a._replace(values=a.values.float()), a)
    with pytest.raises(ValueError, match="backend='torch' takes any"):
        ops.fp8_gemm(a, a, accumulator="fp22", backend="triton")
