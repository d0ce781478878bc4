"""Tables of numbers as colours, head maps and box diagrams."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsarch.analysis.plots import COLOURS, Figure, canvas, in_style
from dsarch.attention import head_map as readers
from dsarch.train.timeline import Slot, Timeline

# Almost black and white: pure ones would follow the theme of the page.
INK, PAPER = "#101010", "#fbfbfb"


@in_style
def heatmap(
    values: Any,
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    text: str = "{:.2f}",
    colours: str = "cividis",
    size: tuple[float, float] | None = None,
) -> Figure:
    """A matrix as coloured cells, with the numbers in them up to 12 x 12.

    ``text`` formats a cell; an empty one leaves the numbers out. Larger
    matrices get a colour bar instead.
    """
    table = np.asarray(values, dtype=float)
    rows, columns = table.shape
    written = bool(text) and max(rows, columns) <= 12
    fig, ax = canvas(size=size or (1 + 0.5 * min(columns, 11), 3.2))
    image = ax.pcolormesh(table, cmap=colours, edgecolors="face")
    image.set_rasterized(table.size > 2500)
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(rows, 0))
    ax.grid(visible=False)
    if written:
        _write_cells(ax, image, table, text)
    else:
        fig.colorbar(image, ax=ax)
    return Figure(fig, alt)


def _write_cells(ax: Any, image: Any, table: np.ndarray, text: str) -> None:
    """The number in each cell, dark on light and light on dark."""
    for axis, count in ((ax.xaxis, table.shape[1]), (ax.yaxis, len(table))):
        axis.set_ticks(np.arange(count) + 0.5, range(count))
    ax.tick_params(length=0)
    for (i, j), value in np.ndenumerate(table):
        red, green, blue, _ = image.cmap(image.norm(value))
        light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
        words = text.format(value)
        ink = {"color": INK if light else PAPER, "size": 9}
        ax.text(j + 0.5, i + 0.5, words, ha="center", va="center", **ink)


def _box(ax: Any, x: float, y: float, words: str, **style: Any) -> Any:
    look = {"facecolor": "#ffffff", "edgecolor": "#000000", "linewidth": 1.2}
    shape = {"boxstyle": "round,pad=0.35", **look, **style}
    return ax.text(x, y, words, ha="center", va="center", bbox=shape)


@in_style
def head_sharing(heads: int, kv_heads: int) -> Figure:
    """Query heads in a row, each joined to the KV head that it reads.

    ``ValueError`` if ``kv_heads`` does not divide ``heads``.
    """
    owner = readers(heads, kv_heads).tolist()
    share = heads // kv_heads
    fig, ax = canvas(size=(min(8.0, 0.9 + 0.5 * heads), 2.0))
    ax.axis("off")
    ax.set(xlim=(-1.4, heads - 0.4), ylim=(-0.4, 1.4))
    centres = [g * share + (share - 1) / 2 for g in range(kv_heads)]
    for query, g in enumerate(owner):
        ax.plot([query, centres[g]], [1, 0], "-", color="#8a8a8a", lw=1.2)
    for query in range(heads):
        _box(ax, query, 1, str(query))
    for g, centre in enumerate(centres):
        fill = {"facecolor": COLOURS[g % 6], "edgecolor": COLOURS[g % 6]}
        _box(ax, centre, 0, str(g), **fill).set_color(PAPER)
    ax.text(-0.8, 1, "query", ha="right", va="center")
    ax.text(-0.8, 0, "key, value", ha="right", va="center")
    return Figure(fig, _sharing_alt(heads, kv_heads))


def _sharing_alt(heads: int, kv_heads: int) -> str:
    share = heads // kv_heads
    s = "" if kv_heads == 1 else "s"
    what = f"{heads} query heads above {kv_heads} key-value head{s}: "
    if share == 1:
        return what + "each has its own."
    if kv_heads == 1:
        return what + "all share the only one."
    return what + f"each is shared by {share} neighbouring query heads."


@in_style
def flow(
    boxes: Mapping[str, tuple[float, float]],
    arrows: Sequence[tuple[str, str] | tuple[str, str, str]],
    *,
    alt: str,
    strong: Sequence[str] = (),
    size: tuple[float, float] | None = None,
) -> Figure:
    """Boxes at grid places ``(column, row)`` and arrows between them.

    Row 0 is on top; an arrow may carry words. ``strong`` boxes are filled:
    by convention of the book, what stays in the cache. An arrow from or to
    an unknown box raises ``ValueError``.
    """
    columns = [x for x, _ in boxes.values()]
    rows = [y for _, y in boxes.values()]
    wide, high = max(columns) - min(columns), max(rows) - min(rows)
    fig, ax = canvas(size=size or (1.6 + 1.5 * wide, 0.8 + 0.8 * high))
    ax.axis("off")
    ax.set(
        xlim=(min(columns) - 0.5, max(columns) + 0.5),
        ylim=(max(rows) + 0.4, min(rows) - 0.4),
    )
    drawn = {n: _place(ax, n, at, n in strong) for n, at in boxes.items()}
    fig.canvas.draw()
    for start, end, *words in arrows:
        _arrow(ax, drawn, boxes, start, end, " ".join(words))
    return Figure(fig, alt)


def _place(ax: Any, name: str, at: tuple[float, float], strong: bool) -> Any:
    if not strong:
        return _box(ax, at[0], at[1], name)
    fill = {"facecolor": COLOURS[0], "edgecolor": COLOURS[0]}
    box = _box(ax, at[0], at[1], name, **fill)
    box.set(color=PAPER, weight="bold")
    return box


def _arrow(
    ax: Any,
    drawn: Mapping[str, Any],
    boxes: Mapping[str, tuple[float, float]],
    start: str,
    end: str,
    words: str,
) -> None:
    for name in (start, end):
        if name not in drawn:
            raise ValueError(f"no box {name!r} among {', '.join(drawn)}")
    look = {
        "arrowstyle": "-|>",
        "color": "#000000",
        "linewidth": 1.1,
        "patchA": drawn[start].get_bbox_patch(),
        "patchB": drawn[end].get_bbox_patch(),
    }
    ax.annotate("", boxes[end], boxes[start], arrowprops=look)
    if words:
        (x0, y0), (x1, y1) = boxes[start], boxes[end]
        at = ((x0 + x1) / 2, (y0 + y1) / 2)
        pad = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.5}
        ax.text(*at, words, size=8.5, ha="center", va="center", bbox=pad)


SHADES = {"F": (0, ""), "B": (1, ""), "I": (3, "..."), "W": (2, "xx")}
WORDS = {"F": "forward", "B": "backward", "I": "input", "W": "weights"}


@in_style
def gantt(
    timelines: Mapping[str, Timeline], *, alt: str, length: float | None = None
) -> Figure:
    """Schedules below each other: a row for each device, time to the right.

    Blocks carry the number of their micro-batch where there is room; white
    is waiting. All share one time axis of at least ``length``.
    """
    ends = [line.makespan for line in timelines.values()]
    end = max([*ends, length or 0.0])
    rows = [line.devices for line in timelines.values()]
    fig, axes = canvas(len(rows), 1, (7.2, 0.62 * len(rows) + 0.2 * sum(rows)))
    kinds: set[str] = set()
    for ax, (name, line) in zip(np.ravel(axes), timelines.items(), strict=True):
        ax.set(xlim=(0, end), ylim=(line.devices, 0), title=name)
        ax.set_yticks(np.arange(line.devices) + 0.5, range(line.devices))
        ax.tick_params(length=0)
        ax.grid(visible=False)
        for slot in line.slots:
            _slot(ax, slot, 7.2 * 72 / end)
            kinds |= {op.kind for op in slot.item}
    np.ravel(axes)[-1].set_xlabel("time, rows are devices")
    _key(np.ravel(axes)[0], [kind for kind in "FBIW" if kind in kinds])
    return Figure(fig, alt)


def _key(ax: Any, kinds: Sequence[str]) -> None:
    """Names of the kinds of work, right of the title."""
    for kind in kinds:
        number, hatch = SHADES[kind]
        look = {"hatch": hatch, "edgecolor": PAPER, "label": WORDS[kind]}
        ax.barh([-9], [0], color=COLOURS[number], **look)
    ax.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 0.95), fontsize=8)


def _slot(ax: Any, slot: Slot, points: float) -> None:
    """A block; a pair lies in two halves above each other."""
    high = 1 / len(slot.item)
    for i, op in enumerate(slot.item):
        number, hatch = SHADES[op.kind]
        bar = ax.barh(
            slot.device + i * high,
            slot.end - slot.start,
            high,
            left=slot.start,
            align="edge",
            color=COLOURS[number],
            hatch=hatch,
            linewidth=0.6,
        )
        bar[0].set_edgecolor(PAPER)
        wide = (slot.end - slot.start) * points > 11
        if wide and len(slot.item) == 1 and not hatch:
            middle = (slot.start + slot.end) / 2, slot.device + 0.53
            look = {"ha": "center", "va": "center", "size": 7}
            ax.text(*middle, str(op.micro), color=PAPER, **look)
