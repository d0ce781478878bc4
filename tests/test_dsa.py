"""Sparse attention: its scores, its selection, its forms, its training."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsarch.cache import Cache
from dsarch.dsa import (
    Indexer,
    SparseMLA,
    chosen,
    gathered,
    gathers,
    hadamard,
    index_scores,
    spread,
    take,
    top_k,
)
from dsarch.fp8.reference import ROW, dequantize, quantize
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA, expanded
from dsarch.rope import phases
from tests.conftest import close
from tests.small import SPARSE

CFG = SPARSE
TEXT = 17


def layer(cfg=CFG, dtype=torch.float64):
    module = SparseMLA(cfg).to(dtype)
    for name, weight in module.named_parameters():
        mean = float("norm.weight" in name)
        torch.nn.init.normal_(weight, mean, 0.3)
    return module


def run(module, x, sizes):
    cache, outputs = Cache(), []
    for chunk in x.split(sizes, 1):
        position = positions(x.size(0), len(cache), chunk.size(1))
        mask = causal_mask(position, len(cache) + chunk.size(1))
        phase = phases(module.cfg, position)
        outputs.append(module(chunk, phase, mask, cache))
    return torch.cat(outputs, 1), cache


def text(batch=2, count=TEXT):
    return torch.randn(batch, count, CFG.hidden_size, dtype=torch.float64)


def setting(batch=2, count=TEXT):
    """Phases and mask of a whole text."""
    position = positions(batch, 0, count)
    return phases(CFG, position), causal_mask(position, count)


def test_scores_are_what_the_definition_says(witness):
    q = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    k = torch.randn(2, 5, 4, dtype=torch.float64)
    w = torch.randn(2, 3, 9, dtype=torch.float64)
    assert w.min() < 0
    expected = torch.zeros(2, 3, 5, dtype=torch.float64)
    for b, t, s in torch.cartesian_prod(*map(torch.arange, (2, 3, 5))):
        for j in range(9):
            product = (q[b, t, j] @ k[b, s]) / 4**0.5
            expected[b, t, s] += w[b, t, j] / 9**0.5 * max(product, 0)
    actual = index_scores(q, k, w)
    close(actual, expected)
    witness(
        "eq-index-scores",
        (actual - expected).abs().max(),
        reference="identity: loops over tokens and heads",
        code="dsarch.dsa.index_scores",
    )


def test_the_selection_prefers_what_a_query_may_see():
    score = torch.randn(2, TEXT, TEXT)
    mask = setting()[1]
    # The future looks best, and must not be chosen before all of the past.
    index = top_k(score.masked_fill(~mask, 9.0), mask, 6)
    seen = chosen(index, mask)
    assert index.shape == (2, TEXT, 6)
    assert not (seen & ~mask).any()
    visible = torch.arange(1, TEXT + 1).clamp(max=6)
    assert torch.equal(seen.sum(-1), visible.expand(2, -1))
    best = score.masked_fill(~mask, -torch.inf)
    worst_chosen = best.masked_fill(~seen, torch.inf).amin(-1)
    best_left = best.masked_fill(seen, -torch.inf).amax(-1)
    assert (worst_chosen > best_left).all()


def test_more_keys_than_there_are_means_all_of_them():
    index = top_k(torch.randn(1, 4, 4), setting(1, 4)[1], 9)
    assert torch.equal(chosen(index, setting(1, 4)[1]), setting(1, 4)[1])


@pytest.mark.parametrize("topk", [TEXT, TEXT + 5])
@torch.no_grad()
def test_enough_keys_is_dense_attention(topk, witness):
    sparse = layer(CFG.replace(index_topk=topk))
    dense = MLA(CFG).double()
    kept = {key: sparse.state_dict()[key] for key in dense.state_dict()}
    dense.load_state_dict(kept, strict=True)
    x = text()
    expected = dense(x, *setting())
    close(sparse(x, *setting()), expected)
    close(run(sparse, x, [1] * TEXT)[0], expected)
    witness(
        "eq-sparse-is-dense",
        (sparse(x, *setting()) - expected).abs().max(),
        reference="identity: dense attention",
        code="dsarch.dsa.SparseMLA",
    )


@torch.no_grad()
def test_one_key_more_or_less_matters():
    x = text()
    full = layer(CFG.replace(index_topk=TEXT))
    less = SparseMLA(CFG.replace(index_topk=TEXT - 1)).double()
    less.load_state_dict(full.state_dict())
    gap = (full(x, *setting()) - less(x, *setting())).abs().amax((0, 2))
    assert (gap[:-1] < 1e-12).all() and gap[-1] > 1e-4


@pytest.mark.parametrize("first", range(1, TEXT))
@torch.no_grad()
def test_cached_equals_full_at_every_split(first, witness):
    module, x = layer(), text()
    full, cache = run(module, x, [TEXT])
    split, _ = run(module, x, [first, TEXT - first])
    close(split, full)
    assert cache.nbytes == 2 * TEXT * (20 + 6 + 16) * 8
    witness(
        "eq-sparse-cache",
        (split - full).abs().max(),
        reference="identity: full pass",
        code="dsarch.dsa.SparseMLA",
    )


@torch.no_grad()
def test_token_by_token_gathers_and_equals_the_masked_pass():
    module, x = layer(), text()
    close(run(module, x, [1] * TEXT)[0], module(x, *setting()))
    assert gathers(torch.zeros(2, 1, 6).long(), TEXT)
    assert not gathers(torch.zeros(2, TEXT, 6).long(), TEXT)


def pieces(t=4, s=TEXT):
    h, (n, r) = CFG.num_attention_heads, CFG.qk_widths
    c, v = CFG.kv_lora_rank, CFG.v_head_dim
    shapes = [(2, t, h, n), (2, t, h, r), (2, s, c), (2, s, r)]
    shapes += [(h, n, c), (h, v, c)]
    return [
        torch.randn(*x, dtype=torch.float64, requires_grad=True) for x in shapes
    ]


def test_gathered_equals_masked_with_gradients(witness):
    inputs = pieces()
    # The first queries see fewer keys than they choose.
    mask = causal_mask(positions(2, 2, 4), TEXT)
    index = top_k(torch.randn(2, 4, TEXT), mask, 5)
    expected = expanded(*inputs, chosen(index, mask), 0.2)
    actual = gathered(*inputs, mask, index, 0.2)
    close(actual, expected)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, weight)
    found = torch.autograd.grad(actual, inputs, weight)
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    witness(
        "eq-gathered",
        (actual - expected).abs().max(),
        reference="identity: masked attention",
        code="dsarch.dsa.gathered",
    )


def test_take_is_indexing_row_by_row():
    x = torch.randn(2, 9, 3)
    index = torch.tensor([[[0, 8], [3, 3]], [[1, 2], [7, 0]]])
    for b in range(2):
        assert torch.equal(take(x, index)[b], x[b][index[b]])


def counted(module, x, topk):
    """Multiplications of one more token behind `x`, the indexer's apart."""
    module.topk = topk
    _, cache = run(module, x, [x.size(1)])
    position = positions(1, len(cache), 1)
    mask = causal_mask(position, len(cache) + 1)
    with FlopCounterMode(display=False) as counter:
        module(x[:, :1], phases(CFG, position), mask, cache)
    inside = counter.get_flop_counts()
    whole, indexer = (
        sum(inside.get(key, {}).values())
        for key in ("Global", "SparseMLA.indexer")
    )
    return whole - indexer


