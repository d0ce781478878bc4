"""Seconds of a piece of code, measured so that they can be compared."""

import time
from collections.abc import Callable
from statistics import median

import torch


def seconds(*pieces: Callable[[], object], rounds: int = 9) -> list[float]:
    """Median seconds of each piece of code.

    The pieces take turns, so that a busy moment of the machine hits all of
    them and their ratio stays meaningful. The first round is not counted.
    """
    times: list[list[float]] = [[] for _ in pieces]
    with torch.no_grad():
        for turn in range(rounds + 1):
            for piece, record in zip(pieces, times, strict=True):
                start = time.perf_counter()
                piece()
                record.append(time.perf_counter() - start)
                if turn == 0:
                    record.clear()
    return [median(record) for record in times]
