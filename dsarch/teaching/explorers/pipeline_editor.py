"""The pipeline editor: a schedule as a Gantt chart, its bubble beside it."""

from collections.abc import Sequence

from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.train import pipeline

HINT = (
    "double the micro-batches and watch the bubble stay while its share "
    "falls; then take zero bubble and lower the weight part of the backward."
)
NAMES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "dualpipe")
START = [1.0, 2.0, 1.0, 3.0]


def measured(
    name: str, stages: int, micros: int, chunks: int, times: Sequence[float]
) -> list[float]:
    """Step time, longest wait of a device, idle share, most activations."""
    if name == "interleaved":
        program = pipeline.interleaved(stages, micros, chunks)
    else:
        program = pipeline.SCHEDULES[name](stages, micros)
    share = 1 / chunks if name == "interleaved" else 1.0
    line = pipeline.simulate(program, pipeline.Times(*times), share)
    held = max(line.peak_activations(d) for d in range(line.devices))
    return [line.makespan, line.bubble, line.bubble_share, held]


def pipeline_editor() -> Explorer:
    """Stages, micro-batches and times of your own for five schedules."""
    sizes = {name: (8, 24 if name == "interleaved" else 20) for name in NAMES}
    found = {n: measured(n, *sizes[n], 2, START) for n in NAMES}
    checks: list[Check] = []
    for name, size in sizes.items():
        checks.append(("measured", [name, *size, 2, START], found[name]))
        parts = 2 if name == "interleaved" else 1
        wait = pipeline.bubble(name, size[0], pipeline.Times(*START), parts)
        checks.append(("bubble", [name, size[0], 2, START], wait))
    return Explorer(
        "pipeline_editor",
        {},
        title="Which schedule keeps the devices busy?",
        columns=["schedule", "devices × micro-batches", "bubble", "idle"],
        rows=[
            (n, f"{p} × {m}", f"{found[n][1]:g}", f"{found[n][2]:.1%}")
            for n, (p, m) in sizes.items()
        ],
        checks=checks,
        hint=HINT,
    )
