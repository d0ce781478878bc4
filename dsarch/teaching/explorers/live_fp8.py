"""The live panel of FP8: the error of a product with the reader's sizes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsarch.fp8.reference import (
    BLOCK,
    ROW,
    TENSOR,
    TILE,
    dequantize,
    fp8_gemm,
    quantize,
)
from dsarch.teaching.explorers.live import Answer, Field, Panel

MAX_PRODUCTS, MAX_OUTPUTS = 10**7, 2**16
GRAINS = {"1x128": TILE, "128x128": BLOCK, "per row": ROW, "one": TENSOR}
FORMATS = ["e4m3", "e5m2"]
SUMS = {"promoted": 128, "one running sum": None}


class Sizes(NamedTuple):
    """What the panel of FP8 asks for."""

    tokens: int
    width: int
    outputs: int
    outlier: int
    format: str
    grain: str
    scale: str
    sums: str


def operands(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Normal inputs with one outlier, and normal weights.

    ``ValueError`` for sizes below 1, or more than 10 million products or
    65,536 results.
    """
    for name, value in zip(sizes._fields[:3], sizes[:3], strict=True):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    outputs = sizes.tokens * sizes.outputs
    for need, limit, what in (
        (outputs * sizes.width, MAX_PRODUCTS, "products"),
        (outputs, MAX_OUTPUTS, "results"),
    ):
        if need > limit:
            raise ValueError(
                f"this needs {need:,} {what}, more than the {limit:,} that "
                "a panel may use"
            )
    if not abs(sizes.outlier) < 10**30:
        raise ValueError(f"an outlier of {sizes.outlier} is beyond 10**30")
    random = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.tokens, sizes.width, generator=random)
    w = torch.randn(sizes.outputs, sizes.width, generator=random)
    x[0, 0] = sizes.outlier
    return x, w


def compare_product(**values: Any) -> Answer:
    """How far the FP8 product is from the exact one, and from what."""
    sizes = Sizes(**values)
    x, w = operands(sizes)
    pow2 = sizes.scale == "power of two"
    block = GRAINS[sizes.grain]
    a = quantize(x, block, format=sizes.format, pow2=pow2)
    b = quantize(w, block, format=sizes.format, pow2=pow2)
    got = fp8_gemm(a, b, promote=SUMS[sizes.sums], accumulator="fp22")
    exact = x.double() @ w.double().T
    decoded = dequantize(a).double() @ dequantize(b).double().T
    ordinary, rest = x.flatten()[1:], dequantize(a).flatten()[1:]
    lost = (rest == 0).double().mean().item() if len(rest) else 0.0
    rows = [
        ("inputs, without the outlier", _percent(_off(rest, ordinary))),
        ("inputs lost to zero", _percent(lost)),
        ("product: rounding of the operands", _percent(_off(decoded, exact))),
        ("product: 14-bit sums", _percent(_off(got, decoded))),
        ("scales of the inputs", f"{a.scale.numel():,}"),
    ]
    text = (
        f"{sizes.tokens} × {sizes.width} × {sizes.outputs} in {sizes.format}, "
        f"scales {sizes.grain}: the product is off by "
        f"{_percent(_off(got, exact))}, and {_percent(lost)} of the inputs "
        "are lost."
    )
    return Answer(text, ("what", "error"), rows)


def _off(found: Tensor, exact: Tensor) -> float:
    norm = exact.double().norm()
    gap = (found.double() - exact.double()).norm()
    return (gap / norm).item() if norm else 0.0


def _percent(x: float) -> str:
    return f"{100 * x:.2g} %" if x < 1 else f"{100 * x:.0f} %"


def live_fp8(**start: int) -> Panel:
    """The panel of FP8; ``start`` sets first values.

    A name that is no field raises ``ValueError``.
    """
    fields: dict[str, tuple[str, Field]] = {
        "tokens": ("Tokens", 16),
        "width": ("Length of the sums", 1024),
        "outputs": ("Outputs", 32),
        "outlier": ("One input is", 1000),
        "format": ("Format", FORMATS),
        "grain": ("Scales", list(GRAINS)),
        "scale": ("A scale is", ["any number", "power of two"]),
        "sums": ("Sums are", list(SUMS)),
    }
    for name, value in start.items():
        if not isinstance(fields.get(name, ("", ""))[1], int):
            raise ValueError(f"{name!r} is no size of this panel")
        fields[name] = (fields[name][0], value)
    title = "Live: the error of an FP8 product."
    return Panel(title, fields, compare_product)
