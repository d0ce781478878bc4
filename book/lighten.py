"""The built site without what no page of it uses.

The theme brings all icons of its icon font, twice, and the search index with
every page. What stays is the dozen icons in use, once, and the index on the
search page.
"""

import re
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

ICON_SCRIPT = re.compile(
    r'\s*<script[^>]*\bsrc="[^"]*scripts/fontawesome\.js[^"]*"[^>]*></script>'
)
SEARCH_SCRIPT = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js">'
    r"</script>"
)
# a corner without words is no header of anything
EMPTY_HEADER = re.compile(r'<th class="head[^"]*">(?:<p></p>)?</th>')
# the same id for all exercises of a page is an id of none
SHARED_ID = re.compile(r' id="(?:exercise|solution)-content"')
ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\(\w+)"\}')
ICON_NAME = re.compile(r"\bfa-[a-z0-9-]+")
CODE_POINT = re.compile(r'"\\([ef][0-9a-f]{3})"')
# colours of terminals, 256 of them as letters and as ground
ANSI_RULE = re.compile(r"^div\.highlight \.-Color[^{}]*\{[^}]*\}\n*", re.M)
FONT = "vendor/fontawesome/webfonts/fa-solid-900"


def lighten_page(path: Path) -> None:
    """Drop scripts that a page does not need."""
    text = path.read_text(encoding="utf8")
    lighter = EMPTY_HEADER.sub("<td></td>", ICON_SCRIPT.sub("", text))
    lighter = SHARED_ID.sub("", lighter)
    if path.name != "search.html":
        lighter = SEARCH_SCRIPT.sub("", lighter)
    if lighter != text:
        path.write_text(lighter, encoding="utf8")


def used_icons(site: Path) -> set[str]:
    """Name the icons that pages and scripts mention."""
    files = [*site.rglob("*.html"), *site.rglob("*.js")]
    return {
        name
        for path in files
        for name in ICON_NAME.findall(path.read_text(encoding="utf8"))
    }


def lighten_icons(static: Path, used: set[str]) -> None:
    """Keep the rules and the shapes of the icons in use."""
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    font = static / f"{FONT}.ttf"

    def keep(rule: re.Match) -> str:
        return rule[0] if used & set(ICON_NAME.findall(rule[1])) else ""

    text = ICON_RULE.sub(keep, sheet.read_text(encoding="utf8"))
    points = {int(point, 16) for point in CODE_POINT.findall(text)}
    for other in ("sphinx-book-theme.css",):
        more = (static / "styles" / other).read_text(encoding="utf8")
        points |= {int(point, 16) for point in CODE_POINT.findall(more)}
    shapes = TTFont(font)
    work = subset.Subsetter(subset.Options(hinting=False, flavor="woff"))
    work.populate(unicodes=points)
    work.subset(shapes)
    shapes.flavor = "woff"
    shapes.save(static / f"{FONT}.woff")
    text = text.replace(
        f'{FONT}.woff2) format("woff2")', f'{FONT}.woff) format("woff")'
    )
    sheet.write_text(text, encoding="utf8")
    for unused in (static / "vendor/fontawesome/webfonts").glob("*.ttf"):
        unused.unlink()


def lighten_colours(site: Path) -> None:
    """Drop the colours of terminals if no page has any."""
    pages = (path.read_text(encoding="utf8") for path in site.rglob("*.html"))
    if any('class="-Color' in text for text in pages):
        return
    for sheet in (site / "_static").glob("mystnb.*.css"):
        text = sheet.read_text(encoding="utf8")
        sheet.write_text(ANSI_RULE.sub("", text), encoding="utf8")


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Do all of it when the site has been written."""
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    static = site / "_static"
    for page in site.rglob("*.html"):
        lighten_page(page)
    lighten_colours(site)
    for name in ("fontawesome.js", "fontawesome.js.map"):
        (static / "scripts" / name).unlink(missing_ok=True)
    if (static / f"{FONT}.ttf").exists():
        lighten_icons(static, used_icons(site))
