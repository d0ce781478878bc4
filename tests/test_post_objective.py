"""Policy losses: clip, gradient, reductions, and what they refuse."""

import math

import pytest
import torch

from dsarch.post.grpo import advantages
from dsarch.post.objective import (
    OBJECTIVES,
    Objective,
    Samples,
    objective,
    policy_loss,
)
from tests.conftest import close

# The worked example of the fact base: one group of four, at most 5 tokens.
MASK = torch.tensor(
    [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
).bool()
SHARE = MASK.double() / MASK.sum(1, keepdim=True) / 4
OLD = [[-1, -0.5, -2, -0.1, -0.7], [-0.3, -1.2, -0.9], [-2.5, -0.2, -0.4, -1.1]]
OLD += [[-0.6]]
MOVED = [[0.1, -0.3, 0.25, 0, 0.05], [0.2, 0.3, -0.1]]
MOVED += [[-0.4, 0.15, 0.05, -0.6], [-0.25]]
APART = [[0.05, 0.1, -0.2, 0.3, 0], [-0.1, 0.2, 0.4], [0.3, -0.05, 0, 0.2]]
APART += [[0.5]]


def padded(rows: list, fill: float = 0.0) -> torch.Tensor:
    rows = [[*row, *[fill] * (5 - len(row))] for row in rows]
    return torch.tensor(rows, dtype=torch.float64)


def samples(fill: float = 0.0, **changes) -> Samples:
    old = padded(OLD)
    moved, apart = old + padded(MOVED), old + padded(APART)
    rewards = torch.tensor([[1, 0, 0.5, 1]], dtype=torch.float64)
    parts = {"logp": moved, "old_logp": old, "ref_logp": apart}
    parts = {k: v.masked_fill(~MASK, fill) for k, v in parts.items()}
    advantage = advantages(rewards).flatten()
    return Samples(advantage=advantage, mask=MASK, **parts)._replace(**changes)


def loss_of(choice: Objective, **changes) -> float:
    return policy_loss(samples(**changes), choice).loss.item()


PLAIN = advantages(torch.tensor([[1, 0, 0.5, 1.0]]).double(), "none").flatten()
KNOWN = [
    ("grpo", {}, 0.08823999),
    ("bnpo", {}, 0.07159960),
    ("dapo", {}, 0.06677999),
    ("dr_grpo", {"max_length": 8}, 0.02908734),
    ("grpo", {"beta": 0.04}, 0.09491959),
    ("v3.2", {"beta": 0.04}, 0.09336809),
    ("gspo", {}, 0.08975647),
    ("gspo", {"eps_low": 0.2, "eps_high": 0.2}, 0.07406839),
    ("cispo", {}, 0.03154259),
    ("grpo", {"delta": 1.1}, 0.07372930),
]


@pytest.mark.parametrize(("variant", "changes", "expected"), KNOWN)
def test_worked_example_of_every_variant(variant, changes, expected):
    assert round(loss_of(objective(variant, **changes)), 8) == expected


def test_advantages_without_deviation_in_the_worked_example():
    choice = objective("grpo")
    assert round(loss_of(choice, advantage=PLAIN), 8) == 0.0422505
    choice = objective("dr_grpo", max_length=8)
    assert round(loss_of(choice, advantage=PLAIN), 8) == 0.01392741


@pytest.mark.parametrize("variant", OBJECTIVES)
@pytest.mark.parametrize("fill", [-math.inf, math.inf, math.nan])
def test_what_is_masked_cannot_matter(variant, fill):
    """Padding may hold anything: no 0 times infinity in either pass."""
    choice = objective(variant, beta=0.1, max_length=6)
    found = []
    for x in (samples(), samples(fill=fill)):
        logp = x.logp.requires_grad_()
        result = policy_loss(x._replace(logp=logp), choice)
        for shown in (result.per_token, result.ratio, result.kl):
            assert shown.isfinite().all(), "a figure reads these"
        loss = result.loss
        found.append((loss.detach(), torch.autograd.grad(loss, logp)[0]))
    close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])
    assert (found[1][1][~MASK] == 0).all()


@pytest.mark.parametrize("variant", ["grpo", "gspo", "dapo", "cispo"])
def test_just_sampled_the_value_is_a_mean_but_the_gradient_is_not_zero(variant):
    """The ratio is 1 and must not be simplified away."""
    x = samples()
    logp = x.logp.requires_grad_()
    choice = objective(variant)
    found = policy_loss(x._replace(logp=logp, old_logp=None), choice)
    (gradient,) = torch.autograd.grad(found.loss, logp)
    ones = torch.ones_like(logp)
    close(found.ratio.detach(), ones)
    if choice.reduction == "sequence":
        weight = SHARE
        close(found.loss.detach(), -x.advantage.mean())
    else:
        weight = MASK.double() / MASK.sum()
    if variant == "gspo":  # the ratio's own mean gives a second 1/length
        weight = SHARE
    close(gradient, -x.advantage[:, None] * weight)


