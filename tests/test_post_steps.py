"""Updates on preferences, with a critic, and towards a teacher."""

import copy
from functools import partial

import pytest
import torch

from dsarch.post.addition import EOS, VOCABULARY, Addition
from dsarch.post.distill import jsd_loss, kd_loss, reverse_kl_loss
from dsarch.post.logprobs import shift, token_logprobs
from dsarch.post.rollout import rollout
from dsarch.post.steps import (
    Scored,
    Texts,
    completions,
    distill_step,
    dpo_step,
    estimate,
    ppo_step,
    reward_step,
)
from tests.conftest import close
from tests.post_policy import policy

TASK = Addition(1)


def small(seed: int = 0):
    return policy(VOCABULARY, seed, dim=32, layers=1)


def adam(*models, lr: float = 3e-3) -> torch.optim.Optimizer:
    weights = [p for model in models for p in model.parameters()]
    return torch.optim.AdamW(weights, lr, weight_decay=0.0)


def pairs(count: int = 48) -> tuple[Texts, Texts]:
    """The right answer is preferred to one that is off by one."""
    asked = TASK.prompts(count, torch.Generator().manual_seed(3))
    tokens, mask = TASK.solve(asked)
    wrong = tokens.clone()
    wrong[:, 4] = (wrong[:, 4] + 1) % 10
    return Texts(tokens, mask), Texts(wrong, mask)


def test_completions_are_scored_without_their_prompts():
    model = small().double()
    texts, _ = pairs(5)
    logits = model(texts.tokens).log_softmax(-1)
    for row in range(5):
        total = sum(
            logits[row, place - 1, texts.tokens[row, place]]
            for place in texts.mask[row].nonzero().flatten()
        )
        close(completions(model, texts)[row], total)


def test_dpo_widens_the_margin_and_leaves_the_reference():
    model, reference = small(), small()
    optimizer = adam(model, lr=1e-2)
    frozen = copy.deepcopy(reference.state_dict())
    first, start = dpo_step(model, reference, optimizer, *pairs())
    assert first == pytest.approx(0.6931, abs=1e-4)
    assert start.accuracy == 0
    for _ in range(30):
        last, margins = dpo_step(model, reference, optimizer, *pairs())
    assert last < 0.6 and margins.accuracy > 0.9
    for name, value in reference.state_dict().items():
        assert torch.equal(value, frozen[name])


def test_a_reward_model_learns_the_preference():
    model = Scored(small(), 32)
    optimizer = adam(model)
    found = [reward_step(model, optimizer, *pairs()) for _ in range(150)]
    assert found[0]["accuracy"] < 0.7 < 0.95 < found[-1]["accuracy"]
    assert found[-1]["loss"] < found[0]["loss"] / 3


def samples_of(model, count: int = 64):
    generator = torch.Generator().manual_seed(4)
    asked = TASK.prompts(count, generator)
    return rollout(model, asked, 3, eos=EOS, generator=generator)


def test_ppo_starts_as_a_policy_gradient_with_a_critic():
    r"""At ratio 1 the gradient is that of $-\frac1n\sum\hat A\log\pi$."""
    model, critic = small().double(), Scored(small(1).double(), 32).double()
    samples = samples_of(model)
    score = torch.rand(64, generator=torch.Generator().manual_seed(2)).double()
    known = estimate(critic, samples, score, small(2).double())
    twin = copy.deepcopy(model)
    mask = shift(samples.mask)
    logp = token_logprobs(twin(samples.tokens), samples.tokens)
    wanted = -(known.advantage * logp)[mask].mean()
    wanted.backward()
    for p in twin.parameters():
        p.data -= 0.01 * p.grad
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ppo_step(model, critic, optimizer, samples, known, value_weight=0.0)
    moved = [
        (p - q).norm()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    ]
    norm = sum(p.grad.norm() ** 2 for p in twin.parameters()) ** 0.5
    assert norm < 1, "the clip of the gradient would hide the comparison"
    close(torch.stack(moved).max(), torch.tensor(0.0, dtype=torch.float64))
    kept = known.advantage[mask]
    close(kept.mean(), torch.tensor(0.0, dtype=torch.float64))


def test_the_critic_learns_what_to_expect():
    """All answers earn 1: returns are 1 everywhere, values follow."""
    model, critic = small(), Scored(small(1), 32)
    samples, score = samples_of(model), torch.ones(64)
    optimizer = adam(critic, lr=1e-2)
    mask = shift(samples.mask)
    for _ in range(60):
        known = estimate(critic, samples, score, model, lam=1.0)
        close(known.returns[mask], torch.ones_like(known.returns[mask]))
        ppo_step(
            model, critic, optimizer, samples, known, eps=10.0, value_weight=1.0
        )
    assert (critic.values(samples.tokens)[mask] - 1).abs().mean() < 0.1


@pytest.mark.parametrize(
    "loss",
    [partial(kd_loss, temperature=2.0), reverse_kl_loss, jsd_loss],
    ids=["forward", "reverse", "jsd"],
)
def test_a_student_approaches_its_teacher(loss):
    teacher, student = small(7), small(8)
    optimizer = adam(student, lr=1e-2)
    before = copy.deepcopy(teacher.state_dict())
    texts, _ = pairs()
    found = [
        distill_step(student, teacher, optimizer, texts, loss)
        for _ in range(60)
    ]
    assert found[-1] < found[0] / 5
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
