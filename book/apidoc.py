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
FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.S)
CODE = re.compile(r"(?<![`:\w])`(?P<code>[^`\n]+)`(?![`_])")
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


def formula(match: re.Match) -> str:
    """Write a formula of a docstring as reStructuredText."""
    if match["inline"]:
        return f":math:`{match['inline']}`"
    body = " ".join(match["display"].split())
    return f"\n\n.. math:: {body}\n\n"


def translate(app: Sphinx, what, name, obj, options, lines: list[str]) -> None:
    """Turn the Markdown marks of a docstring into reStructuredText."""
    parts = re.split(
        r"(\$\$.+?\$\$|\$[^$\n]+?\$)", "\n".join(lines), flags=re.S
    )
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = FORMULA.sub(formula, part)
        else:
            parts[index] = CODE.sub(r"``\g<code>``", part)
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
