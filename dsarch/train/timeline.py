r"""A simulator that times pipeline programs.

A program lists for every device what it does, in order. The simulator knows
nothing of formulas: an item starts when its device is free and its inputs
have arrived, so the bubble is a result.
"""

from itertools import pairwise
from typing import NamedTuple


class Op(NamedTuple):
    """One piece of work: ``F``, ``B``, or ``I`` and ``W``, the parts of B.

    ``stage`` counts along the path of the micro-batch; ``I`` is the gradient
    of the input, which the previous stage waits for, ``W`` that of the
    weights, which nobody waits for.
    """

    kind: str
    stage: int
    micro: int


Item = tuple[Op, ...]
Program = list[list[Item]]


class Times(NamedTuple):
    r"""Durations of a stage: $F$, the whole $B$, its part $W$, the pair F&B.

    ``pair`` is the time of a forward and a backward of different micro-batches
    that run interleaved, so that each hides the other's communication.
    """

    forward: float = 1.0
    backward: float = 2.0
    weight: float = 1.0
    pair: float = 3.0

    def of(self, item: Item, share: float = 1.0) -> float:
        """How long an item takes on a stage that is ``share`` as deep."""
        if len(item) == 2:
            return share * self.pair
        alone = {
            "F": self.forward,
            "B": self.backward,
            "I": self.backward - self.weight,
            "W": self.weight,
        }
        return share * alone[item[0].kind]


class Slot(NamedTuple):
    """An item with the time and the device it ran on."""

    device: int
    start: float
    end: float
    item: Item


class Timeline(NamedTuple):
    """All slots of a simulated schedule."""

    slots: list[Slot]
    devices: int

    @property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return max(slot.end for slot in self.slots)

    def idle(self, device: int) -> float:
        """The bubble of a device: time of the whole in which it waits."""
        own = [slot for slot in self.slots if slot.device == device]
        return self.makespan - sum(slot.end - slot.start for slot in own)

    @property
    def bubble(self) -> float:
        """The idle time of the device that waits longest."""
        return max(map(self.idle, range(self.devices)))

    @property
    def bubble_share(self) -> float:
        """The idle share of all devices' time."""
        idle = sum(map(self.idle, range(self.devices)))
        return idle / (self.devices * self.makespan)

    def peak_activations(self, device: int) -> int:
        """How many micro-batches a device holds at worst.

        Held from the start of the forward to the end of the input gradient.
        """
        own = [slot for slot in self.slots if slot.device == device]
        held = most = 0
        for slot in sorted(own, key=lambda slot: slot.start):
            kinds = [op.kind for op in slot.item]
            held += kinds.count("F")
            most = max(most, held)
            held -= kinds.count("B") + kinds.count("I")
        return most


def simulate(
    program: Program, times: Times | None = None, share: float = 1.0
) -> Timeline:
    """Run a program: each item as early as its device and its inputs allow.

    Raises ``ValueError`` for a program that waits for itself.
    """
    times = times or Times()
    depth = 1 + max(op.stage for row in program for x in row for op in x)
    done: dict[Op, float] = {}
    slots: list[Slot] = []
    waiting = [list(reversed(row)) for row in program]
    free = [0.0] * len(program)
    while any(waiting):
        before = len(slots)
        for device, row in enumerate(waiting):
            while row and (ready := _ready(row[-1], depth, done)) is not None:
                item = row.pop()
                start = max(free[device], ready)
                free[device] = start + times.of(item, share)
                done |= dict.fromkeys(item, free[device])
                slots.append(Slot(device, start, free[device], item))
        if len(slots) == before:
            stuck = [row[-1] for row in waiting if row]
            raise ValueError(f"deadlock after {before} items at {stuck}")
    return Timeline(slots, len(program))


def _inputs(op: Op, depth: int) -> list[Op]:
    """What must be finished before ``op``; one of I and B may stand in."""
    kind, stage, micro = op
    if kind == "F":
        return [Op("F", stage - 1, micro)] if stage else []
    if kind == "W":
        return [Op("I", stage, micro)]
    own = Op("F", stage, micro)
    return [own] if stage == depth - 1 else [own, Op("B", stage + 1, micro)]


def _ready(item: Item, depth: int, done: dict[Op, float]) -> float | None:
    """When all inputs of an item are there, or None while one is missing."""
    ends = [0.0]
    for op in (need for own in item for need in _inputs(own, depth)):
        split = op._replace(kind="I") if op.kind == "B" else op
        if op not in done and split not in done:
            return None
        ends.append(done[op] if op in done else done[split])
    return max(ends)


def order_errors(timeline: Timeline) -> list[str]:
    """Overlaps on a device and work done twice; empty for a sound schedule."""
    errors = []
    for device in range(timeline.devices):
        own = [s for s in timeline.slots if s.device == device]
        own.sort(key=lambda slot: slot.start)
        errors += [
            f"{a} overlaps {b}" for a, b in pairwise(own) if b.start < a.end
        ]
    ops = [op for slot in timeline.slots for op in slot.item]
    errors += [f"{op} runs twice" for op in {*ops} if ops.count(op) > 1]
    return errors
