r"""Data parallelism, ZeRO and sharded checkpoints on ``torch.distributed``.

The same calls run under ``torchrun`` with gloo on CPUs and NCCL on GPUs.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from dsarch.model import DeepSeek
from dsarch.moe import DeepSeekMoE
from dsarch.train.data import Batch
from dsarch.train.loop import Ranks
from dsarch.train.loss import Loss, token_loss


def start(timeout: float = 60.0) -> Ranks:
    """Join the processes that ``torchrun`` started; one process is fine too.

    Raises ``ValueError`` if the launcher's variables are missing or not all
    ranks arrive in time.
    """
    rank, size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if not rank or not size:
        raise ValueError("RANK and WORLD_SIZE are not set: use torchrun")
    try:
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            timeout=timedelta(seconds=timeout),
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise ValueError(
            f"rank {rank} waited {timeout:g} s, but not all of {size} ranks "
            f"came: {str(error).splitlines()[0]}"
        ) from None
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.all_reduce)


def finish() -> None:
    """Leave together: a rank that goes first takes others' connections down."""
    dist.barrier()
    dist.destroy_process_group()


def average_gradients(model: nn.Module) -> None:
    """Plain data parallelism: every gradient becomes the mean of all ranks."""
    for weight in model.parameters():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        dist.all_reduce(weight.grad)
        weight.grad /= dist.get_world_size()


def touch_experts(model: nn.Module) -> None:
    """Give every expert a gradient, zero where no token came.

    Ranks exchange gradients in one order and at one size, but which experts
    are used differs from rank to rank.
    """

    def touch(module: Any, inputs: Any, y: Tensor) -> Tensor:
        unused = [w.sum() * 0.0 for w in module.experts.parameters()]
        return y + torch.stack(unused).sum()

    for module in model.modules():
        if isinstance(module, DeepSeekMoE):
            module.register_forward_hook(touch)


class _Step(nn.Module):
    """The loss as a module's forward pass, where the wrappers can hook in."""

    def __init__(self, model: nn.Module, loss: Callable[..., Loss]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, mtp_weight: float) -> Loss:
        return self.loss(self.model, batch, mtp_weight)


def data_parallel(
    model: DeepSeek, loss: Callable[..., Loss] = token_loss
) -> Callable[..., Loss]:
    """The loss under torch's DDP, for a :class:`Trainer` of several ranks.

    Gradients are averaged while the backward pass still runs.
    """
    touch_experts(model)
    wrapped = DistributedDataParallel(_Step(model, loss))
    return lambda _, batch, mtp_weight: wrapped(batch, mtp_weight)


def zero(
    model: DeepSeek,
    stage: int,
    optimizer: type[torch.optim.Optimizer],
    **options: Any,
) -> tuple[Callable[..., Loss], torch.optim.Optimizer]:
    """A loss and an optimizer whose state is sharded over all ranks.

    Stage 1 shards the optimizer's state, 2 the gradients as well, 3 the
    weights as well: then a layer's weights are gathered when it runs.
    Raises ``ValueError`` for another stage.
    """
    if stage == 1:
        sharded = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=optimizer, **options
        )
        return data_parallel(model), sharded
    if stage not in (2, 3):
        raise ValueError(f"ZeRO has stages 1, 2 and 3, not {stage}")
    touch_experts(model)
    for layer in model.layers:
        fully_shard(layer, reshard_after_forward=stage == 3)
    fully_shard(model, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    return token_loss, optimizer(model.parameters(), **options)


def save_sharded(
    folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Every rank writes its own shards; names do not depend on the layout."""
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def load_sharded(
    folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Read what any number of ranks wrote into this number of ranks."""
    weights, moments = get_state_dict(model, optimizer)
    saved: dict[str, Any] = {"model": weights, "optimizer": moments}
    dcp.load(saved, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
    )
