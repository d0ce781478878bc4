"""SVG figures as part of the page, in the colours of its theme."""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

LOG = logging.getLogger(__name__)

# What is black or white on paper follows the theme on the page.
THEME = {
    "#000000": "var(--pst-color-text-base, #000)",
    "#ffffff": "var(--pst-color-background, #fff)",
}
NAME = re.compile(
    r'<svg[^>]*\saria-label="(?P<label>[^"]+)"'
    r"|<title[^>]*>(?P<title>[^<]+)</title>"
    r"|<dc:title>(?P<dc>[^<]+)</dc:title>"
    r"|<desc[^>]*>(?P<desc>[^<]+)</desc>"
)
# Frames around single shapes, turns by nothing and indentation carry no ink.
LONE = re.compile(r'<g id="[^"]*patch_\d+">\s*(<path[^>]*/>)\s*</g>')
UNTURNED = re.compile(r' transform="rotate\(-?0 [-\d.]+ [-\d.]+\)"')


def alt_text(svg: str) -> str:
    """Return the name that an SVG carries itself, or an empty string."""
    match = NAME.search(svg)
    found = next(filter(None, match.groups())) if match else ""
    return html.unescape(found).strip()


def inline(svg: str, key: str, alt: str) -> str:
    """Return `svg` with ids of its own, theme colours and a name."""
    start = svg.index("<svg")
    end = svg.index(">", start)
    head, body = svg[start:end], svg[end + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # a title inside would pop up under the pointer, over the whole figure
    body = re.sub(r"^\s*<title[^>]*>.*?</title>", "", body, flags=re.S)
    body = LONE.sub(r"\1", UNTURNED.sub("", body))
    body = re.sub(r"\n\s+", "\n", body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{key}-", body)
    for paper, screen in THEME.items():
        body = body.replace(paper, screen)
    box = re.search(r'viewBox="([^"]+)"', head)
    if not box:
        raise ValueError("an SVG figure needs a viewBox")
    # matplotlib writes points, a drawing by hand pixels
    scale = 96 / 72 if re.search(r'width="[\d.]+pt"', head) else 1
    width = round(float(box[1].split()[2]) * scale)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg"'
        ' xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{box[1]}" class="ds-figure" role="img"'
        f' aria-label="{html.escape(alt, quote=True)}"'
        f' style="width:100%;max-width:{width}px;height:auto">{body}'
    )


class InlineSvg(SphinxPostTransform):
    """Replace each image node of a local SVG by the drawing itself."""

    default_priority = 200
    formats = ("html",)

    def source(self, uri: str) -> Path:
        """Find the file: an output of a notebook or a drawing of the book."""
        path = Path(self.app.srcdir) / uri
        if path.exists():
            return path
        return Path(self.app.outdir).parent / "jupyter_execute" / path.name

    def run(self, **kwargs: object) -> None:
        """Do it for one page."""
        images = self.document.findall(nodes.image)
        local = [
            node
            for node in images
            if node["uri"].endswith(".svg") and "://" not in node["uri"]
        ]
        for count, node in enumerate(local, 1):
            svg = self.source(node["uri"]).read_text(encoding="utf8")
            alt = node.get("alt") or alt_text(svg)
            if not alt:
                LOG.warning(
                    "a figure without alt text",
                    location=node,
                    type="book",
                    subtype="alt",
                )
            text = inline(svg, f"fig{count}", alt)
            node.replace_self(nodes.raw("", text, format="html"))
