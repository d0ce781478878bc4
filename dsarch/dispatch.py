r"""Send tokens to their experts and add up the answers.

:func:`dispatch_loop` says what happens, :func:`dispatch_grouped` does the
same in fewer, larger steps. In fp32 both agree to the last bit, gradients
too, because they add in the same order.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsarch.experts import (
    Backend,
    Grads,
    Matrices,
    by_kind,
    called,
    joined,
    outer,
    plain,
    products,
    silu,
    silu_backward,
    turned,
)
from dsarch.layers import widen
from dsarch.router import Routing

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
    ``grouped_mm``, which knows no fp64 and which ``None`` takes where the
    matrices form a block, and for BF16 on a GPU. Only plain experts are
    fused; others, such as FP8, take the loop.
    """
    if len(x) == 1 and not torch.is_grad_enabled():
        return dispatch_one(x, routing, experts)
    matrices = plain(experts)
    if matrices is None:
        return dispatch_loop(x, routing, experts)
    x, *matrices = _autocast(x, *matrices)
    plan = planned(routing, by_kind(matrices, backend))
    weights = routing.weights.flatten()
    if torch.is_grad_enabled():
        return _Grouped.apply(x, weights, plan, *matrices).type_as(x)
    return _grouped(x, weights, plan)[0].type_as(x)


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


class Part(NamedTuple):
    """Some neighbouring experts: their slots, and how many each has."""

    slots: Tensor
    experts: slice
    counts: list[int]


class Plan(NamedTuple):
    """Slots sorted by expert, the size of each share, and the matrices."""

    order: Tensor
    counts: list[int]
    rows: int
    kinds: list[Matrices]

    def parts(self) -> Iterator[Part]:
        """Cut between experts, as soon as a part has enough rows."""
        row = first = size = 0
        for last, count in enumerate(self.counts, 1):
            size += count
            if size >= self.rows or last == len(self.counts):
                slots = self.order[row : row + size]
                yield Part(slots, slice(first, last), self.counts[first:last])
                row, first, size = row + size, last, 0

    def of(self, part: Part) -> list[Matrices]:
        """A part's gate, up and down matrices."""
        return [kind[part.experts] for kind in self.kinds]


def planned(routing: Routing, kinds: list[Matrices]) -> Plan:
    """Sort the slots of a routing by expert."""
    flat, first = routing.experts.flatten(), kinds[0][0]
    counts = torch.bincount(flat, minlength=len(kinds[0])).tolist()
    # Odd addresses change a product's last bit: then each expert is a part.
    rows = ROWS if all(n % 16 == 0 for n in first.shape) else 1
    order = flat.argsort(stable=True)
    return Plan(order, counts[: len(kinds[0])], rows, kinds)


class _Grouped(torch.autograd.Function):
    """Values and gradients of the sum, one part after the other.

    Parts go forwards and their gradients backwards, as autograd would visit
    the experts of the loop: floating-point sums depend on the order.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, plan: Plan, *matrices: Tensor
    ) -> Tensor:
        y, kept = _grouped(x, weights, plan, any(ctx.needs_input_grad))
        ctx.plan = plan
        ctx.save_for_backward(x, weights, *matrices, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        plan, (x, weights, *rest) = ctx.plan, ctx.saved_tensors
        width = len(weights) // max(len(x), 1)
        kept = rest[3 * len(plan.counts) :]
        dx, dweights = torch.zeros_like(x), torch.zeros_like(weights)
        grads: list[Grads] = [[], [], []]
        for part in reversed(list(plan.parts())):
            token = part.slots // width
            gate, up, out = kept.pop(-3), kept.pop(-2), kept.pop()
            grad = dy.index_select(0, token)
            dweights.index_copy_(0, part.slots, (grad * out).sum(-1))
            weight = weights.index_select(0, part.slots)
            grad = (grad * weight[:, None]).type_as(out)
            rows = x.index_select(0, token)
            drows, *more = _swiglu_backward(
                grad, rows, gate, up, plan.of(part), part.counts
            )
            # Within a part, too, the last expert comes first.
            dx.index_add_(0, token.flip(0), drows.flip(0))
            grads = [new + old for new, old in zip(more, grads, strict=True)]
        return dx, dweights, None, *grads[0], *grads[1], *grads[2]


def _grouped(
    x: Tensor, weights: Tensor, plan: Plan, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The weighted sum, and what its gradient will ask for."""
    y = torch.zeros_like(widen(x))
    width = len(weights) // max(len(x), 1)
    kept: list[Tensor] = []
    for part in plan.parts():
        token = part.slots // width
        rows = x.index_select(0, token)
        gate, up, out = _swiglu(rows, plan.of(part), part.counts)
        weight = weights.index_select(0, part.slots)
        y.index_add_(0, token, out * weight[:, None])
        if keep:
            kept += gate, up, out
    return y, kept


def _swiglu(
    rows: Tensor, matrices: list[Matrices], counts: list[int]
) -> list[Tensor]:
    w_gate, w_up, w_down = matrices
    both = joined(w_gate, w_up)
    if both is None:
        gate = products(rows, turned(w_gate), counts)
        up = products(rows, turned(w_up), counts)
    else:
        gate, up = products(rows, turned(both), counts).chunk(2, 1)
    hidden = silu(gate, counts) * up
    return [gate, up, products(hidden, turned(w_down), counts)]


def _swiglu_backward(
    grad: Tensor,
    rows: Tensor,
    gate: Tensor,
    up: Tensor,
    matrices: list[Matrices],
    counts: list[int],
) -> tuple[Tensor, Grads, Grads, Grads]:
    """Gradients of the rows and of the three kinds of matrices."""
    w_gate, w_up, w_down = matrices
    active = silu(gate, counts)
    d_down = outer(grad, active * up, counts, w_down)
    hidden = products(grad, w_down, counts)
    dup, dgate = hidden * active, silu_backward(hidden * up, gate, counts)
    drows = products(dup, w_up, counts)
    drows += products(dgate, w_gate, counts)
    if joined(w_gate, w_up) is None:
        d_gate = outer(dgate, rows, counts, w_gate)
        d_up = outer(dup, rows, counts, w_up)
    else:
        d_both = outer(torch.cat([dgate, dup], 1), rows, counts, w_up)
        d_gate, d_up = d_both.chunk(2, 1)
    kinds = called(d_gate, counts), called(d_up, counts), called(d_down, counts)
    return drows, *kinds
