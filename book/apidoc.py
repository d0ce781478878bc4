"""The reference pages: every module of the package, read by autodoc.

Docstrings hold Markdown marks (`code` and $formulas$); autodoc wants
reStructuredText.
"""

import importlib.util
import re

from sphinx.application import Sphinx
from sphinx.config import Config

from book.contents import ROOT

MARK = "<!-- modules -->"
# a formula ends before the next blank line
INLINE = r"\$(?:(?!\n\s*\n)[^$])+?\$"
FORMULA = re.compile(rf"(\$\$.+?\$\$|{INLINE})", re.S)
CODE = re.compile(r"(?<![`:\w])`(?P<code>[^`\n]+)`(?![`_])")
# an indented block is code
BLOCK = re.compile(r"(?<!::)\n\n(?= {4}\S)")
SECTION = """## {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
```"""


# The order in which chapters build the model; others follow by name.
ORDER = (
    "config released layers rope cache attention mla dsa router moe mtp block "
    "model generate checkpoint"
).split()


def modules(page: str) -> list[str]:
    """Name the modules of one page: a folder, or all outside folders."""
    folder = ROOT / "dsarch" / page
    if page != "model":
        paths = sorted(folder.rglob("*.py"))
    else:
        paths = sorted(
            (ROOT / "dsarch").glob("*.py"),
            key=lambda path: (
                ORDER.index(path.stem) if path.stem in ORDER else len(ORDER),
                path.stem,
            ),
        )
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if not path.stem.startswith("__")
    ]


def list_modules(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put one section per module in place of the mark."""
    folder, _, page = docname.partition("/")
    if folder != "api" or MARK not in source[0]:
        return
    sections = [SECTION.format(name=name) for name in modules(page)]
    source[0] = source[0].replace(MARK, "\n\n".join(sections))


def formula(text: str) -> str:
    """Write a formula of a docstring as reStructuredText."""
    body = " ".join(text.strip("$").split())
    if text.startswith("$$"):
        return f"\n\n.. math:: {body}\n\n"
    return f":math:`{body}`"


def translate(app: Sphinx, what, name, obj, options, lines: list[str]) -> None:
    """Turn the Markdown marks of a docstring into reStructuredText."""
    parts = FORMULA.split("\n".join(lines))
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = formula(part)
        else:
            words = CODE.sub(r"``\g<code>``", part)
            parts[index] = BLOCK.sub("\n\n::\n\n", words)
    lines[:] = "".join(parts).split("\n")


def allow_missing(app: Sphinx, config: Config) -> None:
    """Let the page be built where Triton does not exist."""
    if importlib.util.find_spec("triton") is None:
        config.autodoc_mock_imports.append("triton")


def setup(app: Sphinx) -> None:
    """Connect the steps."""
    app.connect("config-inited", allow_missing)
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", translate)
