"""Head sharing: naive against grouped, pooling, and bad input."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsarch.analysis import decode
from dsarch.analysis.count import cache_bytes
from dsarch.analysis.presets import Preset
from dsarch.attention import (
    GroupedQueryAttention,
    grouped,
    head_map,
    pool_heads,
    repeated,
)
from dsarch.cache import Cache
from dsarch.layers import SwiGLU, causal_mask, masked_softmax, positions
from tests.conftest import close


def qkv(kv_heads, t=5, s=8):
    shapes = [(2, t, 6, 7), (2, s, kv_heads, 7), (2, s, kv_heads, 4)]
    return [torch.randn(*x, dtype=torch.float64) for x in shapes]


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_grouped_equals_repeated_with_gradients(kv_heads, witness):
    inputs = [x.requires_grad_() for x in qkv(kv_heads)]
    mask = causal_mask(positions(2, 3, 5), 8)
    results = [form(*inputs, mask) for form in (repeated, grouped)]
    close(results[1], results[0])
    weight = torch.randn_like(results[0])
    wanted, found = (torch.autograd.grad(y, inputs, weight) for y in results)
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    witness(
        "eq-grouped",
        (results[1] - results[0]).abs().max(),
        reference="identity: repeated keys",
        code="dsarch.attention.grouped",
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_head_map_names_the_key_that_a_query_reads(kv_heads, witness):
    q, k, v = qkv(kv_heads)
    mask = causal_mask(positions(2, 3, 5), 8)
    index = head_map(6, kv_heads)
    by_hand = repeated(q, k[:, :, index], v[:, :, index], mask)
    close(grouped(q, k, v, mask), by_hand)
    witness(
        "eq-head-map",
        (grouped(q, k, v, mask) - by_hand).abs().max(),
        reference="identity: one key per query head",
        code="dsarch.attention.head_map",
    )


def test_pooling_averages_inside_each_group(witness):
    weight = torch.arange(6.0)[:, None].repeat_interleave(2, 0) + torch.zeros(
        12, 3
    )
    pooled = pool_heads(weight, 6, 2)
    wanted = torch.tensor([1.0, 1.0, 4.0, 4.0])[:, None].expand(4, 3)
    close(pooled, wanted)
    close(pool_heads(weight, 6, 6), weight)
    witness(
        "eq-pool",
        (pooled - wanted).abs().max(),
        reference="hand-made example",
        code="dsarch.attention.pool_heads",
    )


def test_equal_heads_lose_nothing_when_pooled():
    head = torch.randn(5, 12)
    full = GroupedQueryAttention(12, 4, 4, 5)
    small = GroupedQueryAttention(12, 4, 2, 5)
    with torch.no_grad():
        for name in ("k_proj", "v_proj"):
            getattr(full, name).weight.copy_(head.repeat(4, 1))
            pooled = pool_heads(getattr(full, name).weight, 4, 2)
            getattr(small, name).weight.copy_(pooled)
        for name in ("q_proj", "o_proj"):
            getattr(small, name).weight.copy_(getattr(full, name).weight)
        x, position = torch.randn(2, 6, 12), positions(2, 0, 6)
        mask = causal_mask(position, 6)
        close(small(x, None, mask), full(x, None, mask))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_the_cache_holds_only_key_heads(kv_heads, witness):
    layer, cache = GroupedQueryAttention(12, 4, kv_heads, 5), Cache()
    mask = causal_mask(positions(3, 0, 6), 6)
    layer(torch.randn(3, 6, 12), None, mask, cache)
    model = Preset(
        name="one layer",
        kind="GQA",
        layers=1,
        heads=4,
        kv_heads=kv_heads,
        head_dim=5,
    )
    predicted = cache_bytes(model, context=6, batch=3, bytes_per_element=4)
    assert cache.nbytes == predicted
    witness(
        "eq-kv-bytes",
        abs(cache.nbytes - predicted),
        reference="bytes of an allocated cache",
        code="dsarch.analysis.count.cache_bytes",
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_operations_per_byte_are_those_that_torch_counts(kv_heads, witness):
    q, k, v = torch.randn(1, 1, 6, 7), *torch.randn(2, 1, 8, kv_heads, 7)
    mask = torch.ones(1, 1, 8, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        grouped(q, k, v, mask)
    counted = counter.get_total_flops() / (k.nbytes + v.nbytes)
    cost = decode.grouped(6, kv_heads, 7, 8, bytes_per_element=4)
    assert counted == cost.intensity == 2 / 4 * 6 / kv_heads
    witness(
        "eq-intensity",
        abs(counted - cost.intensity),
        reference="torch FlopCounterMode",
        code="dsarch.analysis.decode.grouped",
    )


def test_masked_softmax_ignores_the_hidden_and_stays_wide():
    score = torch.tensor([[[[1.0, 2.0, 50.0]]]], dtype=torch.bfloat16)
    mask = torch.tensor([[[True, True, False]]])
    p = masked_softmax(score, mask)
    assert p.dtype == torch.bfloat16 and p[..., 2] == 0
    close(p[..., 1].double(), torch.tensor([[[0.7310586]]]).double(), 2e-2)
    wide = torch.tensor([[[[0.0, 1e-9]]]], dtype=torch.float64)
    assert masked_softmax(wide, mask[..., :2])[..., 1] > 0.5


def test_swiglu_is_gated_by_gate_proj():
    mlp = SwiGLU(2, 2)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.copy_(torch.eye(2))
        mlp.up_proj.weight.mul_(3.0)
    x = torch.tensor([[1.0, -2.0]])
    close(mlp(x), 3 * x * x * x.sigmoid())


def test_uneven_groups_and_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="4 key heads cannot serve 6 query"):
        GroupedQueryAttention(12, 6, 4)
    with pytest.raises(ValueError, match="0 key heads"):
        head_map(6, 0)
    with pytest.raises(ValueError, match="10 rows are not 4 equal heads"):
        pool_heads(torch.zeros(10, 3), 4, 2)
    layer, cache = GroupedQueryAttention(12, 4, 2, 5), Cache()
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 11\)"):
        layer(torch.zeros(1, 2, 11), None, torch.ones(1, 2, 2).bool(), cache)
    with pytest.raises(ValueError, match=r"mask has shape \(1, 2, 3\)"):
        layer(torch.zeros(1, 2, 12), None, torch.ones(1, 2, 3).bool(), cache)
    assert len(cache) == 0
