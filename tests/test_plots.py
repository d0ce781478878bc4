"""Figures are byte-stable, name themselves and work in both themes."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from book.inline_svg import alt_text, inline
from dsarch.analysis.drawings import flow, head_sharing, heatmap
from dsarch.analysis.plots import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKS,
    Figure,
    bars,
    canvas,
    grouped_bars,
    lines,
    use_book_style,
)
from dsarch.analysis.treemap import squares, treemaps

matplotlib.use("agg")

X = [1, 2, 4, 8, 16]
MAKERS = {
    "lines": lambda: lines(
        X,
        {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5.1]},
        xlabel="x",
        ylabel="y",
        log="xy",
        rules={"floor": 1.5},
        alt="two lines that rise from 1 to 5",
    ),
    "bars": lambda: bars(
        {"one": 1.0, "two": 2.0}, xlabel="x", strong="two", alt="1 and 2"
    ),
    "grouped_bars": lambda: grouped_bars(
        ["p", "q"], {"a": [1, 2], "b": [2, 1]}, ylabel="y", alt="crossing"
    ),
    "heatmap": lambda: heatmap(
        np.eye(3), xlabel="key", ylabel="query", alt="a diagonal"
    ),
    "picture": lambda: heatmap(
        np.eye(60), xlabel="key", ylabel="query", alt="a large diagonal"
    ),
    "head_sharing": lambda: head_sharing(8, 2),
    "treemaps": lambda: treemaps(
        {"stored": {"a": 6, "b": 3, "c": 1}, "used": {"a": 1, "b": 3, "c": 1}},
        alt="a is most of what is stored",
    ),
    "flow": lambda: flow(
        {"in": (0, 0), "out": (1, 0)},
        [("in", "out", "W")],
        strong=["out"],
        alt="in to out",
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_bytes_and_alt_text(name):
    figure, again = MAKERS[name](), MAKERS[name]()
    assert figure.svg == again.svg
    root = ElementTree.fromstring(figure.svg)
    assert root[0].tag.endswith("title")
    assert root[0].text == figure.alt == alt_text(figure.svg)
    bundle = figure._repr_mimebundle_()
    assert bundle["text/plain"] == f"Figure: {figure.alt}"
    assert bundle["image/svg+xml"] == figure.svg
    # no date, no version, no style sheet that would leave the drawing
    for gone in ("<metadata", "matplotlib.org", "<style", "DejaVu"):
        assert gone not in figure.svg
    shown = inline(figure.svg, "fig1", figure.alt)
    assert "#000000" not in shown
    assert "#ffffff" not in shown


def test_bytes_in_another_process():
    code = (
        "from tests.test_plots import MAKERS; import hashlib;"
        "t = ''.join(make().svg for make in MAKERS.values());"
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "", "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_figures_leave_nothing_open_and_no_style_behind():
    before = dict(matplotlib.rcParams)
    for make in MAKERS.values():
        make()
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []


def test_alt_text_is_required_and_escaped():
    fig, _ = canvas()
    with pytest.raises(ValueError, match="needs alt text"):
        Figure(fig, "  ")
    figure = Figure(fig, 'a < b & "c"\n  d')
    assert figure.alt == 'a < b & "c" d'
    assert ElementTree.fromstring(figure.svg)[0].text == figure.alt


def test_save(tmp_path):
    figure = MAKERS["bars"]()
    figure.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text(encoding="utf8") == figure.svg


def test_numbers_in_labels_are_not_rounded():
    figure = bars({"1.23456": 0.015625}, xlabel="x", alt="x", text=str)
    assert ">1.23456<" in figure.svg
    assert ">0.015625<" in figure.svg


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4
        for p in parts
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
def test_contrast_of_every_colour_on_both_pages(page):
    for colour in COLOURS:
        light, dark = sorted(map(luminance, (colour, page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, (colour, page)


def test_nothing_is_told_by_colour_alone():
    for list_ in (COLOURS, DASHES, MARKS, HATCHES):
        assert len(set(map(str, list_))) == 6
    use = lines(
        X, {"first": X, "second": X}, xlabel="x", ylabel="y", alt="equal"
    )
    for word in ("● first", "■ second", "stroke-dasharray"):
        assert word in use.svg


def test_names_at_the_ends_do_not_touch():
    same = dict.fromkeys("abcdef", X)
    svg = lines(X, same, xlabel="x", ylabel="y", alt="equal").svg
    named = re.findall(r' y="([\d.]+)"[^>]*>[●■▲◆▼✚]', svg)
    heights = sorted(map(float, named))
    assert len(heights) == 6
    assert min(np.diff(heights)) > 11


def test_ticks_of_log_axes_are_plain_text():
    svg = lines(
        [1, 1e7], {"a": [1e-6, 1]}, xlabel="x", ylabel="y", log="xy", alt="x"
    ).svg
    assert "10⁷" in svg
    assert "10⁻⁶" in svg
    assert "mathdefault" not in svg


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((8, 2), "8 query heads above 2 key-value heads: each is shared by 4"),
        ((4, 4), "each has its own"),
        ((4, 1), "all share the only one"),
    ],
)
def test_head_sharing_says_what_it_shows(sizes, words):
    assert words in head_sharing(*sizes).alt


def test_drawings_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="3 key heads cannot serve 8"):
        head_sharing(8, 3)
    with pytest.raises(ValueError, match="no box 'b' among a"):
        flow({"a": (0, 0)}, [("a", "b")], alt="x")


def test_book_style_is_set_for_own_figures():
    before = dict(matplotlib.rcParams)
    try:
        use_book_style()
        assert matplotlib.rcParams["svg.fonttype"] == "none"
        assert matplotlib.rcParams["svg.hashsalt"] == "dsarch"
    finally:
        matplotlib.rcParams.update(before)


def test_treemaps_fill_their_box_in_proportion():
    sizes = [60, 25, 9, 4, 2, 0.5]
    found = squares(sizes, (0.0, 0.0, 2.0, 1.0))
    areas = [wide * high for _, _, wide, high in found]
    assert areas == pytest.approx([2 * x / sum(sizes) for x in sizes])
    for i, (x, y, wide, high) in enumerate(found):
        assert -1e-9 <= x and x + wide <= 2 + 1e-9
        assert -1e-9 <= y and y + high <= 1 + 1e-9
        for u, v, w, h in found[:i]:
            across = min(x + wide, u + w) - max(x, u)
            along = min(y + high, v + h) - max(y, v)
            assert min(across, along) < 1e-9, "two rectangles overlap"
    with pytest.raises(ValueError, match="a part of 0"):
        treemaps({"p": {"a": 1}, "q": {"a": 0}}, alt="nothing")
