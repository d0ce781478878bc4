"""Rewards by rule and by comparison; PPO's advantages and losses."""

import math

import pytest
import torch

from dsarch.post.ppo import gae, ppo_loss, shaped_rewards, value_loss, whiten
from dsarch.post.reward import (
    ScoreHead,
    accuracy_reward,
    boxed,
    bradley_terry_loss,
    format_reward,
    language_reward,
    last_token,
    overlong_penalty,
    pass_at_k,
    same_answer,
)
from tests.conftest import close


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{7", None),
        ("7", None),
        (r"\boxed{}", ""),
    ],
)
def test_boxed(text, found):
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ("0.5", "1/2", True),
        ("2/4", "0.50", True),
        ("1,000", "1000", True),
        ("-3", " -3.0 ", True),
        ("x+1", " x+1 ", True),
        ("0.333", "1/3", False),
        ("1/0", "1/0", True),
        ("", "0", False),
        ("x", "X", False),
    ],
)
def test_same_answer(found, expected, equal):
    assert same_answer(found, expected) == equal


GOOD = "<think>2 and 2</think> <answer>4</answer>"


@pytest.mark.parametrize(
    ("text", "right", "formed"),
    [
        (GOOD, 1.0, 1.0),
        (r"\boxed{4}", 1.0, 0.0),
        (GOOD.replace("4", r"\boxed{4.0}"), 1.0, 1.0),
        (GOOD.replace("4", "5"), 0.0, 1.0),
        ("<answer>4</answer>", 0.0, 0.0),
        (GOOD + " and more", 0.0, 0.0),
        ("<think>a</think><think>b</think><answer>4</answer>", 1.0, 0.0),
        (GOOD + GOOD, 0.0, 0.0),
        ("<answer>4</answer><think>late</think>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_rule_based_rewards(text, right, formed):
    """A well-formed wrong answer earns the format and nothing more."""
    assert accuracy_reward(text, "4") == right
    assert format_reward(text) == formed


def test_language_consistency():
    assert language_reward("one two 三 four") == 0.75
    assert language_reward("one 二三四", "han") == 0.75
    assert language_reward("1 + 2 = 3") == 0.0
    with pytest.raises(ValueError, match="'greek' is none of"):
        language_reward("a", "greek")


def test_soft_punishment_of_length():
    lengths = torch.tensor([0, 16, 17, 18, 20, 99])
    found = overlong_penalty(lengths, 20, 4)
    close(found.double(), tensor(0.0, 0.0, -0.25, -0.5, -1.0, -1.0))
    with pytest.raises(ValueError, match="buffer 21 is not in 1 ... 20"):
        overlong_penalty(lengths, 20, 21)


def test_pass_at_k_counts_subsets(witness):
    right = [True, True, False, False, False]
    from itertools import combinations

    for k in range(1, 6):
        drawn = list(combinations(right, k))
        share = sum(any(x) for x in drawn) / len(drawn)
        assert pass_at_k(5, 2, k) == pytest.approx(share)
        witness(
            "eq-pass-at-k",
            abs(pass_at_k(5, 2, k) - share),
            reference="identity: all subsets counted",
            code="dsarch.post.reward.pass_at_k",
        )
    assert pass_at_k(5, 0, 5) == 0
    with pytest.raises(ValueError, match="6 right and k 1 do not fit 5"):
        pass_at_k(5, 6, 1)


def test_worked_bradley_terry_values():
    chosen, rejected = tensor(1.2, 0.3), tensor(0.7, 0.9)
    cases = [
        ({}, 0.7557824673),
        ({"margin": tensor(0.5, 0.0)}, 0.8653175656),
        ({"centering": 0.01}, 0.7810324673),
    ]
    for settings, expected in cases:
        found = bradley_terry_loss(chosen, rejected, **settings)
        close(found, torch.tensor(expected, dtype=torch.float64))


def test_only_differences_of_rewards_are_identified():
    chosen, rejected = tensor(1.2, 0.3), tensor(0.7, 0.9)
    loss = bradley_terry_loss(chosen, rejected)
    close(bradley_terry_loss(chosen + 5, rejected + 5), loss)
    centred = bradley_terry_loss(chosen, rejected, centering=0.01)
    moved = bradley_terry_loss(chosen + 5, rejected + 5, centering=0.01)
    assert moved > centred + 0.5
    with pytest.raises(ValueError, match=r"rejected .* inf at \[0\]"):
        bradley_terry_loss(chosen, tensor(math.inf, 0.0))


def test_the_score_is_read_at_the_last_real_token():
    hidden = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3)
    real = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    close(last_token(hidden, real), hidden[[0, 1], [1, 3]])
    padded_left = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    close(last_token(hidden, padded_left), hidden[[0, 1], [3, 2]])
    head = ScoreHead(3).double()
    head.score.weight.data = tensor([1.0, 0.0, 2.0])
    close(head(last_token(hidden, real)), tensor(3 + 2 * 5, 21 + 2 * 23))
    assert head(hidden).shape == (2, 4), "a critic reads every token"
    with pytest.raises(ValueError, match="row 1 has 0 real tokens"):
        last_token(hidden, real & torch.tensor([[True], [False]]))


REWARDS = tensor([0.0, -0.1, 0.0, 1.0])
VALUES = tensor([0.2, 0.4, 0.1, 0.5])
ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.95, [0.6096875, 0.43125, 0.875, 0.5]),
        (1.0, [0.7, 0.5, 0.9, 0.5]),
        (0.0, [0.2, -0.4, 0.4, 0.5]),
    ],
)
def test_worked_advantage_estimates(lam, expected, witness):
    found, returns = gae(REWARDS, VALUES, ALL, lam=lam)
    close(found, tensor(expected))
    close(returns, found + VALUES)
    witness(
        "eq-gae",
        (found - tensor(expected)).abs().max(),
        reference="identity: worked by hand",
        code="dsarch.post.ppo.gae",
    )


