"""The search finds what is there, with and without a server."""

import pytest
from playwright.sync_api import Browser

from book.contents import CHAPTERS
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
        hits = page.locator("#search-results li a")
        hits.first.wait_for(timeout=10_000)
        links = hits.evaluate_all("all => all.map(a => a.href)")
        assert any(f"/{target}.html" in link for link in links), links
