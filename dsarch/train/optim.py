r"""AdamW and Muon, parameter groups, clipping by the global norm."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsarch.train.muon import Muon as Muon
from dsarch.train.muon import Number, check_not_negative, evaluate


class Settings(NamedTuple):
    r"""What AdamW is told: $\eta$, $(\beta_1, \beta_2)$, $\epsilon$,
    $\lambda$."""

    lr: Number
    betas: Sequence[Number]
    eps: Number
    weight_decay: Number


def adamw_update(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], now: Settings
) -> None:
    r"""One AdamW step of one tensor, in place; steps count from one.

    $$\theta \leftarrow (1-\eta\lambda)\,\theta,\quad
    m \leftarrow m + (1-\beta_1)(g-m),\quad
    v \leftarrow \beta_2 v + (1-\beta_2)\,g^2$$
    $$\theta \leftarrow \theta - \frac{\eta}{1-\beta_1^t}\cdot
    \frac{m}{\sqrt{v}/\sqrt{1-\beta_2^t} + \epsilon}$$

    The decay comes first; $\epsilon$ is added to the corrected root. bf16
    moments are widened for the step, and rounded once.
    """
    (beta1, beta2), step = now.betas, float(state["step"])
    m = state["exp_avg"].to(weight.dtype)
    v = state["exp_avg_sq"].to(weight.dtype)
    weight.mul_(1 - now.lr * now.weight_decay)
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    state["exp_avg"].copy_(m)
    state["exp_avg_sq"].copy_(v)
    if "max_exp_avg_sq" in state:
        v = state["max_exp_avg_sq"].copy_(v.maximum(state["max_exp_avg_sq"]))
    root = v.sqrt() / math.sqrt(1 - beta2**step)
    rate = now.lr / (1 - beta1**step)
    weight.addcdiv_(m, root.add_(now.eps), value=-rate)


def adamw_update_all(
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    now: Settings,
) -> None:
    """The same step for many tensors, one call per operation."""
    beta1, beta2 = now.betas
    steps = [float(state["step"]) for state in states]
    ms = [state["exp_avg"] for state in states]
    vs = [state["exp_avg_sq"] for state in states]
    torch._foreach_mul_(weights, 1 - now.lr * now.weight_decay)
    torch._foreach_lerp_(ms, gradients, 1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, gradients, gradients, 1 - beta2)
    if "max_exp_avg_sq" in states[0]:
        peaks = [state["max_exp_avg_sq"] for state in states]
        vs = list(torch._foreach_maximum(peaks, vs))
        torch._foreach_copy_(peaks, vs)
    roots = torch._foreach_sqrt(vs)
    torch._foreach_div_(roots, [math.sqrt(1 - beta2**step) for step in steps])
    torch._foreach_add_(roots, now.eps)
    rates = [-now.lr / (1 - beta1**step) for step in steps]
    torch._foreach_addcdiv_(weights, ms, roots, rates)


def adamw_fused(
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    now: Settings,
) -> None:
    """The same step in torch's kernel, which reads each number once."""
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    ms, vs, peaks = ([s[x] for s in states if x in s] for x in names)
    steps = [state["step"] for state in states]
    beta1, beta2 = now.betas
    torch._fused_adamw_(
        *(weights, gradients, ms, vs, peaks, steps),
        lr=float(now.lr),
        beta1=beta1,
        beta2=beta2,
        weight_decay=now.weight_decay,
        eps=now.eps,
        amsgrad=bool(peaks),
        maximize=False,
    )


