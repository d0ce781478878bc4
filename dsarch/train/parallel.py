r"""Splitting one layer over ranks: tensors, experts, sequences."""

import math
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, einsum, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from dsarch.dispatch import dispatch_grouped
from dsarch.layers import SwiGLU
from dsarch.mla import MLA
from dsarch.moe import DeepSeekMoE
from dsarch.router import Routing


class _Enter(torch.autograd.Function):
    """Identity whose gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Leave(torch.autograd.Function):
    """Sum over the ranks whose gradient passes through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def split_mlp(mlp: SwiGLU, mesh: DeviceMesh) -> None:
    """Columns of the first two matrices, rows of the last (DTensor).

    One all-reduce of the output forwards, one of the input backwards.
    """
    plan = {
        "gate_proj": ColwiseParallel(),
        "up_proj": ColwiseParallel(),
        "down_proj": RowwiseParallel(),
    }
    parallelize_module(mlp, mesh, plan)


def split_heads(mla: MLA, group: ProcessGroup | None = None) -> None:
    """Give every rank its own heads; latents and rotary key are repeated.

    The repeated weights see only the local heads, so their gradients are
    summed over the ranks. Raises ``ValueError`` if the heads do not divide.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    heads, rest = divmod(mla.cfg.num_attention_heads, size)
    if rest:
        raise ValueError(
            f"{mla.cfg.num_attention_heads} heads do not divide into {size}"
        )
    queries = "q_proj" if mla.cfg.q_lora_rank is None else "q_b_proj"
    cuts = {queries: 0, "kv_b_proj": 0, "o_proj": 1}
    for name, linear in mla.named_children():
        for weight in linear.parameters():
            if name in cuts:
                weight.data = weight.data.chunk(size, cuts[name])[rank].clone()
            else:
                weight.register_hook(lambda g: _Leave.apply(g, group))
    mla.cfg = mla.cfg.replace(num_attention_heads=heads)
    mla.register_forward_pre_hook(
        lambda _, args: (_Enter.apply(args[0], group), *args[1:])
    )
    mla.register_forward_hook(lambda _, args, out: _Leave.apply(out, group))


class _Exchange(torch.autograd.Function):
    """All-to-all of rows; the gradient takes the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        sent: list[int],
        received: list[int],
        group: ProcessGroup | None,
    ) -> Tensor:
        ctx.counts, ctx.group = (sent, received), group
        out = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(
            out, rows.contiguous(), received, sent, group=group
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received = ctx.counts
        back = _Exchange.apply(grad, received, sent, ctx.group)
        return back, None, None, None


def exchange_experts(
    x: Float[Tensor, "z d"],
    routing: Routing,
    experts: nn.ModuleList,
    group: ProcessGroup | None = None,
) -> Float[Tensor, "z d"]:
    r"""The sum of ``dispatch_loop`` with the experts spread over ranks.

    Dispatch sends each token to the ranks of its experts, they compute,
    combine sends the answers back: the gradient of either is the other.
    ``experts`` are the local ones; ranks hold neighbouring numbers.
    """
    table = dist.get_world_size(group), len(experts)
    flat = routing.experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=table[0] * table[1])
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=group)
    sent = counts.unflatten(0, table).sum(1).tolist()
    received = arriving.unflatten(0, table).sum(1).tolist()
    token = order // routing.experts.size(1)
    rows = _Exchange.apply(x.index_select(0, token), sent, received, group)
    answers = _local(rows, arriving, experts)
    answers = _Exchange.apply(answers, received, sent, group)
    weight = routing.weights.flatten().index_select(0, order)
    y = torch.zeros_like(x, dtype=weight.dtype)
    return y.index_add(0, token, answers * weight[:, None]).type_as(x)


def _local(rows: Tensor, arriving: Tensor, experts: nn.ModuleList) -> Tensor:
    """Answers to rows that came from rank after rank, sorted by expert."""
    number = torch.arange(len(arriving), device=rows.device) % len(experts)
    number = number.repeat_interleave(arriving)[:, None]
    ones = torch.ones_like(number, dtype=rows.dtype)
    scores = rows.new_zeros(len(rows), len(experts))
    return dispatch_grouped(rows, Routing(ones, number, scores), experts)


def split_experts(moe: DeepSeekMoE, group: ProcessGroup | None = None) -> None:
    """Leave every rank its share of the routed experts.

    Raises ``ValueError`` if the experts do not divide.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    local, rest = divmod(len(moe.experts), size)
    if rest:
        raise ValueError(
            f"{len(moe.experts)} experts do not divide into {size}"
        )
    moe.experts = moe.experts[rank * local : (rank + 1) * local]

    def combine(x: Tensor, routing: Routing) -> Tensor:
        y = exchange_experts(x, routing, moe.experts, group)
        return y if moe.shared_experts is None else y + moe.shared_experts(x)

    moe.combine = combine  # type: ignore[method-assign]


class _Pass(torch.autograd.Function):
    """Hand a block to the next rank of the ring; gradients go back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: int) -> Tensor:
        ctx.step, x = step, x.contiguous()
        rank, size = dist.get_rank(), dist.get_world_size()
        out = torch.empty_like(x)
        peers = (rank + step) % size, (rank - step) % size
        send = dist.P2POp(dist.isend, x, peers[0])
        receive = dist.P2POp(dist.irecv, out, peers[1])
        for work in dist.batch_isend_irecv([send, receive]):
            work.wait()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Pass.apply(grad, -ctx.step), None


def ring_attention(
    q: Float[Tensor, "b t h n"],
    k: Float[Tensor, "b t h n"],
    v: Float[Tensor, "b t h v"],
    scale: float,
) -> Float[Tensor, "b t h v"]:
    r"""Causal attention over a sequence of which each rank holds a part.

    Keys and values travel round the ring, queries stay; $o/\ell$ is left of

    $$m' = \max(m, \tilde m),\quad
    x' = e^{m-m'}x + e^{\tilde m-m'}\tilde x \quad (x = \ell, o)$$
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    b, t, h, _ = q.shape
    most = q.new_full((b, h, t), -math.inf)
    total, out = q.new_zeros(b, h, t), q.new_zeros(b, h, t, v.size(-1))
    place = torch.arange(t, device=q.device)
    for step in range(size):
        start = (rank - step) % size * t
        hidden = start + place > rank * t + place[:, None]
        score = einsum("bthn,bshn->bhts", q, k) * scale
        score = score.masked_fill(hidden, -math.inf)
        before, most = most, torch.maximum(most, score.amax(-1).detach())
        shrink, p = (before - most).exp(), (score - most[..., None]).exp()
        total = total * shrink + p.sum(-1)
        out = out * shrink[..., None] + einsum("bhts,bshv->bhtv", p, v)
        if step + 1 < size:
            k, v = _Pass.apply(k, 1), _Pass.apply(v, 1)
    return rearrange(out / total[..., None], "b h t v -> b t h v")
