"""The costs of sparse attention against what the package really computes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsarch.analysis import count, decode, sparse
from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.dsa import SparseMLA
from dsarch.layers import causal_mask, positions
from dsarch.rope import phases
from tests.small import SPARSE

V3_2 = Config.v3_2()


@torch.no_grad()
def counted(cfg: Config, context: int) -> int:
    """FLOP of a layer that decodes the last of ``context`` tokens."""
    layer, cache = SparseMLA(cfg), Cache()
    for start, chunk in ((0, context - 1), (context - 1, 1)):
        position = positions(1, start, chunk)
        mask = causal_mask(position, start + chunk)
        x = torch.randn(1, chunk, cfg.hidden_size)
        with FlopCounterMode(display=False) as counter:
            layer(x, phases(cfg, position), mask, cache)
    return counter.get_total_flops()


@pytest.mark.parametrize("topk", [7, 40])
def test_one_more_key_costs_what_the_formula_says(topk, witness):
    cfg = SPARSE.replace(index_topk=topk)
    for near, far in ((100, 101), (100, 233)):
        for dense in (True, False):
            run = cfg.replace(index_topk=10_000) if dense else cfg
            found = counted(run, far) - counted(run, near)
            wanted = sparse.attention_flops(
                cfg, far, sparse=not dense
            ) - sparse.attention_flops(cfg, near, sparse=not dense)
            assert found == wanted
            witness(
                "eq-sparse-flops",
                abs(found - wanted),
                reference="torch FLOP counter",
                code="dsarch.analysis.sparse.attention_flops",
            )


def test_one_more_chosen_key_costs_as_much_as_a_dense_one():
    found = [counted(SPARSE.replace(index_topk=k), 100) for k in (9, 10, 30)]
    attend, _ = sparse.pair_flops(SPARSE)
    assert found[1] - found[0] == attend
    assert found[2] - found[0] == 21 * attend


def test_published_sizes():
    assert sparse.pair_flops(V3_2) == (278_528, 16_512)
    dense, few = (
        sparse.attention_flops(V3_2, 131_072, sparse=s) for s in (False, True)
    )
    assert round(dense / 1e9, 1) == 36.5 and round(few / 1e9, 2) == 2.73
    assert dense == decode.absorbed(V3_2, 131_072).flops - 2 * 128 * 512 * 256
    assert sparse.attention_bytes(V3_2, 4096, sparse=False) == 4096 * 656
    assert sparse.attention_bytes(V3_2, 4096, sparse=True) == (
        2048 * 656 + 4096 * 132
    )


def test_both_cost_the_same_where_the_formula_says(witness):
    s = sparse.even(V3_2)
    attend, index = sparse.pair_flops(V3_2)
    gap = abs(attend * 2048 + index * s - attend * s) / (attend * s)
    assert 2177 < s < 2178 and gap < 1e-12
    for context, cheaper in ((2177, False), (2178, True)):
        dense, few = (
            sparse.attention_flops(V3_2, context, sparse=x)
            for x in (False, True)
        )
        assert (few < dense) == cheaper
    witness(
        "eq-sparse-even",
        gap,
        reference="identity: both costs",
        code="dsarch.analysis.sparse.even",
    )


def test_a_prompt_is_the_sum_of_its_tokens():
    cfg = SPARSE.replace(index_topk=5)
    tokens = [sparse.attention_flops(cfg, s, sparse=True) for s in range(1, 33)]
    assert sparse.prompt_flops(cfg, 32, sparse=True) == sum(tokens)
    h, width = cfg.num_attention_heads, cfg.qk_head_dim + cfg.v_head_dim
    dense = sum(2 * h * width * s for s in range(1, 33))
    assert sparse.prompt_flops(cfg, 32, sparse=False) == dense


def test_experts_touched_by_a_batch():
    assert sparse.touched(V3_2, 1) == pytest.approx(8)
    assert sparse.touched(V3_2, 10**6) == pytest.approx(256)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.stack(
            [torch.randperm(256, generator=generator)[:8] for _ in range(20)]
        )
        .unique()
        .numel()
        for _ in range(200)
    ]
    assert sparse.touched(V3_2, 20) == pytest.approx(sum(drawn) / 200, rel=0.02)


def test_a_step_reads_its_weights_once_and_each_cache():
    one, two = (sparse.step(V3_2, 9000, b, sparse=True) for b in (1, 2))
    assert two.flops == 2 * one.flops
    cache = 61 * sparse.attention_bytes(V3_2, 9000, sparse=True)
    grown = sparse.weight_bytes(V3_2, 2) - sparse.weight_bytes(V3_2, 1)
    assert two.bytes - one.bytes == pytest.approx(cache + grown)
    assert sparse.weight_bytes(V3_2, 1) == count.parameters(V3_2)[1]


def test_dense_models_have_no_budget():
    with pytest.raises(ValueError, match="needs index_topk"):
        sparse.attention_flops(Config.v3(), 9, sparse=True)
