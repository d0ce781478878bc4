r"""Distillation: a student learns from a teacher's distribution or texts.

With teacher $p$ and student $q$ the forward divergence $KL(p\|q)$ makes the
student cover all the teacher does, the reverse one $KL(q\|p)$ makes it
commit to what the teacher finds likely. Sources: Hinton et al. (arXiv
1503.02531), sequence-level KD (1606.07947), GKD (2306.13649), progressive
layer dropping (2010.13369), DeepSeek-R1 (2501.12948) for distillation by
fine-tuning alone.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsarch.layers import widen
from dsarch.post.logprobs import masked_mean, shift
from dsarch.post.sft import sft_loss


def divergence(
    log_p: Float[Tensor, "*z w"], log_q: Float[Tensor, "*z w"]
) -> Float[Tensor, "*z"]:
    r"""$KL(p\|q) = \sum_v p_v(\log p_v - \log q_v)$ over the last axis.

    An entry with $p_v = 0$ adds 0, whatever $q_v$ is; one with $p_v > 0$ and
    $q_v = 0$ makes it infinite.
    """
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)


def _log_probs(
    student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student has {student.shape[-1]} vocabulary entries, the "
            f"teacher {teacher.shape[-1]}: cut both to the shared ones with "
            "shared_vocabulary, or distil by text"
        )
    return (
        (widen(student) / temperature).log_softmax(-1),
        (widen(teacher.detach()) / temperature).log_softmax(-1),
    )


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.mean() if mask is None else masked_mean(x, mask)


def kd_loss(
    student_logits: Float[Tensor, "*z w"],
    teacher_logits: Float[Tensor, "*z _"],
    *,
    temperature: float,
    mask: Bool[Tensor, "*z"] | None = None,
) -> Float[Tensor, ""]:
    r"""Hinton's soft loss, a mean over (unmasked) positions.

    $$L = T^2\,KL(p\|q),\qquad p = \mathrm{softmax}(z^t/T),\quad
      q = \mathrm{softmax}(z^s/T)$$

    Softening divides the gradient by $T^2$; the factor takes that back, so
    that the weight against a hard loss means the same at every temperature.
    The teacher gets no gradient. Raises ``ValueError`` for a temperature that
    is not positive or for vocabularies of two sizes.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    return temperature**2 * _mean(divergence(log_p, log_q), mask)


def reverse_kl_loss(
    student_logits: Float[Tensor, "*z w"],
    teacher_logits: Float[Tensor, "*z _"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, "*z"] | None = None,
) -> Float[Tensor, ""]:
    r"""$KL(\pi_\theta\|p)$ over the full vocabulary, mode-seeking.

    No factor $T^2$: on the student's own samples this is V4's on-policy
    distillation. Raises ``ValueError`` as :func:`kd_loss` does.
    """
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    return _mean(divergence(log_q, log_p), mask)


def jsd_loss(
    student_logits: Float[Tensor, "*z w"],
    teacher_logits: Float[Tensor, "*z _"],
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Bool[Tensor, "*z"] | None = None,
) -> Float[Tensor, ""]:
    r"""GKD's generalised Jensen-Shannon divergence, without $T^2$.

    $$\beta\,KL(p\|M) + (1-\beta)\,KL(q\|M),\qquad
      M = \beta p + (1-\beta) q$$

    By definition $\beta = 0$ is the forward and $\beta = 1$ the reverse
    divergence, although the formula itself tends to 0 at both ends. Raises
    ``ValueError`` for a $\beta$ outside [0, 1] and as :func:`kd_loss` does.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], found {beta}")
    log_q, log_p = _log_probs(student_logits, teacher_logits, temperature)
    if beta == 0:
        return _mean(divergence(log_p, log_q), mask)
    if beta == 1:
        return _mean(divergence(log_q, log_p), mask)
    # Where neither has probability, the slope of the sum would be NaN.
    p, q = (x.clamp(min=torch.finfo(x.dtype).min) for x in (log_p, log_q))
    log_m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    both = beta * divergence(log_p, log_m)
    return _mean(both + (1 - beta) * divergence(log_q, log_m), mask)


def mixed_loss(
    student_logits: Float[Tensor, "b t w"],
    teacher_logits: Float[Tensor, "b t _"],
    tokens: Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    *,
    temperature: float,
    weight: float,
) -> Float[Tensor, ""]:
    r"""$(1-\lambda)\,CE(y, q) + \lambda\,T^2 KL(p\|q)$ on trained targets.

    Both terms are means over the same tokens. Raises ``ValueError`` for a
    weight outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], found {weight}")
    soft = kd_loss(
        student_logits[:, :-1],
        teacher_logits[:, :-1],
        temperature=temperature,
        mask=shift(mask),
    )
    hard = sft_loss(student_logits, tokens, mask)
    return (1 - weight) * hard + weight * soft


def shared_vocabulary(
    student_logits: Float[Tensor, "*z w"],
    teacher_logits: Float[Tensor, "*z _"],
    size: int,
) -> tuple[Float[Tensor, "*z {size}"], Float[Tensor, "*z {size}"]]:
    """Both logits cut to the first ``size`` entries: padding rows dropped.

    Right only if both tokenizers agree on these entries. Raises
    ``ValueError`` if either model has fewer.
    """
    found = student_logits.shape[-1], teacher_logits.shape[-1]
    if not 0 < size <= min(found):
        raise ValueError(f"cannot share {size} entries of {found}")
    return student_logits[..., :size], teacher_logits[..., :size]


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    r"""The teacher layer each student layer starts from or imitates.

    $j \mapsto \lfloor (j+1)\,L_t/L_s \rfloor - 1$: evenly spaced, last to
    last. Raises ``ValueError`` for a student deeper than its teacher.
    """
    if not 0 < student_layers <= teacher_layers:
        raise ValueError(
            f"{student_layers} layers cannot be chosen from {teacher_layers}"
        )
    return [
        (j + 1) * teacher_layers // student_layers - 1
        for j in range(student_layers)
    ]


def keep_layers(
    state: Mapping[str, Tensor],
    layers: Sequence[int],
    prefix: str = "model.layers.",
) -> dict[str, Tensor]:
    """A state dict with only the chosen layers, numbered anew.

    A shallower student starts from it. Raises ``ValueError`` for a layer that
    the state does not have.
    """
    number = {old: new for new, old in enumerate(layers)}
    kept, seen = {}, set()
    for name, value in state.items():
        if not name.startswith(prefix):
            kept[name] = value
            continue
        index, rest = name.removeprefix(prefix).split(".", 1)
        seen.add(int(index))
        if int(index) in number:
            kept[f"{prefix}{number[int(index)]}.{rest}"] = value
    if missing := sorted(set(layers) - seen):
        raise ValueError(f"layers {missing} are none of {sorted(seen)}")
    return kept


def keep_probability(
    step: int, floor: float = 0.5, gamma: float = 1e-3
) -> float:
    r"""Progressive layer dropping: how likely a layer runs at this step.

    $\theta(t) = (1-\bar\theta)\,e^{-\gamma t} + \bar\theta$ falls from 1 to
    the floor.
    """
    return (1 - floor) * math.exp(-gamma * step) + floor
