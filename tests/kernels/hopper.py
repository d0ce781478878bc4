"""Compile every kernel for an H100, which needs no GPU, and count.

Run as a module by `tests/test_fp8_kernels.py`, without the interpreter.
Prints one JSON object: for each kernel how often an instruction occurs.
"""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsarch.fp8 import triton as kernels

TARGET = GPUTarget("cuda", 90, 32)
COUNTED = ("wgmma.mma_async", "e4m3x2", "cp.async.cg", "mma.sync", "st.global")


def instructions(kernel, names: str, constants: dict, **options) -> dict:
    """Compile with sizes that are multiples of 16, as real ones are.

    ``names`` are the arguments, each with ``:type`` unless it is an i32.
    """
    pairs = [(*word.split(":"), "i32")[:2] for word in names.split()]
    types = dict(pairs) | dict.fromkeys(constants, "constexpr")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (_, kind) in enumerate(pairs)
        if kind != "fp32"
    }
    source = ASTSource(kernel, types, constants, aligned)
    compiled = triton.compile(source, target=TARGET, options=options)
    ptx = compiled.asm["ptx"]
    return {word: ptx.count(word) for word in COUNTED}


def products() -> dict:
    """The largest configuration, with tiles and with blocks on the right."""
    names = (
        "a:*fp8e4nv a_scale:*fp32 b:*fp8e4nv b_scale:*fp32 c:*bf16 "
        "z f d size_class"
    )
    config = kernels.CONFIGS[-1]
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return {
        f"gemm {group}": instructions(
            kernels.gemm_kernel,
            names,
            {"GROUP": group, **config.kwargs},
            **options,
        )
        for group in (1, 128)
    }


def main() -> None:
    """The three kernels that the chapter names, and the decode kernel."""
    out = {}
    for group, rows in ((1, 32), (128, 128)):
        out[f"quantize {group}"] = instructions(
            kernels.quantize_kernel,
            "x:*bf16 y:*fp8e4nv s:*fp32 z d x_row",
            {"x_col": 1, "GROUP": group, "POW2": True, "ROWS": rows},
        )
    out["dequantize"] = instructions(
        kernels.dequantize_kernel,
        "y:*fp8e4nv s:*fp32 x:*bf16 z d y_row y_col s_row s_col",
        {"GROUP": 128, "ROWS": 32},
    )
    out |= products()
    out["decode"] = instructions(
        kernels.decode_kernel,
        "q:*bf16 q_rope:*bf16 values:*fp8e4nv scales:*fp32 k_rope:*bf16 "
        "length:*i64 o:*fp32 h s factor:fp32",
        {"C": 512, "R": 64, "HEADS": 16, "KEYS": 32},
    )
    print(json.dumps(out))


if __name__ == "__main__":
    main()
