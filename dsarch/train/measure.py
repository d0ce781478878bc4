r"""What sharding saves, measured: bytes of one rank by kind of state."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsarch.config import Config
from dsarch.model import DeepSeek
from dsarch.train import distributed, pretrain
from dsarch.train.loop import Plan, Ranks, Trainer
from dsarch.train.optim import AdamW

STRATEGIES = ("data", "zero1", "zero2", "zero3")


def measure(
    strategy: str, ranks: Ranks, steps: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Train the tiny model under a strategy, on all ranks of a launch.

    The losses do not depend on the strategy. ``bytes`` are those of the rank
    that holds most, between two steps (gradients: before the update). Raises
    ``ValueError`` for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is none of {STRATEGIES}")
    run = _trainer(strategy, steps, seed, ranks)
    weights, [optimizer] = list(run.model.parameters()), run.optimizers
    gradients: list[int] = []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append(size_of(w.grad for w in weights))
    )
    rows = run.run()
    inner = getattr(optimizer, "optim", optimizer)
    moments = (x for kept in inner.state.values() for x in kept.values())
    most = torch.tensor([size_of(weights), gradients[-1], size_of(moments)])
    dist.all_reduce(most, dist.ReduceOp.MAX)
    names = ("weights", "gradients", "moments")
    return {
        "strategy": strategy,
        "ranks": ranks.size,
        "losses": [row["loss"] for row in rows],
        "bytes": dict(zip(names, most.tolist(), strict=True)),
    }


def _trainer(strategy: str, steps: int, seed: int, ranks: Ranks) -> Trainer:
    model = DeepSeek(Config(), torch.Generator().manual_seed(seed))
    if strategy == "data":
        loss = distributed.data_parallel(model)
        optimizer: Any = AdamW(model.parameters())
    else:
        loss, optimizer = distributed.zero(model, int(strategy[-1]), AdamW)
    data = pretrain.corpus(seed, rows=4, length=64)
    plan = Plan(steps=steps, rate=lambda step: 3e-3)
    return Trainer(model, [optimizer], data, plan, loss=loss, ranks=ranks)


def size_of(tensors: Any) -> int:
    """Bytes that this rank holds of some tensors, sharded ones or whole."""
    total = 0
    for x in tensors:
        local = getattr(x, "to_local", None)
        held: Tensor | None = local() if local else x
        total += 0 if held is None else held.nbytes
    return total
