"""Areas in proportion to numbers: where the parameters of a model are."""

from collections.abc import Mapping, Sequence
from typing import Any

from dsarch.analysis.plots import COLOURS, HATCHES, Figure, canvas, in_style

Rect = tuple[float, float, float, float]


def squares(sizes: Sequence[float], box: Rect) -> list[Rect]:
    """Rectangles of these areas that fill the box, as square as may be.

    ``sizes`` fall, and their sum is scaled to the area of the box. Rows are
    laid along the shorter side and closed before they become too flat.
    """
    if not sizes:
        return []
    x, y, wide, high = box
    unit = wide * high / sum(sizes)
    side = min(wide, high)
    count = _row_length(sizes, unit, side)
    depth = sum(sizes[:count]) * unit / side
    row, at = [], 0.0
    for size in sizes[:count]:
        length = size * unit / depth
        row.append((at, depth, length))
        at += length
    if wide >= high:
        placed = [(x, y + at, deep, long) for at, deep, long in row]
        rest = (x + depth, y, wide - depth, high)
    else:
        placed = [(x + at, y, long, deep) for at, deep, long in row]
        rest = (x, y + depth, wide, high - depth)
    return placed + squares(sizes[count:], rest)


def _row_length(sizes: Sequence[float], unit: float, side: float) -> int:
    """How many sizes a row takes before one more would flatten it."""
    count = 1
    while count < len(sizes) and (
        _flatness(sizes[: count + 1], unit, side)
        <= _flatness(sizes[:count], unit, side)
    ):
        count += 1
    return count


def _flatness(sizes: Sequence[float], unit: float, side: float) -> float:
    """The worst ratio of sides in a row of these areas."""
    depth = sum(sizes) * unit / side
    lengths = [size * unit / depth for size in sizes]
    return max(max(depth / x, x / depth) for x in lengths)


@in_style
def treemaps(
    panels: Mapping[str, Mapping[str, float]],
    *,
    alt: str,
    size: tuple[float, float] = (7.2, 3.6),
) -> Figure:
    """Panels of equal area side by side, one rectangle for each name.

    A name has the same colour and hatch in all panels; all are in the
    legend, and large rectangles carry their share. A number that is not
    positive raises ``ValueError``.
    """
    fig, axes = canvas(1, len(panels), size)
    names = list(dict.fromkeys(n for parts in panels.values() for n in parts))
    marks: dict[str, Any] = {}
    for ax, (title, parts) in zip(axes, panels.items(), strict=True):
        if min(parts.values()) <= 0:
            raise ValueError(f"{title}: a part of {min(parts.values())}")
        ax.axis("off")
        ax.set(title=title, xlim=(0, 1), ylim=(0, 1))
        ordered = sorted(parts, key=lambda name: -parts[name])
        found = squares([parts[n] for n in ordered], (0.0, 0.0, 1.0, 1.0))
        for name, place in zip(ordered, found, strict=True):
            marks[name] = _tile(ax, place, names.index(name))
    handles = [marks[name] for name in names]
    fig.legend(handles, names, ncols=4, loc="outside lower center", fontsize=9)
    return Figure(fig, alt)


def _tile(ax: Any, place: Rect, number: int) -> Any:
    """One rectangle, with its share written in it where there is room."""
    x, y, wide, high = place
    (tile,) = ax.bar(
        x,
        high,
        wide,
        y,
        align="edge",
        color=COLOURS[number % 6],
        hatch=HATCHES[number // 6 % 6],
        edgecolor="#ffffff",
    )
    if min(wide, high) > 0.11:
        ax.text(
            x + wide / 2,
            y + high / 2,
            f"{wide * high:.1%}",
            color="#fbfbfb",
            ha="center",
            va="center",
            bbox={"fc": COLOURS[number % 6], "ec": "none", "pad": 1.5},
        )
    return tile
