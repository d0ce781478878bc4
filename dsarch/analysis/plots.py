"""One style for all figures of the book; each figure carries its alt text.

A function here returns a :class:`Figure`. Left as the last value of a cell,
it shows the drawing and stores the alt text as the plain form of the output,
so that a test notices when the numbers in it change.
"""

import html
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

# Each has a contrast of at least 3:1 on the light and the dark page.
COLOURS = ["#0b7bc1", "#c8640a", "#1e8a4c", "#d1383d", "#8e63ce", "#0f8a8a"]
DASHES = ["-", "--", ":", "-.", (0, (9, 3)), (0, (1, 1))]
MARKS = ["o", "s", "^", "D", "v", "P"]
SIGNS = "●■▲◆▼✚"
HATCHES = ["", "///", "...", "xx", "\\\\\\", "+++"]
RAISED = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
FONT = "font-family: system-ui, -apple-system, 'Segoe UI', sans-serif"

STYLE: Any = {
    "svg.hashsalt": "dsarch",
    "svg.fonttype": "none",
    "figure.figsize": (6.4, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
}
in_style: Any = plt.rc_context(STYLE)
_LONG = re.compile(r"-?\d+\.\d{3,}")
_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")
# A rule for every element would leave the drawing and style the whole page.
_SHEET = re.compile(r"\s*<defs>\s*<style.*?</style>\s*</defs>", re.S)
_LOOK = f'style="stroke-linejoin: round; stroke-linecap: butt; {FONT}"'


class Figure:
    """A finished drawing: SVG text, and one sentence that says the same.

    The SVG is byte-stable between runs: no date, no random ids, coordinates
    with two decimals. An empty ``alt`` raises ``ValueError``.
    """

    def __init__(self, fig: Any, alt: str) -> None:
        self.alt = " ".join(alt.split())
        if not self.alt:
            raise ValueError("a figure needs alt text: what does it show?")
        text = StringIO()
        blank = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        with plt.rc_context(STYLE):
            fig.savefig(text, format="svg", bbox_inches="tight", metadata=blank)
        plt.close(fig)
        self.svg = _clean(text.getvalue(), self.alt)

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": repr(self)}

    def save(self, path: str | Path) -> None:
        """Write the SVG to a file."""
        Path(path).write_text(self.svg, encoding="utf8")


def _clean(svg: str, alt: str) -> str:
    """Name the drawing, drop what changes, let the page choose the font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = _FAMILY.sub("", _SHEET.sub("", svg, count=1))
    svg = svg.replace('<g id="figure_1">', f'<g id="figure_1" {_LOOK}>', 1)
    svg = re.sub(r"<[^>]+>", lambda tag: _LONG.sub(_short, tag[0]), svg)
    end = svg.index(">")
    title = f"<title>{html.escape(alt)}</title>"
    return f'{svg[:end]} role="img">\n {title}{svg[end + 1 :]}'


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def use_book_style() -> None:
    """Set the style for figures that a chapter draws itself."""
    plt.rcParams.update(STYLE)
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None, "Creator": None})


@in_style
def canvas(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None
) -> tuple[Any, Any]:
    """An empty figure and its axes in the style of the book."""
    return plt.subplots(rows, columns, figsize=size)


def _label(ax: Any, xlabel: str, ylabel: str, log: str, title: str) -> None:
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        if name in log:
            ax.set(**{f"{name}scale": "log"})
            axis.set_major_formatter(_tick)
            axis.set_minor_formatter("")


def _tick(value: float, position: int | None = None) -> str:
    """A tick as plain text: 1,000 or 10⁶ or 10⁻⁵."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    head, power = f"{value:e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", RAISED))
    return f"10{raised}" if float(head) == 1 else f"{float(head):g}·10{raised}"


def draw_lines(
    ax: Any,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    log: str = "",
    title: str = "",
    rules: Mapping[str, float] | None = None,
) -> None:
    """Lines with their names at their ends; see :func:`lines`."""
    _label(ax, xlabel, ylabel, log, title)
    every = max(1, len(x) // 8)
    for i, (_, y) in enumerate(series.items()):
        ax.plot(
            x,
            np.asarray(y, dtype=float),
            color=COLOURS[i % 6],
            linestyle=DASHES[i % 6],
            marker=MARKS[i % 6],
            markevery=every if len(x) > 1 else None,
        )
    for words, height in (rules or {}).items():
        _rule(ax, words, height)
    if len(series) > 1:
        _name_ends(ax, x[-1], series)


def _rule(ax: Any, words: str, height: float) -> None:
    ax.axhline(height, color="#000000", linewidth=1, linestyle=(0, (2, 3)))
    ax.annotate(
        words,
        (0.01, height),
        (0, 3),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        fontsize=9,
    )


def _name_ends(
    ax: Any, x: float, series: Mapping[str, Sequence[float]]
) -> None:
    """Write names right of the last points, at least a line apart."""
    ends = {
        f"{SIGNS[i % 6]} {name}": float(np.asarray(y)[-1])
        for i, (name, y) in enumerate(series.items())
    }
    ax.figure.canvas.draw()
    pixel = 72 / ax.figure.dpi
    known = {n: y for n, y in ends.items() if np.isfinite(y)}
    height = {n: ax.transData.transform((x, y))[1] for n, y in known.items()}
    last = -np.inf
    for name in sorted(height, key=lambda n: height[n]):
        place = max(height[name], last + 12 / pixel)
        last = place
        ax.annotate(
            name,
            (x, known[name]),
            (8, (place - height[name]) * pixel),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )


@in_style
def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    alt: str,
    size: tuple[float, float] | None = None,
    **labels: Any,
) -> Figure:
    """Named lines over ``x``, told apart by colour, dash and mark.

    ``labels`` are ``xlabel``, ``ylabel``, ``title``, ``log`` (``"x"``,
    ``"y"`` or ``"xy"``) and ``rules``, named horizontal lines such as the
    entropy that a loss cannot go below.
    """
    fig, ax = canvas(size=size)
    draw_lines(ax, x, series, **labels)
    return Figure(fig, alt)


@in_style
def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def bars(
    values: Mapping[str, float],
    *,
    xlabel: str,
    alt: str,
    log: bool = False,
    text: Callable[[float], str] = _number,
    strong: str = "",
) -> Figure:
    """One horizontal bar for each name, with its value written beside it.

    ``strong`` names a bar that is drawn in another colour, hatched.
    """
    fig, ax = canvas(size=(6.4, 0.5 + 0.36 * len(values)))
    _label(ax, xlabel, "", "x" if log else "", "")
    for i, (name, value) in enumerate(values.items()):
        kind = 1 if name == strong else 0
        bar = ax.barh(i, value, 0.68, color=COLOURS[kind], hatch=HATCHES[kind])
        bar[0].set_edgecolor("#ffffff")
        weight = "bold" if kind else "normal"
        look = {"textcoords": "offset points", "va": "center"}
        ax.annotate(text(value), (value, i), (5, 0), weight=weight, **look)
    ax.set_yticks(range(len(values)), list(values))
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", length=0, labelbottom=log)
    ax.grid(axis="y", visible=False)
    ax.invert_yaxis()
    ax.margins(x=0.16)
    return Figure(fig, alt)


@in_style
def grouped_bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    ylabel: str,
    alt: str,
    xlabel: str = "",
    log: bool = False,
) -> Figure:
    """Bars side by side for each group, told apart by colour and hatch."""
    fig, ax = canvas()
    _label(ax, xlabel, ylabel, "y" if log else "", "")
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        ax.bar(
            at,
            values,
            width * 0.92,
            label=name,
            color=COLOURS[i % 6],
            hatch=HATCHES[i % 6],
            edgecolor="#ffffff",
        )
    ax.set_xticks(range(len(groups)), list(groups))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return Figure(fig, alt)
