r"""What a run reports: metrics in a file, a progress bar, causes of NaN."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class NonFinite(ArithmeticError):
    """A loss or gradient that is no number; the message names the cause."""


class Metrics:
    """One JSON line per step; a resumed run rewrites what it repeats."""

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        self.path = path = folder and folder / "metrics.jsonl"
        if path is None or not path.exists():
            return
        kept = [row for row in read_metrics(path) if row["step"] < step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; a killed process loses at most this one."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf8") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a metrics file, without one that was cut off."""
    rows = []
    for line in Path(path).read_text(encoding="utf8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """A bar on standard error: redrawn on a terminal, else now and then."""

    def __init__(self, total: int, done: int = 0, stream: Any = None) -> None:
        self.total, self.first = total, done
        self.stream = sys.stderr if stream is None else stream
        self.start = self.shown = time.monotonic()

    def show(self, done: int, text: str) -> None:
        """Draw the bar with ``done`` of the steps and what is left."""
        now = time.monotonic()
        live = self.stream.isatty()
        if done < self.total and now - self.shown < (0.2 if live else 20):
            return
        self.shown = now
        pace = (now - self.start) / max(1, done - self.first)
        left = pace * (self.total - done)
        filled = done * 30 // self.total
        bar = "█" * filled + "·" * (30 - filled)
        end = "" if live and done < self.total else "\n"
        clock = f"{int(left) // 60}:{int(left) % 60:02} left"
        line = f"{bar} {done}/{self.total} {text} {clock}"
        self.stream.write(f"{chr(13) if live else ''}{line}{end}")
        self.stream.flush()


def check_finite(
    value: Tensor, what: str, model: nn.Module, run: Callable[[], Any]
) -> None:
    """Raise :class:`NonFinite` with the cause; ``run`` repeats the pass."""
    if not torch.isfinite(value):
        cause = bad_weight(model) or bad_module(model, run)
        raise NonFinite(f"{what} is {value.item()}: {cause}")


def bad_weight(model: nn.Module) -> str:
    """The first weight or gradient that is not finite, or nothing."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"weight {name} is not finite"
    for name, weight in model.named_parameters():
        if weight.grad is not None and not weight.grad.isfinite().all():
            return f"the gradient of {name} is not finite"
    return ""


def bad_module(model: nn.Module, run: Callable[[], Any]) -> str:
    """Repeat a forward pass and find the module that breaks first."""
    broken: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                broken.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name or "the model"))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    if not broken:
        return "all weights and outputs are finite, the loss itself is not"
    return f"weights are finite, {broken[0]} overflows"
