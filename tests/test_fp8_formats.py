"""FP8 codes: the definition against itself and against its limits."""

import pytest
import torch

from dsarch.fp8 import formats
from dsarch.fp8.formats import cast, decode, encode, fields, grid, largest

SMALL = ["e4m3", "e5m2", "e5m6"]
ALL = [*SMALL, "ue8m0"]


def every(dtype: torch.dtype) -> torch.Tensor:
    """Every value of a 16-bit dtype, NaN and infinities included."""
    return torch.arange(1 << 16).to(torch.uint16).view(torch.int16).view(dtype)


def codes(format: str) -> torch.Tensor:
    count = 4096 if format == "e5m6" else 256
    dtype = torch.int16 if format == "e5m6" else torch.uint8
    return torch.arange(count).to(dtype)


def wide_sample(generator: torch.Generator, count: int) -> torch.Tensor:
    """Values over many binary orders, both signs."""
    x = torch.randn(count, generator=generator)
    order = torch.randint(-24, 18, (count,), generator=generator)
    return torch.ldexp(x, order)


# bits, bias and limits as published; not derived from the code's own table.
LIMITS = {
    # largest, smallest normal, smallest subnormal, finite values
    "e4m3": (448.0, 2.0**-6, 2.0**-9, 253),
    "e5m2": (57344.0, 2.0**-14, 2.0**-16, 247),
    "e5m6": (65024.0, 2.0**-14, 2.0**-20, 3967),
    "ue8m0": (2.0**127, 2.0**-127, 2.0**-127, 255),
}


@pytest.mark.parametrize("format", ALL)
def test_limits_are_the_published_ones(format):
    top, normal, subnormal, count = LIMITS[format]
    values = grid(format)
    positive = values[values > 0]
    assert largest(format) == top == values.max()
    assert positive.min() == subnormal
    assert len(values) == count
    if format != "ue8m0":
        spacing = positive[positive <= normal].diff()
        assert (spacing == subnormal).all()


@pytest.mark.parametrize("format", ALL)
def test_every_code_survives_the_round_trip(format):
    code = codes(format)
    value = decode(code, format)
    kept = ~value.isnan()
    assert torch.equal(encode(value[kept], format), code[kept])
    assert encode(value[~kept], format).unique().numel() <= 2


@pytest.mark.parametrize("format", SMALL)
def test_encode_takes_the_nearest_value_and_the_even_one_on_a_tie(
    format, generator
):
    values = grid(format)
    ties = (values[1:].double() + values[:-1].double()) / 2
    sample = wide_sample(generator, 4000).clamp(
        -largest(format), largest(format)
    )
    x = torch.cat([ties, sample.double()])
    got = decode(encode(x, format), format)
    gap = (x[:, None] - values.double()).abs()
    assert torch.equal((got.double() - x).abs(), gap.min(1).values)
    mantissa = fields(encode(ties, format), format).mantissa
    assert (mantissa % 2 == 0).all()


def test_a_carry_out_of_the_mantissa_reaches_the_exponent():
    x = torch.tensor([31.2, 125.7, 0.4999, 15.9])
    assert decode(encode(x, "e4m3"), "e4m3").tolist() == [32, 128, 0.5, 16]


def test_float64_is_rounded_once():
    """Through float32 the value would become a tie and go to 1."""
    x = torch.tensor([1.0625 + 1e-12], dtype=torch.float64)
    assert decode(encode(x, "e4m3"), "e4m3").item() == 1.125
    assert cast(x, "e4m3").to(torch.float32).item() == 1.125


def test_overflow_rules():
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([464.0, 465.0, 1e30, inf, -inf, nan, -0.0])
    e4m3 = encode(x, "e4m3").tolist()
    assert e4m3 == [0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0x7F, 0x80]
    x = torch.tensor([61439.0, 61440.0, 1e30, inf, -inf, nan, -0.0])
    e5m2 = encode(x, "e5m2").tolist()
    assert e5m2 == [0x7B, 0x7C, 0x7C, 0x7C, 0xFC, 0x7F, 0x80]
    x = torch.tensor([65279.0, 65280.0, inf, nan])
    assert encode(x, "e5m6").tolist() == [0x7BF, 0x7C0, 0x7C0, 0x7FF]


def test_scales_round_up_and_have_no_sign():
    x = torch.tensor([1.0, 1.0001, 449 / 448, 1 / 448, 0.0, -1.0])
    assert encode(x, "ue8m0").tolist() == [127, 128, 128, 119, 0, 255]
    ends = torch.tensor([2.0**-127, 3e38, torch.inf, torch.nan])
    assert encode(ends, "ue8m0").tolist() == [0, 254, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_e5m6_is_a_float16_rounded_to_six_bits(dtype):
    """Against integer arithmetic on the float16 bits."""
    x = every(dtype)
    x = x[(x.abs() <= 65504) & (x.float() == x.half().float())]
    bits = x.half().view(torch.int16).int() & 0xFFFF
    rounded = (bits + 7 + ((bits >> 4) & 1)) >> 4
    assert torch.equal(encode(x, "e5m6").int(), rounded)
    padded = (codes("e5m6").int() << 4).to(torch.uint16).view(torch.int16)
    want = padded.view(torch.float16).float()
    torch.testing.assert_close(
        decode(codes("e5m6"), "e5m6"), want, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("format", SMALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fast_cast_is_the_definition_behind_a_clamp(format, dtype):
    x = every(dtype)
    limit = largest(format)
    want = decode(encode(x.float().clamp(-limit, limit), format), format)
    got = cast(x, format).to(torch.float32)
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got[~x.isnan()], want[~x.isnan()])
    assert torch.equal(got[~x.isnan()].signbit(), x[~x.isnan()].signbit())
    assert got[~x.isnan()].abs().max() == limit


def test_fields_take_a_code_apart():
    sign, exponent, mantissa = fields(
        torch.tensor([0xC5, 0x07], dtype=torch.uint8), "e4m3"
    )
    assert sign.tolist() == [1, 0]
    assert exponent.tolist() == [8, 0]
    assert mantissa.tolist() == [5, 7]


def test_shapes_strides_and_empty_tensors(generator):
    x = wide_sample(generator, 24).reshape(4, 6)
    flat = encode(x.T.contiguous(), "e4m3")
    assert torch.equal(encode(x.T, "e4m3"), flat)
    assert encode(x[:0], "e5m2").shape == (0, 6)
    assert decode(flat[:0], "e4m3").shape == (0, 4)
    assert encode(x[1, 2], "e4m3") == flat[2, 1]


def test_bad_input_is_named():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="'e3m4'.*e4m3, e5m2, e5m6, ue8m0"):
        encode(x, "e3m4")
    with pytest.raises(ValueError, match="torch.int64"):
        encode(torch.ones(2, dtype=torch.long), "e4m3")
    with pytest.raises(ValueError, match=r"torch.int16.*torch.uint8"):
        decode(torch.ones(2, dtype=torch.int16), "e4m3")
    with pytest.raises(ValueError, match="torch.float32"):
        decode(x, "e5m2")
    with pytest.raises(ValueError, match="0 to 4095"):
        decode(torch.tensor([5, 4096], dtype=torch.int16), "e5m6")
    with pytest.raises(ValueError, match="0 to 4095"):
        decode(torch.tensor([-1], dtype=torch.int16), "e5m6")


def test_names_match_the_formats():
    assert set(formats.FORMATS) == set(SMALL)
