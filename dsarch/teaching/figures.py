"""Finds the figures in Markdown prose: numbers that claim something.

Left out are code, links, labels, references ("chapter 3", "Python 3.11"),
years, versions, names with digits (V3.2, bf16, Llama-2-70B), list numbers and
small bare integers. Numbers inside formulas count, their indices do not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Smaller integers without a unit are words: "two norms", "3 steps".
SMALL = 20

# What one printed unit stands for.
SCALES = {
    1e-2: "% percent",
    1: "times × x -fold byte bytes bits FLOP FLOPs",
    1e3: "thousand K kB KB",
    1e6: "million M MB MFLOP",
    1e9: "billion B GB GFLOP",
    1e12: "trillion T TB TFLOP",
    2**10: "KiB",
    2**20: "MiB",
    2**30: "GiB",
    2**40: "TiB",
}
UNITS = {unit: size for size, row in SCALES.items() for unit in row.split()}
NUMBER = re.compile(
    r"(?<![\w.])(?P<digits>\d+(?:(?:,|\{,\}|\\,|,\\!)\d{3})*(?:\.\d+)?)"
    r"(?:e(?P<power>[+-]?\d+))?"
    r"(?:[\s~]?(?:\\,|\\ |\\text\{\s*|\\mathrm\{\s*)?\\?(?P<unit>"
    + "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
    + r"|\btimes)(?![\w]))?(?![\w]|\.\d|,\d)"
)

PROSE = (
    "admonition attention caution danger dropdown epigraph error exercise "
    "exercise-start figure glossary grid grid-item grid-item-card hint "
    "important list-table margin note seealso sidebar solution "
    "solution-start tab-item tab-set table tip topic warning math card"
).split()
FENCE = re.compile(r"^\s*(?P<fence>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
DIRECTIVE = re.compile(r"\s*\{([\w-]+)\}")
OPTION = re.compile(r"^\s*:(?!caption|alt)[\w-]+:.*$|^\s*\([\w-]+\)=\s*$")
REFERENCE = (
    r"(?:chapters?|sections?|figs?\.|figures?|tables?|eqs?\.|equations?|"
    r"exercises?|appendix|appendices|hints?|versions?|python|pages?|issues?|"
    r"part|§+|#|arxiv:?|step|layer|cell|hint)"
)
HIDDEN = [
    re.compile(pattern, flags)
    for pattern, flags in (
        (r"<!--.*?-->", re.S),
        (r"\{[\w:-]+\}`[^`]*`", 0),
        (r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.S),
        (r"\]\([^)\s]*\)|<https?:[^>]*>|https?://\S+", 0),
        (r"\$\$\s*\(eq-[\w-]+\)", 0),
        (r"(?<=[\w})|\]])[_^](?:\{[^{}]*\}|\\?\w)", 0),
        (r"\\[A-Za-z]+\{(?=[a-z]*\})", 0),
        (
            rf"(?i)\b{REFERENCE}\s*\d[\d.]*(?:\s*(?:to|and|or|,|–|-)\s*\d[\d.]*)*",
            0,
        ),
        (r"§+\s*\d[\d.]*|[●○] · about \d+ minutes", 0),
        (r"\b[A-Za-z]\w*-?(?:\d[\w.]*-?)+(?<!\.)", 0),
        (r"\b\d+[A-Za-z]*(?:x\d+|[A-Z]\d|D\b)\w*", 0),
        (r"\b\d+(?:\.\d+){2,}\S*", 0),
        (r"(?<![\d.,])0\d(?:\.\d+)?\b", 0),
        (r"(?m)^\s*\d+[.)]\s", 0),
        (r"(?m)^#+\s+\d[\d.]*\s", 0),
        (
            r"(?<![\d,.])(?:19[5-9]\d|20[0-3]\d)(?!\d|,\d|\.\d|\s?"
            r"(?:%|×|times|bytes|tokens|[KMGT]i?B)\b)",
            0,
        ),
    )
]


@dataclass(frozen=True)
class Figure:
    """A number in prose: where it stands and what it says."""

    start: int
    end: int
    text: str
    value: float
    step: float
    unit: str

    @property
    def counts(self) -> bool:
        """Whether the number claims something that can be wrong."""
        whole = self.value == int(self.value) and self.step >= 1
        return bool(self.unit) or not whole or self.value >= SMALL


def visible(source: str) -> str:
    """The source with everything that is no prose blanked out."""
    text = "".join(_lines(source))
    for pattern in HIDDEN:
        text = pattern.sub(lambda m: _blank(m[0]), text)
    return text


def _blank(text: str) -> str:
    return re.sub(r"\S", " ", text)


def _lines(source: str) -> Iterator[str]:
    """Lines with code fences and directive options blanked."""
    code, open_fences = "", list[str]()
    for line in source.splitlines(keepends=True):
        fence = FENCE.match(line)
        if code:
            code = "" if line.strip() == code else code
            yield _blank(line)
        elif fence and not fence["info"].strip() and open_fences:
            open_fences.pop()
            yield _blank(line)
        elif fence:
            name = DIRECTIVE.match(fence["info"])
            if name and name[1] in PROSE:
                open_fences.append(fence["fence"])
                yield _blank(line[: name.end() + fence.start("info")])
                yield line[name.end() + fence.start("info") :]
            else:
                code = fence["fence"]
                yield _blank(line)
        else:
            yield _blank(line) if OPTION.match(line) else line


def numbers(source: str) -> list[Figure]:
    """Every number that stands in the prose of ``source``."""
    return [_figure(match) for match in NUMBER.finditer(visible(source))]


def _figure(match: re.Match[str]) -> Figure:
    plain = re.sub(r"[{},!\\]", "", match["digits"])
    power = int(match["power"] or 0)
    places = len(plain.partition(".")[2])
    return Figure(
        match.start(),
        match.end(),
        match[0],
        float(plain) * 10.0**power,
        10.0 ** (power - places),
        match["unit"] or "",
    )
