"""The parts of GRPO: advantages, ratios, divergences, masks."""

import math
from itertools import product

import pytest
import torch

from dsarch.post.grpo import (
    advantages,
    dynamic_sampling,
    equal_groups,
    kl_estimate,
    log_ratio,
    off_policy_mask,
    process_advantages,
)
from tests.conftest import TOL, close

POLICY, REFERENCE = (0.5, 0.3, 0.2), (0.2, 0.5, 0.3)


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_advantages_by_hand():
    """Mean 0.625, deviation with g - 1, epsilon added to the deviation."""
    rewards = tensor([1.0, 0.0, 0.5, 1.0])
    deviation = math.sqrt((2 * 0.375**2 + 0.625**2 + 0.125**2) / 3)
    centred = rewards - 0.625
    close(advantages(rewards), centred / (deviation + 1e-4))
    close(advantages(rewards, "none"), centred)
    both = torch.cat([rewards, 3 + rewards])
    spread = both.flatten().std()
    close(advantages(both, "batch")[1:], centred / (spread + 1e-4))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e6])
def test_equal_rewards_give_exact_zeros(scale, value):
    """In fp32 the mean of equal numbers may differ from them by one bit."""
    rewards = torch.full((3, 7), value)
    rewards[1, 2] += 1
    found = advantages(rewards, scale)
    assert (found[::2] == 0).all() and (found[1] != 0).all()
    assert equal_groups(rewards).tolist() == [True, False, True]
    assert dynamic_sampling(rewards).tolist() == [False, True, False]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_of_one_has_no_signal(scale):
    assert advantages(torch.ones(1, 1), scale).tolist() == [[0.0]]


def test_bad_rewards_and_scales_are_refused():
    with pytest.raises(ValueError, match="none of 'group', 'batch', 'none'"):
        advantages(torch.ones(2, 3), "std")
    with pytest.raises(ValueError, match=r"rewards .* nan at \[0, 1\]"):
        advantages(torch.tensor([[0.0, math.nan]]))


@pytest.mark.parametrize(
    ("p", "scale", "ratio"),
    [
        (0.5, "none", 0.75),
        (0.2, "none", 0.75),
        (0.5, "group", 1.399),
        (0.3, "group", 1.415),
        (0.05, "group", 1.481),
    ],
)
def test_the_group_mean_shrinks_and_the_deviation_reweighs(p, scale, ratio):
    """Expected gradient over the true one, all 16 groups of 4 enumerated.

    The mean contains the sample itself: a factor 3/4. Dividing by the
    deviation makes hard and easy questions count more.
    """
    total = 0.0
    for outcome in product([0.0, 1.0], repeat=4):
        rewards = tensor(outcome)
        chance = p ** sum(outcome) * (1 - p) ** (4 - sum(outcome))
        score = rewards - p  # gradient of log-probability by the logit
        total += chance * float((advantages(rewards, scale) * score).mean())
    found = total / (p * (1 - p))
    assert round(found, 3) == pytest.approx(ratio, abs=5.1e-4)


def test_outcome_supervision_is_one_step_at_the_end(witness):
    rewards = tensor([1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 2.0])
    ends = torch.tensor([[4, 2, 3, 0], [1, 1, 4, 2]])
    found = process_advantages(rewards[..., None], ends[..., None], 5)
    token = torch.arange(5)
    covered = token <= ends[..., None]
    expected = advantages(rewards)[..., None] * covered
    close(found, expected)
    witness(
        "eq-process-advantage",
        (found - expected).abs().max(),
        reference="identity: outcome supervision",
        code="dsarch.post.grpo.process_advantages",
    )


def test_process_supervision_by_hand():
    """Two answers of two and one steps; all three rewards are one pool."""
    rewards = tensor([[1.0, 0.0], [0.5, 9.0]])
    ends = torch.tensor([[[1, 3], [2, -1]]])
    found = process_advantages(rewards, ends, 5)
    a = 0.5 / (0.5 + 1e-4)  # mean 0.5, deviation 0.5
    close(found[0, 0], tensor(a - a, a - a, -a, -a, 0.0))
    close(found[0, 1], torch.zeros(5, dtype=torch.float64))


def test_process_supervision_without_steps_and_beyond_the_end():
    none = torch.full((2, 3, 2), -1)
    zeros = process_advantages(torch.ones(2, 3, 2), none, 4)
    assert zeros.shape == (2, 3, 4) and not zeros.any()
    none[1, 2, 0] = 4
    with pytest.raises(ValueError, match="ends at token 4, but there are 4"):
        process_advantages(torch.ones(2, 3, 2), none, 4)


