"""The search finds what is there, with and without a server."""

import re
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, TimeoutError

from book.contents import CHAPTERS, ROOT
from tests.site.pages import SITE, opened

TERMS = {"quick reference": "intro", "absorption": "glossary"} | {
    title: page for page, title in CHAPTERS.values()
}


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("term", TERMS)
def test_search(browser: Browser, base: str, term: str, scheme: str) -> None:
    target = TERMS[term]
    if not (SITE / f"{target}.html").exists():
        pytest.skip(f"{target} is not written")
    root = base if scheme == "http" else SITE.as_uri()
    url = f"{root}/search.html?q={term.replace(' ', '+')}"
    with opened(browser, url, root) as (page, _):
        hits = page.locator(f"#search-results li a[href*='{target}.html']")
        # hits arrive one after another
        hits.first.wait_for(timeout=30_000, state="attached")


def glossary() -> list[str]:
    """Every term that the glossary explains."""
    text = (ROOT / "glossary.md").read_text(encoding="utf8")
    block = text.split("```{glossary}\n", 1)[1].split("\n```", 1)[0]
    return re.findall(r"^(?=\S)(.+)$", block, re.M)


def test_search_finds_every_term_of_the_glossary(
    browser: Browser, base: str
) -> None:
    missing = []
    for term in glossary():
        url = f"{base}/search.html?q={quote(term)}"
        with opened(browser, url, base) as (page, _):
            hits = page.locator("#search-results li a[href*='glossary.html']")
            try:
                hits.first.wait_for(timeout=10_000)
            except TimeoutError:
                missing.append(term)
    assert not missing, missing
