"""The ledger fits the pages, and notices a wrong or unlisted figure."""

import json
from pathlib import Path

import pytest

from dsarch.teaching import ledger
from dsarch.teaching.ledger import Ledger, problems


@pytest.mark.parametrize("page", ledger.pages(), ids=lambda path: path.stem)
def test_every_figure_of_the_book_is_accounted_for(page: Path) -> None:
    assert list(problems(page)) == []


TEXT = """\
# A page

Every token of V3 leaves 70,272 bytes behind, 56.9 times less than the
expanded
keys; a loss of 93.3 % is reported.
"""
BYTES = '{text = "70,272 bytes", expr = "kv_bytes_per_token(V3)"}'
TIMES = '{text = "56.9 times less than the expanded keys", expr = "mha / 576"}'
LOSS = '{text = "93.3 %", source = "deepseek2024v2", where = "section 3.2.3"}'
DEFINE = '[define]\nmha = "2 * 128 * 128"\n'


def found(
    folder: Path, *entries: str, text: str = TEXT, define: str = DEFINE
) -> list[str]:
    """The problems of a page with these entries in its ledger."""
    page, book = folder / "page.md", folder / "page.toml"
    page.write_text(text, encoding="utf8")
    rows = ",\n".join(entries)
    book.write_text(f"figures = [\n{rows}\n]\n{define}", encoding="utf8")
    return list(problems(page, Ledger(book)))


def test_a_page_whose_figures_are_listed_is_right(tmp_path: Path) -> None:
    assert found(tmp_path, BYTES, TIMES, LOSS) == []


def test_an_unlisted_figure_is_found_with_the_line_to_add(
    tmp_path: Path,
) -> None:
    (problem,) = found(tmp_path, BYTES, LOSS)
    assert problem.startswith("page.md: … ")
    assert '  {text = "56.9 times", expr = ""},' in problem


@pytest.mark.parametrize("printed", ["70,273", "70,27", "7,272", "70,272.4"])
def test_a_wrong_figure_is_found(tmp_path: Path, printed: str) -> None:
    text = TEXT.replace("70,272", printed)
    entry = BYTES.replace("70,272", printed)
    (problem,) = found(tmp_path, entry, TIMES, LOSS, text=text)
    assert "is computed as 70272 bytes: kv_bytes_per_token(V3)" in problem


def test_a_figure_that_was_edited_in_the_text_is_found_twice(
    tmp_path: Path,
) -> None:
    text = TEXT.replace("70,272", "170,272")
    new, old = found(tmp_path, BYTES, TIMES, LOSS, text=text)
    assert '{text = "170,272 bytes"' in new
    assert "'70,272 bytes' is no longer in page.md" in old


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (LOSS.replace("deepseek2024v2", "nobody"), "not in references.bib"),
        (LOSS.replace("section 3.2.3", ""), "needs the place"),
        ('{text = "93.3 %", choice = " "}', "needs a reason"),
        ('{text = "93.3 %", output = "93.3"}', "none has '93.3'"),
        ('{text = "93.3 %", expr = ["1", "2"]}', "1 figures for 2"),
        ('{text = "93.3 %", expr = "unknown"}', "NameError"),
        ('{text = "93.3 %", expr = "93.3"}', "is computed as 9330 %"),
        ('{text = "93.3 %"}', "needs a text and one of"),
    ],
)
def test_a_faulty_entry_is_found(
    tmp_path: Path, entry: str, message: str
) -> None:
    try:
        (problem,) = found(tmp_path, BYTES, TIMES, entry)
    except ValueError as error:
        problem = str(error)
    assert message in problem


def test_rounding_and_units_can_be_stated(tmp_path: Path) -> None:
    text = "about 70,000 bytes, 128K tokens, 8.6 GiB"
    rows = (
        '{text = "70,000 bytes", expr = "70272", round = 3}',
        '{text = "128K tokens", expr = "131072", unit = 1024}',
        '{text = "8.6 GiB", expr = "70272 * 131072"}',
    )
    assert found(tmp_path, *rows, text=text) == []
    assert len(found(tmp_path, rows[0][:-12] + "}", *rows[1:], text=text)) == 1


def test_several_figures_in_one_entry_keep_their_order(tmp_path: Path) -> None:
    text = "The share is 2 of 8 experts, 25 %, in the end."
    rows = '{text = "2 of 8 experts, 25 %", expr = ["2", "8", "2 / 8"]}'
    assert found(tmp_path, rows, text=text) == []
    swapped = rows.replace('"2", "8"', '"8", "2"')
    assert len(found(tmp_path, swapped, text=text)) == 2


def test_names_with_digits_are_declared(tmp_path: Path) -> None:
    text = "We read Model 900 twice."
    assert len(found(tmp_path, text=text)) == 1
    define = 'names = ["Model 900"]\n'
    page, book = tmp_path / "page.md", tmp_path / "page.toml"
    book.write_text(define, encoding="utf8")
    assert list(problems(page, Ledger(book))) == []


def test_measured_figures_are_those_of_an_output(tmp_path: Path) -> None:
    output = {"output_type": "stream", "text": ["speed-up: 3.14\n"]}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "It is 3.1 times"},
        {
            "cell_type": "code",
            "metadata": {},
            "source": "",
            "outputs": [output],
        },
    ]
    page, book = tmp_path / "page.ipynb", tmp_path / "page.toml"
    page.write_text(json.dumps({"cells": cells}), encoding="utf8")

    def after(claim: str) -> list[str]:
        row = f'{{text = "3.1 times", output = "{claim}"}}'
        book.write_text(f"figures = [{row}]", encoding="utf8")
        return list(problems(page, Ledger(book)))

    assert after("speed-up: 3.1") == []
    assert "none has 'speed-up: 3.2'" in after("speed-up: 3.2")[0]
    assert "is not the number" in after("speed-up")[0]


def test_no_toml_is_reported_by_its_line(tmp_path: Path) -> None:
    book = tmp_path / "page.toml"
    book.write_text("figures = [\n", encoding="utf8")
    with pytest.raises(ValueError, match="page.toml: Invalid value"):
        Ledger(book)
