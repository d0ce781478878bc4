"""The walks show what the modules compute, and a changed line shows."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from book import walk_formulas
from dsarch import mla, router, sampling
from dsarch.analysis.trace import trace
from dsarch.analysis.watch import find
from dsarch.post import objective
from dsarch.sampling import Sampling
from dsarch.teaching.explorers import walk
from dsarch.teaching.walks import WALKS, words
from dsarch.teaching.walks.attention import TEXT
from dsarch.teaching.walks.base import grid, model, prompt, quoted, shown
from tests.conftest import close

LAYER = "model.layers.2.self_attn"
GATE = "model.layers.1.mlp.gate"


def module_of(name: str):
    """A module of the walks, past the function of the same name."""
    return importlib.import_module(f"dsarch.teaching.walks.{name}")


@torch.no_grad()
def test_the_decode_step_is_that_of_the_module_in_expanded_form():
    """Without a cache the layer expands: another path to the same rows."""
    _, moments = module_of("attention").record()
    with trace(model(), LAYER, f"{LAYER}.o_proj", inputs=True) as seen:
        model()(prompt(TEXT))
    made = find(moments, "absorbed", "return", call=2).values["return"]
    out = find(moments, "MLA.forward", "return", call=2).values["return"]
    rows = seen[f"{LAYER}.o_proj.input.0"]
    close(made.flatten(2), rows[:, -1:])
    close(out, seen[LAYER][:, -1:])


@torch.no_grad()
def test_scores_and_shares_are_those_of_rebuilt_keys():
    _, moments = module_of("attention").record()
    run = {
        name: find(moments, where, name, nth=nth, call=2).values[name]
        for where, name, nth in [
            ("MLA.forward", "q", 0),
            ("MLA.forward", "q_rope", 0),
            ("MLA.forward", "c", 1),
            ("MLA.forward", "k_rope", 1),
            ("absorbed", "score", 1),
            ("absorbed", "p", 0),
        ]
    }
    layer = model().get_submodule(LAYER)
    w_uk, _ = layer.up()
    keys = torch.einsum("bsc,hnc->bshn", run["c"], w_uk)
    score = torch.einsum("bthn,bshn->bhts", run["q"], keys)
    score += torch.einsum("bthr,bsr->bhts", run["q_rope"], run["k_rope"])
    close(run["score"], score * layer.scale)
    close(run["p"], (score * layer.scale).softmax(-1))


@torch.no_grad()
def test_the_router_walk_ends_where_the_router_does():
    with trace(model(), GATE) as seen:
        model()(prompt(routing_text()))
    end = find(module_of("routing").record(), "route", "return", call=0)
    for name, place in (("weights", 0), ("experts", 1), ("scores", 2)):
        close(
            getattr(end.values["return"], name)[0], seen[f"{GATE}.{place}"][-1]
        )


def routing_text() -> str:
    return module_of("routing").TEXT


def test_the_round_is_that_of_unwatched_speculation():
    found, moments = module_of("speculation").record()
    module = module_of("speculation")
    chance = Sampling(1.0, generator=torch.Generator().manual_seed(module.SEED))
    plain = module.generating.speculate(
        model(), prompt(module.TEXT), chance, module.DRAFTS
    )
    assert all(torch.equal(piece, next(plain)) for piece in found)
    piece = find(moments, "verify", "return", call=0).values["return"]
    assert torch.equal(piece, found[1])
    good = find(moments, "verify", "good", call=0).values["good"]
    assert 0 < good < module.DRAFTS, "the page promises both"


def test_the_loss_of_the_update_follows_from_its_table():
    batch, moments = module_of("update").record()
    at = {
        name: find(moments, where, name, call=1).values[name]
        for where, name in [
            ("policy_loss", "ratio"),
            ("policy_loss", "loss"),
            ("surrogate", "clipped"),
        ]
    }
    mask = batch.rollout.mask[:, 1:]
    centred = batch.rewards - batch.rewards.mean()
    advantage = centred / (batch.rewards.std() + 1e-4)
    ratio, a = at["ratio"], advantage.T.expand_as(at["ratio"])
    least = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    each = (least * mask).sum(1) / mask.sum(1)
    close(at["loss"], -each.mean())
    assert int((at["clipped"] & mask).sum()) == 3
    first = find(moments, "policy_loss", "ratio", call=0).values["ratio"]
    assert torch.equal(first.round(decimals=9), torch.ones_like(first))


PLANTED = {
    "attention": (
        mla,
        "absorbed",
        'o = einsum("bhts,bsc->bthc", p, c)',
        'o = einsum("bhts,bsc->bthc", score, c)',
    ),
    "routing": (
        router,
        "route",
        "weights = scores.gather(1, experts)",
        "weights = choice.gather(1, experts)",
    ),
    "speculation": (
        sampling,
        "verify",
        "kept = (u < ratio).cumprod(1).bool()",
        "kept = (u < ratio).bool().logical_not()",
    ),
    "update": (
        objective,
        "surrogate",
        "bounded * advantage, ratio.clamp(low, high) * advantage",
        "bounded * advantage, ratio * advantage",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_changed_line_shows_with_its_values(name, monkeypatch, tmp_path):
    module, function, old, new = PLANTED[name]
    before = walk(name)
    text = Path(module.__file__).read_text(encoding="utf8")
    assert text.count(old) == 1
    path = tmp_path / "planted.py"
    path.write_text(text.replace(old, new), encoding="utf8")
    spec = importlib.util.spec_from_file_location("dsarch.planted", path)
    planted = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dsarch.planted", planted)
    spec.loader.exec_module(planted)
    for kind in ("Routing", "PolicyLoss", "residual"):
        if hasattr(module, kind):
            setattr(planted, kind, getattr(module, kind))
    monkeypatch.setattr(module, function, getattr(planted, function))
    generating = module_of("speculation").generating
    if hasattr(generating, function):
        monkeypatch.setattr(generating, function, getattr(planted, function))
    after = walk(name)
    pairs = zip(before.data["steps"], after.data["steps"], strict=True)
    moved = [(a, b) for a, b in pairs if a["code"] != b["code"]]
    assert len(moved) == 1
    was, now = moved[0]
    assert old in was["code"] and new in now["code"]
    assert was["grids"] != now["grids"]


@pytest.mark.parametrize("name", WALKS)
def test_every_step_quotes_a_statement_of_its_function(name):
    found = WALKS[name]()
    sources = {f.__qualname__: quoted(f) for f in found.functions}
    assert [s.title for s in found.stages] == [
        said.title for said in words.ALL[name].values()
    ]
    for stage in found.stages:
        _, source, first = sources[stage.moment.function]
        lines = source.splitlines()[stage.moment.line - first :]
        quote = stage.moment.code.splitlines()
        shown = [line.strip() for line in lines[: len(quote)]]
        assert shown == [line.strip() for line in quote]


def test_the_formulas_are_those_of_the_words():
    """`python -m book.walk_formulas` writes the file."""
    stored = walk_formulas.PATH.read_text(encoding="utf8")
    assert stored == walk_formulas.text()
    assert "<annotation" not in stored and "http" not in stored
    assert all(x.startswith("<math") for x in json.loads(stored).values())


def test_numbers_of_tables():
    assert [shown(x, 2) for x in (-0.001, -1.0, True, float("-inf"))] == [
        "0.00",
        "−1.00",
        "yes",
        "−∞",
    ]
    with pytest.raises(ValueError, match="x is 2 × 3, but 1 rows"):
        grid("x", torch.ones(2, 3), ["a"])
