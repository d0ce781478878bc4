"""MLA against transformers' deepseek_v2 and deepseek_v3."""

import pytest
import torch
from transformers import DynamicCache

from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA
from dsarch.rope import phases, to_half_split
from tests.conftest import TOL, close
from tests.parity.deepseek import hf_attention, hf_config, hf_mask, hf_rotary

# The original window is 16 positions: most of these lie beyond it.
LENGTH = 45
CASES = [
    pytest.param(kind, rank, mscale, id=f"{kind}-q{rank}-m{mscale}")
    for kind in ("deepseek_v2", "deepseek_v3")
    for rank in (28, None)
    for mscale in (1.0, 0.707)
]


def pair(kind, rank, mscale, dtype=torch.float64):
    config = hf_config(kind, mscale, q_lora_rank=rank)
    official = hf_attention(config, dtype)
    ours = MLA(Config.from_hf(config.to_dict())).to(dtype)
    ours.load_state_dict(official.state_dict(), strict=True)
    return config, official, ours


def official_output(config, layer, x):
    position = positions(x.size(0), 0, x.size(1))
    mask = hf_mask(causal_mask(position, x.size(1)), x.dtype)
    rotary = hf_rotary(config, x, position)
    return layer(
        hidden_states=x, position_embeddings=rotary, attention_mask=mask
    )[0]


def our_output(layer, x, chunks):
    cache, outputs = Cache(), []
    for chunk in x.split(chunks, 1):
        position = positions(x.size(0), len(cache), chunk.size(1))
        mask = causal_mask(position, len(cache) + chunk.size(1))
        outputs.append(layer(chunk, phases(layer.cfg, position), mask, cache))
    assert len(cache) == x.size(1)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize(("kind", "rank", "mscale"), CASES)
@pytest.mark.parametrize(
    "chunks", [[LENGTH], [5, 1, 19, 1, 1, 18], [1] * LENGTH], ids=len
)
@torch.no_grad()
def test_mla_equals_transformers(kind, rank, mscale, chunks, witness):
    config, official, ours = pair(kind, rank, mscale)
    x = torch.randn(3, LENGTH, ours.cfg.hidden_size, dtype=torch.float64)
    expected = official_output(config, official, x)
    actual = our_output(ours, x, chunks)
    close(actual, expected, TOL[torch.float32])
    for label in ("eq-mla", "eq-decoupled"):
        witness(
            label,
            (actual - expected).abs().max(),
            reference=f"transformers {kind}",
            code="dsarch.mla.MLA",
        )
    witness(
        "eq-yarn-scale",
        abs(ours.scale - official.scaling),
        reference=f"transformers {kind}",
        code="dsarch.rope.softmax_factor",
    )
    assert abs(ours.scale - official.scaling) < TOL[torch.float64]


@torch.no_grad()
def test_mla_gradient_of_the_input_equals_transformers():
    config, official, ours = pair("deepseek_v3", 28, 1.0)
    x = torch.randn(2, 23, ours.cfg.hidden_size, dtype=torch.float64)
    grads = []
    for run in (
        lambda y: official_output(config, official, y),
        lambda y: our_output(ours, y, [23]),
    ):
        with torch.enable_grad():
            y = x.clone().requires_grad_()
            run(y).square().sum().backward()
        grads.append(y.grad)
    scale = grads[0].abs().max()
    close(grads[1] / scale, grads[0] / scale, TOL[torch.float32])


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
@torch.no_grad()
def test_cache_holds_what_transformers_caches(kind, witness):
    config, official, ours = pair(kind, 28, 1.0)
    x = torch.randn(2, 21, ours.cfg.hidden_size, dtype=torch.float64)
    position = positions(2, 0, 21)
    theirs = DynamicCache()
    official(
        hidden_states=x,
        position_embeddings=hf_rotary(config, x, position),
        attention_mask=hf_mask(causal_mask(position, 21), x.dtype),
        past_key_values=theirs,
    )
    c, k_rope = ours.memories(x, phases(ours.cfg, position))
    layer = theirs.layers[0]
    close(c, layer.keys[:, 0], TOL[torch.float32])
    if kind == "deepseek_v3":  # which leaves the pairs in half-split order
        k_rope = to_half_split(k_rope)
    close(k_rope, layer.values[:, 0], TOL[torch.float32])
    witness(
        "eq-mla-down",
        max(
            (c - layer.keys[:, 0]).abs().max(),
            (k_rope - layer.values[:, 0]).abs().max(),
        ),
        reference=f"transformers {kind}",
        code="dsarch.mla.MLA.memories",
    )
    n, shared = ours.cfg.qk_nope_head_dim, layer.values
    k, v = official.expand_kv(layer.keys, shared)
    w_uk, w_uv = ours.up()
    c = layer.keys[:, 0]
    found = torch.einsum("bsc,hnc->bhsn", c, w_uk)
    close(found, k[..., :n])
    close(torch.einsum("bsc,hvc->bhsv", c, w_uv), v)
    witness(
        "eq-mla-up",
        (found - k[..., :n]).abs().max(),
        reference=f"transformers {kind}",
        code="dsarch.mla.MLA.up",
    )
