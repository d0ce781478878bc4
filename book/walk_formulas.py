"""Write the formulas of the walks as MathML, which needs no style sheet.

The walks stand in a shadow tree, and in JupyterLab as well: neither sees the
style of the site's formulas. `python -m book.walk_formulas` after a change.
"""

import json
import re
from pathlib import Path

from book.contents import ROOT
from book.formulas import to_html
from dsarch.teaching.walks import words

PATH: Path = ROOT / "dsarch" / "teaching" / "walks" / "formulas.json"
NOISE = re.compile(
    r'</?span[^>]*>|<annotation.*?</annotation>|</?semantics>| xmlns="[^"]*"',
    re.S,
)


def mathml(tex: str) -> str:
    """Return one formula without what only editors read."""
    return NOISE.sub("", to_html(tex, True, "mathml"))


def text() -> str:
    """Return the file for all formulas of all walks."""
    found = {
        said.tex: mathml(said.tex)
        for walk in words.ALL.values()
        for said in walk.values()
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file."""
    PATH.write_text(text(), encoding="utf8")


if __name__ == "__main__":
    main()
