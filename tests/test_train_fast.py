"""Fused attention is the attention of the text, with its gradients."""

import pytest
import torch

from dsarch import Config, DeepSeek
from dsarch.layers import causal_mask, positions
from dsarch.rope import phases
from dsarch.train import loss as losses
from dsarch.train.data import Corpus, document_mask
from dsarch.train.fast import fuse, is_causal
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


def test_a_cache_takes_the_usual_way():
    plain, fast = pair()
    tokens = CORPUS.batch(0).tokens
    caches = fast.caches()
    parts = [fast(part, caches) for part in tokens.split([30, 1, 40], 1)]
    close(torch.cat(parts, 1).detach(), plain(tokens).detach())


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
