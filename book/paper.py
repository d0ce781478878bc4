"""The book as a PDF: the single page, printed by Chromium.

Printed twice, since only the first print knows on which pages the chapters
begin.
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from pypdf import PdfReader

from book import single
from book.browser import FLAGS, chromium

# the width of the text in CSS pixels, as the style sheet has it in millimetres:
# explorers draw themselves for it
WIDTH = round((210 - 2 * 17) * 96 / 25.4)
PATIENCE = 600_000
FILL = """(pages) => document.querySelectorAll("[data-at]").forEach(
  (place) => { place.textContent = pages[place.dataset.at] ?? ""; })"""
# what an explorer folds away is not of its first state
FOLDED = """() => document.querySelectorAll(".ds-explorer").forEach(
  (e) => e.shadowRoot?.querySelectorAll("figure details").forEach(
    (fold) => { fold.hidden = true; }))"""


def page_numbers(pdf: PdfReader) -> dict[str, int]:
    """Return on which page of a PDF each target of a link stands."""
    found = {}
    for name, target in pdf.named_destinations.items():
        place = pdf.get_destination_page_number(target)
        if place is not None:
            found[name.lstrip("/")] = place + 1
    return found


def opened(browser: Browser, source: Path) -> Page:
    """Open the single page as it will be laid out on paper."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": 1100},
        color_scheme="light",
        reduced_motion="reduce",
    )
    page.set_default_timeout(PATIENCE)
    page.emulate_media(media="print", color_scheme="light")
    page.goto(source.as_uri(), wait_until="load")
    page.evaluate("document.fonts.ready")
    page.evaluate(FOLDED)
    return page


def save(page: Page, target: Path) -> PdfReader:
    """Print the page that is open."""
    page.pdf(
        path=target,
        prefer_css_page_size=True,
        print_background=True,
        outline=True,
        tagged=True,
    )
    return PdfReader(target)


def to_pdf(browser: Browser, source: Path, target: Path) -> int:
    """Print a single page and return its number of sheets."""
    page = opened(browser, source)
    page.evaluate(FILL, page_numbers(save(page, target)))
    sheets = len(save(page, target).pages)
    page.close()
    return sheets


def main() -> int:
    """Write `_build/print/dsarch.html` and `.pdf` from the built site."""
    if not (single.SITE / "intro.html").exists():
        print("There is no site to print: make site")
        return 1
    source = single.write(single.SITE, single.TARGET, single.plan())
    print(f"{source}: {source.stat().st_size / 1e6:.1f} MB")
    if not chromium():
        print("No Chromium or Chrome was found (set CHROMIUM): no PDF.")
        return 1
    target = source.with_suffix(".pdf")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        sheets = to_pdf(browser, source, target)
        browser.close()
    size = target.stat().st_size / 1e6
    print(f"{target}: {sheets} pages, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
