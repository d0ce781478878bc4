"""Which numbers of a page claim something, and which do not."""

import pytest

from dsarch.teaching.figures import numbers


def found(source: str) -> list[str]:
    return [figure.text for figure in numbers(source) if figure.counts]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("V3 keeps 70,272 bytes per token", ["70,272 bytes"]),
        (
            "57 times less, 3× more, a 12-fold gain",
            ["57 times", "3×", "12-fold"],
        ),
        ("down by 93.3 %, or 5 percent", ["93.3 %", "5 percent"]),
        ("with 61 layers and 128 heads", ["61", "128"]),
        ("671B parameters, 36.6 billion of them", ["671B", "36.6 billion"]),
        ("at 1.5e-9 or 10,000", ["1.5e-9", "10,000"]),
        ("| a | 1.76 % | 488.00 GiB |", ["1.76 %", "488.00 GiB"]),
        ("a context of 2048 tokens, 2000 bytes", ["2048", "2000 bytes"]),
        (r"$32{,}768 / 576 = 56.9$", ["32{,}768", "576", "56.9"]),
        (r"$$ \sigma = 0.0722 $$ (eq-576)", ["0.0722"]),
        (r"saves $98.2\,\%$ and $7\times$", [r"98.2\,\%", r"7\times"]),
        (":::{tip} It costs 44 GB\n:class: x\n\n345\n:::", ["44 GB", "345"]),
        ("```{note}\n678 of them\n```\nand 910", ["678", "910"]),
        ("```{figure} a.svg\n:alt: From 3.5 MB on\n```", ["3.5 MB"]),
        ("in 2019, 250 people", ["250"]),
    ],
)
def test_a_claim_is_found(source: str, expected: list[str]) -> None:
    assert found(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "two norms, 3 steps and 12 lines",
        "see chapter 30 and sections 3.2 to 3.44, figure 3.11, §3.2.3",
        "published in 2019 and 2024 {cite}`deepseek2024v3`",
        "DeepSeek-V3.2, Llama-2-70B, E4M3, bf16, H800, FP8, GPT-3.5",
        "`kv = 70272` and ``a ` 999``",
        "```python\nx = 999\n```",
        "```\n99.5 %\n```",
        "```{literalinclude} ../dsarch/mla.py\n:lines: 100-200\n```",
        "````{code-cell}\n```\n999\n```\n````",
        "[a link](page-999.html#part-345) <https://example.org/1234>",
        "<!-- 12345 -->",
        "(eq-999)=\n:label: sol-999",
        "# 3.14 A heading\n\n1. first\n2. second",
        "Exercise 03.2, Python 3.11, torch 2.13.0",
        r"$x_{128}$, $W^{512}$, $10^{-128}$, $\theta_{2m}$",
        "{eq}`eq-128`, {numref}`fig-999`",
        "difficulty ●●●●○ · about 25 minutes · checked: it",
    ],
)
def test_what_claims_nothing_is_left_out(source: str) -> None:
    assert found(source) == []


def test_places_and_values_are_exact() -> None:
    source = "so `x` is 1,234.50 MB now"
    (figure,) = numbers(source)
    assert source[figure.start : figure.end] == "1,234.50 MB"
    assert (figure.value, figure.step, figure.unit) == (1234.5, 0.01, "MB")