def test_with_lambda_one_returns_are_discounted_sums_of_rewards():
    found, returns = gae(REWARDS, VALUES, ALL, gamma=0.9, lam=1.0)
    total = [
        sum(0.9**k * REWARDS[0, t + k] for k in range(4 - t)) for t in range(4)
    ]
    close(returns, torch.stack(total)[None])
    close(found, returns - VALUES)


def test_padding_and_a_tools_words_are_stepped_over():
    """Cut out what is masked, and the estimates are the same."""
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 0]]).bool()
    rewards = torch.full((1, 8), 7.0, dtype=torch.float64)
    values = torch.full((1, 8), -3.0, dtype=torch.float64)
    rewards[mask], values[mask] = REWARDS[0], VALUES[0]
    settings = {"gamma": 0.9, "lam": 0.8}
    found, returns = gae(rewards, values, mask, **settings)
    short = gae(REWARDS, VALUES, ALL, **settings)
    close(found[mask][None], short[0])
    close(returns[mask][None], short[1])
    assert not found[~mask].any() and not returns[~mask].any()


def test_the_divergence_is_part_of_the_reward_and_the_score_comes_last(
    witness,
):
    logp = tensor([-1.0, -2.0, -3.0, -4.0], [-1.0, -1.0, -1.0, -1.0])
    ref = tensor([-1.5, -2.0, -2.0, -9.0], [-2.0, -2.0, -2.0, -2.0])
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    found = shaped_rewards(tensor(5.0, 3.0), logp, ref, mask, 0.1)
    expected = tensor([-0.05, 0.0, 0.1 + 5, 0.0], [0.0, 0.0, 0.0, 0.0])
    close(found, expected)
    witness(
        "eq-shaped-reward",
        (found - expected).abs().max(),
        reference="identity: worked by hand",
        code="dsarch.post.ppo.shaped_rewards",
    )
    bad = logp.masked_fill(mask, -math.inf)
    with pytest.raises(ValueError, match=r"logp .* -inf at \[0, 0\]"):
        shaped_rewards(tensor(5.0, 3.0), bad, ref, mask, 0.1)


def test_whitening_counts_what_is_not_masked():
    x = tensor([1.0, 4.0, 99.0, -2.0])
    mask = torch.tensor([[1, 1, 0, 1]]).bool()
    kept = x[mask]
    found = whiten(x, mask)
    close(found[mask], (kept - kept.mean()) / (kept.var() + 1e-8).sqrt())
    assert found[~mask].item() == 0
    one = torch.tensor([[1, 0, 0, 0]]).bool()
    assert not whiten(x, one).any()


def test_policy_and_value_losses_by_hand(witness):
    old = tensor([-1.0, -1.0, -1.0, -1.0])
    logp = old + tensor([1.5, 1.5, 0.5, 0.5]).log()
    advantage = tensor([1.0, -1.0, -1.0, 2.0])
    mask = torch.tensor([[1, 1, 1, 0]]).bool()
    found = ppo_loss(logp, old, advantage, mask)
    expected = torch.tensor((-1.2 + 1.5 + 0.8) / 3, dtype=torch.float64)
    close(found, expected)
    witness(
        "eq-ppo-loss",
        (found - expected).abs(),
        reference="identity: worked by hand",
        code="dsarch.post.ppo.ppo_loss",
    )
    values, before = tensor([1.0, 0.1, 3.0, 9.0]), tensor([0.0] * 4)
    returns = tensor([1.0, 1.0, 4.0, 0.0])
    errors = [0.8**2, 0.9**2, 3.8**2]
    close(
        value_loss(values, before, returns, mask),
        torch.tensor(0.5 * sum(errors) / 3, dtype=torch.float64),
    )
