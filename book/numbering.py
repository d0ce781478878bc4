"""Chapters keep the number of their file, whichever of them are written.

Sphinx counts the chapters that it finds. The text, the exercises and the
proofs name them by their files, so the counted numbers are replaced before
figures and equations take theirs from them.
"""

import re

from docutils import nodes
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import (
    TocTreeCollectorWithStyles as Collector,
)

FILE = re.compile(r"chapters/(\d\d)-")


def renumber(env: BuildEnvironment) -> None:
    """Replace the first part of every section number of a chapter."""
    for name, numbers in env.toc_secnumbers.items():
        match = FILE.match(name)
        if not match:
            continue
        first = int(match[1])
        for anchor, number in numbers.items():
            if number:
                numbers[anchor] = (first, *number[1:])
        for node in env.tocs[name].findall(nodes.reference):
            if node.get("secnumber"):
                node["secnumber"] = [first, *node["secnumber"][1:]]
        title = env.titles[name]
        if title.get("secnumber"):
            title["secnumber"] = [first, *title["secnumber"][1:]]


def setup() -> None:
    """Let Sphinx number its sections, then correct what it counted."""
    counted = Collector.assign_section_numbers

    def assign(self: Collector, env: BuildEnvironment) -> list[str]:
        changed = counted(self, env)
        renumber(env)
        return changed

    Collector.assign_section_numbers = assign
