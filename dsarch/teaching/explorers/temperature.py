"""The temperature explorer: soft targets, their loss and its gradient."""

import torch

from dsarch.post.distill import divergence, kd_loss, reverse_kl_loss
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "set T = 4 and compare the two gradients; then the certain teacher: at "
    "which T do its second and third choice become visible?"
)
WORDS = ("hunts", "sees", "follows", "calls", "carries")
# The story corpus lets a fox hunt, see or follow with chances 5 : 3 : 2.
SCENES: dict[str, tuple[list[float], list[float]]] = {
    "a good teacher": ([4.0, 3.5, 3.1, -1.0, -3.0], [1.0, 0.0, 0.5, 2.0, 1.0]),
    "a certain teacher": (
        [9.0, 4.5, 4.1, 0.0, -2.0],
        [1.0, 0.0, 0.5, 2.0, 1.0],
    ),
    "the student has learned the label": (
        [4.0, 3.5, 3.1, -1.0, -3.0],
        [8.0, 0.0, 0.0, 0.0, 0.0],
    ),
    "the student is the teacher": (
        [4.0, 3.5, 3.1, -1.0, -3.0],
        [4.0, 3.5, 3.1, -1.0, -3.0],
    ),
}
TEMPERATURES = (1.0, 2.0, 4.0)


def _tensor(logits: list[float]) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float64)


def soften(logits: list[float], temperature: float) -> list[float]:
    """Probabilities at a temperature."""
    return (_tensor(logits) / temperature).softmax(-1).tolist()


def bare(
    teacher: list[float], student: list[float], temperature: float
) -> float:
    """The forward divergence of the softened pair, without its factor."""
    pair = (_tensor(z) / temperature for z in (teacher, student))
    return divergence(*(z.log_softmax(-1) for z in pair)).item()


def backward(
    teacher: list[float], student: list[float], temperature: float
) -> float:
    """The reverse divergence of the softened pair."""
    return reverse_kl_loss(
        _tensor(student), _tensor(teacher), temperature=temperature
    ).item()


def gradient(
    teacher: list[float], student: list[float], temperature: float
) -> list[float]:
    """What Hinton's loss, its factor included, does to each logit."""
    q = _tensor(student).requires_grad_()
    loss = kd_loss(q, _tensor(teacher), temperature=temperature)
    return torch.autograd.grad(loss, q)[0].tolist()


def _steady(x: float) -> float:
    """The digits on which all processors agree; what is noise becomes 0."""
    return float(f"{x:.9g}") if abs(x) > 1e-12 else 0.0


def _checks() -> list[Check]:
    checks: list[Check] = []
    for teacher, student in SCENES.values():
        for t in (0.5, *TEMPERATURES):
            pair = [teacher, student, t]
            soft = [_steady(x) for x in soften(teacher, t)]
            slope = [_steady(x) for x in gradient(teacher, student, t)]
            there = _steady(bare(teacher, student, t))
            back = _steady(backward(teacher, student, t))
            checks.append(("soften", [teacher, t], soft))
            checks.append(("divergence", pair, there))
            checks.append(("reverse", pair, back))
            checks.append(("gradient", pair, slope))
    return checks


def _rows(teacher: list[float]) -> list[list[str]]:
    columns = [soften(teacher, t) for t in TEMPERATURES]
    return [
        [word, *(f"{column[i]:.3f}" for column in columns)]
        for i, word in enumerate(WORDS)
    ]


def temperature(scene: str = "a good teacher") -> Explorer:
    """Logits of teacher and student, and the temperature between them.

    Raises ``ValueError`` for a scene that does not exist.
    """
    if scene not in SCENES:
        raise ValueError(f"scene {scene!r} is none of {list(SCENES)}")
    names = list(SCENES)
    scenes = [
        {"name": n, "teacher": t, "student": s} for n, (t, s) in SCENES.items()
    ]
    return Explorer(
        "temperature",
        {"words": WORDS, "scenes": scenes, "start": names.index(scene)},
        title="What does the temperature change?",
        columns=["next word", *(f"teacher, T = {t:g}" for t in TEMPERATURES)],
        rows=_rows(SCENES[scene][0]),
        checks=_checks(),
        hint=HINT,
    )
