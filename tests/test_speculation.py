"""What drafting gains: formulas against enumeration, and real agreement."""

import itertools
from math import prod

import pytest
import torch

from dsarch.analysis import count
from dsarch.analysis.presets import MACHINES
from dsarch.analysis.speculation import (
    agreement,
    best_drafts,
    draft_cost,
    expected_tokens,
    experts_met,
    pass_cost,
    served,
    speedup,
    tokens_per_pass,
)
from dsarch.config import Config
from dsarch.mtp import advance
from dsarch.sampling import residual
from dsarch.train.data import Corpus
from tests.conftest import close
from tests.small import CFG, model


def outcomes(chances):
    """Every pattern of kept and refused drafts with its probability."""
    for kept in itertools.product([True, False], repeat=len(chances)):
        parts = zip(chances, kept, strict=True)
        yield kept, prod(a if good else 1 - a for a, good in parts)


def enumerated(chances):
    """Expected tokens: the kept drafts before a refusal, and one more."""
    total = 0.0
    for kept, chance in outcomes(chances):
        total += chance * (1 + len([*itertools.takewhile(bool, kept)]))
    return total


def test_tokens_of_a_pass_by_enumeration(witness):
    gap = 0.0
    for alpha, drafts in itertools.product((0.3, 0.7, 0.95), range(7)):
        closed = (1 - alpha ** (drafts + 1)) / (1 - alpha)
        assert tokens_per_pass(alpha, drafts) == pytest.approx(closed)
        gap = max(gap, abs(closed - enumerated([alpha] * drafts)))
    assert gap < 1e-10
    uneven = [0.9, 0.2, 0.7]
    assert expected_tokens(uneven) == pytest.approx(enumerated(uneven))
    assert tokens_per_pass(1.0, 4) == 5 and tokens_per_pass(0.0, 4) == 1
    witness(
        "eq-tokens-per-pass",
        gap,
        reference="identity: all patterns of refusals",
        code="dsarch.analysis.speculation.tokens_per_pass",
    )


def test_one_step_of_speculation_writes_exactly_p(witness):
    generator = torch.Generator().manual_seed(0)
    shape = (5, 3, 9)
    p, q = torch.randn(2, *shape, generator=generator).double().softmax(-1)
    kept = q * (p / q).clamp(max=1)
    left = residual(p, q)
    alpha = torch.minimum(p, q).sum(-1, keepdim=True)
    close(kept.sum(-1, keepdim=True), alpha)
    written = kept + (1 - alpha) * left / left.sum(-1, keepdim=True)
    close(written, p)
    witness(
        "eq-speculative-sampling",
        (written - p).abs().max(),
        reference="identity: exact distribution, all drafts",
        code="dsarch.sampling.residual",
    )
    witness(
        "eq-acceptance",
        (kept.sum(-1, keepdim=True) - alpha).abs().max(),
        reference="identity: every draft by its probability",
        code="dsarch.analysis.speculation.agreement",
    )


def test_speed_is_the_tokens_of_many_rounds_over_their_time(witness):
    generator = torch.Generator().manual_seed(1)
    alpha, drafts, draft, extra = 0.8, 3, 0.1, 0.05
    kept = torch.rand(400_000, drafts, generator=generator) < alpha
    tokens = kept.long().cumprod(1).sum() + len(kept)
    time = len(kept) * (1.0 + drafts * draft + drafts * extra)
    simulated = tokens.item() / time
    expected = speedup(alpha, drafts, draft, extra)
    assert abs(simulated - expected) < 0.005
    witness(
        "eq-speedup",
        abs(simulated - expected),
        reference="simulation of 400,000 rounds",
        code="dsarch.analysis.speculation.speedup",
    )


def test_where_a_token_more_costs_a_pass_nothing_pays():
    for alpha in (0.0, 0.5, 0.9, 0.999):
        assert best_drafts(alpha, 0.0, 1.0) == 0
        assert speedup(alpha, 5, 0.0, 1.0) <= 1
    assert best_drafts(0.9, 0.0, most=7) == 7
    found = best_drafts(0.8, 0.1)
    values = [speedup(0.8, k, 0.1) for k in range(17)]
    assert values[found] == max(values) and 0 < found < 16


def test_experts_that_tokens_meet_by_enumeration(witness):
    n, k = 5, 2
    cfg = CFG.replace(
        n_routed_experts=n, num_experts_per_tok=k, n_group=1, topk_group=1
    )
    choices = [*itertools.combinations(range(n), k)]
    gap = 0.0
    for tokens in (1, 2, 3):
        met = [
            len(set().union(*picked))
            for picked in itertools.product(choices, repeat=tokens)
        ]
        gap = max(gap, abs(sum(met) / len(met) - experts_met(cfg, tokens)))
    assert gap < 1e-10
    witness(
        "eq-experts-met",
        gap,
        reference="identity: all choices of up to 3 tokens",
        code="dsarch.analysis.speculation.experts_met",
    )


def test_a_pass_reads_what_its_tokens_use_and_in_the_end_everything():
    cfg = Config.v3()
    stored, active = count.parameters(cfg)
    one, many = pass_cost(cfg, 1, 1), pass_cost(cfg, 10**5, 1)
    assert one.bytes == pytest.approx(active) and one.flops == 2 * active
    table = cfg.vocab_size * cfg.hidden_size
    assert many.bytes == pytest.approx(stored - table)
    layer = count.mtp_parameters(cfg) + table
    assert draft_cost(cfg, 10**5, 1).bytes == pytest.approx(layer)


def test_drafts_pay_in_a_window_of_batch_sizes():
    cfg, machine = Config.v3(), MACHINES[0]
    alone, few, some, full = (
        served(cfg, batch, 0.85, 1, machine) for batch in (1, 4, 256, 16384)
    )
    assert few < alone < some and some > 1.8 and full < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [((1.2, 2), "0 to 1, found 1.2"), ((0.5, -1), "at least 0, found -1")],
)
def test_impossible_numbers_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        tokens_per_pass(*given)


@torch.no_grad()
def test_agreement_is_that_of_the_first_draft_place_by_place():
    net = model(CFG.replace(vocab_size=264))
    batch = Corpus({"brackets": 1}, 2, 30, 3).batch(0)
    found, text = agreement(net, batch), batch.tokens
    for i in range(text.size(1) - 2):
        p = net(text[:, : i + 2])[:, -1].softmax(-1)
        hidden = net.hidden(text[:, : i + 1])
        state = advance(net.mtp[0], hidden, text[:, 1 : i + 2])[:, -1]
        q = net.lm_head(state).softmax(-1)
        close(found.overlap[:, i], torch.minimum(p, q).sum(-1))
        assert torch.equal(found.same[:, i], p.argmax(-1) == q.argmax(-1))
    counted = batch.counted
    assert torch.equal(found.counted, counted[:, 2:] & counted[:, 1:-1])
    assert not found.counted.all()


@torch.no_grad()
def test_two_that_know_nothing_agree():
    net = model(CFG.replace(vocab_size=264))
    net.lm_head.weight.zero_()
    batch = Corpus({"story": 1}, 2, 14, 3).batch(0)
    assert agreement(net, batch).chances() == pytest.approx((1.0, 1.0))
