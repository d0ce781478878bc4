"""What all tests share: tolerances, `close`, a fixed seed, one thread.

The package must not be imported at the top of this file: the import hook that
checks shapes has to be in place first.
"""

import os
from collections.abc import Callable
from functools import partial

import pytest
import torch

# One row per precision. A test never brings a tolerance of its own.
TOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    tol: float | None = None,
) -> None:
    """Fail unless both agree to the tolerance of the coarser precision.

    `tol` is for one case only: an oracle that computes less precisely than
    its dtype says (fp32 rotary tables in an fp64 model), and then it is
    `TOL[torch.float32]`.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if tol is None:
        tol = max(TOL.get(actual.dtype, 0.0), TOL.get(expected.dtype, 0.0))
    assert tol in (0.0, *TOL.values()), f"{tol} is not in the table"
    torch.testing.assert_close(
        actual, expected, rtol=tol, atol=tol, check_dtype=False
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep parallel test processes from fighting over the cores."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same global random state."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """Give a seeded source of randomness to code that asks for one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def witness(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Hand a measured difference to the proof registry, with the test's id."""
    from dsarch.teaching import proofs

    test = request.node.nodeid.partition("[")[0]
    return partial(proofs.witness, test=test)