@torch.no_grad()
def test_the_gathered_work_does_not_grow_with_the_text():
    module = layer()
    sparse = [counted(module, text(1, s), 6) for s in (100, 200, 400)]
    dense = [counted(module, text(1, s), 999) for s in (100, 200, 400)]
    per_key = 2 * CFG.num_attention_heads * (2 * 20 + 6)
    assert dense[1] - dense[0] == 100 * per_key
    assert sparse[0] == sparse[1] == sparse[2] < dense[0] / 2


@torch.no_grad()
def test_the_future_leaves_no_trace():
    module, x = layer(), text()
    before = module(x, *setting())
    x[:, 9] += 1
    after = module(x, *setting())
    close(after[:, :9], before[:, :9])
    assert (after - before)[:, 9].abs().amax() > 1e-3


@torch.no_grad()
def test_all_heads_share_one_selection_made_by_the_indexer():
    module, x = layer(), text(1)
    phase, mask = setting(1)
    _, _, latent = module.queries(x, phase)
    keys = module.indexer.keys(x, phase)
    index = module.choose(x, latent, phase, keys, mask)
    score = module.indexer(x, latent, phase, keys)
    assert index.shape == (1, TEXT, 6)
    assert torch.equal(chosen(index, mask), chosen(top_k(score, mask, 6), mask))


