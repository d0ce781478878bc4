"""The book as a PDF: the single page, printed by Chromium.

Printed twice, since only the first print knows on which pages the chapters
begin.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader

from book import single
from book.browser import FLAGS, chromium

# the width of the text in CSS pixels, as the style sheet has it in millimetres:
# explorers draw themselves for it
WIDTH = round((210 - 2 * 17) * 96 / 25.4)
PATIENCE = 600_000
FILL = """(pages) => document.querySelectorAll("[data-at]").forEach(
  (place) => { place.textContent = pages[place.dataset.at] ?? ""; })"""
UNFOLDED = """() => document.querySelectorAll(".ds-explorer").forEach(
  (e) => e.shadowRoot?.querySelectorAll("figure details").forEach(
    (fold) => { fold.hidden = true; }))"""


def page_numbers(pdf: Path) -> dict[str, int]:
    """Return on which page of a PDF each target of a link stands."""
    reader = PdfReader(pdf)
    return {
        name.lstrip("/"): reader.get_destination_page_number(target) + 1
        for name, target in reader.named_destinations.items()
    }


def save(page: Page, target: Path) -> None:
    """Print the page that is open."""
    page.pdf(
        path=target,
        prefer_css_page_size=True,
        print_background=True,
        outline=True,
        tagged=True,
    )


def to_pdf(source: Path, target: Path) -> int:
    """Print a single page and return its number of sheets."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        page = browser.new_page(
            viewport={"width": WIDTH, "height": 1100},
            color_scheme="light",
            reduced_motion="reduce",
        )
        page.set_default_timeout(PATIENCE)
        page.goto(source.as_uri(), wait_until="load")
        page.emulate_media(media="print", color_scheme="light")
        page.evaluate("document.fonts.ready")
        page.evaluate(UNFOLDED)
        save(page, target)
        page.evaluate(FILL, page_numbers(target))
        save(page, target)
        browser.close()
    return len(PdfReader(target).pages)


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
    sheets = to_pdf(source, target)
    size = target.stat().st_size / 1e6
    print(f"{target}: {sheets} pages, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
