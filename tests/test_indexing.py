"""How an indexer is trained, and what its losses must not touch."""

import pytest
import torch

from dsarch.cache import Cache
from dsarch.dsa import SparseMLA, chosen
from dsarch.indexing import (
    divergence,
    freeze_all_but_indexers,
    indexer_loss,
    indexer_losses,
)
from dsarch.model import DeepSeek
from tests.conftest import close
from tests.small import SPARSE, model
from tests.test_dsa import CFG, TEXT, layer, setting, text


def tokens(batch=2, count=TEXT):
    return torch.randint(SPARSE.vocab_size, (batch, count))


def loss_by_hand(module, x, phase, mask):
    """The definition, query by query and head by head."""
    q, q_rope, latent = module.queries(x, phase)
    c, k_rope = module.memories(x, phase)
    w_uk = module.up()[0]
    k = module.indexer.keys(x, phase)
    score = module.indexer(x, latent, phase, k)
    index = module.choose(x, latent, phase, k, mask)
    seen = mask if index is None else chosen(index, mask)
    terms = []
    for b in range(x.size(0)):
        for t in range(x.size(1)):
            s = seen[b, t].nonzero().squeeze(1)
            total = torch.zeros(len(s), dtype=x.dtype)
            for h in range(CFG.num_attention_heads):
                content = (c[b, s] @ w_uk[h].T) @ q[b, t, h]
                logit = content + k_rope[b, s] @ q_rope[b, t, h]
                total = total + (logit * module.scale).softmax(0)
            p = total / total.sum()
            log_q = score[b, t, s].log_softmax(0)
            terms.append((p * (p.log() - log_q)).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("topk", [6, TEXT], ids=["sparse", "warm-up"])
def test_the_loss_is_what_the_definition_says(topk, witness):
    module, x = layer(CFG.replace(index_topk=topk)), text()
    with torch.no_grad():
        expected = loss_by_hand(module, x, *setting())
    actual = indexer_loss(module, x, *setting())
    close(actual, expected)
    witness(
        "eq-indexer-loss",
        (actual - expected).abs(),
        reference="identity: loops over queries and heads",
        code="dsarch.indexing.indexer_loss",
    )


@pytest.mark.parametrize("topk", [6, TEXT], ids=["sparse", "warm-up"])
def test_its_gradient_stays_in_the_indexer(topk):
    module = layer(CFG.replace(index_topk=topk))
    x = text().requires_grad_()
    indexer_loss(module, x, *setting()).backward()
    assert x.grad is None
    for name, weight in module.named_parameters():
        reached = weight.grad is not None and weight.grad.abs().max() > 0
        assert reached == name.startswith("indexer."), name


def test_divergence_is_zero_only_for_the_target_itself():
    mask = setting()[1]
    score = torch.randn(2, TEXT, TEXT, dtype=torch.float64)
    p = score.masked_fill(~mask, -torch.inf).softmax(-1)
    close(divergence(p, score + 3, mask), torch.zeros(2, TEXT).double())
    other = divergence(p, score.flip(-1), mask)
    assert (other[:, 1:] > 0).all()


def test_losses_of_all_layers_are_collected_without_changing_logits():
    net, x = model(SPARSE), tokens()
    expected = net(x)
    with indexer_losses(net) as losses:
        assert torch.equal(net(x), expected)
    assert len(losses) == SPARSE.num_hidden_layers
    first = net.model.layers[0]
    h = first.input_layernorm(net.model.embed_tokens(x))
    close(losses[0], indexer_loss(first.self_attn, h, *setting()))
    net(x)
    assert len(losses) == SPARSE.num_hidden_layers


def test_together_both_losses_train_their_own_part():
    net, x = model(SPARSE), tokens()
    with indexer_losses(net) as losses:
        logits = net(x)
    language = logits.logsumexp(-1).sum()
    names, weights = zip(*net.named_parameters(), strict=True)
    alone = torch.autograd.grad(
        language, weights, allow_unused=True, retain_graph=True
    )
    both = torch.autograd.grad(
        language + torch.stack(losses).sum(), weights, allow_unused=True
    )
    for name, a, b in zip(names, alone, both, strict=True):
        in_trunk = ".indexer." not in name
        if in_trunk:
            assert (a is None) == (b is None), name
            assert a is None or torch.equal(a, b), name
        elif not name.startswith("model.layers.3."):
            assert a is None and b.abs().max() > 0, name


def test_warm_up_trains_indexers_alone_and_brings_them_closer():
    cfg = SPARSE.replace(index_topk=TEXT)
    net = model(cfg, torch.float32)
    weights = freeze_all_but_indexers(net)
    trained = [n for n, x in net.named_parameters() if x.requires_grad]
    assert len(trained) == len(weights) == 4 * 5
    assert all(".indexer." in name for name in trained)
    before = {n: x.clone() for n, x in net.named_parameters()}
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    x, history = tokens(4), []
    for _ in range(40):
        with indexer_losses(net) as losses:
            net(x)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    for name, weight in net.named_parameters():
        moved = not torch.equal(weight, before[name])
        ran = not name.startswith("model.layers.3.")
        assert moved == (name in trained and ran), name


def test_the_sparse_stage_goes_on_with_the_same_weights():
    warm = model(SPARSE.replace(index_topk=TEXT))
    sparse = DeepSeek(SPARSE).double()
    sparse.load_state_dict(warm.state_dict(), strict=True)
    assert sparse.model.layers[0].self_attn.topk == 6


def test_a_pass_behind_a_cache_has_no_loss():
    net = model(SPARSE)
    caches = net.caches()
    net(tokens(), caches)
    with (
        indexer_losses(net),
        pytest.raises(ValueError, match="1 queries see 18 keys"),
    ):
        net(tokens(2, 1), caches)
    layers = [x for x in net.modules() if isinstance(x, SparseMLA)]
    assert not any(x._forward_hooks for x in layers)
    assert isinstance(caches[0], Cache)
