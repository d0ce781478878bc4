"""The pages of the built site, and a page that records its own problems."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
# A busy machine is slow, and that is no fault of the page.
PATIENCE = 120_000
GENERATED = {"index.html", "genindex.html", "py-modindex.html", "search.html"}


def pages() -> list[str]:
    """Name the pages that somebody wrote."""
    found = (path.relative_to(SITE) for path in SITE.rglob("*.html"))
    return sorted(
        path.as_posix()
        for path in found
        if path.parts[0] not in ("_static", "_sources")
        and path.name not in GENERATED
    )


def local(url: str, base: str) -> bool:
    """Say whether a request stays inside the site."""
    return url.startswith((base, "data:", "blob:", "about:"))


@contextmanager
def opened(
    browser: Browser, url: str, base: str, **options: object
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page; the list fills with all that goes wrong on it."""
    settings = {"reduced_motion": "reduce", **options}
    context = browser.new_context(**settings)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    problems: list[str] = []

    def request(found) -> None:
        if not local(found.url, base):
            problems.append(f"request to {found.url}")

    def console(message) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"{message.type}: {message.text}")

    page.on("request", request)
    page.on("console", console)
    page.on("requestfailed", lambda r: problems.append(f"failed: {r.url}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "response",
        lambda r: r.status < 400 or problems.append(f"{r.status} {r.url}"),
    )
    page.goto(url, wait_until="load")
    try:
        yield page, problems
    finally:
        context.close()
