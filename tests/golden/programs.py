"""Golden vectors of pipeline schedules: programs as tables, and their time."""

from torch import Generator, tensor

from dsarch.train import pipeline
from dsarch.train.timeline import Program, simulate
from tests.golden.parts import Vectors, sizes
from tests.golden.training import TIMES

KINDS = "FBIW"
# Name, stages, micro-batches: the smallest of each kind, and larger ones.
CASES = (
    ("gpipe", 3, 4),
    ("1f1b", 4, 6),
    ("zero_bubble", 4, 6),
    ("dualpipe", 2, 4),
    ("dualpipe", 6, 14),
    ("dualpipe", 8, 20),
    ("dualpipe_v", 2, 2),
    ("dualpipe_v", 6, 8),
    ("dualpipe_v", 8, 14),
)


def rows(program: Program) -> list[tuple[int, ...]]:
    """Device, number of the item, kind, stage and micro-batch of each op."""
    return [
        (device, place, KINDS.index(op.kind), op.stage, op.micro)
        for device, row in enumerate(program)
        for place, item in enumerate(row)
        for op in item
    ]


def programs(generator: Generator) -> Vectors:
    """Schedules op by op, the closed bubble, and what a simulation idles."""
    made = sizes(
        forward=TIMES.forward,
        backward=TIMES.backward,
        weight=TIMES.weight,
        pair=TIMES.pair,
    )
    for name, stages, micros in CASES:
        program = pipeline.SCHEDULES[name](stages, micros)
        line = simulate(program, TIMES)
        case = f"out.{name}.{stages}.{micros}"
        made[f"{case}.program"] = tensor(rows(program))
        made[f"{case}.times"] = tensor(
            [
                pipeline.bubble(name, stages, TIMES),
                line.bubble,
                line.makespan,
                line.bubble_share,
            ]
        )
    chunked = pipeline.interleaved(4, 8, 2)
    made["out.interleaved.4.8.program"] = tensor(rows(chunked))
    made["out.interleaved.4.8.times"] = tensor(
        [pipeline.bubble("interleaved", 4, TIMES, 2)]
    )
    return made


FUNCTIONS = (programs,)
