"""The picture of the README: a page of the built site with an explorer."""

from playwright.sync_api import sync_playwright

from book.browser import FLAGS, chromium
from book.contents import CHAPTERS, ROOT

TARGET = ROOT / "book" / "screenshot.png"
LIMIT = 300_000


def main() -> None:
    """Write the picture; one that is too large is an error."""
    page_name, _ = CHAPTERS[3]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        page = browser.new_page(
            viewport={"width": 1180, "height": 760}, reduced_motion="reduce"
        )
        page.goto((ROOT / "_build/html" / f"{page_name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        explorer = page.locator(".ds-explorer").first
        top = explorer.evaluate("e => e.getBoundingClientRect().top")
        page.evaluate(f"window.scrollTo(0, {top - 90})")
        page.wait_for_timeout(500)
        picture = page.screenshot()
        browser.close()
    if len(picture) > LIMIT:
        raise ValueError(f"{len(picture)} bytes, at most {LIMIT}")
    TARGET.write_bytes(picture)
    print(f"{TARGET.relative_to(ROOT)}: {len(picture) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
