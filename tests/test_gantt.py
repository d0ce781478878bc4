"""Schedules drawn: every piece of work is a block at its time."""

import re

from dsarch.analysis.drawings import gantt
from dsarch.train import pipeline


def blocks(svg: str, colour: str) -> int:
    return len(re.findall(rf'style="fill: {colour}', svg))


def test_every_piece_of_work_is_drawn():
    """4 x 6 forwards and backwards, and the legend has two blocks of each."""
    line = pipeline.simulate(pipeline.one_f_one_b(4, 6))
    figure = gantt({"1F1B": line}, alt="a schedule")
    assert blocks(figure.svg, "#0b7bc1") == 4 * 6 + 2
    assert blocks(figure.svg, "#c8640a") == 4 * 6 + 2


def test_pairs_are_two_blocks_and_parts_have_their_own_colour():
    line = pipeline.simulate(pipeline.dualpipe(4, 8))
    kinds = [op.kind for slot in line.slots for op in slot.item]
    svg = gantt({"DualPipe": line}, alt="a schedule").svg
    assert blocks(svg, "#0b7bc1") == kinds.count("F") + 2
    assert kinds.count("F") == 32
    assert svg == gantt({"DualPipe": line}, alt="a schedule").svg
