"""All chapters have one build: headings, first cell, figures, length."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

import dsarch
from book import contents
from tests.book.stored import (
    CHAPTERS,
    PAGES,
    ROOT,
    cells,
    code,
    data,
    markdown,
    outside_code,
    prose,
    stem,
)

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=stem)
SPINE = [
    "Overview",
    "When to use it",
    "Mathematical foundation",
    "Implementation",
    "Performance analysis",
    "Practical tips",
    "Exercises",
    "How faithful is this?",
    "Remember",
    "References",
]
WORDS = range(2000, 4501)
PLANNED = {f"chapters/{slug}" for p in contents.PARTS.values() for slug, _ in p}


def test_the_table_of_contents_names_what_exists() -> None:
    """`python -m book.contents` writes it."""
    text = (ROOT / "_toc.yml").read_text(encoding="utf8")
    assert yaml.safe_load(text) == contents.toc()
    for path in CHAPTERS:
        assert f"chapters/{path.stem}" in PLANNED, path.name


@chapters
def test_the_ten_headings_stand_in_order(path: Path) -> None:
    text = outside_code(markdown(path))
    assert re.findall(r"^## (.+?)\s*$", text, re.M) == SPINE
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert cells(path)[0]["source"].startswith(("# ", "("))


def test_the_first_code_cell_is_the_same_everywhere() -> None:
    first = {code(path)[0]["source"] for path in CHAPTERS}
    assert len(first) <= 1, "\n---\n".join(sorted(first))


@chapters
def test_there_is_an_explorer_and_two_figures(path: Path) -> None:
    outputs = code(path)
    explorers = sum(
        'class="ds-explorer"' in html
        for cell in outputs
        for html in data(cell, "text/html")
    )
    drawn = sum(len(data(cell, "image/svg+xml")) for cell in outputs)
    included = len(re.findall(r"!\[|\{(?:figure|image)\}", markdown(path)))
    assert explorers >= 1
    assert drawn + included >= 2


@chapters
def test_images_of_the_prose_have_alt_texts(path: Path) -> None:
    text = markdown(path)
    assert not re.findall(r"!\[\s*\]\(", text)
    blocks = re.findall(r"\{(?:figure|image)\}(.*?)^[`:]{3}", text, re.M | re.S)
    assert all(":alt:" in block for block in blocks)
    assert "http" not in "".join(re.findall(r"!\[.*?\]\((.*?)\)", text))


def defined(source: str) -> set[str]:
    """Name the functions and classes that a cell defines."""
    lines = [line for line in source.splitlines() if line[:1] not in "%!"]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return set()
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


@chapters
def test_cells_do_not_define_what_the_package_defines(path: Path) -> None:
    names = set().union(*(defined(c["source"]) for c in code(path)), set())
    assert not names & set(dsarch.__all__)


@chapters
def test_the_length_is_that_of_a_chapter(path: Path) -> None:
    words = len(re.findall(r"[A-Za-z][\w'-]*", prose(path)))
    assert words in WORDS, f"{words} words of prose"


@chapters
def test_formulas_render_in_both_places(path: Path) -> None:
    """JupyterLab knows no macros; `align` would be numbered twice."""
    text = markdown(path)
    assert r"\newcommand" not in text
    assert r"\begin{align}" not in text


def test_equation_labels_are_unique_and_named() -> None:
    labels: Counter[str] = Counter()
    for path in PAGES:
        text = markdown(path)
        labels.update(re.findall(r"\$\$[ \t]*\(([\w-]+)\)\s*$", text, re.M))
        blocks = re.findall(r"\{math\}(.*?)^`{3}", text, re.M | re.S)
        for block in blocks:
            labels.update(re.findall(r":label: (\S+)", block))
    assert not [name for name, times in labels.items() if times > 1]
    assert not [name for name in labels if not name.startswith("eq-")]
