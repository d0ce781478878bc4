"""Speed of the FP8 kernels on a GPU beside torch's own products.

    python benchmarks/fp8_gemm.py            print the tables
    python benchmarks/fp8_gemm.py --save     and store them beside this file
    python benchmarks/fp8_gemm.py --rehearse run the code on the CPU, tiny

Shapes are the linear layers of DeepSeek-V3. Three products get the same
operands: ours (1x128 tiles against 128x128 blocks), ``torch._scaled_mm``
with one FP8 scale per row, and bf16 ``torch.matmul``. Timings are medians,
taken in turn with the L2 cache cleared; the error is the norm of the
difference from the float64 product of the unrounded operands, relative to
that product's norm. Quantisation is compared with copying a tensor.
A rehearsal prints no timings: it only shows that this file works.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsarch.fp8 import ops
from dsarch.fp8.reference import BLOCK, ROW, TILE, quantize

# output and input width: q_a with kv_a, q_b, kv_b, o, gate with up, down
LAYERS = [
    (2112, 7168),
    (24576, 1536),
    (32768, 512),
    (7168, 16384),
    (4096, 7168),
    (7168, 2048),
]
TOKENS = [64, 128, 512, 1024, 4096]
TABLE = Path(__file__).with_suffix(".json")
Timer = Callable[[Callable[[], object]], float]


def gpu_seconds(run: Callable[[], object], rounds: int = 30) -> float:
    """Median time on the device, each round from a cold L2 cache."""
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        flush.zero_()
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def once(run: Callable[[], object]) -> float:
    """One round on the clock, for a rehearsal."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def contestants(x: Tensor, w: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Three ways to multiply; operands are quantised beforehand."""
    a, b = ops.quantize(x, TILE), ops.quantize(w, BLOCK)
    rows, columns = quantize(x, ROW), quantize(w, ROW)
    right, right_scale = columns.values.T, columns.scale.T.contiguous()
    return {
        "ours": lambda: ops.fp8_gemm(a, b, dtype=torch.bfloat16),
        "scaled_mm": lambda: torch._scaled_mm(
            rows.values,
            right,
            rows.scale,
            right_scale,
            out_dtype=torch.bfloat16,
        ),
        "bf16": lambda: x @ w.T,
    }


def product_row(
    tokens: int, layer: tuple[int, int], device: str, timer: Timer
) -> dict[str, float]:
    """One line of the first table."""
    out, inner = layer
    generator = torch.Generator(device).manual_seed(0)
    options = {"generator": generator, "device": device}
    x = torch.randn(tokens, inner, **options).bfloat16()
    w = (torch.randn(out, inner, **options) / inner**0.5).bfloat16()
    exact = x.double() @ w.double().T
    row: dict[str, float] = {"M": tokens, "N": out, "K": inner}
    for name, run in contestants(x, w).items():
        seconds = timer(run)
        row[f"{name} TFLOP/s"] = 2e-12 * tokens * out * inner / seconds
        error = (run().double() - exact).norm() / exact.norm()
        row[f"{name} error"] = float(error)
    ours = row["ours TFLOP/s"]
    row["ours : scaled_mm"] = ours / row["scaled_mm TFLOP/s"]
    row["ours : bf16"] = ours / row["bf16 TFLOP/s"]
    return row


def quantize_row(
    name: str, shape: tuple[int, int], device: str, timer: Timer
) -> dict[str, float | str]:
    """One line of the second table: bytes moved in a second."""
    x = torch.randn(shape, device=device).bfloat16()
    block, pow2 = (BLOCK if "block" in name else TILE), "pow2" in name
    copy = 2 * x.nbytes / timer(x.clone)
    q = ops.quantize(x, block, pow2=pow2)
    moved = x.nbytes + q.values.nbytes + q.scale.nbytes
    speed = moved / timer(lambda: ops.quantize(x, block, pow2=pow2))
    return {
        "kind": name,
        "rows": shape[0],
        "columns": shape[1],
        "GB/s": speed / 1e9,
        "copy GB/s": copy / 1e9,
        "share of copy": speed / copy,
    }


def show(rows: list[dict], timed: bool) -> None:
    """Print a table; a rehearsal has no times to show."""
    hidden = () if timed else ("TFLOP", "GB/s", " : ", "share")
    names = [n for n in rows[0] if not any(part in n for part in hidden)]
    print(" | ".join(names))
    for row in rows:
        cells = (row[name] for name in names)
        print(
            " | ".join(
                f"{cell:.4g}" if isinstance(cell, float) else str(cell)
                for cell in cells
            )
        )


def measure(device: str, timer: Timer) -> dict[str, list[dict]]:
    """Both tables."""
    tiny = device == "cpu"
    layers = [(192, 320)] if tiny else LAYERS
    tokens = [64] if tiny else TOKENS
    shape = (96, 320) if tiny else (16384, 7168)
    kinds = ("tiles", "tiles pow2", "blocks")
    return {
        "products": [
            product_row(m, layer, device, timer)
            for layer in layers
            for m in tokens
        ],
        "quantisation": [
            quantize_row(kind, shape, device, timer) for kind in kinds
        ],
    }


def versions() -> dict[str, str]:
    """Which device and software the numbers belong to."""
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
    }


def main() -> None:
    """Measure on a GPU, rehearse on a CPU, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description="FP8 kernels on a GPU")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if args.rehearse:
        print("rehearsal on the CPU: errors only, no timings")
        for rows in measure("cpu", once).values():
            show(rows, timed=False)
        return
    if not torch.cuda.is_available():
        print("fp8_gemm: no CUDA device here, nothing measured")
        return
    found = measure("cuda", gpu_seconds)
    stored = {"versions": versions(), **found}
    print(" · ".join(f"{k} {v}" for k, v in stored["versions"].items()))
    for rows in found.values():
        show(rows, timed=True)
    if args.save:
        TABLE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
