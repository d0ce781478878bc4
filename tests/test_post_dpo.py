"""Preference losses: worked values, identities, bad input."""

import math

import pytest
import torch

from dsarch.post.dpo import VARIANTS, dpo_loss, implicit_rewards
from tests.conftest import close

CHOSEN, REJECTED = (-10.0, -12.5), (-11.0, -9.0)
REF_CHOSEN, REF_REJECTED = (-10.5, -12.0), (-10.8, -9.5)
LENGTHS = torch.tensor([5, 8]), torch.tensor([6, 4])


def sums() -> list[torch.Tensor]:
    rows = CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


@pytest.mark.parametrize(
    ("variant", "smoothing", "expected"),
    [
        ("sigmoid", 0.0, 0.7015781078),
        ("conservative", 0.1, 0.7000781078),
        ("conservative", 0.0, 0.7015781078),
        ("robust", 0.1, 0.7034531078),
        ("hinge", 0.0, 1.015),
        ("ipo", 0.0, 25.2973003472),
        ("sigmoid_norm", 0.0, 0.6945344306),
        ("exo_pair", 0.1, 0.5199804798),
        ("nca_pair", 0.0, 1.3906036790),
        ("bco_pair", 0.0, 1.3942880618),
        ("sppo_hard", 0.0, 51.895),
        ("apo_zero", 0.0, 1.0037487816),
        ("apo_down", 0.0, 1.0037431649),
    ],
)
def test_worked_values(variant, smoothing, expected):
    found = dpo_loss(
        *sums(),
        beta=0.1,
        variant=variant,
        lengths=LENGTHS,
        smoothing=smoothing,
    )
    close(found, torch.tensor(expected, dtype=torch.float64))


def test_ipo_without_lengths_takes_the_sums_of_the_paper():
    found = dpo_loss(*sums(), beta=0.1, variant="ipo")
    close(found, torch.tensor(27.245, dtype=torch.float64))


def test_a_policy_equal_to_its_reference_starts_at_log_two(witness):
    same = [*sums()[2:], *sums()[2:]]
    loss = dpo_loss(*same, beta=0.3)
    close(loss, torch.tensor(math.log(2), dtype=torch.float64))
    rewards = implicit_rewards(*same, beta=0.3)
    assert rewards.accuracy.item() == 0, "a tie counts as wrong"
    witness(
        "eq-dpo-start",
        (loss - math.log(2)).abs(),
        reference="identity: log 2",
        code="dsarch.post.dpo.dpo_loss",
    )


def test_gradient_pushes_both_ways_and_by_how_wrong_the_pair_is(witness):
    r"""$-\beta\,\sigma(-\beta\Delta)$ on the chosen, its opposite below."""
    x = [v.requires_grad_() for v in sums()]
    loss = dpo_loss(*x, beta=0.1)
    up, down = torch.autograd.grad(loss, x[:2])
    delta = torch.tensor([0.7, -1.0], dtype=torch.float64)
    close(up, -0.1 * torch.sigmoid(-0.1 * delta) / 2)
    close(down, -up)
    assert up[1] < up[0] < 0
    witness(
        "eq-dpo-gradient",
        (up + 0.1 * torch.sigmoid(-0.1 * delta) / 2).abs().max(),
        reference="identity: automatic differentiation",
        code="dsarch.post.dpo.dpo_loss",
    )


def test_implicit_rewards_and_accuracy():
    found = implicit_rewards(*sums(), beta=0.1)
    close(found.chosen, torch.tensor([0.05, -0.05], dtype=torch.float64))
    close(found.rejected, torch.tensor([-0.02, 0.05], dtype=torch.float64))
    assert found.accuracy.item() == 0.5


def test_the_optimum_of_dpo_is_the_tilted_reference(witness):
    r"""Trained on exact preferences, the policy becomes
    $\pi_{ref}\,e^{r/\beta}$: DPO's identity, on four answers."""
    ref = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    rewards = torch.tensor([1.0, 0.0, 0.5, -0.5], dtype=torch.float64)
    beta = 0.5
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    a, b = pairs.T
    wins = torch.sigmoid(rewards[a] - rewards[b])
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-13, tolerance_change=1e-16
    )

    def closure():
        optimizer.zero_grad()
        logp = logits.log_softmax(-1)
        losses = torch.stack(
            [
                dpo_loss(
                    logp[i : i + 1],
                    logp[j : j + 1],
                    ref[i : i + 1],
                    ref[j : j + 1],
                    beta=beta,
                )
                for i, j in pairs.tolist()
            ]
        )
        loss = (wins * losses).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (ref + rewards / beta).log_softmax(-1)
    found = logits.detach().log_softmax(-1)
    close(found, expected, 1e-5)
    witness(
        "eq-tilted",
        (found - expected).abs().max(),
        reference="identity: trained to the end on exact preferences",
        code="dsarch.post.dpo.dpo_loss",
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_infinite_log_probability_is_refused(variant):
    x = sums()
    x[1][1] = -math.inf
    with pytest.raises(ValueError, match=r"policy_rejected .* -inf at \[1\]"):
        dpo_loss(*x, beta=0.1, variant=variant, smoothing=0.1)


@pytest.mark.parametrize("variant", ["ipo", "sigmoid_norm"])
def test_an_empty_completion_has_the_length_one(variant):
    zero = torch.zeros(1, dtype=torch.float64)
    nothing = torch.tensor([0])
    found = dpo_loss(
        zero,
        zero,
        zero,
        zero,
        beta=0.5,
        variant=variant,
        lengths=(nothing, nothing),
    )
    expected = 1.0 if variant == "ipo" else math.log(2)
    close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, found 0"),
        ({"beta": 0.1, "variant": "kto"}, "'kto' is none of"),
        ({"beta": 0.1, "smoothing": 0.5}, r"\[0, 0.5\), found 0.5"),
        ({"beta": 0.1, "variant": "exo_pair"}, "smoothing 0 is -inf"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(*sums(), **settings)
