"""The numbers of the front page and of the notation, computed again."""

import re

import pytest

from dsarch.analysis import count
from dsarch.config import Config
from tests.book.stored import ROOT

V3, V32 = Config.v3(), Config.v3_2()
CONTEXT = 131072
COMPONENTS = {
    "MQA": (1,),
    "GQA": (2,),
    "MLA": (3,),
    "Standard MoE": (5,),
    "DeepSeekMoE": (6,),
    "MTP": (7,),
    "FP8": (8,),
    "GRPO": (9,),
    "WSD scheduler": (10, 11),
    "DPO": (12,),
    "Knowledge distillation": (13,),
    "Sparse attention": (14,),
}


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Return the first table below a heading, by its first column."""
    text = (ROOT / page).read_text(encoding="utf8")
    section = text.split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n?)+", section, re.M)[0].splitlines()[2:]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {cells[0]: cells[1:] for cells in table}


def test_the_quick_reference_leads_to_the_chapters() -> None:
    table = rows("intro.md", "## Quick reference: when to use what")
    links = {name.strip("*"): cells[-1] for name, cells in table.items()}
    assert links == {
        name: ", ".join(f"{{chapter-number}}`{n}`" for n in numbers)
        for name, numbers in COMPONENTS.items()
    }
    assert all(cell for cells in table.values() for cell in cells)


def test_every_chapter_is_on_the_map() -> None:
    table = rows("intro.md", "## Map of the book")
    found = re.findall(r"\{chapter-title\}`(\d+)`", str(table))
    assert found == [str(number) for number in range(1, 15)]


@pytest.mark.parametrize(
    ("method", "elements"),
    [
        ("MHA", 2 * V3.num_attention_heads * V3.v_head_dim),
        ("GQA, $G = 8$", 2 * 8 * V3.v_head_dim),
        ("MLA", sum(V3.kv_widths)),
        ("MQA", 2 * V3.v_head_dim),
    ],
)
def test_the_cache_table(method: str, elements: int) -> None:
    table = rows("intro.md", "### Attention: memory of the key-value cache")
    full = 2 * V3.num_attention_heads * V3.v_head_dim
    share = elements / full
    stored = elements * V3.num_hidden_layers * 2 * CONTEXT / 2**30
    digits = 0 if share == 1 else 2
    assert table[method][2:] == [
        f"{elements:,}",
        f"{share:.{digits}%}".replace("%", " %"),
        f"{stored:.2f} GiB",
    ]
    if method == "MLA":
        assert stored * 2**30 == count.cache_bytes(V3, CONTEXT)


def test_mla_is_a_gqa_of_two_and_a_quarter_groups() -> None:
    assert sum(V3.kv_widths) / (2 * V3.v_head_dim) == 2.25
    text = (ROOT / "intro.md").read_text(encoding="utf8")
    assert "2.25 groups" in text
    assert "128$, $d_c = 512$, $d_r = 64$, 61 layers" in " ".join(text.split())


def test_the_expert_table() -> None:
    table = rows("intro.md", "### Mixture of experts: compute per token")
    used = V3.n_shared_experts + V3.num_experts_per_tok
    stored = V3.n_shared_experts + V3.n_routed_experts
    share = f"{used / stored:.2%}".replace("%", " %")
    want = f"{share} (V3, 1 + 8 of 1 + 256)"
    assert table["DeepSeekMoE"][-1] == want
    assert table["Standard MoE"][-1].startswith(f"{2 / 8 * 100:.1f} %")
    total, active = count.parameters(V3)
    text = " ".join((ROOT / "intro.md").read_text(encoding="utf8").split())
    assert f"{active / 1e9:.1f} of {total / 1e9:.1f} billion" in text
    assert f"{active / total * 100:.2f} %" in text


def test_the_notation_agrees_with_the_configurations() -> None:
    table = rows("notation.md", "## Letters of shapes")
    letters = [name.strip("`") for name in table]
    assert letters == list("btszwdhgqnrpvcimekf")
    for _, field, value in table.values():
        if not (field and value):
            continue
        cfg = V32 if value.endswith("(V3.2)") else V3
        assert int(value.split()[0]) == getattr(cfg, field.strip("`"))
    assert int(table["`p`"][2]) == V3.qk_rope_head_dim // 2
    text = (ROOT / "notation.md").read_text(encoding="utf8")
    assert f"`q_lora_rank` ({V3.q_lora_rank})" in text
