"""The emulated tensor core: against exact integers, with and without rescue."""

import math
from fractions import Fraction

import pytest
import torch

from dsarch.fp8.reference import (
    ROW,
    TILE,
    cut,
    dequantize,
    fp8_gemm,
    quantize,
    tensor_core,
)


def uniform(generator, rows, width, block=ROW):
    return quantize(torch.rand(rows, width, generator=generator), block)


def worst(a, b, **options) -> float:
    """Largest relative error of a product of positive matrices."""
    exact = dequantize(a).double() @ dequantize(b).double().T
    got = fp8_gemm(a, b, accumulator="fp22", **options).double()
    return float(((got - exact) / exact).abs().max())


def towards_zero(x: Fraction, unit: Fraction) -> Fraction:
    return math.trunc(x / unit) * unit


def order(x: Fraction) -> int:
    return math.frexp(abs(float(x)))[1] - 1


def by_hand(a: list[float], b: list[float]) -> float:
    """One output value in exact fractions, 32 products at a time."""
    total = Fraction(0)
    for start in range(0, len(a), 32):
        part = slice(start, start + 32)
        terms = [
            Fraction(x) * Fraction(y)
            for x, y in zip(a[part], b[part], strict=True)
        ]
        terms.append(total)
        top = max((order(x) for x in terms if x), default=0)
        unit = Fraction(2) ** (top - 13)
        total = sum((towards_zero(x, unit) for x in terms), Fraction(0))
        if total:
            total = towards_zero(total, Fraction(2) ** (order(total) - 13))
    return float(total)


@pytest.mark.parametrize("width", [1, 32, 50, 300])
def test_tensor_core_equals_exact_fractions(width, generator, witness):
    scale = torch.ldexp(
        torch.ones(6, width),
        torch.randint(-9, 3, (6, width), generator=generator),
    )
    x = torch.randn(6, width, generator=generator) * scale
    x = quantize(x, ROW).values.to(torch.float32)
    got = tensor_core(x[:3], x[3:])
    want = [[by_hand(p, q) for q in x[3:].tolist()] for p in x[:3].tolist()]
    assert torch.equal(got, torch.tensor(want))
    witness(
        "eq-fp22",
        (got - torch.tensor(want)).abs().max(),
        reference="identity: exact fractions",
        code="dsarch.fp8.reference.tensor_core",
    )


def test_short_sums_of_small_integers_are_exact(generator):
    a = torch.randint(-8, 9, (9, 64), generator=generator).float()
    b = torch.randint(-2, 3, (5, 64), generator=generator).float()
    assert torch.equal(tensor_core(a, b), a @ b.T)


def test_small_products_vanish_beside_a_large_sum():
    """256 is held in steps of 1/32; products of 1/64 never arrive."""
    a = torch.full((1, 4096), 1 / 64)
    b = torch.ones(1, 4096)
    a[0, 0] = 256
    assert tensor_core(a, b).item() == 256
    assert (a @ b.T).item() == 256 + 4095 / 64
    rescued = fp8_gemm(
        quantize(a * 7 / 4, ROW), quantize(b * 448, ROW), accumulator="fp22"
    )
    assert rescued.item() > (256 + 3900 / 64) * 448 * 7 / 4


def test_cut_drops_bits_towards_zero():
    x = torch.tensor([1 + 2**-13 + 2**-14, -1 - 2**-14, 3.0, 0.0])
    assert cut(x).tolist() == [1 + 2**-13, -1.0, 3.0, 0.0]
    assert cut(x, 14)[0] == x[0]


def test_promotion_stops_the_error_from_growing_with_k(generator):
    errors = {}
    for width in (256, 1024, 4096):
        a, b = uniform(generator, 24, width), uniform(generator, 24, width)
        errors[width] = (worst(a, b, promote=None), worst(a, b))
    alone = [pair[0] for pair in errors.values()]
    promoted = [pair[1] for pair in errors.values()]
    assert alone[0] < alone[1] < alone[2]
    assert alone[2] > 8 * alone[0]
    assert max(promoted) < 2e-3 < 2e-2 < alone[2]
    assert promoted[2] < 1.5 * promoted[0]


def test_promotion_works_with_tile_scales_too(generator):
    a = uniform(generator, 8, 1000, TILE)
    b = uniform(generator, 8, 1000, TILE)
    assert worst(a, b) < 2e-3
    assert worst(a, b, promote=32) < worst(a, b)


def test_float32_sums_are_far_more_exact(generator):
    """So a plain emulation in float32 hides what promotion is for."""
    a, b = uniform(generator, 16, 2048), uniform(generator, 16, 2048)
    exact = dequantize(a).double() @ dequantize(b).double().T
    plain = fp8_gemm(a, b, promote=None).double()
    assert ((plain - exact) / exact).abs().max() < 1e-5
