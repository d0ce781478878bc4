r"""Send tokens to their experts and add up the answers.

:func:`dispatch_loop` says what happens, :func:`dispatch_grouped` does the
same in fewer, larger steps. In fp32 both agree to the last bit, gradients
too, because they add in the same order.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dsarch.layers import Linear, SwiGLU, widen
from dsarch.router import Routing

Backend = Literal["mm", "grouped_mm"]
# Rows at a time: intermediate results should stay in a core's cache.
ROWS = 1024


def dispatch_loop(
    x: Float[Tensor, "z d"], routing: Routing, experts: nn.ModuleList
) -> Float[Tensor, "z d"]:
    r"""$y_z = \sum_k g_{zk}\,\mathrm{FFN}_{i_{zk}}(x_z)$, expert by expert.

    Sums are in fp32 or wider and cast once. An expert without tokens is not
    called, a dropped slot adds nothing.
    """
    y = torch.zeros_like(widen(x))
    flat, width = routing.experts.flatten(), routing.experts.size(1)
    for e, expert in enumerate(experts):
        slot = (flat == e).nonzero().squeeze(1)
        if slot.numel() == 0:
            continue
        token = slot // width
        weight = routing.weights.flatten().index_select(0, slot)
        out = expert(x.index_select(0, token))
        y.index_add_(0, token, out * weight[:, None])
    return y.type_as(x)


def dispatch_grouped(
    x: Float[Tensor, "z d"],
    routing: Routing,
    experts: nn.ModuleList,
    backend: Backend | None = None,
) -> Float[Tensor, "z d"]:
    """The sum of :func:`dispatch_loop` with slots sorted by expert.

    Gathering, weighing and adding then take one step for many experts, and
    every expert one matrix product: a loop of them (``mm``), or torch's
    ``grouped_mm``, which knows no fp64 and which ``None`` takes for BF16 on a
    GPU. Only plain experts are fused; others, such as FP8, take the loop.
    """
    if len(x) == 1 and not torch.is_grad_enabled():
        return dispatch_one(x, routing, experts)
    flat = routing.experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    matrices = plain([m for m, n in zip(experts, counts, strict=False) if n])
    if matrices is None:
        return dispatch_loop(x, routing, experts)
    aligned = all(n % 16 == 0 for w in matrices[:1] for n in w.shape)
    suits = aligned and x.is_cuda and x.dtype == torch.bfloat16
    backend = backend or ("grouped_mm" if suits else "mm")
    # Odd addresses change a product's last bit: then each expert is a part.
    rows = len(order) if backend == "grouped_mm" else ROWS if aligned else 1
    plan = Plan(order, [n for n in counts[: len(experts)] if n], rows, backend)
    x, *matrices = _autocast(x, *matrices)
    y = _Grouped.apply(x, routing.weights.flatten(), plan, *matrices)
    return y.type_as(x)


def dispatch_one(
    x: Float[Tensor, "1 d"], routing: Routing, experts: nn.ModuleList
) -> Float[Tensor, "1 d"]:
    """The same for one decoded token, which needs no sorting.

    Gradients would be added up in another order than those of the loop.
    """
    y = torch.zeros_like(widen(x))
    chosen = routing.experts[0].tolist()
    for slot in sorted(range(len(chosen)), key=chosen.__getitem__):
        if chosen[slot] < len(experts):
            weight = routing.weights.narrow(1, slot, 1)
            y = y + experts[chosen[slot]](x) * weight
    return y.type_as(x)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """What ``torch.autocast`` would do, had the linear layers been called."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [x.to(torch.get_autocast_dtype(kind)) for x in tensors]


def plain(experts: Sequence[nn.Module]) -> list[Tensor] | None:
    """All gate, then all up, then all down matrices; ``None`` for others."""
    found = []
    for expert in experts:
        if type(expert) is not SwiGLU:
            return None
        found.append((expert.gate_proj, expert.up_proj, expert.down_proj))
    by_kind = [linear for kind in zip(*found, strict=True) for linear in kind]
    if any(type(linear) is not Linear for linear in by_kind):
        return None
    return [linear.weight for linear in by_kind]


