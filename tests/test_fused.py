"""Fused attention is the attention of the text, with its gradients."""

import inspect

import pytest
import torch

from dsarch import Config, DeepSeek, fused
from dsarch.fused import against, fuse, is_causal, row
from dsarch.layers import causal_mask, positions
from dsarch.rope import phases
from dsarch.train import loss as losses
from dsarch.train.data import Corpus, document_mask
from tests.conftest import close

CFG = Config(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    moe_intermediate_size=16,
    n_routed_experts=8,
    n_group=2,
    qk_nope_head_dim=10,
    qk_rope_head_dim=6,
    v_head_dim=12,
    initializer_range=0.2,
)
CORPUS = Corpus({"recall": 1, "brackets": 2}, rows=3, length=70)


def pair(cfg=CFG):
    plain, fast = (
        DeepSeek(cfg, torch.Generator().manual_seed(0)).double()
        for _ in range(2)
    )
    fuse(fast)
    return plain, fast


@pytest.mark.parametrize(
    "cfg", (CFG, CFG.replace(v_head_dim=16, q_lora_rank=None))
)
def test_values_and_gradients_agree(cfg):
    models = pair(cfg)
    batch = CORPUS.batch(0)
    totals = [losses.token_loss(m, batch, 0.3).total for m in models]
    close(*(total.detach() for total in totals))
    for total in totals:
        total.backward()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        if a.grad is not None:
            close(a.grad, b.grad)


def test_other_masks_agree():
    """Packed documents that do not see each other."""
    models = pair()
    batch = CORPUS._replace(length=150).batch(0)
    assert batch.document.max() > 1
    hidden = [losses.isolated(m, batch.tokens, batch.document) for m in models]
    close(*(x.detach() for x in hidden))


@pytest.mark.parametrize("gradients", (True, False))
def test_chunks_and_single_tokens_agree(gradients):
    plain, fast = pair()
    tokens = CORPUS.batch(0).tokens
    caches = fast.caches()
    with torch.set_grad_enabled(gradients):
        parts = [fast(part, caches) for part in tokens.split([30, 1, 40], 1)]
        close(torch.cat(parts, 1).detach(), plain(tokens).detach())


@torch.no_grad()
def test_a_decoded_token_takes_one_step(monkeypatch):
    """Each sequence with a mask of its own, and with the layer's factor."""
    plain, fast = pair()
    tokens, seen = CORPUS.batch(0).tokens, []

    def spy(*arguments):
        seen.append(arguments[2].size(1))
        return real(*arguments)

    real = fused.step
    monkeypatch.setattr(fused, "step", spy)
    caches, others = fast.caches(), plain.caches()
    for part in tokens[:, :40].split([37, 1, 1, 1], 1):
        close(fast(part, caches), plain(part, others))
    assert seen == [38, 38, 39, 39, 40, 40]
    layer, like = fast.layers[0].self_attn, plain.layers[0].self_attn
    x = torch.randn(3, 1, 24, dtype=torch.float64)
    mask = torch.rand(3, 1, 41) < 0.5
    mask[..., -1] = True
    phase = phases(CFG, positions(3, 40, 1))
    close(layer(x, phase, mask, caches[0]), like(x, phase, mask, others[0]))
    with pytest.raises(ValueError, match="shape"):
        layer(x, phase, mask, caches[0])
    assert len(caches[0]) == 41


@pytest.mark.parametrize("keys", (1, 2, 255, 256, 257, 600, 601))
@pytest.mark.parametrize("batch", (1, 3))
def test_keys_are_read_in_two_pieces(batch, keys):
    """Keys are the front of a longer room, as a cache has them."""
    q = torch.randn(batch, 5, 7, dtype=torch.float64)
    room = torch.randn(batch, 2 * keys, 7, dtype=torch.float64)
    k = room[:, :keys]
    close(against(q, k), torch.einsum("bhc,bsc->bhs", q, k))


@torch.no_grad()
@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize("shape", ((1, 6), (1, 1, 6), (6,)), ids=str)
def test_a_row_is_cut_between_threads(threads, shape):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for rows in (1, 5, 8, 12):
            weight = torch.randn(rows, 6, dtype=torch.float64)
            x = torch.randn(shape, dtype=torch.float64)
            close(row(x, weight), torch.nn.functional.linear(x, weight))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("width", (1, 5))
def test_a_row_of_another_width_is_refused(width):
    """By the product, too: only tests check annotations."""
    bare = inspect.unwrap(row)
    assert bare(torch.ones(1, 6), torch.ones(8, 6)).eq(6).all()
    with pytest.raises(RuntimeError, match="size"):
        bare(torch.ones(1, width), torch.ones(8, 6))


def test_rows_are_only_products_without_gradients(monkeypatch):
    """Every plain linear map of a decoded token, and none of a prompt."""
    _, fast = pair()
    seen = []

    def spy(x, weight):
        seen.append(weight)
        return row(x, weight)

    monkeypatch.setattr(fused, "row", spy)
    token = CORPUS.batch(0).tokens[:1, :1]
    fast(token)
    with torch.no_grad():
        fast(token.expand(1, 2))
        assert not seen
        logits = fast(token)
        assert seen[-1] is fast.lm_head.weight
        # two layers of attention, one MLP, the chosen and the shared experts
        chosen = CFG.num_experts_per_tok + CFG.n_shared_experts
        assert len(seen) == 2 * 4 + 3 * (1 + chosen) + 1
        close(logits, pair()[0](token))


def test_a_mask_is_looked_at():
    mask = causal_mask(positions(2, 0, 5), 5)
    assert is_causal(mask)
    assert not is_causal(causal_mask(positions(2, 2, 3), 5))
    changed = mask.clone()
    changed[1, 4, 0] = False
    assert not is_causal(changed)
    document = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    assert not is_causal(document_mask(document))


def test_fused_layers_keep_no_scores():
    """Memory for the backward pass grows with the length, not its square."""

    def kept(model, length):
        total = 0

        def pack(x):
            nonlocal total
            total += x.nbytes
            return x

        layer = model.layers[0].self_attn
        position = positions(1, 0, length)
        x = torch.randn(1, length, 24, dtype=torch.float64)
        arguments = phases(CFG, position), causal_mask(position, length)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            layer(x, *arguments)
        return total

    plain, fast = pair()
    assert kept(plain, 256) > 3 * kept(plain, 128)
    assert kept(fast, 256) < 2.2 * kept(fast, 128)
