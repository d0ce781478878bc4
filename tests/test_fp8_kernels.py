"""Runs the Triton kernels in the interpreter, in a process of their own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The shape check wraps functions, and Triton reads their source.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-x", "-o", "addopts="]
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed (Linux only)"
)


ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def interpret(file: str) -> None:
    """`TRITON_INTERPRET` counts only if set before triton is imported."""
    run = subprocess.run(
        [*PYTEST, f"tests/kernels/{file}"],
        cwd=ROOT,
        env={**ENVIRONMENT, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@needs_triton
def test_quantization_kernels():
    interpret("test_quantize.py")


@needs_triton
def test_product_kernel():
    interpret("test_gemm.py")


@needs_triton
def test_decode_kernel():
    interpret("test_decode.py")


@needs_triton
@pytest.mark.slow
def test_all_kernels_compile_for_hopper(tmp_path):
    """The compiler needs no GPU: FP8 casts and FP8 tensor cores are used."""
    env = {k: v for k, v in ENVIRONMENT.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.hopper"],
        cwd=ROOT,
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert all(found[name]["e4m3x2"] for name in ("quantize 1", "quantize 128"))
    for name in ("gemm 1", "gemm 128"):
        assert found[name]["wgmma.mma_async"] and found[name]["cp.async.cg"]
    assert found["decode"]["mma.sync"]
    assert all(counts["st.global"] for counts in found.values())


@needs_triton
def test_on_the_cpu_the_kernels_say_what_they_need():
    code = (
        "import torch; from dsarch.fp8 import ops\n"
        "try: ops.quantize(torch.ones(2, 2), backend='triton')\n"
        "except ValueError as error: print(error)"
    )
    env = {k: v for k, v in ENVIRONMENT.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert "needs a CUDA tensor, found one on cpu" in run.stdout, run.stderr


def test_the_package_works_without_triton():
    """Importing it and training on the CPU loads no kernel."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from dsarch import fp8\n"
        "layer = fp8.convert(torch.nn.Linear(130, 70))\n"
        "layer(torch.ones(3, 130)).sum().backward()\n"
        "print(layer.weight.grad.shape, 'dsarch.fp8.triton' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "[70, 130]) False" in run.stdout, run.stderr


def test_the_benchmark_runs_without_a_gpu_and_reports_no_timings():
    run = subprocess.run(
        [sys.executable, "benchmarks/fp8_gemm.py", "--rehearse"],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "no timings" in run.stdout and "ours error" in run.stdout
    assert "TFLOP" not in run.stdout