class Part(NamedTuple):
    """Some neighbouring experts: their slots, and how many each has."""

    slots: Tensor
    experts: slice
    counts: list[int]

    def of(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """This part's gate, up and down matrices."""
        kinds = range(0, len(tensors), len(tensors) // 3)
        return [tensors[i:][self.experts] for i in kinds]


class Plan(NamedTuple):
    """Slots sorted by expert, and the size of each expert's share."""

    order: Tensor
    counts: list[int]
    rows: int
    backend: Backend

    def parts(self) -> Iterator[Part]:
        """Cut between experts, as soon as a part has enough rows."""
        row = first = size = 0
        for last, count in enumerate(self.counts, 1):
            size += count
            if size >= self.rows or last == len(self.counts):
                slots = self.order[row : row + size]
                yield Part(slots, slice(first, last), self.counts[first:last])
                row, first, size = row + size, last, 0


class _Grouped(torch.autograd.Function):
    """Values and gradients of the sum, one part after the other.

    Parts go forwards and their gradients backwards, as autograd would visit
    the experts of the loop: floating-point sums depend on the order.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, plan: Plan, *matrices: Tensor
    ) -> Tensor:
        y = torch.zeros_like(widen(x))
        width = len(weights) // max(len(x), 1)
        kept: list[Tensor] = []
        for part in plan.parts():
            token = part.slots // width
            rows = x.index_select(0, token)
            gate, up, out = _swiglu(rows, part, matrices, plan.backend)
            weight = weights.index_select(0, part.slots)
            y.index_add_(0, token, out * weight[:, None])
            if any(ctx.needs_input_grad):
                kept += gate, up, out
        ctx.plan, ctx.width = plan, width
        ctx.save_for_backward(x, weights, *matrices, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, *rest = ctx.saved_tensors
        size = 3 * len(ctx.plan.counts)
        matrices, kept = rest[:size], rest[size:]
        dx, dweights = torch.zeros_like(x), torch.zeros_like(weights)
        grads: list[list[Tensor]] = [[], [], []]
        for part in reversed(list(ctx.plan.parts())):
            token = part.slots // ctx.width
            gate, up, out = kept.pop(-3), kept.pop(-2), kept.pop()
            grad = dy.index_select(0, token)
            dweights.index_copy_(0, part.slots, (grad * out).sum(-1))
            weight = weights.index_select(0, part.slots)
            grad = (grad * weight[:, None]).type_as(out)
            rows = x.index_select(0, token)
            drows, *more = _swiglu_backward(
                grad, rows, gate, up, part, matrices, ctx.plan.backend
            )
            # Within a part, too, the last expert comes first.
            dx.index_add_(0, token.flip(0), drows.flip(0))
            grads = [new + old for new, old in zip(more, grads, strict=True)]
        return dx, dweights, None, *grads[0], *grads[1], *grads[2]


def _swiglu(
    rows: Tensor, part: Part, matrices: Sequence[Tensor], backend: Backend
) -> list[Tensor]:
    w_gate, w_up, w_down = ([w.t() for w in ws] for ws in part.of(matrices))
    gate = _products(rows, w_gate, part.counts, backend)
    up = _products(rows, w_up, part.counts, backend)
    hidden = _silu(gate, part.counts) * up
    return [gate, up, _products(hidden, w_down, part.counts, backend)]


def _swiglu_backward(
    grad: Tensor,
    rows: Tensor,
    gate: Tensor,
    up: Tensor,
    part: Part,
    matrices: Sequence[Tensor],
    backend: Backend,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of the rows and of the three kinds of matrices."""
    w_gate, w_up, w_down = part.of(matrices)
    counts = part.counts
    active = _silu(gate, counts)
    d_down = _outer(grad, active * up, counts, backend)
    hidden = _products(grad, w_down, counts, backend)
    dup, dgate = hidden * active, _silu_backward(hidden * up, gate, counts)
    drows = _products(dup, w_up, counts, backend)
    drows += _products(dgate, w_gate, counts, backend)
    d_gate = _outer(dgate, rows, counts, backend)
    return drows, d_gate, _outer(dup, rows, counts, backend), d_down


def _products(
    rows: Tensor,
    matrices: Sequence[Tensor],
    counts: list[int],
    backend: Backend,
) -> Tensor:
    """Every share of the rows times its own matrix."""
    if backend == "grouped_mm":
        ends = torch.tensor(counts, device=rows.device).cumsum(0).int()
        return F.grouped_mm(rows, torch.stack(list(matrices)), offs=ends)
    out = rows.new_empty(len(rows), matrices[0].size(1))
    shares = zip(rows.split(counts), matrices, out.split(counts), strict=True)
    for share, matrix, target in shares:
        torch.mm(share, matrix, out=target)
    return out


def _outer(
    left: Tensor, right: Tensor, counts: list[int], backend: Backend
) -> list[Tensor]:
    """The gradient of every matrix: a sum over its share of the rows."""
    if backend == "grouped_mm":
        ends = torch.tensor(counts, device=left.device).cumsum(0).int()
        return list(F.grouped_mm(left.t(), right, offs=ends).unbind())
    out = left.new_empty(len(counts), left.size(1), right.size(1))
    shares = zip(left.split(counts), right.split(counts), out, strict=True)
    for a, b, target in shares:
        torch.mm(a.t(), b, out=target)
    return list(out.unbind())


def _silu(x: Tensor, counts: list[int]) -> Tensor:
    out = x.clone()
    for share in out.split(_uncut(x, counts)):
        F.silu(share, inplace=True)
    return out


def _silu_backward(grad: Tensor, x: Tensor, counts: list[int]) -> Tensor:
    out = torch.empty_like(x)
    shares = (v.split(_uncut(x, counts)) for v in (grad, x, out))
    for g, share, target in zip(*shares, strict=True):
        torch.ops.aten.silu_backward.grad_input(g, share, grad_input=target)
    return out


def _uncut(x: Tensor, counts: list[int]) -> list[int]:
    """How to split an array so that its last bits are those of the loop.

    The last elements of a thread's piece that fill no vector take another
    exp. Where no width of a piece can leave such a rest, all go at once.
    """
    pieces = math.lcm(*range(1, torch.get_num_threads() + 1))
    return counts if x.size(1) % (32 * pieces) else [len(x)]
