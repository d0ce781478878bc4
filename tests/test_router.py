"""Routers against their definitions, written out token by token."""

import math

import pytest
import torch

from dsarch.config import Config
from dsarch.router import (
    Router,
    affinities,
    capacity,
    drop_overflow,
    gate_logits,
    group_scores,
    gshard_top2,
    limit_to_groups,
    noisy_top_k,
    route,
    switch_top1,
    top_k,
)
from tests.conftest import close

V3 = Config(
    hidden_size=10,
    n_routed_experts=15,
    n_group=5,
    topk_group=3,
    num_experts_per_tok=4,
    routed_scaling_factor=2.5,
)
V2 = V3.replace(
    topk_method="group_limited_greedy",
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
)


def scores_and_bias(z=40, e=15):
    """Sigmoid scores, and a bias that lifts some of them below zero."""
    return (
        torch.randn(z, e, dtype=torch.float64).sigmoid(),
        torch.randn(e, dtype=torch.float64) * 0.4 - 1.0,
    )


def by_hand(scores, bias, cfg, best):
    """One token at a time, with lists: the experts and their weights."""
    size = cfg.n_routed_experts // cfg.n_group
    for s in scores.tolist():
        choice = [a + b for a, b in zip(s, bias.tolist(), strict=True)]
        groups = [choice[i : i + size] for i in range(0, len(s), size)]
        worth = [sum(sorted(g)[-best:]) for g in groups]
        kept = sorted(range(cfg.n_group), key=worth.__getitem__)
        kept = kept[-cfg.topk_group :]
        open_ = [i for i in range(len(s)) if i // size in kept]
        chosen = sorted(open_, key=choice.__getitem__)
        chosen = sorted(chosen[-cfg.num_experts_per_tok :])
        total = sum(s[i] for i in chosen) if cfg.norm_topk_prob else 1.0
        scale = cfg.routed_scaling_factor
        yield chosen, [scale * s[i] / total for i in chosen]


def in_order(routing):
    experts, order = routing.experts.sort(1)
    return experts.tolist(), routing.weights.gather(1, order)


@pytest.mark.parametrize(("cfg", "best"), [(V3, 2), (V2, 1)], ids=("v3", "v2"))
def test_route_is_the_definition(cfg, best, witness):
    scores, bias = scores_and_bias()
    if cfg is V2:
        scores, bias = scores.softmax(1), torch.zeros_like(bias)
    routing = route(scores, bias if cfg is V3 else None, cfg)
    experts, weights = in_order(routing)
    expected = list(by_hand(scores, bias, cfg, best))
    assert experts == [chosen for chosen, _ in expected]
    wanted = torch.tensor([w for _, w in expected], dtype=torch.float64)
    close(weights, wanted)
    for label in (
        "eq-group-limit",
        "eq-gate-v3" if best == 2 else "eq-gate-v2",
    ):
        witness(
            label,
            (weights - wanted).abs().max(),
            reference="definition, token by token",
            code="dsarch.router.route",
        )


def test_bias_chooses_and_never_weighs():
    scores, bias = scores_and_bias()
    cfg = V3.replace(n_group=1, topk_group=1)
    plain, biased = route(scores, None, cfg), route(scores, bias, cfg)
    assert in_order(plain)[0] != in_order(biased)[0]
    kept = scores.gather(1, biased.experts)
    close(biased.weights, 2.5 * kept / kept.sum(1, keepdim=True))
    close(biased.weights.sum(1), torch.full((40,), 2.5).double())


def test_no_gradient_passes_the_choice():
    scores, bias = scores_and_bias()
    scores.requires_grad_()
    bias.requires_grad_()
    routing = route(scores, bias, V3)
    (routing.weights * torch.rand_like(routing.weights)).sum().backward()
    assert bias.grad is None
    chosen = torch.zeros_like(scores).scatter(1, routing.experts, 1.0)
    assert (scores.grad[chosen == 0] == 0).all()
    assert (scores.grad[chosen == 1] != 0).all()


def test_adding_a_constant_to_the_bias_changes_nothing():
    scores, bias = scores_and_bias()
    low, high = route(scores, bias - 7, V3), route(scores, bias + 2, V3)
    assert in_order(low)[0] == in_order(high)[0]


def test_a_group_is_worth_its_two_best_not_its_best():
    choice = torch.tensor([[0.9, 0.1, 0.1, 0.7, 0.6, 0.0]])
    close(group_scores(choice, 2, 2), torch.tensor([[1.0, 1.3]]))
    close(group_scores(choice, 2, 1), torch.tensor([[0.9, 0.7]]))
    by_two = limit_to_groups(choice, 2, 1, 2)
    assert by_two.isinf().tolist() == [[True] * 3 + [False] * 3]


def test_closed_groups_lose_against_scores_below_zero():
    """Filled with zeros instead, closed groups would win here."""
    scores, bias = scores_and_bias()
    assert (scores + bias - 3 < 0).all()
    routing = route(scores, bias - 3, V3)
    groups = [set((row // 3).tolist()) for row in routing.experts]
    assert max(map(len, groups)) == 3


def test_multiplicative_bias_is_an_additive_one_per_token():
    scores, _ = scores_and_bias()
    factor = torch.rand(15, dtype=torch.float64) + 0.5
    cfg = V3.replace(n_group=1, topk_group=1)
    routing = route(scores, scores * (factor - 1), cfg)
    expected = (scores * factor).topk(4).indices.sort(1).values
    assert in_order(routing)[0] == expected.tolist()


def test_scores_are_computed_in_fp32():
    x = torch.randn(64, 48).bfloat16()
    weight = torch.randn(30, 48).bfloat16()
    exact = x.double() @ weight.double().T
    found = gate_logits(x, weight)
    assert found.dtype == torch.float32
    close(found, exact)
    close(affinities(x, weight), exact.sigmoid())
    close(affinities(x, weight, "softmax"), exact.softmax(1))
    assert gate_logits(x.double(), weight.double()).dtype == torch.float64


def test_router_bias_stays_fp32_in_every_model():
    router = Router(V3)
    fine = torch.linspace(2.0, 2.001, 15)
    router.e_score_correction_bias.copy_(fine)
    for cast in (router.bfloat16, router.double, router.half, router.float):
        cast()
        assert router.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(router.e_score_correction_bias, fine)
    assert list(router.state_dict()) == ["weight", "e_score_correction_bias"]
    assert [n for n, _ in router.named_parameters()] == ["weight"]
    assert list(Router(V2).state_dict()) == ["weight"]
    assert Router(V3).to("meta").e_score_correction_bias.is_meta


def test_underflowed_scores_give_zero_weights_not_nan():
    routing = route(torch.zeros(2, 15), None, V3)
    assert (routing.weights == 0).all()


def test_nan_stays_in_its_token():
    scores, bias = scores_and_bias()
    clean = route(scores, bias, V3)
    dirty = scores.clone()
    dirty[7] = math.nan
    routing = route(dirty, bias, V3)
    assert routing.weights[7].isnan().all()
    assert len(set(routing.experts[7].tolist())) == 4
    assert routing.experts.min() >= 0
    assert routing.experts.max() < 15
    others = torch.arange(40) != 7
    assert torch.equal(routing.weights[others], clean.weights[others])
    assert torch.equal(routing.experts[others], clean.experts[others])


def test_no_tokens_make_an_empty_routing():
    empty = torch.zeros(0, 15)
    for routing in (
        route(empty, torch.zeros(15), V3),
        top_k(empty, 3),
        switch_top1(empty),
        gshard_top2(empty, torch.Generator()),
        noisy_top_k(empty, empty, 3, torch.Generator()).routing,
        drop_overflow(top_k(empty, 3), 1),
    ):
        assert routing.weights.size(0) == routing.experts.size(0) == 0


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (lambda s: route(s, None, V3.replace(num_experts_per_tok=9)), "9 of 8"),
        (lambda s: top_k(s, 9), "9 of 8"),
        (lambda s: top_k(s, 0), "0 of 8"),
        (lambda s: noisy_top_k(s, s, 9), "9 of 8"),
        (lambda s: group_scores(s, 3, 2), "8 experts do not form 3"),
        (lambda s: group_scores(s, 8, 2), "8 equal groups of at least 2"),
        (lambda s: limit_to_groups(s, 2, 3, 2), "3 exceeds n_group 2"),
        (lambda s: capacity(4, 2, 8, -1.0), "-1.0"),
        (lambda s: capacity(4, 2, 8, math.nan), "nan"),
    ],
)
def test_bad_input_is_refused_with_its_numbers(call, numbers):
    with pytest.raises(ValueError, match=numbers):
        call(torch.rand(5, 8))


def test_top_k_weights_are_a_softmax_over_the_chosen():
    logits = torch.randn(9, 7, dtype=torch.float64)
    routing = top_k(logits.softmax(1), 3)
    close(routing.weights, logits.gather(1, routing.experts).softmax(1))


def test_switch_weighs_by_the_probability():
    scores = torch.randn(9, 7, dtype=torch.float64).softmax(1)
    routing = switch_top1(scores.requires_grad_())
    assert torch.equal(routing.weights[:, 0], scores.max(1).values)
    routing.weights.sum().backward()
    assert scores.grad.sum() == 9


def test_gshard_is_its_algorithm(witness):
    """Algorithm 1 of the paper as two loops over tokens."""
    scores = torch.randn(30, 5, dtype=torch.float64).softmax(1)
    room = 10
    routing = drop_overflow(
        gshard_top2(scores, torch.Generator().manual_seed(3)), room
    )
    g = torch.Generator().manual_seed(3)
    u = torch.empty(30, dtype=torch.float64).uniform_(generator=g)
    gates = torch.zeros(30, 5, dtype=torch.float64)
    count = [0] * 5
    best, order = scores.topk(2)
    best = best / best.sum(1, keepdim=True)
    for choice in (0, 1):
        for t in range(30):
            e = int(order[t, choice])
            willing = choice == 0 or 2 * best[t, 1] > u[t]
            if willing and count[e] < room:
                gates[t, e] = best[t, choice]
            count[e] += willing
    found = torch.zeros(30, 6, dtype=torch.float64)
    found = found.scatter(1, routing.experts, routing.weights)
    assert 0 < (routing.experts == 5).sum() < 60
    close(found[:, :5], gates)
    witness(
        "eq-gshard",
        (found[:, :5] - gates).abs().max(),
        reference="algorithm 1 of the paper, loop by loop",
        code="dsarch.router.gshard_top2",
    )


def test_gshard_without_randomness_keeps_both():
    scores = torch.randn(30, 5).softmax(1)
    assert torch.equal(gshard_top2(scores).experts, top_k(scores, 2).experts)


def test_first_choices_come_before_any_second():
    """Token 0's second choice must not take token 2's first."""
    scores = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.0, 0.7], [0.0, 0.8, 0.2]])
    routing = drop_overflow(top_k(scores, 2), 1)
    assert routing.experts.tolist() == [[0, 3], [2, 3], [1, 3]]
    close(routing.weights[:, 0], torch.tensor([0.6, 0.7, 0.8]))
    assert (routing.weights[:, 1] == 0).all()


