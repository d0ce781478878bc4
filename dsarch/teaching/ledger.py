"""The ledger: no figure in the prose without a computation or a source.

``ledger/03.toml`` holds the figures of chapter 3, ``ledger/intro.toml``
those of the front page:

    names = ["Mixtral 8x7B"]
    imports = ["dsarch.rope"]
    figures = [
      {text = "70,272 bytes", expr = "kv_bytes_per_token(V3)"},
      {text = "from 57 to 14.2 %", expr = ["mha / mla", "mla / gqa"]},
      {text = "93.3 %", source = "deepseek2024v2", where = "section 3.2.3"},
      {text = "3.1 times", output = "speed-up 3.1"},
      {text = "a batch of 32", choice = "size of the example"},
    ]
    [define]
    mla = "kv_elements_per_token(V3)"

``python -m dsarch.teaching.ledger`` lists what is missing, with the line to
add; ``--values`` prints every entry and what it evaluates to.
"""

import argparse
import importlib
import math
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dsarch.config import Config
from dsarch.teaching.figures import UNITS, Figure, numbers
from dsarch.teaching.pages import cells, chapters, key, prose, root

KINDS = ("expr", "source", "output", "choice")
MODULES = ("count", "decode", "presets")
FRONT = "intro README notation glossary troubleshooting".split()
WALK = "walk.ipynb"


def pages() -> list[Path]:
    """Every page whose figures the ledger answers for."""
    front = [root() / f"{name}.md" for name in FRONT] + [root() / WALK]
    return [path for path in front if path.is_file()] + chapters()


def book_of(page: Path) -> Path:
    """The ledger file of a page."""
    return root() / "ledger" / f"{key(page).lower()}.toml"


@cache
def scope() -> dict[str, Any]:
    """What every expression may name."""
    known: dict[str, Any] = {
        **vars(math),
        "Config": Config,
        "TINY": Config(),
        "V2_LITE": Config.v2_lite(),
        "V2": Config.v2(),
        "V3": Config.v3(),
        "V3_2": Config.v3_2(),
    }
    for name in MODULES:
        known |= _public(f"dsarch.analysis.{name}")
    return known


def _public(module: str) -> dict[str, Any]:
    found = vars(importlib.import_module(module))
    return {k: v for k, v in found.items() if not k.startswith("_")}


