r"""The matrices of many experts: one by one, or as a block.

A block is one tensor over matrices that lie side by side in memory; torch
works it off in one call. All of this gives the same bits as expert by expert.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsarch.layers import Linear, SwiGLU

Backend = Literal["mm", "grouped_mm"]
Grads = list[Tensor | None]
Matrices = Sequence[Tensor] | Tensor  # one by one, or a block [e, ., .]


class Experts(nn.ModuleList):
    """Equal MLPs whose matrices lie side by side in memory.

    Every parameter keeps its name and is trained as any other; but one
    product can read the matrices of all experts as a block, without copying.
    """

    def __init__(self, modules: Iterable[nn.Module] | None = None) -> None:
        super().__init__(modules)
        self.pack()

    def pack(self) -> None:
        """Lay every gate above its up matrix, and down below down."""
        matrices = plain(self)
        if matrices and not matrices[0].is_meta:
            for matrix, place in zip(matrices, places(matrices), strict=True):
                matrix.data = place.copy_(matrix.detach())

    def reserve(self, dtype: torch.dtype, device: Any = None) -> None:
        """Give meta parameters the memory that is to be filled."""
        linears = plain_linears(self)
        if not linears:
            return
        matrices = [linear.weight for linear in linears]
        room = places(matrices, dtype=dtype, device=device or "cpu")
        for linear, place in zip(linears, room, strict=True):
            linear.weight = nn.Parameter(place)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.pack()  # a deep copy took the matrices one by one

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> Any:
        super()._apply(fn, recurse)
        self.pack()
        return self


def places(matrices: Sequence[Tensor], **kind: Any) -> list[Tensor]:
    """New memory for gate, up and down matrices, side by side."""
    gate, e = matrices[0].detach(), len(matrices) // 3
    f, d = gate.shape
    pairs = gate.new_empty(e, 2 * f, d, **kind)
    downs = gate.new_empty(e, d, f, **kind)
    return [*pairs[:, :f], *pairs[:, f:], *downs]


def plain(experts: Iterable[nn.Module]) -> list[Tensor] | None:
    """All gate, then all up, then all down matrices; ``None`` for others."""
    linears = plain_linears(experts)
    if linears is None:
        return None
    # The table behind the attribute, whose own search takes ten times longer.
    weights = [linear._parameters["weight"] for linear in linears]
    return [weight for weight in weights if weight is not None]


def plain_linears(experts: Iterable[nn.Module]) -> list[Linear] | None:
    """The linear maps behind :func:`plain`."""
    if any(type(expert) is not SwiGLU for expert in experts):
        return None
    tables = [expert._modules for expert in experts]
    names = "gate_proj", "up_proj", "down_proj"
    found = [table[name] for name in names for table in tables]
    linears = [x for x in found if type(x) is Linear]
    return linears if len(linears) == len(found) else None


def thirds(matrices: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Gate, up and down matrices apart."""
    size = len(matrices) // 3
    return [matrices[i : i + size] for i in range(0, 3 * size, size)]


def by_kind(
    matrices: Sequence[Tensor], backend: Backend | None
) -> list[Matrices]:
    """Gate, up and down matrices, one by one or as blocks.

    Without a ``backend``: as blocks where they are such already and rows fill
    whole vectors, wherever they begin; copied into blocks for BF16 on a GPU.
    """
    kinds, first = thirds(matrices), matrices[0]
    if backend == "mm" or first.dtype == torch.float64:
        return [*kinds]
    if all(n % 32 == 0 for n in first.shape):
        found = [x for x in map(block, kinds) if x is not None]
        if len(found) == len(kinds):
            return [*found]
    suits = first.is_cuda and first.dtype == torch.bfloat16
    if backend is None and not suits:
        return [*kinds]
    return [torch.stack(list(kind)).detach() for kind in kinds]


