"""Named intermediate values of a forward pass, without changing the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def trace(
    model: nn.Module, *patterns: str, inputs: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Collect what the named modules return while the block runs.

    A pattern may hold ``*``: ``model.layers.*.self_attn`` is the attention
    of every layer. Outputs are detached; of several calls the last one
    stays. A module that returns several tensors appears as ``name.0``,
    ``name.1`` and so on, and with ``inputs`` its arguments as
    ``name.input.0``. A pattern that fits no module raises ``ValueError``.
    """
    modules = dict(model.named_modules())
    chosen = _chosen(list(modules), patterns)
    seen: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    try:
        for name in chosen:
            hook = partial(_record, seen, name, inputs)
            handles.append(modules[name].register_forward_hook(hook))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _chosen(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """The names that fit, in the order of the model."""
    fits = {p: [n for n in names if fnmatchcase(n, p)] for p in patterns}
    for pattern, found in fits.items():
        if not found:
            known = ", ".join(n for n in names[:6] if n)
            raise ValueError(
                f"no module fits {pattern!r}; the model has {known}, …"
            )
    wanted = {name for found in fits.values() for name in found}
    return [name for name in names if name in wanted]


def _record(
    seen: dict[str, Tensor],
    name: str,
    inputs: bool,
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
) -> None:
    if inputs:
        _keep(seen, f"{name}.input", args)
    _keep(seen, name, output)


def _keep(seen: dict[str, Tensor], name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        seen[name] = value.detach()
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            _keep(seen, f"{name}.{i}", part)
