"""Balance losses against their sums, and what the bias update does."""

import math

import pytest
import torch

from dsarch.balance import (
    balance,
    communication_loss,
    dense,
    device_loss,
    devices_of,
    expert_loss,
    fractions,
    gshard_loss,
    loads,
    sequence_loss,
    updated_bias,
    variation_squared,
    z_loss,
)
from dsarch.config import Config
from dsarch.router import drop_overflow, noisy_top_k, route, top_k
from tests.conftest import close

E, K, Z, DEVICES, LIMIT = 12, 3, 20, 4, 2


def routed(z=Z):
    scores = torch.randn(z, E, dtype=torch.float64).softmax(1)
    return scores, scores.topk(K).indices


def by_hand(scores, experts):
    """f and P of every expert, one token at a time."""
    z, e = scores.shape
    f, p = [0.0] * e, [0.0] * e
    for t in range(z):
        for i in experts[t].tolist():
            f[i] += e / (experts.size(1) * z)
        for i in range(e):
            p[i] += float(scores[t, i]) / z
    return f, p


def test_expert_loss_is_the_sum(witness):
    scores, experts = routed()
    f, p = by_hand(scores, experts)
    wanted = sum(a * b for a, b in zip(f, p, strict=True))
    found = expert_loss(scores, experts)
    close(found, torch.tensor(wanted, dtype=torch.float64))
    witness(
        "eq-expert-loss",
        abs(found - wanted),
        reference="definition, token by token",
        code="dsarch.balance.expert_loss",
    )


def test_gshard_loss_counts_first_choices(witness):
    scores, experts = routed()
    wanted = 0.0
    for e in range(E):
        first = sum(int(row[0]) == e for row in experts) / Z
        wanted += first * float(scores[:, e].mean()) / E
    found = gshard_loss(scores, experts)
    close(found, torch.tensor(wanted, dtype=torch.float64))
    witness(
        "eq-gshard-loss",
        abs(found - wanted),
        reference="definition, expert by expert",
        code="dsarch.balance.gshard_loss",
    )


def test_device_loss_is_a_mean_times_a_sum(witness):
    scores, experts = routed()
    f, p = by_hand(scores, experts)
    size = E // DEVICES
    wanted = 0.0
    for d in range(DEVICES):
        members = range(d * size, (d + 1) * size)
        mean = sum(f[j] for j in members) / size
        wanted += mean * sum(p[j] for j in members)
    found = device_loss(scores, experts, DEVICES)
    close(found, torch.tensor(wanted, dtype=torch.float64))
    witness(
        "eq-device-loss",
        abs(found - wanted),
        reference="definition, device by device",
        code="dsarch.balance.device_loss",
    )


