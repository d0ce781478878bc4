"""FP8 against torch, ml_dtypes and transformers."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

from dsarch.fp8.formats import decode, encode
from dsarch.fp8.reference import (
    BLOCK,
    ROW,
    TENSOR,
    Quantized,
    dequantize,
    fp8_gemm,
    quantize,
    weight_dequant,
    weight_quant,
)
from tests.conftest import close

NATIVE = {
    "e4m3": (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    "e5m2": (torch.float8_e5m2, ml_dtypes.float8_e5m2),
    "ue8m0": (torch.float8_e8m0fnu, ml_dtypes.float8_e8m0fnu),
}
CODES = torch.arange(256).to(torch.uint8)


def every(dtype: torch.dtype) -> torch.Tensor:
    """Every value of a 16-bit dtype, NaN and infinities included."""
    return torch.arange(1 << 16).to(torch.uint16).view(torch.int16).view(dtype)


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("format", NATIVE)
def test_decode_equals_torch_and_ml_dtypes_on_every_code(format, witness):
    in_torch, in_numpy = NATIVE[format]
    value = decode(CODES, format)
    equal(value, CODES.view(in_torch).to(torch.float32))
    with np.errstate(invalid="ignore"):
        want = CODES.numpy().view(in_numpy).astype(np.float32)
    equal(value, torch.from_numpy(want))
    assert torch.equal(value.signbit(), torch.from_numpy(np.signbit(want)))
    witness(
        "eq-fp8-value",
        (value - torch.from_numpy(want)).nan_to_num().abs().max(),
        reference="ml_dtypes and torch, every code",
        code="dsarch.fp8.formats.decode",
    )


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encode_equals_torch_on_every_input(format, dtype, witness):
    """Overflow, infinities, NaN and signed zeros included."""
    x = every(dtype)
    want = x.to(NATIVE[format][0]).view(torch.uint8)
    assert torch.equal(encode(x, format), want)
    witness(
        "eq-fp8-encode",
        (encode(x, format) != want).sum(),
        reference="torch casts, every fp16 and bf16 input",
        code="dsarch.fp8.formats.encode",
    )


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encode_equals_ml_dtypes_except_where_it_does_not_saturate(
    format, dtype
):
    """Beyond 464 ml_dtypes turns E4M3 into NaN; its E5M2 NaN is 0x7E."""
    x = every(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        theirs = x.to(torch.float32).numpy().astype(NATIVE[format][1])
    want = torch.from_numpy(theirs.view(np.uint8))
    ours = encode(x, format)
    beyond = x.to(torch.float32).abs() > 464.0
    apart = (format == "e4m3") & beyond | x.isnan()
    assert torch.equal(ours[~apart], want[~apart])
    assert decode(want, format)[apart].isnan().all()


def test_scales_equal_both_libraries_on_powers_of_two_only():
    """They round to the nearest power; a scale has to round up."""
    powers = decode(CODES[:255], "ue8m0")
    assert torch.equal(encode(powers, "ue8m0"), CODES[:255])
    x = torch.tensor([1.1])
    assert x.to(torch.float8_e8m0fnu).to(torch.float32).item() == 1
    assert decode(encode(x, "ue8m0"), "ue8m0").item() == 2


@pytest.mark.parametrize("blocks", [(TENSOR, TENSOR), (ROW, ROW)])
def test_products_equal_torch_scaled_mm(blocks, generator, witness):
    """With one scale for all, and one per row of each operand."""
    a = quantize(torch.randn(48, 320, generator=generator), blocks[0])
    b = quantize(torch.randn(80, 320, generator=generator), blocks[1])
    scales = a.scale, b.scale.T
    if blocks[0] == TENSOR:
        scales = a.scale.squeeze(), b.scale.squeeze()
    want = torch._scaled_mm(
        a.values, b.values.T, *scales, out_dtype=torch.float32
    )
    close(fp8_gemm(a, b), want)
    close(fp8_gemm(a, b, promote=None), want)
    witness(
        "eq-fp8-gemm",
        (fp8_gemm(a, b) - want).abs().max() / want.abs().max(),
        reference="torch _scaled_mm",
        code="dsarch.fp8.reference.fp8_gemm",
    )


@pytest.mark.parametrize("shape", [(576, 320), (130, 1), (256, 384)])
def test_weights_decode_as_transformers_does(shape, generator):
    """576 rows have 5 scale rows; ``weight_scale_inv`` multiplies."""
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight = torch.randn(shape, generator=generator) * 3
    q, scale_inv = weight_quant(weight)
    want = module._dequantize_fp8_weight(
        q, scale_inv, [128, 128], torch.float32
    )
    equal(weight_dequant(q, scale_inv), want)
    if shape[0] == 576:
        assert scale_inv.shape == (5, 3)


def test_weights_are_quantized_as_transformers_does(generator, witness):
    """With power-of-two scales both paths are exact, so the codes agree."""
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="ue8m0")
    quantizer = SimpleNamespace(quantization_config=config)
    weight = torch.randn(256, 384, generator=generator) * 0.02
    weight[:128, :128] *= 300
    theirs = module.Fp8Quantize(quantizer)._quantize_one("x.weight", weight)
    q, scale_inv = weight_quant(weight, pow2=True)
    equal(scale_inv, theirs["x.weight_scale_inv"].to(torch.float32))
    assert torch.equal(
        q.view(torch.uint8), theirs["x.weight"].view(torch.uint8)
    )
    back = module.Fp8Dequantize(quantizer)._dequantize_one(q, scale_inv)
    equal(dequantize(Quantized(q, scale_inv, BLOCK)), back)
    witness(
        "eq-fp8-scale",
        (scale_inv - theirs["x.weight_scale_inv"].to(torch.float32)).max(),
        reference="transformers finegrained_fp8",
        code="dsarch.fp8.reference.quantize",
    )