def test_gradient_coefficient_with_a_reference(witness):
    r"""DeepSeekMath's appendix: $\hat A + \beta(\rho - 1)$ per token."""
    x = samples()
    logp = x.logp.requires_grad_()
    choice = objective("grpo", beta=0.3)
    loss = policy_loss(x._replace(logp=logp, old_logp=None), choice).loss
    (gradient,) = torch.autograd.grad(loss, logp)
    rho = (x.ref_logp - x.logp).exp().detach()
    coefficient = x.advantage[:, None] + 0.3 * (rho - 1)
    weight = SHARE
    close(gradient, -coefficient * weight)
    witness(
        "eq-grpo-coefficient",
        (gradient + coefficient * weight).abs().max(),
        reference="identity: DeepSeekMath, appendix A.1",
        code="dsarch.post.objective.policy_loss",
    )


def single(ratio: float, advantage: float, **changes):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    x = Samples(
        logp.requires_grad_(),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    found = policy_loss(x, Objective(**changes))
    (gradient,) = torch.autograd.grad(found.loss, logp)
    return found.loss.item(), gradient.item(), found.clipped.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "held"),
    [
        (1.5, 1.0, -1.2, True),
        (1.5, -1.0, 1.5, False),
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),
        (1.1, 1.0, -1.1, False),
        (0.9, -1.0, 0.9, False),
    ],
)
def test_the_clip_holds_only_what_runs_away(ratio, advantage, value, held):
    loss, gradient, clipped = single(ratio, advantage)
    assert loss == pytest.approx(value, rel=1e-10)
    assert clipped == held
    slope = 0.0 if held else -advantage * ratio
    assert gradient == pytest.approx(slope, rel=1e-10)


def test_clip_higher_and_the_two_sided_clip():
    assert single(1.25, 1.0, eps_high=0.28)[1] != 0
    assert single(1.25, 1.0)[1] == 0
    assert single(0.75, -1.0, eps_high=0.28)[1] == 0
    loss, gradient, _ = single(5.0, -1.0, delta=3.0)
    assert (loss, gradient) == (pytest.approx(3.0), 0.0)
    loss, gradient, _ = single(5.0, 2.0, detached=True)
    assert gradient == pytest.approx(-1.2 * 2.0), "CISPO keeps its gradient"


def test_the_off_policy_mask_silences_the_surrogate_and_not_the_divergence():
    keep = torch.tensor([True, True, False, True])
    choice = objective("v3.2", beta=0.5)
    x = samples(keep=keep)
    found = policy_loss(x, choice)
    close(found.per_token[2], 0.5 * found.kl[2])
    whole = policy_loss(samples(), choice)
    close(found.per_token[keep], whole.per_token[keep])
    close(found.kl, whole.kl)
    assert found.kl[2].abs().sum() > 0


def test_reductions_differ_and_micro_batches_need_the_whole_count():
    whole = loss_of(objective("bnpo"))
    assert whole != pytest.approx(loss_of(objective("grpo")))
    halves = [
        Samples(*(None if x is None else x[rows] for x in samples()))
        for rows in (slice(0, 1), slice(1, 4))
    ]
    count = int(MASK.sum())
    choice = objective("bnpo")
    cut = sum(policy_loss(x, choice, tokens=count).loss for x in halves)
    assert cut.item() == pytest.approx(whole, rel=1e-10)
    naive = sum(policy_loss(x, choice).loss for x in halves) / 2
    assert naive.item() != pytest.approx(whole, rel=1e-3)


def test_empty_completions_and_an_empty_batch_of_tokens():
    """An empty row adds nothing, but it is still a sample of its group."""
    mask = MASK.clone()
    mask[3] = False
    found = policy_loss(samples(mask=mask), objective("grpo"))
    rows = (found.per_token * mask).sum(1)[:3] / mask.sum(1)[:3]
    close(found.loss, rows.sum() / 4)
    for variant in OBJECTIVES:
        choice = objective(variant, max_length=8, beta=0.1)
        x = samples(mask=torch.zeros_like(MASK))
        logp = x.logp.requires_grad_()
        loss = policy_loss(x, choice).loss
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, logp)[0].any()


@pytest.mark.parametrize("name", ["logp", "old_logp", "ref_logp"])
def test_an_unmasked_infinity_is_refused_by_name(name):
    x = samples()
    bad = getattr(x, name).clone()
    bad[1, 2] = -math.inf
    with pytest.raises(ValueError, match=rf"^{name} .* -inf at \[1, 2\]"):
        policy_loss(x._replace(**{name: bad}), objective("grpo"))


def test_contradictory_choices_are_refused():
    with pytest.raises(ValueError, match="'ppo' is none of"):
        objective("ppo")
    with pytest.raises(ValueError, match="beta 0.1 .* ref_logp is None"):
        loss_of(objective("grpo", beta=0.1), ref_logp=None)
    with pytest.raises(ValueError, match="max_length, found None"):
        loss_of(objective("dr_grpo"))
    with pytest.raises(ValueError, match="'row' is none of"):
        loss_of(objective("grpo", reduction="row"))


def test_process_advantages_are_taken_token_by_token():
    spread = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
    found = policy_loss(
        samples(advantage=spread, old_logp=None), objective("grpo")
    )
    close(found.per_token, -spread)
