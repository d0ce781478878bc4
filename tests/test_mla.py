"""Identities of latent attention, and what it does with bad input."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsarch.analysis import count
from dsarch.attention import repeated
from dsarch.cache import Cache
from dsarch.config import Config, Yarn
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA, absorbed, absorbs, expanded
from dsarch.rope import phases, softmax_factor
from tests.conftest import close

YARN = Yarn(original_max_position_embeddings=8)
CFG = Config(
    hidden_size=40,
    num_attention_heads=5,
    q_lora_rank=28,
    kv_lora_rank=20,
    qk_nope_head_dim=14,
    qk_rope_head_dim=6,
    v_head_dim=10,
    rope_scaling=YARN,
)


def pieces(t=4, s=9, cfg=CFG):
    """Random inputs of both forms, in the order of their arguments."""
    h, n, r = cfg.num_attention_heads, *cfg.qk_widths
    c, v = cfg.kv_lora_rank, cfg.v_head_dim
    shapes = [(2, t, h, n), (2, t, h, r), (2, s, c), (2, s, r)]
    shapes += [(h, n, c), (h, v, c)]
    return [torch.randn(*x, dtype=torch.float64) for x in shapes]


def layer(cfg=CFG, dtype=torch.float64):
    module = MLA(cfg).to(dtype)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, float(weight.ndim == 1), 0.3)
    return module


def run(module, x, sizes):
    cache, outputs = Cache(), []
    for chunk in x.split(sizes, 1):
        position = positions(x.size(0), len(cache), chunk.size(1))
        mask = causal_mask(position, len(cache) + chunk.size(1))
        phase = phases(module.cfg, position)
        outputs.append(module(chunk, phase, mask, cache))
    return torch.cat(outputs, 1), cache


def test_absorbed_equals_expanded_with_gradients(witness):
    inputs = [x.requires_grad_() for x in pieces()]
    mask = causal_mask(positions(2, 5, 4), 9)
    results = [form(*inputs, mask, 0.2) for form in (expanded, absorbed)]
    close(results[1], results[0])
    weight = torch.randn_like(results[0])
    wanted, found = (
        torch.autograd.grad(y, inputs, weight, retain_graph=True)
        for y in results
    )
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    witness(
        "eq-absorbed",
        (results[1] - results[0]).abs().max(),
        reference="identity: expanded form",
        code="dsarch.mla.absorbed",
    )


def test_expanded_is_multi_head_attention_on_rebuilt_keys(witness):
    q, q_rope, c, k_rope, w_uk, w_uv = pieces()
    mask = causal_mask(positions(2, 5, 4), 9)
    shared = k_rope[:, :, None].expand(-1, -1, q.size(2), -1)
    k = torch.cat([torch.einsum("bsc,hnc->bshn", c, w_uk), shared], -1)
    v = torch.einsum("bsc,hvc->bshv", c, w_uv)
    whole = torch.cat([q, q_rope], -1)
    wanted = repeated(whole, k, v, mask)
    found = expanded(q, q_rope, c, k_rope, w_uk, w_uv, mask, 20**-0.5)
    close(found, wanted)
    witness(
        "eq-expanded",
        (found - wanted).abs().max(),
        reference="identity: multi-head attention",
        code="dsarch.mla.expanded",
    )


@pytest.mark.parametrize("first", range(1, 12))
@torch.no_grad()
def test_cached_equals_full_at_every_split(first, witness):
    module = layer()
    x = torch.randn(2, 12, 40, dtype=torch.float64)
    full, _ = run(module, x, [12])
    split, cache = run(module, x, [first, 12 - first])
    close(split, full)
    assert cache.nbytes == 2 * 12 * (20 + 6) * 8
    witness(
        "eq-mla-cache",
        (split - full).abs().max(),
        reference="identity: full pass",
        code="dsarch.cache.Cache",
    )


@torch.no_grad()
def test_the_future_leaves_no_trace():
    module = layer()
    x = torch.randn(1, 12, 40, dtype=torch.float64)
    before, _ = run(module, x, [12])
    x[:, 7] += 1
    after, _ = run(module, x, [12])
    close(after[:, :7], before[:, :7])
    assert (after[:, 7:] - before[:, 7:]).abs().amax((0, 2)).gt(1e-3).all()


@torch.no_grad()
def test_only_the_latent_is_normalised_and_it_is_cached_so():
    module = layer()
    x = torch.randn(1, 3, 40, dtype=torch.float64)
    _, cache = run(module, x, [3])
    _, larger = run(module, 2 * x, [3])
    close(larger["latent"], cache["latent"], 1e-5)
    close(larger["k_rope"], 2 * cache["k_rope"])


def test_scale_has_one_root_and_yarns_square():
    assert MLA(CFG.replace(rope_scaling=None)).scale == 20**-0.5
    assert MLA(CFG).scale == 20**-0.5 * softmax_factor(YARN)
    with torch.device("meta"):
        scale = MLA(Config.v3()).scale
    assert round(scale, 7) == 0.1352338


def test_a_long_prompt_expands_and_one_token_absorbs():
    cfg = Config.v3()
    assert absorbs(cfg, 1, 4096) and absorbs(cfg, 2, 4096)
    assert not absorbs(cfg, 4096, 4096)


@torch.no_grad()
def test_bad_input_is_named_and_leaves_the_cache_alone():
    module, cache = layer(), Cache()
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    position = positions(2, 0, 3)
    phase, mask = phases(CFG, position), causal_mask(position, 3)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 39\)"):
        module(x[..., 1:], phase, mask, cache)
    with pytest.raises(ValueError, match=r"mask .*\(2, 3, 2\).*\(2, 3, 3\)"):
        module(x, phase, mask[..., 1:], cache)
    assert len(cache) == 0
    foreign = Cache()
    foreign.extend(latent=x[..., :7], k_rope=x[..., :6])
    with pytest.raises(ValueError, match=r"'latent' holds .*\[7\].*\[20\]"):
        module(x, phase, causal_mask(position + 3, 6), foreign)
    assert len(foreign) == 3


@pytest.mark.parametrize("name", ["v2_lite", "v2", "v3"])
def test_bytes_of_the_released_models(name, witness):
    cfg = getattr(Config, name)()
    cache = Cache()
    cache.extend(
        latent=torch.empty(1, 3, cfg.kv_lora_rank, dtype=torch.bfloat16),
        k_rope=torch.empty(1, 3, cfg.qk_rope_head_dim, dtype=torch.bfloat16),
    )
    allocated = cache.nbytes * cfg.num_hidden_layers / 3
    assert allocated == count.kv_bytes_per_token(cfg)
    witness(
        "eq-mla-bytes",
        float(allocated - count.kv_bytes_per_token(cfg)),
        reference="bytes of an allocated cache",
        code="dsarch.analysis.count.kv_bytes_per_token",
    )


@pytest.mark.parametrize(("t", "s"), [(1, 9), (4, 9), (9, 9)])
def test_multiplications_are_those_that_torch_counts(t, s, witness):
    inputs = [x.float() for x in pieces(t, s)]
    mask = torch.ones(2, t, s, dtype=torch.bool)
    counted = []
    for form in (expanded, absorbed):
        with FlopCounterMode(display=False) as counter:
            form(*inputs, mask, 1.0)
        counted.append(counter.get_total_flops() // (2 * 2 * 5))
    n, r, v, c = 14, 6, 10, 20
    predicted = [
        s * c * (n + v) + t * s * (n + r + v),
        t * c * (n + v) + t * s * (2 * c + r),
    ]
    assert counted == predicted
    assert absorbs(CFG, t, s) == (counted[1] < counted[0])
    witness(
        "eq-mla-flops",
        float(sum(abs(a - b) for a, b in zip(counted, predicted, strict=True))),
        reference="torch FlopCounterMode",
        code="dsarch.mla.absorbs",
    )
