r"""Pipeline schedules as programs: what each device does, in order.

``simulate`` finds out how long that takes; the bubble in a docstring below is
the closed formula it must agree with.
"""

from collections.abc import Callable, Iterator

from dsarch.train.timeline import Item, Op, Program, Timeline, Times, simulate

__all__ = ["Item", "Op", "Program", "Timeline", "Times", "simulate"]


def gpipe(stages: int, micros: int) -> Program:
    r"""All forwards, then all backwards: bubble $(p-1)(F+B)$."""
    return [_alone(stage, _turns(micros, micros)) for stage in range(stages)]


def one_f_one_b(stages: int, micros: int) -> Program:
    r"""Forward and backward in turn: GPipe's bubble, $p$ activations."""
    return [
        _alone(stage, _turns(stages - 1 - stage, micros))
        for stage in range(stages)
    ]


def _alone(stage: int, turns: Iterator[tuple[str, int]]) -> list[Item]:
    return [(Op(kind, stage, micro),) for kind, micro in turns]


def _turns(lead: int, count: int) -> Iterator[tuple[str, int]]:
    """``lead`` forwards ahead, then one forward and one backward in turn."""
    lead = min(lead, count)
    yield from (("F", k) for k in range(lead))
    for k in range(count - lead):
        yield "F", k + lead
        yield "B", k
    yield from (("B", k) for k in range(count - lead, count))


def interleaved(stages: int, micros: int, chunks: int) -> Program:
    r"""1F1B on ``chunks`` thin stages per device: bubble $(p-1)(F+B)/v$.

    Simulate it with ``share=1/chunks``. Micro-batches go in groups of one
    per device. Raises ``ValueError`` if they do not divide evenly.
    """
    if micros % stages:
        raise ValueError(f"{stages} stages do not divide {micros} micros")

    def op(kind: str, device: int, k: int) -> Item:
        chunk = k // stages % chunks
        chunk = chunk if kind == "F" else chunks - 1 - chunk
        micro = k // (stages * chunks) * stages + k % stages
        return (Op(kind, chunk * stages + device, micro),)

    leads = [
        2 * (stages - 1 - device) + (chunks - 1) * stages
        for device in range(stages)
    ]
    return [
        [op(kind, d, k) for kind, k in _turns(lead, micros * chunks)]
        for d, lead in enumerate(leads)
    ]


def zero_bubble(stages: int, micros: int) -> Program:
    r"""ZB-H1: 1F1B whose weight gradients wait for idle time.

    A device may delay as many of them as it has activations to spare, which
    is its own index. Bubble $(p-1)(F+B-2W)$, activations as in 1F1B.
    """
    program: Program = []
    for stage in range(stages):
        row: list[Item] = []
        for kind, m in _turns(stages - 1 - stage, micros):
            row.append((Op("I" if kind == "B" else "F", stage, m),))
            if kind == "B" and m >= stage:
                row.append((Op("W", stage, m - stage),))
        late = range(max(0, micros - stage), micros)
        program.append(row + [(Op("W", stage, m),) for m in late])
    return program


def dualpipe(stages: int, micros: int) -> Program:
    r"""DualPipe: micro-batches enter from both ends, every device has two
    stages, and a forward of one direction runs with a backward of the other.

    Bubble $(p/2-1)(F\&B+B-3W)$ with twice the parameters. Needs an even
    number of stages and of micro-batches, at least two per stage.
    Source: the V3 report, section 3.2.1, and its published schedule.
    """
    _check_dual(stages, micros, 2 * stages)
    half = micros // 2
    program: Program = []
    for device in range(stages):
        near = min(device, stages - 1 - device)
        first = 0 if device == near else half
        program.append(
            _dual_row(
                _dual_steps(stages // 2, near, half),
                (near, stages - 1 - near),
                (first, half - first),
            )
        )
    return program


def dualpipe_v(stages: int, micros: int) -> Program:
    r"""DualPipe folded: stages $r$ and $p-1-r$ share one of $p/2$ devices."""
    _check_dual(stages, micros, stages)
    return [
        _dual_row(
            _dual_steps(stages // 2, device, micros),
            (device, stages - 1 - device),
            (0, 0),
        )
        for device in range(stages // 2)
    ]


def _check_dual(stages: int, micros: int, least: int) -> None:
    if stages % 2 or micros % 2 or micros < least:
        raise ValueError(
            f"{stages} stages and {micros} micro-batches: both must be even, "
            f"with at least {least} micro-batches"
        )


def _dual_steps(pairs: int, near: int, micros: int) -> list[str]:
    """What the device ``near`` steps from an end does, in eight phases.

    A letter is the work, a digit the direction: 0 comes from the near end.
    ``I`` leaves its weight gradient to a later ``W``.
    """
    inner = pairs - near - 1
    steps = 2 * inner * ["F0"] + (near + 1) * ["F0", "F1"]
    steps += inner * ["I1", "W", "F1"]
    main = (micros - 2 * pairs + near + 1) * ["F0B1", "F1B0"]
    if not inner:
        main[:1] = ["F0", "B1"]
    steps += main + inner * ["B1", "F1B0"]
    tail = (near + 1) * ["B1", "B0"]
    steps += [
        step if k <= near else "I" + step[1] for k, step in enumerate(tail)
    ]
    return steps + inner * ["W", "I0"] + (near + 1) * ["W"]


def _dual_row(
    steps: list[str], stages: tuple[int, int], first: tuple[int, int]
) -> list[Item]:
    """Number the micro-batches: each kind and direction counts on its own."""
    count = {kind + d: int(first[int(d)]) for kind in "FB" for d in "01"}
    delayed: list[Op] = []
    row: list[Item] = []
    for step in steps:
        if step == "W":
            row.append((delayed.pop(0)._replace(kind="W"),))
            continue
        item = []
        for kind, d in zip(step[::2], step[1::2], strict=True):
            key = kind.replace("I", "B") + d
            item.append(Op(kind, stages[int(d)], count[key]))
            count[key] += 1
        delayed += [op for op in item if op.kind == "I"]
        row.append(tuple(item))
    return row


SCHEDULES: dict[str, Callable[[int, int], Program]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "zero_bubble": zero_bubble,
    "dualpipe": dualpipe,
    "dualpipe_v": dualpipe_v,
}


def bubble(
    name: str, stages: int, times: Times | None = None, chunks: int = 1
) -> float:
    r"""The closed formula for the idle time of a device.

    GPipe and 1F1B $(p-1)(F+B)$, interleaved that over $v$, ZB-H1
    $(p-1)(F+B-2W)$, DualPipe $(p/2-1)(F\&B+B-3W)$. Source: the V3 report,
    table 2. Raises ``ValueError`` for a schedule without a formula.
    """
    f, b, w, pair = times or Times()
    if name.startswith("dualpipe"):
        return (stages / 2 - 1) * (pair + b - 3 * w)
    if name == "zero_bubble":
        return (stages - 1) * (f + b - 2 * w)
    if name not in ("gpipe", "1f1b", "interleaved"):
        raise ValueError(f"no formula for the schedule {name!r}")
    return (stages - 1) * (f + b) / chunks
