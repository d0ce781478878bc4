"""A server for the built site and a browser to look at it with."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from book.browser import FLAGS, chromium
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


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def base() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        yield found
        found.close()
