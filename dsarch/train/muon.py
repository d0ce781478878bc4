r"""Muon: momentum made orthogonal, for the matrices of hidden layers."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

Number = int | float
Triple = tuple[float, float, float]

NS_COEFFICIENTS: Triple = (3.4445, -4.7750, 2.0315)
# V4 sharpens the result with two steps of a polynomial that fixes one.
NS_V4: tuple[Triple, ...] = 8 * (NS_COEFFICIENTS,) + 2 * ((2.0, -1.5, 0.5),)


def orthogonalise(
    update: Tensor,
    coefficients: Sequence[Triple] = 5 * (NS_COEFFICIENTS,),
    eps: Number = 1e-7,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    r"""Push all singular values of a matrix towards one (Newton-Schulz).

    $$X \leftarrow aX + (bA + cA^2)X,\qquad A = XX^\top,\qquad
    X_0 = U / \lVert U \rVert_F$$

    Only matrix products, so it runs in bf16; tall matrices are transposed to
    make $A$ the smaller of the two Gram matrices. Leading axes are a batch.
    """
    x = update.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = rearrange(x, "... r c -> (...) c r" if tall else "... r c -> (...) r c")
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in coefficients:
        gram = x @ x.mT
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, powers, x, beta=a)
    return (x.mT if tall else x).reshape(update.shape)


class Muon(torch.optim.Optimizer):
    r"""Momentum, orthogonalised, for the matrices of the hidden layers.

    $$B \leftarrow B + (1-\mu)(g-B),\quad u = g + \mu(B-g),\quad
    \theta \leftarrow (1-\eta\lambda)\,\theta
    - \eta\,s\,\mathrm{NS}(u)$$

    ``adjust_lr_fn`` picks $s$: ``"original"``
    $\sqrt{\max(1, rows/columns)}$, or ``"match_rms_adamw"``
    $0.2\sqrt{\max(rows, columns)}$, with which AdamW's rate and decay can be
    kept (Moonlight). Arguments are ``torch.optim.Muon``'s; a sequence of
    triples as ``ns_coefficients`` gives each Newton-Schulz step its own.
    Raises ``ValueError`` for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        weight_decay: Number = 0.1,
        momentum: Number = 0.95,
        nesterov: bool = True,
        ns_coefficients: Triple | Sequence[Triple] = NS_COEFFICIENTS,
        eps: Number = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        check_not_negative(lr=lr, weight_decay=weight_decay, momentum=momentum)
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn {adjust_lr_fn!r} is unknown")
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        defaults |= {"momentum": momentum, "nesterov": nesterov, "eps": eps}
        defaults |= {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps}
        super().__init__(params, defaults | {"adjust_lr_fn": adjust_lr_fn})
        for group in self.param_groups:
            for w in group["params"]:
                if w.ndim != 2:
                    raise ValueError(f"Muon needs matrices, found {w.shape}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient."""
        loss = evaluate(closure)
        for group in self.param_groups:
            used = [w for w in group["params"] if w.grad is not None]
            by_shape = defaultdict(list)
            for w in used:
                by_shape[w.shape].append(w)
            for weights in by_shape.values():
                states = [self.state[w] for w in weights]
                _muon_update(weights, states, group)
        return loss


def _muon_update(
    weights: list[Tensor], states: list[dict], group: dict[str, Any]
) -> None:
    """One step of matrices of one shape, orthogonalised as a batch."""
    lr, momentum = float(group["lr"]), group["momentum"]
    gradients: list[Any] = [w.grad for w in weights]
    for state, g in zip(states, gradients, strict=True):
        state.setdefault("momentum_buffer", torch.zeros_like(g))
    buffers = [state["momentum_buffer"] for state in states]
    torch._foreach_lerp_(buffers, gradients, 1 - momentum)
    if group["nesterov"]:
        buffers = list(torch._foreach_lerp(gradients, buffers, momentum))
    coefficients = group["ns_coefficients"]
    if isinstance(coefficients[0], float):
        coefficients = group["ns_steps"] * [coefficients]
    update = orthogonalise(torch.stack(buffers), coefficients, group["eps"])
    torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
    rows, columns = weights[0].shape
    scale = muon_scale(rows, columns, group["adjust_lr_fn"])
    directions = update.to(weights[0].dtype).unbind()
    torch._foreach_add_(weights, directions, alpha=-lr * scale)


def muon_scale(rows: int, columns: int, adjust: str | None) -> float:
    """By how much an orthogonal update of this shape is stretched."""
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def muon_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Split the weights: hidden matrices for Muon, the rest for AdamW.

    Embedding and head are matrices too, but each of their rows is about one
    token; they stay with AdamW.
    """
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, w in model.named_parameters():
        outer = "embed" in name or "head" in name
        (rest if outer or w.ndim != 2 else hidden).append(w)
    return hidden, rest


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """Call a closure that recomputes the loss, with gradients on."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_not_negative(**values: Number) -> None:
    """Raise ``ValueError`` for a setting below zero."""
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, found {value}")
