"""The book on paper: what one reads there, where it ends, where links lead."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from pypdf import PdfReader

from book import paper, single
from book.contents import CHAPTERS
from tests.site.pages import SITE

PAGE, _ = CHAPTERS[3]
PARTS = [("", ["intro"]), ("Attention mechanisms", [PAGE])]
A4 = (595, 842)
TEX = re.compile(r'<annotation encoding="application/x-tex">(.*?)</anno', re.S)
COMMAND = re.compile(r"\\[a-zA-Z]{3,}")
CODE = re.compile(r"<(pre|code)\b.*?</\1>", re.S)
# the width of the text is the width of the window
CUT = """() => [...document.querySelectorAll("article *")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .filter(e => !e.closest(".katex-mathml, .katex svg, svg *"))
  .slice(0, 5).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single.write(SITE, tmp_path_factory.mktemp("print"), PARTS)


@pytest.fixture(scope="module")
def pdf(browser: Browser, source: Path) -> Iterator[PdfReader]:
    target = source.with_suffix(".pdf")
    paper.to_pdf(browser, source, target)
    yield PdfReader(target)


@pytest.fixture(scope="module")
def text(pdf: PdfReader) -> str:
    return "\n".join(page.extract_text() for page in pdf.pages)


def test_formulas_are_drawn(text: str, source: Path) -> None:
    """TeX stands where code is quoted, and nowhere else."""
    page = source.read_text(encoding="utf8")
    quoted = "".join(match[0] for match in CODE.finditer(page))
    used = set(COMMAND.findall(" ".join(TEX.findall(page))))
    assert len(used) > 10
    for mark in [*used, "$$"]:
        assert text.count(mark) <= quoted.count(mark), mark


def test_folds_and_tabs_are_open(text: str) -> None:
    for words in ("def absorbed(", "fn absorbed(", "Hint 3", "by the book's"):
        assert words in text, words
    assert "Show code cell source" not in text


def test_explorers_show_their_start(text: str) -> None:
    assert "How large is the key-value cache?" in text
    assert "70,272 B" in text
    assert "Reset" not in text


def test_pages_have_their_size_and_nothing_is_cut(
    browser: Browser, source: Path, pdf: PdfReader
) -> None:
    sizes = {tuple(map(round, page.mediabox[2:])) for page in pdf.pages}
    assert sizes == {A4}
    page = paper.opened(browser, source)
    assert page.evaluate(CUT) == []
    page.close()


def test_chapters_are_bookmarks_and_links_lead_inside(pdf: PdfReader) -> None:
    titles = [mark.title for mark in pdf.outline if not isinstance(mark, list)]
    assert any("Multi-head latent attention" in title for title in titles)
    at = paper.page_numbers(pdf)
    assert 2 < at["intro"] < at[single.slug(PAGE)] <= len(pdf.pages)
    inside = {
        str(note.get_object()["/Dest"]).lstrip("/")
        for page in pdf.pages
        for note in page.get("/Annots") or ()
        if "/Dest" in note.get_object()
    }
    assert single.slug(PAGE) in inside
    assert inside <= set(at)
    contents = pdf.pages[1].extract_text()
    assert str(at[single.slug(PAGE)]) in contents


def test_every_link_of_the_single_page_has_a_target(source: Path) -> None:
    whole = single.assemble(SITE, single.plan())
    plain = re.sub(r"<script\b.*?</script>", "", whole, flags=re.S)
    ids = re.findall(r'\sid="([^"]+)"', plain)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'\shref="#([^"]+)"', plain))
    assert len(links) > 400
    assert links <= set(ids)
