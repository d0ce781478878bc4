r"""Number formats from their definition: sign, exponent, mantissa.

A format with $E$ exponent bits, $M$ mantissa bits and bias $B$ holds

$$x = (-1)^s \cdot 2^{\max(e, 1) - B - M} \cdot (m + [e > 0]\,2^M)$$

so that between two powers of two the values are evenly spaced, and below
the smallest normal number the spacing stays what it was.

Limits and bit patterns: the OCP 8-bit floating point specification; E5M6
is the 12-bit format of the DeepSeek-V3 report, section 3.3.3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Integer, Shaped
from torch import Tensor

from dsarch.layers import widen


class Format(NamedTuple):
    """Field widths, bias, and how far up the finite codes go."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    top: int
    infinite: bool

    @property
    def sign(self) -> int:
        """The sign bit; every code below it is positive."""
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def max(self) -> float:
        """The largest finite value."""
        return self.value(self.top)

    @property
    def limit(self) -> float:
        """Where encoding stops: at the code of infinity, if there is one."""
        return self.value(self.top + self.infinite)

    def value(self, code: int) -> float:
        """What a code above the subnormals stands for."""
        exponent, mantissa = divmod(code, 1 << self.mantissa_bits)
        steps = mantissa + (1 << self.mantissa_bits)
        return steps * 2.0 ** (exponent - self.bias - self.mantissa_bits)


FORMATS = {
    "e4m3": Format(4, 3, bias=7, top=0x7E, infinite=False),
    "e5m2": Format(5, 2, bias=15, top=0x7B, infinite=True),
    "e5m6": Format(5, 6, bias=15, top=0x7BF, infinite=True),
}
SCALE_BIAS, SCALE_NAN = 127, 0xFF


class Fields(NamedTuple):
    """The three parts of a code, as unsigned integers."""

    sign: Int[Tensor, "*z"]
    exponent: Int[Tensor, "*z"]
    mantissa: Int[Tensor, "*z"]


def encode(x: Shaped[Tensor, "*z"], format: str) -> Integer[Tensor, "*z"]:
    r"""The code nearest to each value, ties to the even mantissa.

    $$\text{code} = \mathrm{round}\!\left(|x| / 2^{e-M}\right)
      + (e - e_{min})\,2^M, \qquad e = \max(\lfloor\log_2|x|\rfloor, e_{min})$$

    A mantissa that rounds up to $2^{M+1}$ carries by the same addition. What
    rounds beyond the largest value becomes infinity where there is one
    (E5M2 from 61440 up, E5M6 from 65280 up), else the largest value (E4M3,
    infinities too). NaN stays NaN, all bits set. UE8M0 rounds *up*, as a
    scale must. Codes are uint8, for the 12 bits of E5M6 int16.
    ``ValueError`` for an unknown format and for values that are not floats.
    """
    check_float(x)
    wide = widen(x)
    if format == "ue8m0":
        return _encode_scale(wide)
    spec = _spec(format)
    size = wide.abs().clamp(max=spec.limit)
    normal = size.clamp(min=2.0**spec.min_exponent)
    exponent = torch.frexp(normal).exponent - 1
    steps = torch.ldexp(size, spec.mantissa_bits - exponent).round()
    code = steps.nan_to_num().int()
    code += (exponent - spec.min_exponent) << spec.mantissa_bits
    code.masked_fill_(wide.isnan(), spec.sign - 1)
    return (code + wide.signbit() * spec.sign).to(_code_dtype(format))


def decode(codes: Shaped[Tensor, "*z"], format: str) -> Float[Tensor, "*z"]:
    """The value of each code, exactly, in float32.

    ``ValueError`` for an unknown format, for codes of another dtype than
    :func:`encode` returns, and for 12-bit codes out of range.
    """
    sign, exponent, mantissa = fields(codes, format)
    one = torch.ones_like(exponent, dtype=torch.float32)
    if format == "ue8m0":
        size = torch.ldexp(one, exponent - SCALE_BIAS)
        return size.masked_fill(exponent == SCALE_NAN, torch.nan)
    spec = _spec(format)
    hidden = (exponent > 0) << spec.mantissa_bits
    unit = exponent.clamp(min=1) - spec.bias - spec.mantissa_bits
    size = torch.ldexp((mantissa + hidden).to(torch.float32), unit)
    magnitude = (exponent << spec.mantissa_bits) + mantissa
    size = size.masked_fill(magnitude > spec.top, torch.nan)
    if spec.infinite:
        size = size.masked_fill(magnitude == spec.top + 1, torch.inf)
    return torch.where(sign > 0, -size, size)


