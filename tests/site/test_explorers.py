"""Explorers on the site: they agree with Python and obey the keyboard."""

import pytest
from playwright.sync_api import Browser, Locator, Page

from tests.site.pages import SITE, opened, pages

CONTROLS = (
    "input[type=range]:visible, select:visible, "
    "input[type=radio]:visible:checked, [data-roving] button:visible"
)
KEYS = ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "End", "Home")


def with_explorers() -> list[str]:
    return [
        name
        for name in pages()
        if 'class="ds-explorer"' in (SITE / name).read_text(encoding="utf8")
    ]


def answers(page: Page, explorer: Locator) -> bool:
    """Say whether some key on some control changes the status text."""
    status = explorer.locator("[role=status]").first
    before = status.text_content()
    for control in explorer.locator(CONTROLS).all():
        for key in KEYS:
            control.focus()
            page.keyboard.press(key)
            if status.text_content() != before:
                return True
    return False


@pytest.mark.parametrize("name", with_explorers())
def test_explorers_of(browser: Browser, base: str, name: str) -> None:
    narrow = {"width": 390, "height": 800}
    url = f"{base}/{name}"
    with opened(browser, url, base, viewport=narrow) as (page, problems):
        page.wait_for_load_state("networkidle")
        explorers = page.locator(".ds-explorer").all()
        for explorer in explorers:
            title = explorer.get_attribute("data-ds-label")
            assert explorer.evaluate("e => !!e.shadowRoot"), title
            assert not explorer.locator(".wrong").count(), title
            assert answers(page, explorer), f"{title} ignores the keyboard"
            assert not explorer.locator(".wrong").count(), title
        assert page.url == url, "a key turned the page"
        assert not problems


def test_explorers_are_on_the_site() -> None:
    chapters = [name for name in pages() if name.startswith("chapters/")]
    missing = sorted(set(chapters) - set(with_explorers()))
    assert not missing
