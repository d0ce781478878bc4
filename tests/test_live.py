"""Live panels: real bytes, clear refusals, and outputs that can be stored."""

import os
import tracemalloc
from random import Random

import nbformat
import pytest
from nbclient import NotebookClient

from dsarch.teaching.explorers import (
    Answer,
    Panel,
    live_fp8,
    live_kv_cache,
    live_routing,
)
from dsarch.teaching.explorers.live_fp8 import compare_product
from dsarch.teaching.explorers.live_kv_cache import Sizes, fill
from dsarch.teaching.explorers.live_routing import run

VIEW = "application/vnd.jupyter.widget-view+json"


def sizes(**changes):
    first = dict(live_kv_cache().values(), context=70, batch=3)
    return Sizes(**{**first, **changes})


@pytest.mark.parametrize("kind", ["MHA", "GQA", "MQA", "MLA"])
def test_predicted_bytes_are_allocated(kind):
    draw = Random(kind)
    for _ in range(5):
        kv_heads = draw.choice([1, 2, 3])
        found = sizes(
            kind=kind,
            layers=draw.randint(1, 3),
            kv_heads=kv_heads,
            heads=kv_heads * draw.randint(1, 3),
            head_dim=draw.randint(1, 40),
            latent=draw.randint(1, 60),
            rope=2 * draw.randint(1, 9),
            context=draw.randint(1, 150),
            batch=draw.randint(1, 3),
            dtype=draw.choice(["float32", "bfloat16"]),
        )
        caches = fill(found)
        assert len(caches) == found.layers
        assert all(len(cache) == found.context for cache in caches)
        allocated = sum(cache.reserved_nbytes for cache in caches)
        assert allocated == found.predicted, found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": -3}, "context must be positive, found -3"),
        ({"batch": 0}, "batch must be positive, found 0"),
        ({"heads": -8}, "heads must be at least 1, found -8"),
        ({"layers": 0}, "layers must be at least 1, found 0"),
        ({"latent": 0}, "latent must be at least 1, found 0"),
        ({"rope": 3}, "must be even, found 3"),
        ({"kind": "GQA", "kv_heads": 3}, "3 kv heads do not divide 8"),
        ({"context": 10**12}, "more than the 256 MiB"),
        ({"heads": 10**30}, "more than the 256 MiB"),
        ({"layers": 10**6, "latent": 1, "rope": 2}, "more than the"),
        ({"context": 4096, "batch": 1}, "more than the 30 GFLOP"),
    ],
)
def test_refusals_allocate_nothing(changes, message):
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        fill(sizes(**changes))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_controls_drive_the_view():
    panel = live_kv_cache(context=64)
    controls, view = panel.controls, panel.view
    before = view.value
    controls["kind"].value = "MQA"
    # 4 layers, 2 sequences, 64 tokens, key and value of 32, 4 bytes
    assert f"{4 * 2 * 64 * 2 * 32 * 4:,} bytes are allocated" in view.value
    controls["context"].value = -1
    assert "Refused: context must be positive, found -1" in view.value
    assert "<table>" not in view.value
    controls["context"].value = 64
    controls["kind"].value = "MLA"
    assert view.value == before
    assert ">k_rope</td>" in view.value


def test_first_values():
    first = live_kv_cache(heads=4, kind="MQA").values()
    assert first["heads"] == 4 and first["kind"] == "MQA"
    for name, value in {"width": 4, "kind": "MLP", "heads": "4"}.items():
        with pytest.raises(ValueError, match=f"'{name}' cannot begin"):
            live_kv_cache(**{name: value})


def test_a_panel_of_its_own_escapes_and_refuses():
    def answer(number, word):
        if number < 0:
            raise ValueError(f"{number} is below 0")
        return Answer(f"<b>{word}</b>", ["<i>"], [[number]])

    panel = Panel("T.", {"number": ("N", 1), "word": ("W", ["a", "b"])}, answer)
    assert repr(panel) == "T. <b>a</b> Run `make lab` to try other sizes."
    assert "&lt;b&gt;a&lt;/b&gt;" in panel.view.value
    assert ">&lt;i&gt;</th>" in panel.view.value
    panel.controls["word"].value = "b"
    assert "&lt;b&gt;b" in panel.view.value
    panel.controls["number"].value = -2
    assert "Refused: -2 is below 0." in panel.view.value


def execute(*cells, static):
    env = {k: v for k, v in os.environ.items() if k != "DSARCH_STATIC"}
    env |= {"OMP_NUM_THREADS": "1"}
    env |= {"DSARCH_STATIC": "1"} if static else {}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells]
    )
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(env=env)
    return [cell.outputs for cell in notebook.cells]


MAKE = (
    "from dsarch.teaching.explorers import live_kv_cache\n"
    "panel = live_kv_cache()\npanel"
)


def test_a_stored_panel_is_one_stable_sentence():
    (first,), (second,) = execute(MAKE, "panel", static=True)
    assert set(first.data) == {"text/plain"}
    assert first.data == second.data
    text = first.data["text/plain"]
    assert "655,360 bytes are allocated, exactly the 655,360" in text
    assert "make lab" in text


def test_a_live_panel_is_a_widget_that_answers():
    (shown,), _, (printed,) = execute(
        MAKE,
        "panel.controls['kind'].value = 'MHA'",
        "print(panel.view.value)",
        static=False,
    )
    assert VIEW in shown.data
    assert "4,194,304 bytes are allocated" in printed.text


def product(**changes):
    return compare_product(**{**live_fp8().values(), **changes})


def test_the_error_of_a_product_is_told_apart():
    """One product fits into 14 bits; a long sum does not."""
    one = product(tokens=1, outputs=1, width=1, outlier=3)
    rows = dict(one.rows)
    assert float(rows["product: 14-bit sums"].split()[0]) < 1e-4
    long = dict(product(grain="per row", sums="one running sum").rows)
    short = dict(product(grain="per row").rows)
    worse, better = (
        float(found["product: 14-bit sums"].split()[0])
        for found in (long, short)
    )
    assert worse > 2 * better
    assert short["scales of the inputs"] == "16"
    lost = dict(product(grain="one", outlier=10**6).rows)
    assert float(lost["inputs lost to zero"].split()[0]) > 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, found 0"),
        ({"width": -1}, "width must be at least 1, found -1"),
        ({"width": 10**9}, "more than the 10,000,000 that a panel"),
        ({"tokens": 10**4, "outputs": 10, "width": 1}, "the 65,536 that"),
        ({"outlier": 10**40}, "is beyond"),
        ({"sums": "one running sum"}, "no scale may change inside a chunk"),
    ],
)
def test_the_fp8_panel_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        product(**changes)
    with pytest.raises(ValueError, match="'grain' is no size"):
        live_fp8(grain=3)


def test_the_bias_evens_the_loads_of_the_real_router():
    before, after = run(64, 8, 8, 4, 200, "0.01")
    assert before.sum() == after.sum() == 2048 * 8
    assert after.max() < 0.7 * before.max()
    same, still = run(64, 8, 8, 4, 0, "0.01")
    assert same.equal(still)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 10**6}, "1,000,000 is more than the 512"),
        ({"steps": -1}, "must not be negative, found -1"),
        ({"groups": 7}, "n_group 7 does not divide n_routed_experts 64"),
        ({"k": 65}, "num_experts_per_tok 65 exceeds the 32"),
        ({"k": 0}, "num_experts_per_tok must be positive, found 0"),
    ],
)
def test_impossible_routers_are_refused(changes, message):
    panel = live_routing()
    with pytest.raises(ValueError, match=message):
        panel.answer(**{**panel.values(), **changes})