@pytest.mark.parametrize("width", [1, 2, 8, 128])
def test_hadamard_is_orthonormal_symmetric_and_in_sylvesters_order(width):
    h = hadamard(width).double()
    close(h @ h, torch.eye(width).double(), 1e-5)
    assert torch.equal(h, h.T)
    i = torch.arange(width)
    ones = torch.stack([(i[:, None] & i >> 0) >> b & 1 for b in range(8)])
    sign = 1 - 2 * (ones.sum(0) % 2)
    assert torch.equal(h.sign(), sign.double())


def test_spreading_keeps_products_and_flattens_outliers():
    q, k = torch.randn(2, 5, 16).double()
    close(spread(q) @ spread(k).T, q @ k.T, 1e-5)
    outlier = torch.zeros(16)
    outlier[3] = 8.0
    assert torch.equal(spread(outlier).abs(), torch.full((16,), 2.0))


@torch.no_grad()
def test_a_transform_reaches_queries_and_keys_alike():
    module, x = layer(), text()
    expected = module(x, *setting())
    module.indexer.transform = spread
    close(module(x, *setting()), expected)
    close(run(module, x, [5, 1, 11])[0], expected)


def rounded(x):
    """To FP8 and back, one power-of-two scale for each vector."""
    q = quantize(x.float().flatten(0, -2), ROW, pow2=True)
    return dequantize(q).unflatten(0, x.shape[:-1]).type_as(x)


@torch.no_grad()
def test_fp8_rounding_changes_few_choices():
    module, x = layer(), text(8)
    phase, mask = setting(8)
    _, _, latent = module.queries(x, phase)

    def choice():
        keys = module.indexer.keys(x, phase)
        index = module.choose(x, latent, phase, keys, mask)
        return chosen(index, mask)

    exact = choice()
    module.indexer.transform = lambda x: rounded(spread(x))
    same = (choice() & exact).sum() / exact.sum()
    assert 0.9 < same < 1


def test_the_language_loss_does_not_reach_the_indexer():
    module, x = layer(), text()
    module(x, *setting()).square().sum().backward()
    for name, weight in module.named_parameters():
        reached = weight.grad is not None and weight.grad.abs().max() > 0
        assert reached == (not name.startswith("indexer.")), name


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="power of 2, not 12"):
        hadamard(12)
    with pytest.raises(ValueError, match="needs index_topk"):
        SparseMLA(CFG.replace(index_topk=None))
    module, cache = layer(), Cache()
    phase, mask = setting()
    with pytest.raises(ValueError, match=r"mask .*16\).*17\)"):
        module(text(), phase, mask[..., 1:], cache)
    assert len(cache) == 0


def test_the_index_key_is_the_only_one_with_a_layer_norm():
    kinds = [type(x) for x in layer().modules()]
    assert kinds.count(torch.nn.LayerNorm) == 1
    assert isinstance(Indexer(CFG).k_norm, torch.nn.LayerNorm)
    assert Indexer(CFG).k_norm.bias is not None


@torch.no_grad()
def test_head_weights_are_computed_in_fp32():
    module = layer(dtype=torch.bfloat16)
    x = text().bfloat16()
    phase, _ = setting()
    _, _, latent = module.queries(x, phase)
    keys = module.indexer.keys(x, phase)
    found = module.indexer(x, latent, phase, keys)
    indexer = module.indexer
    q = indexer.wq_b(latent).unflatten(-1, (9, 16))
    w = (x.double() @ indexer.weights_proj.weight.double().T).float()
    exact = index_scores(indexer.turn(q, phase), keys, w)
    assert found.dtype == torch.float32
    close(found, exact)
