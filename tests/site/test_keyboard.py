"""With the keyboard alone: every stop is in view and shows that it is one."""

import pytest
from playwright.sync_api import Browser, Page

from book.contents import CHAPTERS
from tests.site.pages import opened

STOP = """() => {
  let e = document.activeElement;
  while (e?.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;
  if (!e || e === document.body) return null;
  const box = e.getBoundingClientRect(), look = getComputedStyle(e);
  const drawn = (style) => style.outlineStyle !== "none";
  const twin = e.labels?.[0] ?? e.nextElementSibling;
  const beside = [twin, e.nextElementSibling].some(
    (other) => other && drawn(getComputedStyle(other)));
  return {
    name: `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`,
    seen: look.opacity > 0 ? drawn(look) : beside,
    inside: box.bottom > 0 && box.top < innerHeight
      && box.right > 0 && box.left < innerWidth,
  };
}"""
LIMIT = 900


def stops(page: Page) -> list[dict]:
    """Press Tab until the page has been walked through."""
    found = []
    while len(found) < LIMIT:
        page.keyboard.press("Tab")
        if (stop := page.evaluate(STOP)) is None:
            break
        found.append(stop)
    return found


@pytest.mark.parametrize("width", [1280, 360])
def test_every_stop_is_seen(browser: Browser, base: str, width: int) -> None:
    page_name, _ = CHAPTERS[8]
    size = {"width": width, "height": 900}
    url = f"{base}/{page_name}.html"
    with opened(browser, url, base, viewport=size) as (page, _):
        page.wait_for_load_state("networkidle")
        found = stops(page)
        solutions = page.locator("button.toggle-button").count()
    assert 100 < len(found) < LIMIT
    assert sum("toggle-button" in stop["name"] for stop in found) == solutions
    # the skip link slides in and is still above the page when asked
    hidden = [s["name"] for s in found[1:] if not (s["seen"] and s["inside"])]
    assert not hidden, hidden