class Ledger:
    """The entries of one page, ready to be compared with it.

    ``ValueError`` if the file is no TOML or an entry is not understood.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf8") if path.is_file() else ""
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path.name}: {error}") from None
        self.entries: list[dict[str, Any]] = content.get("figures", [])
        self.names: list[str] = content.get("names", [])
        self.scope = scope() | {"__builtins__": BUILTINS}
        for module in content.get("imports", []):
            self.scope |= _public(module)
        for name, expression in content.get("define", {}).items():
            self.scope[name] = self.value(expression)
        for entry in self.entries:
            if sum(kind in entry for kind in KINDS) != 1 or "text" not in entry:
                raise ValueError(
                    f"{path.name}: {entry} needs a text and one of {KINDS}"
                )

    def value(self, expression: str) -> Any:
        """What an expression of the ledger evaluates to."""
        try:
            return eval(expression, self.scope)
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(
                f"{self.path.name}: {expression}: {kind}: {error}"
            ) from None


BUILTINS = {f.__name__: f for f in (abs, len, max, min, round, sum, int, range)}


def pattern(text: str) -> re.Pattern[str]:
    """Finds ``text`` over line breaks, but not inside a longer number."""
    words = r"\s+".join(map(re.escape, text.split()))
    before = r"(?<![\d])(?<!\d[.,])" if text[:1].isdigit() else ""
    after = r"(?!\d|[.,]\d|\{,\})" if text[-1:].isdigit() else ""
    return re.compile(before + words + after)


def problems(page: Path, ledger: Ledger | None = None) -> Iterator[str]:
    """Everything that is wrong between a page and its ledger.

    A figure without an entry is named once, however often it stands there.
    """
    try:
        ledger = ledger or Ledger(book_of(page))
    except ValueError as error:
        yield str(error)
        return
    texts = [entry["text"] for entry in ledger.entries] + ledger.names
    seen, listed = set[str](), set[str]()
    for place, source in prose(page):
        spans = []
        for text in texts:
            found = [m.span() for m in pattern(text).finditer(source)]
            seen.update([text] if found else [])
            spans += found
        for figure in numbers(source):
            new = figure.counts and figure.text not in listed
            if new and not _covered(figure, spans):
                listed.add(figure.text)
                yield _missing(place, source, figure)
    for text in texts:
        if text not in seen:
            yield f"{ledger.path.name}: {text!r} is no longer in {page.name}"
    for entry in ledger.entries:
        for problem in check(entry, ledger, page):
            yield f"{ledger.path.name}: {entry['text']!r} {problem}"


def _covered(figure: Figure, spans: list[tuple[int, int]]) -> bool:
    digits = figure.end - len(figure.unit)
    return any(a <= figure.start and digits <= b + 1 for a, b in spans)


def _missing(place: str, source: str, figure: Figure) -> str:
    around = source[max(0, figure.start - 30) : figure.end + 30]
    text = figure.text.replace("\\", "\\\\").replace('"', '\\"')
    text = " ".join(text.split())
    return (
        f"{place}: … {' '.join(around.split())} …\n"
        f'  {{text = "{text}", expr = ""}},'
    )


def check(entry: dict[str, Any], ledger: Ledger, page: Path) -> Iterator[str]:
    """What is wrong with one entry."""
    if "source" in entry:
        if entry["source"] not in sources():
            yield f"cites {entry['source']!r}, which is not in references.bib"
        if not entry.get("where"):
            yield "needs the place in its source: where"
    elif "output" in entry:
        if entry["output"] not in outputs(page):
            yield f"should be in an output, but none has {entry['output']!r}"
        for figure in printed(entry):
            if _digits(figure) not in entry["output"]:
                yield f"is not the number of the output {entry['output']!r}"
    elif "choice" in entry:
        if not entry["choice"].strip():
            yield "needs a reason for the choice"
    else:
        yield from _compare(entry, ledger)


def _compare(entry: dict[str, Any], ledger: Ledger) -> Iterator[str]:
    found, wanted = printed(entry), entry["expr"]
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if len(found) != len(wanted):
        yield f"has {len(found)} figures for {len(wanted)} expressions"
        return
    for figure, expression in zip(found, wanted, strict=True):
        unit = entry.get("unit", UNITS.get(figure.unit, 1))
        try:
            value = float(ledger.value(expression)) / unit
        except (TypeError, ValueError) as error:
            yield f"cannot be computed: {error}"
            continue
        step = max(figure.step, 10.0 ** entry.get("round", -99))
        if not abs(value - figure.value) <= step / 2 * (1 + 1e-9):
            yield f"is computed as {value:.10g} {figure.unit}: {expression}"


def printed(entry: dict[str, Any]) -> list[Figure]:
    """The figures of an entry: small integers count if there must be more."""
    every = numbers(entry["text"])
    expressions = entry.get("expr", [])
    wanted = 1 if isinstance(expressions, str) else len(expressions)
    return every if len(every) == wanted else [f for f in every if f.counts]


def _digits(figure: Figure) -> str:
    return "".join(re.findall(r"^[\d,.]+", figure.text)).rstrip(".,")


@cache
def sources() -> frozenset[str]:
    """The keys of the bibliography."""
    text = (root() / "references.bib").read_text(encoding="utf8")
    return frozenset(re.findall(r"@\w+\{\s*([^,\s]+)", text))


def outputs(page: Path) -> str:
    """All text that a notebook has stored as output."""
    if page.suffix != ".ipynb":
        return ""
    stored = [c.get("outputs", []) for c in cells(page)]
    parts = [
        out.get("text") or out.get("data", {}).get("text/plain") or ""
        for row in stored
        for out in row
    ]
    return "\n".join("".join(part) for part in parts)


def show(page: Path) -> None:
    """Print every entry of a page with its value."""
    ledger = Ledger(book_of(page))
    for entry in ledger.entries:
        row = entry.get("expr", [])
        row = [row] if isinstance(row, str) else row
        values = ", ".join(f"{ledger.value(x):.10g}" for x in row)
        ground = values or next(
            f"{kind}: {entry[kind]}" for kind in KINDS if kind in entry
        )
        print(f"{page.stem}: {entry['text']}  =  {ground}")


def main() -> int:
    """Check the named pages, or all of them."""
    parser = argparse.ArgumentParser(description="check the figures")
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--values", action="store_true")
    args = parser.parse_args()
    count = 0
    for page in args.pages or pages():
        if args.values:
            show(page)
            continue
        for problem in problems(page):
            count += 1
            print(problem)
    if count:
        print(f"{count} problems")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
