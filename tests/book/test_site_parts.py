"""The parts of the site that this project adds, each by itself."""

import re
import shutil

import pytest
import yaml

from book import apidoc, contents, formulas, inline_svg, lighten
from dsarch.teaching.listing import Listing

SVG = """<?xml version="1.0"?>
<svg width="72pt" height="36pt" viewBox="0 0 72 36">
<title>A line from 0 to 1 &amp; back</title><metadata>date</metadata>
<defs><clipPath id="p1"/></defs><path clip-path="url(#p1)" stroke="#000000"/>
<use href="#p1" fill="#ffffff"/></svg>"""


def test_two_figures_on_a_page_do_not_share_ids() -> None:
    first = inline_svg.inline(SVG, "fig1", "one")
    second = inline_svg.inline(SVG, "fig2", "two")
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids == [{"fig1-p1"}, {"fig2-p1"}]
    assert "url(#fig1-p1)" in first
    assert 'href="#fig2-p1"' in second


def test_a_figure_follows_the_theme_and_keeps_its_size() -> None:
    svg = inline_svg.inline(SVG, "fig1", 'a "name"')
    assert "#000000" not in svg
    assert "var(--pst-color-text-base, #000)" in svg
    assert "max-width:96px" in svg  # 72 points
    assert 'aria-label="a &quot;name&quot;"' in svg
    assert "<title>" not in svg
    assert "metadata" not in svg


@pytest.mark.parametrize(
    ("svg", "want"),
    [
        (SVG, "A line from 0 to 1 & back"),
        ('<svg viewBox="0 0 1 1" aria-label="named"><path/></svg>', "named"),
        ("<svg><metadata><dc:title>dc</dc:title></metadata></svg>", "dc"),
        ("<svg><path/></svg>", ""),
    ],
)
def test_a_figure_can_carry_its_own_name(svg: str, want: str) -> None:
    assert inline_svg.alt_text(svg) == want


def test_docstrings_become_what_autodoc_reads() -> None:
    text = r"""A `name` and ``another`` with $a_1 +
b$.

$$x
  = y$$

Use it:

    with that:
        pass

See :func:`that`."""
    lines = text.split("\n")
    apidoc.translate(None, "function", "", None, None, lines)
    made = "\n".join(lines)
    assert "``name`` and ``another`` with :math:`a_1 + b`." in made
    assert "\n\n.. math:: x = y\n\n" in made
    assert "Use it:\n\n::\n\n    with that:" in made
    assert "See :func:`that`." in made


def test_every_module_is_on_one_reference_page() -> None:
    pages = sorted((apidoc.ROOT / "api").glob("*.md"))
    named = [name for page in pages for name in apidoc.modules(page.stem)]
    files = {
        ".".join(path.relative_to(apidoc.ROOT).with_suffix("").parts)
        for path in (apidoc.ROOT / "dsarch").rglob("*.py")
        if not path.stem.startswith("__")
    }
    assert len(named) == len(set(named))
    assert set(named) == files


@pytest.mark.skipif(
    not shutil.which(formulas.node_binary()), reason="Node is not installed"
)
def test_a_wrong_formula_is_an_error_and_the_next_one_works() -> None:
    with pytest.raises(ValueError, match="KaTeX parse error"):
        formulas.to_html(r"\frac{1}", False)
    assert "katex-display" in formulas.to_html(r"\frac{1}{2}", True)
    assert "katex-display" not in formulas.to_html(r"\frac{1}{2}", False)


def test_pages_keep_what_they_need(tmp_path) -> None:
    scripts = (
        '<script src="_static/searchtools.js"></script>'
        '<script src="searchindex.js"></script>'
        '<script src="_static/book.js"></script>'
    )
    corner = '<th class="head"><p></p></th><th class="head"><p>a</p></th>'
    for name in ("search.html", "intro.html"):
        (tmp_path / name).write_text(scripts + corner)
        lighten.lighten_page(tmp_path / name)
    intro = (tmp_path / "intro.html").read_text()
    assert "searchindex" not in intro
    assert "book.js" in intro
    assert '<td></td><th class="head"><p>a</p></th>' in intro
    assert "searchindex" in (tmp_path / "search.html").read_text()


def test_colours_of_terminals_go_unless_a_page_has_one(tmp_path) -> None:
    sheet = tmp_path / "_static" / "mystnb.1.css"
    sheet.parent.mkdir()
    kept = "div.cell {\n  color: red;\n}\n"
    rule = "div.highlight .-Color[class*=-C1] {\n  color: red;\n}\n"
    sheet.write_text(rule + kept + rule)
    page = tmp_path / "one.html"
    page.write_text('<span class="-Color -Color-C1">red</span>')
    lighten.lighten_colours(tmp_path)
    assert sheet.read_text() == rule + kept + rule
    page.write_text("<span>plain</span>")
    lighten.lighten_colours(tmp_path)
    assert sheet.read_text() == kept


def test_tabs_in_outputs_are_read_as_tabs() -> None:
    """A listing with a twin is a directive, which CommonMark would print."""
    text = (contents.ROOT / "_config.yml").read_text(encoding="utf8")
    config = yaml.safe_load(text)["sphinx"]["config"]
    tabs = Listing("x", "y")._repr_markdown_()
    assert tabs.startswith("`````{tab-set}")
    assert config["nb_render_markdown_format"] == "myst"
