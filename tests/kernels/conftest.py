"""Kernel tests need the interpreter before triton's first import.

So they run in a process of their own (`tests/test_fp8_kernels.py` starts
it), and in any other process they are not collected.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def pytest_configure(config):
    """The shape check wraps functions, and Triton reads their source."""
    if INTERPRETED and config.getoption("jaxtyping_packages", None):
        raise pytest.UsageError("run the kernel tests with -o addopts=")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory is all ones, NaN in every dtype used here."""
    empty = torch.empty

    def poison(*size, **options):
        fresh = empty(*size, **options)
        if fresh.numel():
            fresh.view(torch.uint8).fill_(0xFF)
        return fresh

    monkeypatch.setattr(torch, "empty", poison)
