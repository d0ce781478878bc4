"""The FP8 explorer: one number and its code, or a matrix and its error."""

from functools import cache

import torch
from torch import Tensor

from dsarch.fp8 import formats, reference
from dsarch.teaching.explorers.base import Check, Explorer

HINTS = {
    "number": (
        "17 and 19, which lie half way between two codes; 0.0009 and 0.001; "
        "500; then step through the codes around 0."
    ),
    "matrix": (
        "one value, and raise its size with one scale until values are lost; "
        "the same with INT8, where it happens a hundred times earlier."
    ),
}
ROWS, COLUMNS = 128, 256
OUTLIER = (5, 40)
GRAINS = {
    "tensor": reference.TENSOR,
    "row": reference.ROW,
    "block": reference.BLOCK,
    "tile": reference.TILE,
}


def decode(code: int, format: str) -> float | None:
    """The value of a code, None for NaN."""
    value = formats.decode(torch.tensor([code]).to(torch.uint8), format)
    return None if value.isnan() else value.item()


def encode(x: float, format: str) -> int:
    """The code nearest to ``x`` among the finite ones."""
    top = formats.largest(format)
    low = -torch.inf if format == "ue8m0" else -top
    wide = torch.tensor([x], dtype=torch.float64).clamp(low, top)
    return int(formats.encode(wide, format))


def neighbours(x: float, format: str) -> list[float]:
    """The value below, the value that ``x`` gets, and the value above."""
    grid = formats.grid(format).tolist()
    at = grid.index(formats.decode(_code(encode(x, format)), format).item())
    around = (max(at - 1, 0), at, min(at + 1, len(grid) - 1))
    return [grid[i] for i in around]


def _code(code: int) -> Tensor:
    return torch.tensor([code]).to(torch.uint8)


def scale_for(amax: float, format: str, pow2: bool) -> float:
    """The scale of a tile; INT8 fills 127."""
    wide = torch.tensor([amax])
    if format != "int8":
        return reference.scale_for(wide, format, pow2).item()
    s = wide.clamp(min=reference.SMALLEST_AMAX) / 127
    return (reference.power_of_two(s) if pow2 else s).item()


@cache
def matrix(shape: str) -> Tensor:
    """128 tokens of 256 channels, the same in Python and in the page."""
    i = torch.arange(2 * ROWS * COLUMNS, dtype=torch.int64)
    u, v = _chance(i).unflatten(0, (-1, 2)).unbind(1)
    normal = (-2 * u.log()).sqrt() * (2 * torch.pi * v).cos()
    made = {"uniform": 2 * u - 1, "normal": normal, "cubed": normal**3}
    return made[shape].reshape(ROWS, COLUMNS)


def _chance(i: Tensor) -> Tensor:
    """A series between 0 and 1: integers mixed, 32 bits at a time."""
    low = 0xFFFFFFFF
    x = (i + 1) * 0x9E3779B1 & low
    x = (x ^ (x >> 16)) * 0x85EBCA6B & low
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & low
    return (x ^ (x >> 16)).to(torch.float64) / 2**32 + 2**-33


def entry(i: int, shape: str) -> float:
    """Entry ``i`` of the matrix, counted row by row."""
    return matrix(shape).flatten()[i].item()


def matrix_error(
    shape: str, where: str, size: float, format: str, grain: str, pow2: bool
) -> list[float]:
    """Relative error of the ordinary values, and the share lost to zero."""
    x, row, column = matrix(shape).clone(), *OUTLIER
    out = torch.zeros_like(x, dtype=torch.bool)
    if where in ("value", "token", "channel"):
        rows = slice(None) if where == "channel" else row
        out[rows, slice(None) if where == "token" else column] = True
    x[out] = size if where == "value" else x[out] * size
    y = _rounded(x, format, grain, pow2)
    x, y = x[~out], y[~out]
    lost = (y == 0).to(torch.float64).mean()
    return [((y - x).norm() / x.norm()).item(), lost.item()]


def _rounded(x: Tensor, format: str, grain: str, pow2: bool) -> Tensor:
    if format != "int8":
        block = GRAINS[grain]
        return reference.rounded(x, block, format=format, pow2=pow2)
    rows, columns = (
        side or extent
        for side, extent in zip(GRAINS[grain], x.shape, strict=True)
    )
    tiles = x.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
    amax = tiles.abs().amax((1, 3), keepdim=True).to(torch.float32)
    s = amax.clamp(min=reference.SMALLEST_AMAX) / 127
    s = reference.power_of_two(s) if pow2 else s
    steps = (tiles / s).round().clamp(-127, 127).to(torch.float32)
    return (steps * s).flatten(2).flatten(0, 1).to(x.dtype)


def _checks() -> list[Check]:
    codes = [(x, f) for f in ("e4m3", "e5m2") for x in (0.3, 17.0, -5e-3)]
    errors = [
        ("normal", "value", 1e5, "e4m3", grain, False) for grain in GRAINS
    ]
    errors.append(("cubed", "channel", 100.0, "int8", "tile", True))
    return [
        *(("encode", [*given], encode(*given)) for given in codes),
        *(("neighbours", [*given], neighbours(*given)) for given in codes),
        ("decode", [0x7F, "e4m3"], decode(0x7F, "e4m3")),
        ("scaleFor", [449.0, "e4m3", True], scale_for(449.0, "e4m3", True)),
        *(("matrixError", [*given], matrix_error(*given)) for given in errors),
    ]


def fp8(look: str = "number", number: float = 0.3) -> Explorer:
    """Codes of E4M3, E5M2 and UE8M0, and what scaling does to a matrix.

    ``look`` is what is shown first; ``ValueError`` for anything but a number
    or a matrix.
    """
    if look not in HINTS:
        raise ValueError(f"look is {look!r}, expected 'number' or 'matrix'")
    examples = [0.001, 0.1, 0.3, 1.0, 17.0, 19.0, 100.25, 448.0]
    rows = [
        (x, *(neighbours(x, f)[1] for f in ("e4m3", "e5m2")), f"0x{code:02X}")
        for x in examples
        for code in [encode(x, "e4m3")]
    ]
    titles = {
        "number": "A number in eight bits",
        "matrix": "A matrix in eight bits",
    }
    return Explorer(
        "fp8",
        {"look": look, "number": number},
        title=titles[look],
        columns=["number", "as E4M3", "as E5M2", "E4M3 code"],
        rows=rows,
        checks=_checks(),
        hint=HINTS[look],
    )
