r"""Replicas of busy experts, and where they go: the published balancer.

Loads are counts of tokens from the recent past; everything here is greedy.
Source: the repository deepseek-ai/EPLB.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Placement(NamedTuple):
    """The expert in each physical slot; devices hold equal runs of slots."""

    slots: list[int]
    devices: int

    def replicas(self, experts: int) -> list[int]:
        """How many slots each expert has."""
        return [self.slots.count(expert) for expert in range(experts)]

    def device_loads(self, loads: Sequence[float]) -> list[float]:
        """What each device computes if replicas share their expert's load."""
        counts = self.replicas(len(loads))
        shares = [loads[expert] / counts[expert] for expert in self.slots]
        size = len(shares) // self.devices
        return [sum(shares[d * size :][:size]) for d in range(self.devices)]

    def excess(self, loads: Sequence[float]) -> float:
        """The busiest device's load over the mean."""
        found = self.device_loads(loads)
        return max(found) * len(found) / sum(found)


def pack(loads: Sequence[float], packs: int) -> list[list[int]]:
    """Items in packs of equal size: the heaviest first, to the lightest."""
    packed: list[list[int]] = [[] for _ in range(packs)]
    weight = [0.0] * packs
    for item in sorted(range(len(loads)), key=lambda i: -loads[i]):
        open_ = [p for p in range(packs) if len(packed[p]) * packs < len(loads)]
        best = min(open_, key=lambda p: weight[p])
        packed[best].append(item)
        weight[best] += loads[item]
    return packed


def replicate(loads: Sequence[float], slots: int) -> list[int]:
    r"""One slot each, then one more for $\arg\max_i c_i / r_i$, and again."""
    counts = [1] * len(loads)
    chosen = list(range(len(loads)))
    while len(chosen) < slots:
        busiest = max(range(len(loads)), key=lambda i: loads[i] / counts[i])
        counts[busiest] += 1
        chosen.append(busiest)
    return chosen


def place(
    loads: Sequence[float], slots: int, groups: int, nodes: int, devices: int
) -> Placement:
    """Groups go to nodes, busy experts are doubled there, slots to devices.

    If the groups do not divide among the nodes the whole is one node with
    one group. Raises ``ValueError`` if experts, slots or devices do not
    divide, or there are fewer slots than experts.
    """
    if groups % nodes:
        groups = nodes = 1
    for many, few in (
        (len(loads), groups),
        (slots, devices),
        (devices, nodes),
    ):
        if many % few or slots < len(loads):
            raise ValueError(
                f"{many} do not divide by {few}, or {slots} slots are fewer "
                f"than {len(loads)} experts"
            )
    size = len(loads) // groups
    by_group = [sum(loads[g * size :][:size]) for g in range(groups)]
    found: list[int] = []
    for node in pack(by_group, nodes):
        own = [g * size + i for g in node for i in range(size)]
        found += _fill(loads, own, slots // nodes, devices // nodes)
    return Placement(found, devices)


def _fill(
    loads: Sequence[float], own: list[int], slots: int, devices: int
) -> list[int]:
    """The slots of one node, device after device."""
    local = [loads[expert] for expert in own]
    chosen = replicate(local, slots)
    shares = [local[i] / chosen.count(i) for i in chosen]
    return [own[chosen[s]] for run in pack(shares, devices) for s in run]