def block(matrices: Sequence[Tensor]) -> Tensor | None:
    """A view of matrices that lie in memory at equal distances, if they do."""
    first, size = matrices[0].detach(), matrices[0].element_size()
    places = [matrix.data_ptr() for matrix in matrices]
    start, last, count = places[0], places[-1], len(places)
    step = (last - start) // max(count - 1, 1) or first.nbytes
    if step < first.nbytes or step % size:
        return None
    if places != list(range(start, last + 1, step)):
        return None
    end = first.storage_offset() * size + last - start + first.nbytes
    inside = end <= first.untyped_storage().nbytes()
    if not inside or not all(map(Tensor.is_contiguous, matrices)):
        return None
    return first.as_strided(
        (count, *first.shape), (step // size, *first.stride())
    )


def joined(gate: Matrices, up: Matrices) -> Tensor | None:
    """Blocks of neighbours as one: every gate matrix above its up matrix."""
    if not isinstance(gate, Tensor) or not isinstance(up, Tensor):
        return None
    e, f, d = gate.shape
    near = up.data_ptr() - gate.data_ptr() == f * d * gate.element_size()
    if not near or up.stride() != gate.stride() or gate.stride(0) < 2 * f * d:
        return None
    return gate.as_strided((e, 2 * f, d), gate.stride())


def turned(matrices: Matrices) -> Matrices:
    if isinstance(matrices, Tensor):
        return matrices.transpose(1, 2)
    return [matrix.t() for matrix in matrices]


def products(rows: Tensor, matrices: Matrices, counts: list[int]) -> Tensor:
    """Every share of the rows times its own matrix."""
    if isinstance(matrices, Tensor):
        return F.grouped_mm(rows, matrices, offs=_ends(rows, counts))
    out = rows.new_empty(len(rows), matrices[0].size(1))
    shares = zip(rows.split(counts), matrices, out.split(counts), strict=True)
    for share, matrix, target in shares:
        if len(share):
            torch.mm(share, matrix, out=target)
    return out


def outer(
    left: Tensor, right: Tensor, counts: list[int], like: Matrices
) -> Tensor:
    """The gradient of every matrix: a sum over its share of the rows."""
    if isinstance(like, Tensor):
        return F.grouped_mm(left.t(), right, offs=_ends(left, counts))
    out = left.new_empty(len(counts), left.size(1), right.size(1))
    shares = zip(left.split(counts), right.split(counts), out, strict=True)
    for a, b, target in shares:
        if len(a):
            torch.mm(a.t(), b, out=target)
    return out


def called(grads: Tensor, counts: list[int]) -> Grads:
    """None for an expert without tokens, as if it had not been called."""
    pairs = zip(grads.unbind(), counts, strict=True)
    return [grad if count else None for grad, count in pairs]


def _ends(like: Tensor, counts: list[int]) -> Tensor:
    """Where each share ends, as ``grouped_mm`` wants it."""
    ends = torch.tensor(counts, device=like.device).cumsum(0)
    return ends.to(torch.int32)


def silu(x: Tensor, counts: list[int]) -> Tensor:
    """SiLU, with the bits that it has share by share."""
    if whole(x):
        return F.silu(x)
    out = x.clone()
    for share in out.split(counts):
        F.silu(share, inplace=True)
    return out


def silu_backward(grad: Tensor, x: Tensor, counts: list[int]) -> Tensor:
    """Its slope times ``grad``, in the same way."""
    if whole(x):
        return torch.ops.aten.silu_backward(grad, x)
    out, x = torch.empty_like(grad), x.clone()
    shares = (v.split(counts) for v in (grad, x, out))
    for g, share, target in zip(*shares, strict=True):
        torch.ops.aten.silu_backward.grad_input(g, share, grad_input=target)
    return out


def whole(x: Tensor) -> bool:
    """Whether no cut between threads can leave a vector half filled.

    The last elements of a thread's piece that fill no vector take another
    exp. Where no width of a piece can leave such a rest, all go at once.
    """
    pieces = math.lcm(*range(1, torch.get_num_threads() + 1))
    return x.size(1) % (32 * pieces) == 0