def test_ratios_of_tokens_and_of_a_sequence():
    logp = tensor([-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0])
    old = tensor([-1.3, -1.9, 0.0], [-2.0, -1.0, -1.5])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    close(
        log_ratio(logp, old, mask),
        tensor([0.3, -0.1, 0.0], [1.0, 0.0, 0.5]),
    )
    close(
        log_ratio(logp, old, mask, "sequence"),
        tensor([0.1, 0.1, 0.1], [0.5, 0.5, 0.5]),
    )
    with pytest.raises(ValueError, match="'word' is none of"):
        log_ratio(logp, old, mask, "word")


def expected_kl(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient of an estimator, averaged over all samples.

    The samples are held fixed: what is averaged is the gradient of the
    estimate, not of the average.
    """
    logits = tensor(*POLICY).log().requires_grad_()
    logp = logits.log_softmax(-1)
    ref = tensor(*REFERENCE).log()
    estimate = kl_estimate(logp[:, None], ref[:, None], kind).squeeze(1)
    mean = (tensor(*POLICY) * estimate).sum()
    return mean.detach(), torch.autograd.grad(mean, logits)[0]


def divergence_gradient(forward: bool) -> torch.Tensor:
    logits = tensor(*POLICY).log().requires_grad_()
    p, q = logits.softmax(-1), tensor(*REFERENCE)
    first, second = (q, p) if forward else (p, q)
    kl = (first * (first.log() - second.log())).sum()
    return torch.autograd.grad(kl, logits)[0]


def test_expected_values_of_the_kl_estimators(witness):
    truth = torch.tensor(0.2238046572, dtype=torch.float64)
    found = {k: expected_kl(k)[0] for k in ("k1", "k2", "k3", "unbiased")}
    for kind in ("k1", "k3", "unbiased"):
        close(found[kind], truth)
    close(found["k2"], torch.tensor(0.2654787944, dtype=torch.float64))
    witness(
        "eq-kl-estimators",
        (found["k3"] - truth).abs(),
        reference="identity: enumerated divergence",
        code="dsarch.post.grpo.kl_estimate",
    )


def test_expected_gradients_of_the_kl_estimators(witness):
    """k1 pulls nowhere, k3 along the other divergence, k2 and V3.2 right."""
    reverse, forward = divergence_gradient(False), divergence_gradient(True)
    close(forward, tensor(0.3, -0.2, -0.1))
    close(expected_kl("k1")[1], torch.zeros(3, dtype=torch.float64))
    close(expected_kl("k2")[1], reverse)
    close(expected_kl("k3")[1], forward)
    close(expected_kl("unbiased")[1], reverse)
    witness(
        "eq-kl-unbiased",
        (expected_kl("unbiased")[1] - reverse).abs().max(),
        reference="identity: enumerated gradient",
        code="dsarch.post.grpo.kl_estimate",
    )


def test_k3_is_never_negative_and_its_kind_is_checked():
    logp, ref = torch.randn(2, 40, 5, dtype=torch.float64)
    assert (kl_estimate(logp, ref) >= 0).all()
    close(kl_estimate(logp, logp), torch.zeros_like(logp))
    with pytest.raises(ValueError, match="'k4' is none of"):
        kl_estimate(logp, ref, "k4")


def test_unbiased_off_policy_matches_the_divergence():
    """Sampled from an older policy, the ratio repairs value and gradient."""
    old = tensor(0.6, 0.1, 0.3)
    logits = tensor(*POLICY).log().requires_grad_()
    logp = logits.log_softmax(-1)[:, None]
    ratio = (logp - old.log()[:, None]).exp()
    ref = tensor(*REFERENCE).log()[:, None]
    estimate = kl_estimate(logp, ref, "unbiased", ratio).squeeze(1)
    mean = (old * estimate).sum()
    truth = torch.tensor(0.2238046572, dtype=torch.float64)
    close(mean.detach(), truth, TOL[torch.float64])
    (gradient,) = torch.autograd.grad(mean, logits)
    close(gradient, divergence_gradient(False))


def test_only_stale_negatives_are_dropped():
    """Rows: stale bad, stale good, fresh bad, drift at the limit, empty."""
    old = torch.full((5, 4), -1.0)
    logp = old - torch.tensor([2.0, 2.0, 0.0, 0.5, 9.0])[:, None]
    logp[2, 3] = -9.0  # masked
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[2, 3] = mask[4] = False
    advantage = torch.tensor([-1.0, 1.0, -1.0, -1.0, -1.0])
    keep = off_policy_mask(logp, old, advantage, mask, 0.5)
    assert keep.tolist() == [False, True, True, True, True]
    turned = off_policy_mask(old, logp, advantage, mask, 0.5)
    assert turned.all(), "likelier than before is not stale"
    mean_not_sum = off_policy_mask(logp, old, advantage, mask, 2.5)
    assert mean_not_sum.all()
