"""A server for the built site and a browser to look at it with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from book.browser import FLAGS, chromium, served
from tests.site.pages import SITE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where they cannot run, with the reason."""
    reason = ""
    if not (SITE / "index.html").exists():
        reason = "the site is not built: make book"
    elif not chromium():
        reason = "no Chromium or Chrome was found"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.site)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def base() -> Iterator[str]:
    with served(SITE) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        yield found
        found.close()