class AdamW(torch.optim.Optimizer):
    r"""AdamW with torch's arguments and state, equal to torch's step for step.

    ``foreach=False`` updates one tensor after another; otherwise all tensors
    of a group go through each operation together; ``fused`` takes torch's one
    kernel for all of it.
    ``state_dtype=torch.bfloat16`` stores both moments in half the bytes, as
    V3 does. Raises ``ValueError`` for a negative rate, epsilon or decay, a
    beta outside [0, 1), and for ``capturable`` and ``differentiable``.
    Source: Loshchilov and Hutter, *Decoupled weight decay regularization*.
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: Sequence[Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if capturable or differentiable:
            raise ValueError("only torch's own is capturable, differentiable")
        check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        _check_betas(betas)
        defaults: dict[str, Any] = {"lr": lr, "betas": tuple(betas), "eps": eps}
        defaults |= {"weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"amsgrad": amsgrad, "foreach": foreach, "fused": fused}
        super().__init__(params, defaults | {"state_dtype": state_dtype})
        self.register_load_state_dict_post_hook(_restore_dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = evaluate(closure)
        for group in self.param_groups:
            used = [w for w in group["params"] if w.grad is not None]
            states = [_advance(self.state[w], w, group) for w in used]
            if used:
                _adamw_group(used, states, group)
        return loss


def _advance(state: dict, weight: Tensor, group: dict[str, Any]) -> dict:
    """Count one step; the moments start at zero."""
    if not state:
        state["step"] = torch.tensor(0.0)
        names = ["exp_avg", "exp_avg_sq"]
        names += ["max_exp_avg_sq"] if group["amsgrad"] else []
        for name in names:
            dtype = group["state_dtype"]
            state[name] = torch.zeros_like(weight, dtype=dtype)
    state["step"] += 1
    return state


def _restore_dtype(optimizer: torch.optim.Optimizer) -> None:
    """Undo torch's cast of loaded moments to the dtype of the weights."""
    for group in optimizer.param_groups:
        if group.setdefault("state_dtype", None) is None:
            continue
        for weight in group["params"]:
            state = optimizer.state[weight]
            for name in state.keys() - {"step"}:
                state[name] = state[name].to(group["state_dtype"])


def _adamw_group(
    used: list[Tensor], states: list[dict], group: dict[str, Any]
) -> None:
    """Hand the tensors of a group to the joint or to the single update."""
    gradients: list[Any] = [w.grad for w in used]
    if group["maximize"]:
        gradients = [-g for g in gradients]
    now = Settings(
        float(group["lr"]), group["betas"], group["eps"], group["weight_decay"]
    )
    if group.get("fused") and not group["state_dtype"]:
        adamw_fused(used, gradients, states, now)
        return
    if group["foreach"] is not False and not group["state_dtype"]:
        adamw_update_all(used, gradients, states, now)
        return
    for row in zip(used, gradients, states, strict=True):
        adamw_update(*row, now)


def weight_decay_groups(
    weights: Iterable[Tensor], weight_decay: Number
) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and other vectors do not."""
    weights = list(weights)
    return [
        {
            "params": [w for w in weights if w.ndim > 1],
            "weight_decay": weight_decay,
        },
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]


@torch.no_grad()
def clip_grad_norm(
    weights: Iterable[Tensor], max_norm: Number, norm_type: Number = 2.0
) -> Tensor:
    r"""Scale all gradients so that their joint norm is at most ``max_norm``.

    $$g \leftarrow g \cdot \min\Big(1,
    \frac{\mathrm{max\_norm}}{\lVert g \rVert + 10^{-6}}\Big)$$

    Returns the norm before clipping.
    """
    grads = [w.grad for w in weights if w.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    norms = torch.stack(torch._foreach_norm(grads, norm_type))
    norm = torch.linalg.vector_norm(norms, norm_type)
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def average_update(average: nn.Module, model: nn.Module, decay: Number) -> None:
    r"""Exponential average of weights: $\bar\theta \leftarrow
    \bar\theta + (1-d)(\theta - \bar\theta)$."""
    for mean, weight in zip(
        average.state_dict().values(), model.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(weight, 1 - decay)


def _check_betas(betas: Sequence[Number]) -> None:
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"betas must lie in [0, 1), found {beta}")
