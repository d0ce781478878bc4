"""How an answer is judged: equal, a known mistake, or not written yet."""

import math
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# The same table as in the tests: how far two right answers may differ.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.bfloat16: 2e-2,
}

# Code that is not the reader's: it is left out of what an error shows.
_FOREIGN = re.compile(r"site-packages|[/\\]dsarch[/\\]|^<frozen")


class Unsolved(Exception):
    """The answer still has the gaps of its skeleton."""


class Mistake(Exception):
    """The answer is wrong; the message says what to look at."""


def blank(value: Any) -> bool:
    """Whether ``value`` is what an untouched skeleton returns."""
    if value is None or value is ... or value is NotImplemented:
        return True
    if isinstance(value, list | tuple) and value:
        return all(blank(item) for item in value)
    return False


def call(answer: Any, *args: Any, **options: Any) -> Any:
    """Run the reader's code.

    Raises :class:`Unsolved` where a gap shows, and :class:`Mistake` with the
    error and its line where the code fails for another reason.
    """
    if blank(answer):
        raise Unsolved
    try:
        result = answer(*args, **options)
    except (Unsolved, Mistake):
        raise
    except Exception as error:
        raise _explain(answer, error) from None
    if blank(result):
        raise Unsolved
    return result


def _explain(answer: Any, error: Exception) -> Exception:
    gaps = [
        value
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if not _FOREIGN.search(frame.f_code.co_filename)
        for value in frame.f_locals.values()
    ]
    if any(gap is ... for gap in gaps) or "ellipsis" in str(error):
        return Unsolved()
    if isinstance(error, NotImplementedError):
        return Unsolved()
    name = getattr(answer, "__name__", type(answer).__name__)
    reason = str(error).strip().splitlines() or ["no message"]
    return Mistake(
        f"{name} stopped with {type(error).__name__}: {reason[0]}"
        + _line(error)
    )


def _line(error: Exception) -> str:
    """The last line of the reader's own code that was running."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [f.line for f in frames if not _FOREIGN.search(f.filename)]
    return f", in the line `{own[-1]}`" if own and own[-1] else ""


def load(module: nn.Module, weights: nn.Module) -> nn.Module:
    """Give the reader's module the weights of the reference, by name.

    Raises :class:`Mistake` naming the parameters that are missing, unknown
    or of another shape.
    """
    if any(value is ... for value in vars(module).values()):
        raise Unsolved
    want = {name: tuple(x.shape) for name, x in weights.named_parameters()}
    have = {name: tuple(x.shape) for name, x in module.named_parameters()}
    for name in want.keys() - have.keys():
        raise Mistake(f"a parameter is missing: {name}, shape {want[name]}")
    for name in have.keys() - want.keys():
        raise Mistake(f"{name} is no parameter of the reference layer")
    for name, shape in want.items():
        if have[name] != shape:
            raise Mistake(f"{name} has shape {have[name]}, wanted {shape}")
    module.to(next(weights.parameters()).dtype)
    module.load_state_dict(weights.state_dict())
    return module


def agree(got: Any, want: Any) -> bool:
    """Whether two answers are equal up to rounding, parts and all."""
    if isinstance(want, Tensor):
        return _agree_tensors(got, want)
    if isinstance(want, Mapping):
        return (
            isinstance(got, Mapping)
            and got.keys() == want.keys()
            and all(agree(got[key], want[key]) for key in want)
        )
    if isinstance(want, list | tuple):
        return (
            isinstance(got, Sequence | Tensor)
            and len(got) == len(want)
            and all(agree(g, w) for g, w in zip(got, want, strict=True))
        )
    if isinstance(want, bool | str | None):
        return got == want
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    return isinstance(got, int | float) and math.isclose(
        got, want, rel_tol=1e-9, abs_tol=1e-12
    )


def _agree_tensors(got: Any, want: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return False
    if not (want.is_floating_point() or want.is_complex()):
        return got.dtype == want.dtype and torch.equal(got, want)
    wide = max(TOLERANCE.get(x.dtype, 0.0) for x in (got, want))
    got = got.to(want.dtype)
    return torch.allclose(got, want, rtol=wide, atol=wide)


def same(
    got: Any,
    want: Any,
    mistakes: Mapping[str, Any] | None = None,
    what: str = "the result",
) -> None:
    """Accept ``got`` if it equals ``want``; otherwise say what is wrong.

    ``mistakes`` maps a message to the value that this mistake produces: a
    reader who made it gets this message rather than a bare difference.
    """
    if blank(got):
        raise Unsolved
    if agree(got, want):
        return
    for message, value in (mistakes or {}).items():
        if agree(got, value):
            raise Mistake(message)
    raise Mistake(f"{what}: {_difference(got, want)}")


def _difference(got: Any, want: Any) -> str:
    if isinstance(want, Tensor) and isinstance(got, Tensor):
        if got.shape != want.shape:
            return f"shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
        if got.dtype != want.dtype and not want.is_floating_point():
            return f"dtype {got.dtype}, wanted {want.dtype}"
        gap = (got - want.to(got.dtype)).abs().max().item()
        return f"off by up to {gap:.2g}"
    if isinstance(want, Tensor):
        return f"a {type(got).__name__}, wanted a tensor"
    return f"found {got!r}, wanted {want!r}"