def test_overflow_is_dropped_and_goes_nowhere_else():
    scores = torch.tensor([[0.7, 0.2, 0.1]]).repeat(5, 1)
    routing = drop_overflow(switch_top1(scores), 3)
    assert routing.experts.flatten().tolist() == [0, 0, 0, 3, 3]
    close(routing.weights.flatten(), torch.tensor([0.7, 0.7, 0.7, 0.0, 0.0]))


def test_a_dropped_nan_weighs_nothing():
    scores = torch.tensor([[0.7, 0.3], [0.7, 0.3], [math.nan, math.nan]])
    routing = drop_overflow(switch_top1(scores), 0)
    assert (routing.weights == 0).all()
    assert (routing.experts == 2).all()


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "factor", "slots"),
    [(10, 2, 8, 1.0, 3), (16, 1, 4, 1.25, 5), (0, 2, 8, 2.0, 0)],
)
def test_capacity(tokens, k, experts, factor, slots):
    assert capacity(tokens, k, experts, factor) == slots


def test_noisy_top_k_is_the_definition(witness):
    """Every probability from the normal law, expert by expert."""
    clean, spread = torch.randn(2, 12, 6, dtype=torch.float64)
    seed = torch.Generator().manual_seed(5)
    found = noisy_top_k(clean, spread, 2, seed)
    noise = torch.empty(12, 6, dtype=torch.float64).normal_(
        generator=torch.Generator().manual_seed(5)
    )
    scale = spread.exp().log1p()
    noisy = clean + noise * scale
    chosen = noisy.topk(2).indices
    assert torch.equal(found.routing.experts, chosen)
    close(found.routing.weights, noisy.gather(1, chosen).softmax(1))
    wanted = torch.empty_like(clean)
    for t in range(12):
        for i in range(6):
            rest = sorted(h for j, h in enumerate(noisy[t].tolist()) if j != i)
            x = (clean[t, i] - rest[-2]) / scale[t, i]
            wanted[t, i] = 0.5 * math.erfc(-float(x) / math.sqrt(2))
    close(found.probability, wanted)
    for label in ("eq-noisy-top-k", "eq-load"):
        witness(
            label,
            (found.probability - wanted).abs().max(),
            reference="definition, expert by expert",
            code="dsarch.router.noisy_top_k",
        )


def test_noise_rests_without_a_generator():
    clean, spread = torch.randn(2, 12, 6)
    calm = noisy_top_k(clean, spread, 2).routing
    close(calm.weights, top_k(clean.softmax(1), 2).weights)
    certain = noisy_top_k(clean, spread, 6)
    assert (certain.probability == 1).all()


def test_the_load_has_a_gradient():
    clean, spread = torch.randn(2, 12, 6, requires_grad=True)
    load = noisy_top_k(clean, spread, 2).probability.sum(0)
    for grad in torch.autograd.grad(load.var(), (clean, spread)):
        assert (grad != 0).any(0).all()