def test_communication_loss_counts_a_device_once_per_token(witness):
    scores, experts = routed()
    size = E // DEVICES
    _, p = by_hand(scores, experts)
    wanted, sent = 0.0, 0
    for d in range(DEVICES):
        tokens = sum(any(i // size == d for i in row) for row in experts)
        share = DEVICES / (LIMIT * Z) * tokens
        wanted += share * sum(p[d * size : (d + 1) * size])
        sent += tokens
    assert sent < Z * K, "no token has two experts on one device"
    found = communication_loss(scores, experts, DEVICES, LIMIT)
    close(found, torch.tensor(wanted, dtype=torch.float64))
    witness(
        "eq-communication-loss",
        abs(found - wanted),
        reference="definition, device by device",
        code="dsarch.balance.communication_loss",
    )


def test_sequence_loss_is_the_mean_over_sequences(witness):
    """Scores are sigmoids: only this loss normalises them."""
    scores = torch.randn(2, 9, E, dtype=torch.float64).sigmoid()
    wanted = 0.0
    for s in scores:
        share = s / s.sum(1, keepdim=True)
        f, p = by_hand(share, s.topk(K).indices)
        wanted += sum(a * b for a, b in zip(f, p, strict=True)) / 2
    found = sequence_loss(scores, K)
    close(found, torch.tensor(wanted, dtype=torch.float64))
    witness(
        "eq-sequence-loss",
        abs(found - wanted),
        reference="definition, token by token",
        code="dsarch.balance.sequence_loss",
    )


def test_sequence_loss_counts_unbiased_scores_unless_told():
    cfg = Config(hidden_size=8, num_experts_per_tok=K, n_routed_experts=16)
    scores = torch.randn(18, 16).sigmoid()
    bias = torch.randn(16)
    experts = route(scores, bias, cfg).experts
    printed = sequence_loss(scores.unflatten(0, (2, 9)), K)
    real = sequence_loss(
        scores.unflatten(0, (2, 9)), K, experts.unflatten(0, (2, 9))
    )
    assert abs(printed - real) > 1e-3
    f, p = fractions(scores / scores.sum(1, keepdim=True), experts)
    whole = sequence_loss(scores[None], K, experts[None])
    close(whole, (f * p).sum())


def test_a_sequence_may_not_be_lopsided_though_the_batch_is_even():
    lopsided = torch.full((2, 6, 2), 0.1)
    lopsided[0, :, 0] = lopsided[1, :, 1] = 0.9
    flat = lopsided.flatten(0, 1)
    close(expert_loss(flat, flat.topk(1).indices), torch.tensor(1.0))
    close(sequence_loss(lopsided, 1), torch.tensor(1.8))


def even(z=24):
    """Every expert is chosen equally often, scores are all alike."""
    scores = torch.full((z, E), 1 / E, dtype=torch.float64)
    experts = torch.arange(z * K).reshape(z, K) % E
    return scores, experts


def test_every_loss_is_one_for_an_even_load():
    scores, experts = even()
    one = torch.ones((), dtype=torch.float64)
    close(expert_loss(scores, experts), one)
    close(device_loss(scores, experts, DEVICES), one)
    close(sequence_loss(scores[None], K, experts[None]), one)
    close(gshard_loss(scores, experts) * E**2, one)
    spread = experts.roll(1, 0) * 5 % E
    reached = devices_of(spread, E, DEVICES).sum(1)
    assert (reached == K).all()
    close(communication_loss(scores, spread, DEVICES, K), one)


def test_collapse_costs_as_many_times_more_as_there_are_experts():
    scores = torch.zeros(5, E).index_fill(1, torch.tensor([3]), 1.0)
    experts = torch.full((5, 1), 3)
    close(expert_loss(scores, experts), torch.tensor(float(E)))
    shares = loads(experts, E)
    assert balance(shares).max_violation == E - 1
    assert balance(shares).entropy == 0


def test_gradients_pass_the_scores_and_not_the_counts():
    scores, experts = routed()
    scores.requires_grad_()
    expert_loss(scores, experts).backward()
    f, _ = fractions(scores.detach(), experts)
    close(scores.grad, (f / Z).expand(Z, E))


def test_losses_without_tokens_are_zero():
    scores = torch.zeros(0, E, requires_grad=True)
    experts = torch.zeros(0, K, dtype=torch.int64)
    total = (
        expert_loss(scores, experts)
        + gshard_loss(scores, experts)
        + device_loss(scores, experts, DEVICES)
        + communication_loss(scores, experts, DEVICES, LIMIT)
        + sequence_loss(scores[None], K)
        + z_loss(scores)
    )
    assert total == 0
    total.backward()


def test_dropped_slots_are_no_load():
    scores, _ = routed()
    routing = drop_overflow(top_k(scores, K), 2)
    counts = loads(routing.experts, E)
    assert counts.max() == 2
    assert counts.sum() == (routing.experts < E).sum() < Z * K
    sent = devices_of(routing.experts, E, DEVICES)
    wanted = [
        [any(i // 3 == d for i in row) for d in range(DEVICES)]
        for row in routing.experts.tolist()
    ]
    assert sent.bool().tolist() == wanted


def test_importance_and_load_are_squared_variations(witness):
    clean, spread = torch.randn(2, Z, E, dtype=torch.float64)
    noisy = noisy_top_k(clean, spread, K, torch.Generator().manual_seed(1))
    gates = dense(noisy.routing.weights, noisy.routing.experts, E)
    close(gates.sum(1), torch.ones(Z, dtype=torch.float64))
    assert ((gates > 0).sum(1) == K).all()
    for label, load in (
        ("eq-importance", gates.sum(0)),
        ("eq-load-loss", noisy.probability.sum(0)),
    ):
        values = load.tolist()
        mean = sum(values) / E
        wanted = sum((v - mean) ** 2 for v in values) / E / mean**2
        found = variation_squared(load)
        close(found, torch.tensor(wanted, dtype=torch.float64))
        witness(
            label,
            abs(found - wanted),
            reference="definition, expert by expert",
            code="dsarch.balance.variation_squared",
        )


def test_four_views_of_a_load(witness):
    view = balance(torch.tensor([6, 2, 0, 4]))
    witness(
        "eq-max-vio",
        abs(view.max_violation - (6 - 3) / 3),
        reference="worked by hand",
        code="dsarch.balance.balance",
    )
    close(view.share, torch.tensor([6, 2, 0, 4]).double() / 12)
    assert view.max_violation == 1.0
    assert view.variation == pytest.approx(math.sqrt(5) / 3)
    share = (1 / 2, 1 / 6, 1 / 3)
    assert view.entropy == pytest.approx(-sum(p * math.log(p) for p in share))


@pytest.mark.parametrize("count", [0, 7])
def test_even_loads_and_no_load_are_balanced(count):
    view = balance(torch.full((5,), count))
    assert (view.max_violation, view.variation) == (0, 0)
    assert view.entropy == pytest.approx(math.log(5))


def test_bias_moves_by_the_sign_alone(witness):
    counts = torch.tensor([90, 10, 20, 20, 10])
    bias = torch.tensor([0.5, -1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    step = torch.tensor([-1, 1, 1, 1, 1]) * 0.001
    found = updated_bias(bias, counts, 0.001)
    close(found, bias + step)
    witness(
        "eq-bias-update",
        (found - bias - step).abs().max(),
        reference="definition, expert by expert",
        code="dsarch.balance.updated_bias",
    )
    even = torch.full((5,), 30)
    assert torch.equal(updated_bias(bias, even, 0.001), bias)
    assert torch.equal(updated_bias(bias, 0 * even, 0.001), bias)


def test_centred_steps_sum_to_zero_and_choose_the_same():
    counts = torch.tensor([90, 10, 20, 20, 10])
    bias = torch.zeros(5, dtype=torch.float64)
    plain = updated_bias(bias, counts, 0.1)
    centred = updated_bias(bias, counts, 0.1, "centred")
    close(centred.sum(), bias.sum())
    close(plain - centred, (plain - centred)[0].expand(5))


def test_proportional_steps_are_the_relative_error():
    counts = torch.tensor([90, 10, 20, 20, 10])
    bias = torch.zeros(5, dtype=torch.float64)
    found = updated_bias(bias, counts, 0.1, "proportional")
    close(found, 0.1 * (1 - counts.double() / 30))
    empty = updated_bias(bias, 0 * counts, 0.1, "proportional")
    assert torch.equal(empty, bias)


def settle(rule, speed, steps=300):
    """Route the same skewed scores again and again; the last MaxVio."""
    cfg = Config(hidden_size=8)
    skew = torch.linspace(-2, 2, 16, dtype=torch.float64)
    scores = (torch.randn(512, 16, dtype=torch.float64) + skew).sigmoid()
    bias, found = torch.zeros(16, dtype=torch.float64), []
    for _ in range(steps):
        counts = loads(route(scores, bias, cfg).experts, 16)
        found.append(balance(counts).max_violation)
        bias = updated_bias(bias, counts, speed, rule)
    return found[0], found[-1]


@pytest.mark.parametrize("rule", ["sign", "centred", "proportional"])
def test_every_rule_evens_out_a_skewed_router(rule):
    before, after = settle(rule, 0.005)
    assert before > 0.9
    assert after < 0.15


def test_a_hasty_bias_overshoots():
    assert settle("sign", 0.2)[1] > settle("sign", 0.005)[1]


def test_uneven_devices_are_refused():
    scores, experts = routed()
    with pytest.raises(ValueError, match="5 devices do not divide 12"):
        communication_loss(scores, experts, 5, 2)
    with pytest.raises(ValueError, match="5 devices do not divide 12"):
        device_loss(scores, experts, 5)
