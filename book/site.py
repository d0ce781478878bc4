"""The book's Sphinx extension: what the site needs beyond its tools.

Formulas are rendered while building, SVG figures become part of the page and
follow its colours, links to chapters resolve once the chapter exists, and the
head of every page is as light as it can be.
"""

import html

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from book import (
    apidoc,
    contents,
    formulas,
    inline_svg,
    launch,
    lighten,
    numbering,
)


class ChapterRole(SphinxRole):
    """Name a chapter by number, as a link where the chapter is written."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return a link to the chapter or its name as plain text."""
        number = int(self.text)
        page, title = contents.CHAPTERS[number]
        words = self.form.format(number=number, title=title)
        if page not in self.env.found_docs:
            return [nodes.emphasis("", words)], []
        link = addnodes.pending_xref(
            "",
            nodes.inline("", words),
            refdomain="std",
            reftype="doc",
            reftarget=f"/{page}",
            refdoc=self.env.docname,
            refexplicit=True,
            refwarn=True,
        )
        return [link], []


def add_description(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict,
    doctree: nodes.document | None,
) -> None:
    """Give a page without a description its first paragraph as one."""
    tags = context.get("metatags", "")
    if doctree is None or 'name="description"' in tags:
        return
    paragraphs = doctree.findall(nodes.paragraph)
    first = next((found.astext() for found in paragraphs), "")
    text = html.escape(" ".join(first.split())[:155], quote=True)
    context["metatags"] = f'{tags}\n<meta name="description" content="{text}"/>'


def setup(app: Sphinx) -> dict:
    """Register everything with Sphinx."""
    formulas.setup(app)
    apidoc.setup(app)
    launch.setup(app)
    numbering.setup()
    app.add_role("chapter", ChapterRole("Chapter {number}: {title}"))
    app.add_role("chapter-title", ChapterRole("{number} {title}"))
    app.add_role("chapter-number", ChapterRole("Chapter {number}"))
    app.add_post_transform(inline_svg.InlineSvg)
    app.connect("html-page-context", add_description)
    app.connect("build-finished", lighten.lighten)
    # Jupyter Book sets it; the extension that owns it is not loaded
    if "comments_config" not in app.config:
        app.add_config_value("comments_config", {}, "html")
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