def fields(codes: Shaped[Tensor, "*z"], format: str) -> Fields:
    """Take codes apart; the errors are those of :func:`decode`."""
    _check_codes(codes, format)
    bits = codes.to(torch.int32)
    if format == "ue8m0":
        zero = torch.zeros_like(bits)
        return Fields(zero, bits, zero)
    spec = _spec(format)
    magnitude = bits & (spec.sign - 1)
    return Fields(
        (bits >= spec.sign).int(),
        magnitude >> spec.mantissa_bits,
        magnitude & ((1 << spec.mantissa_bits) - 1),
    )


def cast(x: Shaped[Tensor, "*z"], format: str) -> Float[Tensor, "*z"]:
    r"""Clamp, then round like :func:`encode`, into the smallest fitting dtype.

    E4M3 and E5M2 use torch's own cast, behind a clamp because what the cast
    does beyond the largest value differs between libraries and versions:
    nothing but NaN leaves the range. E5M6 has no dtype: a float16 whose last
    four mantissa bits are zero has the same value. ``.to(torch.float32)``
    gives the values back.
    """
    native = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    check_float(x)
    limit = _spec(format).max
    clamped = widen(x).clamp(-limit, limit)
    # A float64 would be rounded twice, through float32.
    if format in native and x.dtype != torch.float64:
        return clamped.to(native[format])
    codes = encode(clamped, format)
    if format in native:
        return codes.view(native[format])
    return decode(codes, format).to(torch.float16)


def grid(format: str) -> Float[Tensor, " points"]:
    """Every finite value of the format, once, in ascending order."""
    count = 1 << 8 if format == "ue8m0" else 2 * _spec(format).sign
    codes = torch.arange(count).to(_code_dtype(format))
    values = decode(codes, format)
    return values[values.isfinite()].unique()


def largest(format: str) -> float:
    """The largest finite value: 448, 57344, 65024 or $2^{127}$."""
    return 2.0**127 if format == "ue8m0" else _spec(format).max


def check_float(x: Tensor) -> None:
    """Raise ``ValueError`` unless ``x`` holds floats of 16 bits or more."""
    if not x.is_floating_point() or x.itemsize < 2:
        raise ValueError(f"expected floats of 16 bits or more, found {x.dtype}")


def _encode_scale(wide: Tensor) -> Tensor:
    """The next power of two up, so that a scaled tile never overflows.

    Zero takes the smallest scale; negative and infinite values become NaN.
    """
    mantissa, exponent = torch.frexp(wide)
    power = exponent - (mantissa == 0.5).int()
    code = (power + SCALE_BIAS).clamp(0, SCALE_NAN - 1)
    code = code.masked_fill(wide == 0, 0)
    good = (wide >= 0) & wide.isfinite()
    return code.masked_fill(~good, SCALE_NAN).to(torch.uint8)


def _spec(format: str) -> Format:
    if format not in FORMATS:
        known = ", ".join([*FORMATS, "ue8m0"])
        raise ValueError(f"format is {format!r}, expected one of {known}")
    return FORMATS[format]


def _code_dtype(format: str) -> torch.dtype:
    return torch.int16 if format == "e5m6" else torch.uint8


def _check_codes(codes: Tensor, format: str) -> None:
    if format != "ue8m0":
        _spec(format)
    want = _code_dtype(format)
    if codes.dtype != want:
        raise ValueError(
            f"codes have dtype {codes.dtype}, {format} takes {want}"
        )
    if want == torch.int16 and ((codes < 0) | (codes >= 1 << 12)).any():
        raise ValueError("an e5m6 code lies outside its 12 bits, 0 to 4095")
