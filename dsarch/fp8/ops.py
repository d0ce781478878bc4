"""One name per operation; the Triton kernels on a GPU, else plain PyTorch."""

from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dsarch.fp8 import reference
from dsarch.fp8.reference import BLOCK, TILE, Accumulator, Block, Quantized

Backend = Literal["torch", "triton"]


def quantize(
    x: Shaped[Tensor, "*z"],
    block: Block = TILE,
    *,
    format: str = "e4m3",
    pow2: bool = False,
    backend: Backend | None = None,
) -> Quantized:
    """:func:`reference.quantize`; the kernel knows E4M3 and 128-wide tiles."""
    fits = format == "e4m3" and block in (TILE, TILE[::-1], BLOCK)
    fits = fits and x.dtype != torch.float64
    if kernels := _kernels(x, backend, fits):
        return kernels.quantize(x, block, pow2=pow2)
    return reference.quantize(x, block, format=format, pow2=pow2)


def dequantize(
    q: Quantized,
    dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> Float[Tensor, "z d"]:
    """:func:`reference.dequantize`."""
    fits = q.block in (TILE, TILE[::-1], BLOCK) and _is_e4m3(q)
    if kernels := _kernels(q.values, backend, fits):
        return kernels.dequantize(q, dtype)
    return reference.dequantize(q, dtype)


def fp8_gemm(
    a: Quantized,
    b: Quantized,
    *,
    accumulator: Accumulator = "fp32",
    dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> Float[Tensor, "z f"]:
    """:func:`reference.fp8_gemm` with promotion every 128 columns."""
    fits = a.block == TILE and b.block in (TILE, BLOCK)
    fits = fits and _is_e4m3(a) and _is_e4m3(b) and accumulator == "fp32"
    if kernels := _kernels(a.values, backend, fits):
        return kernels.fp8_gemm(a, b, dtype)
    return reference.fp8_gemm(a, b, accumulator=accumulator, dtype=dtype)


def _kernels(
    x: Tensor, backend: Backend | None, fits: bool
) -> ModuleType | None:
    """The kernel module, imported only when it is going to run."""
    if backend is None:
        backend = "triton" if x.is_cuda and fits else "torch"
    if backend == "torch":
        return None
    if not fits:
        raise ValueError(
            "the triton backend takes E4M3 in tiles of 1x128, 128x1 and "
            "128x128; backend='torch' takes any"
        )
    return import_module("dsarch.fp8.triton")


def _is_e4m3(q: Quantized) -> bool:
    return q.values.dtype == torch.float8_e4m3fn
