"""Measure every page of the built site, and each chapter's run if asked.

Weight is what a first visit decodes, shared files included; first paint is
the median of three first visits from this machine; findings are axe's, with
all its rules, in the light and in the dark.
"""

import argparse
import statistics
import sys
from collections import Counter
from pathlib import Path

import axe_playwright_python
import nbformat
from playwright.sync_api import Browser, Page, sync_playwright

from book.browser import FLAGS, chromium, served
from book.contents import ROOT
from book.run_notebooks import clean, execute

SITE = ROOT / "_build" / "html"
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
# Without preload, or axe looks for imported style sheets at wrong places. The
# drawn half of a formula is hidden from assistive technology; what speaks is
# its MathML, which axe does not count as the text of a header cell.
AXE_RUN = """async (only) => (await axe.run(
  {include: [["html"]], exclude: [[".katex-html"]]},
  {
    preload: false,
    resultTypes: ["violations"],
    rules: {"empty-table-header": {enabled: false}},
    ...(only && {runOnly: only}),
  },
)).violations"""
CONTRAST = ["color-contrast", "link-in-text-block"]
SIZE = """() => performance.getEntries()
  .filter(e => ["navigation", "resource"].includes(e.entryType))
  .reduce((sum, e) => sum + e.decodedBodySize, 0)"""
PAINT = """() => new Promise(found => new PerformanceObserver(list => {
  for (const e of list.getEntries())
    if (e.name === "first-contentful-paint") found(e.startTime);
}).observe({type: "paint", buffered: true}))"""
IS_DARK = "() => document.documentElement.dataset.theme === 'dark'"
PATIENCE = 120_000
SEVERITIES = ("minor", "moderate", "serious", "critical")
SCALE = "/".join(SEVERITIES)
HEAD = f"{'page':44}MB  paint ms  axe light  axe dark   run s  ({SCALE})"


def names() -> list[str]:
    """Name the pages that somebody wrote."""
    found = [path.relative_to(SITE) for path in SITE.rglob("*.html")]
    made = {"index.html", "genindex.html", "py-modindex.html", "search.html"}
    return sorted(
        path.as_posix()
        for path in found
        if path.name not in made and not path.parts[0].startswith("_")
    )


def findings(page: Page) -> str:
    """Count what axe finds on the open page, by severity."""
    count: Counter[str] = Counter()
    for found in page.evaluate(AXE_RUN, None):
        count[found["impact"]] += len(found["nodes"])
    return "/".join(str(count[name]) for name in SEVERITIES)


def visit(browser: Browser, url: str) -> tuple[float, float, str, str]:
    """Return weight, first paint and findings in both schemes of one page."""
    paints, size, found = [], 0.0, {}
    for scheme in ("none", "light", "dark"):
        looks = {} if scheme == "none" else {"color_scheme": scheme}
        context = browser.new_context(reduced_motion="reduce", **looks)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url, wait_until="networkidle")
        paints.append(page.evaluate(PAINT))
        size = page.evaluate(SIZE)
        if looks:
            page.add_script_tag(path=AXE)
            found[scheme] = findings(page)
        context.close()
    return size, statistics.median(paints), found["light"], found["dark"]


def run_seconds(name: str) -> float | None:
    """Run the notebook of a page, if it has one, and write nothing."""
    path = ROOT / name.replace(".html", ".ipynb")
    if not path.exists():
        return None
    notebook = nbformat.read(path, as_version=4)
    clean(notebook)
    return execute(notebook, path.parent, timeout=600)


def main() -> int:
    """Print one line per page as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run chapters too")
    run = parser.parse_args().run
    if not chromium() or not SITE.exists():
        print("A built site and a Chromium are needed: make site")
        return 1
    print(HEAD)
    with served(SITE) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        for name in names():
            size, paint, light, dark = visit(browser, f"{base}/{name}")
            seconds = run_seconds(name) if run else None
            ran = "" if seconds is None else f"{seconds:8.1f}"
            print(
                f"{name:40}{size / 1e6:6.2f}{paint:10.0f}"
                f"{light:>11}{dark:>10}{ran}",
                flush=True,
            )
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
