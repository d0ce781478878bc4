"""The golden files are what the reference functions give today."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsarch.attention import GroupedQueryAttention
from dsarch.cache import Cache
from dsarch.checkpoint import load_checkpoint
from dsarch.dsa import SparseMLA, gathered, spread, top_k, unchanged
from dsarch.generate import generate
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA, absorbed
from dsarch.rope import phases
from tests.conftest import TOL, close
from tests.golden import models, vectors
from tests.golden.write import FOLDER, checkpoint, path, table

SAME = 1e-6  # what the order of a sum may change on another machine


def differing(made: dict, stored: dict) -> list[str]:
    """The names whose tensors are missing, new or different."""
    return [
        name
        for name in sorted(made.keys() | stored.keys())
        if name not in made
        or name not in stored
        or made[name].shape != stored[name].shape
        or made[name].dtype != stored[name].dtype
        or not torch.allclose(made[name], stored[name], SAME, SAME)
    ]


@pytest.mark.parametrize("name", vectors.MODULES)
def test_the_files_are_not_stale(name: str) -> None:
    stored = load_file(path(name))
    assert differing(vectors.make(name), stored) == [], "run make golden"
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_the_checkpoint_is_not_stale(tmp_path: Path) -> None:
    stored, made = FOLDER / "model", tmp_path / "model"
    checkpoint(made)
    for name in {x.name for x in [*stored.iterdir(), *made.iterdir()]}:
        one, two = made / name, stored / name
        if name.endswith(".safetensors"):
            tensors = [load_file(one), load_file(two)]
            assert differing(*tensors) == [], "run make golden"
        else:
            assert one.read_text() == two.read_text(), "run make golden"
    loaded = load_checkpoint(stored).state_dict()
    assert differing(models.whole().state_dict(), loaded) == []


@pytest.mark.parametrize("name", ["model", "text"])
def test_no_rival_is_near_a_written_token(name: str) -> None:
    """Else fp32 could not promise to write the same as fp64."""
    assert vectors.make(name)["out.margins"].min() > 100 * TOL[torch.float32]


@torch.no_grad()
def test_fp32_and_drafts_write_the_same_text() -> None:
    stored = load_file(path("text"))
    tiny = load_checkpoint(models.TINY, dtype=torch.float32)
    for number in range(len(models.PROMPTS)):
        prompt = stored[f"in.{number}"].long()
        for drafted in (False, True):
            written = generate(
                tiny, prompt, models.NEW_TOKENS, speculative=drafted
            )
            assert torch.equal(written, stored[f"out.{number}"].long())


def test_a_stale_file_is_noticed() -> None:
    made = vectors.make("cache")
    assert differing(made, made) == []
    changed = made | {"out.latent": made["out.latent"] * 1.00001}
    assert differing(changed, made) == ["out.latent"]
    shorter = {k: v for k, v in made.items() if k != "in.k_rope"}
    assert differing(shorter, made) == differing(made, shorter) == ["in.k_rope"]


def test_the_files_stay_small_and_listed() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [file.stem for file in files] == sorted(vectors.MODULES)
    assert max(file.stat().st_size for file in files) < 64 * 1024
    every = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in every) < 1024 * 1024
    readme = (FOLDER / "README.md").read_text(encoding="utf8")
    assert readme == table(), "run make golden"


@pytest.mark.parametrize("name", ["mla", "mla_lite"])
@torch.no_grad()
def test_the_other_form_reproduces_the_latent_layer(name: str) -> None:
    """What a port is asked for, in Python: absorbed against expanded."""
    stored = load_file(path(name))
    cfg = vectors.LATENT
    cfg = cfg.replace(q_lora_rank=11 if name == "mla" else None)
    layer = MLA(cfg)
    own = {k: v for k, v in stored.items() if k.endswith(".weight")}
    layer.load_state_dict(own, strict=True)
    phase = phases(cfg, positions(2, vectors.START, 7))
    mask = causal_mask(positions(2, 0, 7), 7)
    q, q_rope, _ = layer.queries(stored["in.x"], phase)
    c, k_rope = stored["out.latent"], stored["out.k_rope"]
    o = absorbed(q, q_rope, c, k_rope, *layer.up(), mask, layer.scale)
    close(o, stored["out.heads"])
    close(layer.o_proj(o.flatten(-2)), stored["out.layer"])


@pytest.fixture
def sparse() -> Iterator[tuple[dict, SparseMLA]]:
    """The stored vectors of sparse attention, and the layer they tell of."""
    stored, layer = load_file(path("dsa")), SparseMLA(models.SPARSE)
    own = {k: v for k, v in stored.items() if k.endswith(("weight", "bias"))}
    layer.load_state_dict(own, strict=True)
    with torch.no_grad():
        yield stored, layer


@pytest.mark.parametrize("chunk", [9, 4, 1])
def test_chunks_reproduce_the_sparse_layer(
    sparse: tuple[dict, SparseMLA], chunk: int
) -> None:
    (stored, layer), cache, parts = sparse, Cache(), []
    for x in stored["in.x"].split(chunk, 1):
        past, t = len(cache), x.size(1)
        phase = phases(layer.cfg, positions(2, vectors.START + past, t))
        mask = causal_mask(positions(2, past, t), past + t)
        parts.append(layer(x, phase, mask, cache))
    close(torch.cat(parts, 1), stored["out.layer"])


@pytest.mark.parametrize("transform", [unchanged, spread])
def test_gathering_reproduces_the_sparse_layer(
    sparse: tuple[dict, SparseMLA], transform: Callable
) -> None:
    """With the first queries, which see fewer keys than they may read."""
    stored, layer = sparse
    layer.indexer.transform = transform
    x, phase = stored["in.x"], phases(layer.cfg, positions(2, vectors.START, 9))
    mask = causal_mask(positions(2, 0, 9), 9)
    q, q_rope, latent = layer.queries(x, phase)
    c, k_rope = layer.memories(x, phase)
    k = layer.indexer.keys(x, phase)
    score = layer.indexer(x, latent, phase, k)
    close(score, stored["out.scores"])
    index, up = top_k(score, mask, layer.topk), layer.up()
    o = gathered(q, q_rope, c, k_rope, *up, mask, index, layer.scale)
    close(o, stored["out.heads"])


@torch.no_grad()
def test_groups_reproduce_what_repeated_keys_gave() -> None:
    stored = load_file(path("attention"))
    layer, cache = GroupedQueryAttention(20, 6, 2, 8), Cache()
    own = {k: v for k, v in stored.items() if k.endswith(".weight")}
    layer.load_state_dict(own, strict=True)
    parts = []
    for chunk in stored["in.x"].split([3, 1, 3], 1):
        position = positions(3, len(cache), chunk.size(1))
        mask = causal_mask(position, len(cache) + chunk.size(1))
        parts.append(layer(chunk, None, mask, cache))
    close(torch.cat(parts, 1), stored["out.plain"])
