"""The notebook that a chapter offers for download is the chapter itself."""

from urllib.parse import urljoin
from urllib.request import urlopen

import nbformat
import pytest
from playwright.sync_api import Browser

from book.contents import ROOT
from tests.site.pages import opened, pages

BUTTON = "a.btn-download-source-button"
CHAPTERS = [
    name for name in pages() if (ROOT / name).with_suffix(".ipynb").exists()
]


def test_there_are_chapters_to_download() -> None:
    assert len(CHAPTERS) >= 15


@pytest.mark.parametrize("name", CHAPTERS)
def test_download(browser: Browser, base: str, name: str) -> None:
    url = f"{base}/{name}"
    with opened(browser, url, base) as (page, _):
        link = page.locator(BUTTON)
        assert link.count() == 1
        target = urljoin(url, link.get_attribute("href"))
        assert link.get_attribute("href").endswith(".ipynb")
        page.locator(".dropdown-download-buttons > button").click()
        with page.expect_download() as waiting:
            link.click()
        saved = waiting.value.path().read_bytes()
    with urlopen(target) as answer:
        assert answer.read() == saved
    stored = (ROOT / name).with_suffix(".ipynb").read_bytes()
    assert saved == stored, "not the notebook of this tree: build the site"
    notebook = nbformat.reads(saved.decode(), as_version=4)
    nbformat.validate(notebook)
    assert any(cell.get("outputs") for cell in notebook.cells)
