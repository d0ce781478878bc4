"""Multi-token prediction: shifts, sharing, causality, and its loss."""

import math

import pytest
import torch

from dsarch.cache import Cache
from dsarch.layers import causal_mask, positions
from dsarch.model import DeepSeek
from dsarch.mtp import advance, mtp_losses, nll
from dsarch.rope import phases
from tests.conftest import close
from tests.small import CFG, SPARSE, model

LENGTH = 11
KINDS = pytest.mark.parametrize("cfg", [CFG, SPARSE], ids=["v3", "v32"])
DEPTHS = pytest.mark.parametrize("depths", [1, 2, 3])


def tokens(batch=2, count=LENGTH + 1):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(CFG.vocab_size, (batch, count), generator=generator)


def losses_by_hand(net, hidden, text):
    """Equations 21 to 25 of the report, one prediction at a time.

    Counted as there: t[1] is the first token, h[0][i] the model's state.
    """
    batch, length = hidden.shape[:2]
    losses = []
    for k, module in enumerate(net.mtp, 1):
        total, states = 0.0, []
        for i in range(1, length - k + 1):
            t = {j + 1: text[:, j] for j in range(length + 1)}
            e = module.embed_tokens.weight[t[i + k]]
            parts = [module.enorm(e), module.hnorm(hidden[:, i - 1])]
            states.append(module.eh_proj(torch.cat(parts, -1)))
        x = torch.stack(states, 1)
        place = positions(batch, 0, x.size(1))
        mask = causal_mask(place, x.size(1))
        hidden = module(x, phases(CFG, place), mask)
        for i in range(1, length - k + 1):
            logits = hidden[:, i - 1] @ net.lm_head.weight.T
            target = t[i + k + 1][:, None]
            total -= logits.log_softmax(-1).gather(1, target).sum()
        losses.append(total / (batch * length))
    return torch.stack(losses)


@DEPTHS
def test_the_loss_is_what_the_report_says(depths, witness):
    net = model(CFG.replace(num_nextn_predict_layers=depths))
    text = tokens()
    hidden = net.hidden(text[:, :-1])
    expected = losses_by_hand(net, hidden, text)
    actual = mtp_losses(net.mtp, hidden, text)
    assert actual.shape == (depths,)
    close(actual, expected)
    witness(
        "eq-mtp-loss",
        (actual - expected).abs().max(),
        reference="identity: one prediction at a time",
        code="dsarch.mtp.mtp_losses",
    )


def test_the_loss_counts_all_positions_though_depths_see_fewer():
    net = DeepSeek(CFG.replace(num_nextn_predict_layers=2)).double()
    with torch.no_grad():
        net.lm_head.weight.zero_()
    losses = mtp_losses(net.mtp, net.hidden(tokens()[:, :-1]), tokens())
    terms = torch.tensor([LENGTH - 1, LENGTH - 2], dtype=torch.float64)
    close(losses, terms / LENGTH * math.log(CFG.vocab_size))


@KINDS
@torch.no_grad()
def test_it_sees_the_next_token_and_nothing_later(cfg):
    net, text = model(cfg), tokens()
    hidden = net.hidden(text[:, :-1])

    def drafted(following):
        return advance(net.mtp[0], hidden, following)

    before = drafted(text[:, 1:])
    changed = text[:, 1:].clone()
    changed[:, 6] = (changed[:, 6] + 1) % CFG.vocab_size
    after = drafted(changed)
    close(after[:, :6], before[:, :6])
    assert (after - before)[:, 6].abs().amax(-1).gt(1e-4).all()


@KINDS
@pytest.mark.parametrize("first", range(1, LENGTH))
@torch.no_grad()
def test_cached_equals_full_at_every_split(cfg, first):
    net, text, memory = model(cfg), tokens(), Cache()
    hidden, following = net.hidden(text[:, :-1]), text[:, 1:]
    full = advance(net.mtp[0], hidden, following)
    split = [
        advance(net.mtp[0], h, t, memory)
        for h, t in zip(
            hidden.split([first, LENGTH - first], 1),
            following.split([first, LENGTH - first], 1),
            strict=True,
        )
    ]
    close(torch.cat(split, 1), full)


def test_embedding_and_head_are_the_models_own():
    net = model(CFG.replace(num_nextn_predict_layers=2))
    for module in net.mtp:
        assert module.embed_tokens is net.model.embed_tokens
        assert module.shared_head.head is net.lm_head
        assert module.shared_head.norm is not net.model.norm
    assert net.mtp[0].eh_proj is not net.mtp[1].eh_proj
    names = [name for name, _ in net.named_parameters()]
    assert sum("embed_tokens" in x or "head.weight" in x for x in names) == 2
    stored = [x for x in net.state_dict() if "embed_tokens" in x]
    assert stored == [
        "model.embed_tokens.weight",
        "model.layers.3.embed_tokens.weight",
        "model.layers.4.embed_tokens.weight",
    ]


def test_both_losses_add_up_in_the_shared_tensors():
    net, text = model(), tokens()
    shared = [net.model.embed_tokens.weight, net.lm_head.weight]

    def main():
        return nll(net(text[:, :-1]), text[:, 1:]).mean()

    def ahead():
        return mtp_losses(net.mtp, net.hidden(text[:, :-1]), text).mean()

    alone = [torch.autograd.grad(loss(), shared) for loss in (main, ahead)]
    assert all(x.abs().max() > 0 for pair in alone for x in pair)
    (main() + 0.3 * ahead()).backward()
    for weight, a, b in zip(shared, *alone, strict=True):
        close(weight.grad, a + 0.3 * b)


def test_the_loss_trains_the_main_model_too():
    net, text = model(), tokens()
    mtp_losses(net.mtp, net.hidden(text[:, :-1]), text).mean().backward()
    first = net.model.layers[0].self_attn.o_proj.weight
    assert first.grad.abs().max() > 0
    assert net.model.norm.weight.grad.abs().max() > 0


def test_it_is_a_layer_with_experts_at_the_index_behind_the_last():
    net = model()
    assert net.mtp[0] is net.model.layers[3]
    assert len(net.mtp[0].mlp.experts) == CFG.n_routed_experts
    assert len(net.caches()) == 3


@pytest.mark.parametrize(
    ("states", "count"), [(LENGTH, LENGTH), (LENGTH, LENGTH + 2), (2, 3)]
)
def test_lengths_that_do_not_fit_are_refused(states, count):
    net = model(CFG.replace(num_nextn_predict_layers=2))
    hidden = net.hidden(tokens()[:, :states])
    with pytest.raises(ValueError, match=f"2 depths over {states} states"):
        mtp_losses(net.mtp, hidden, tokens(2, count))
