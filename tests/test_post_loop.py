"""The loops: what an update changes, and that GRPO teaches addition."""

import copy
import math

import pytest
import torch

from dsarch.post.addition import VOCABULARY, Addition
from dsarch.post.grpo import advantages, process_advantages
from dsarch.post.logprobs import shift
from dsarch.post.loop import (
    Batch,
    collect,
    curate,
    grpo_update,
    informative,
    sft_step,
    step,
    success,
)
from dsarch.post.objective import Objective, objective
from dsarch.post.rollout import Rollout
from tests.conftest import close
from tests.post_policy import Policy, policy

TASK = Addition(1)


def small(seed: int = 0) -> Policy:
    return policy(VOCABULARY, seed, dim=32, layers=1)


def optimizer_of(model, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


def batch_of(model, questions: int = 6, group: int = 4, **settings) -> Batch:
    generator = torch.Generator().manual_seed(7)
    return collect(
        model, TASK, generator, questions=questions, group=group, **settings
    )


def with_rewards(batch: Batch, rewards: torch.Tensor) -> Batch:
    return batch._replace(rewards=rewards)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_samples_of_a_question_stand_side_by_side():
    batch = batch_of(small())
    asked = batch.rollout.tokens[:, :4].unflatten(0, (6, 4))
    assert (asked == asked[:, :1]).all()
    assert len({tuple(q[0].tolist()) for q in asked}) > 1
    rewards = TASK.reward(batch.rollout.tokens).reshape(6, 4)
    assert torch.equal(batch.rewards, rewards)


def test_groups_without_a_signal_are_removed_whole():
    batch = batch_of(small())
    rewards = torch.zeros(6, 4)
    rewards[1, 2] = rewards[4] = rewards[5, 0] = 1.0
    kept = informative(with_rewards(batch, rewards))
    assert torch.equal(kept.rewards, rewards[[1, 5]])
    rows = [4, 5, 6, 7, 20, 21, 22, 23]
    assert torch.equal(kept.rollout.tokens, batch.rollout.tokens[rows])
    assert len(informative(with_rewards(batch, rewards), 1).rewards) == 1
    none = informative(with_rewards(batch, torch.ones(6, 4)))
    assert len(none.rewards) == 0


def test_a_batch_without_a_signal_changes_nothing():
    model = small()
    before = weights(model)
    optimizer = optimizer_of(model)
    flat = with_rewards(batch_of(model), torch.ones(6, 4))
    logged = grpo_update(model, optimizer, flat, objective("grpo"))
    assert logged["norm"] == 0 and logged["useful"] == 0
    empty = informative(flat)
    assert grpo_update(model, optimizer, empty, objective("grpo")) == {}
    assert torch.equal(weights(model), before)


def test_the_first_update_is_the_policy_gradient(witness):
    r"""One step of SGD is $\frac1b\sum_i \hat A_i \nabla
    \frac1{|o_i|}\log\pi(o_i)$, computed here from the sum alone."""
    model = small().double()
    batch = batch_of(model)
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    batch = with_rewards(batch, rewards.double())
    twin = copy.deepcopy(model)
    logits = twin(batch.rollout.tokens)[:, :-1].log_softmax(-1)
    logp = logits.gather(2, batch.rollout.tokens[:, 1:, None]).squeeze(2)
    mask = shift(batch.rollout.mask)
    mean = (logp * mask).sum(1) / mask.sum(1)
    (advantages(batch.rewards).flatten() * mean).mean().neg().backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    optimizer_of(twin).step()
    before = weights(model)
    logged = grpo_update(model, optimizer_of(model), batch, objective("grpo"))
    close(weights(model), weights(twin))
    assert not torch.equal(weights(model), before)
    assert logged["clipped"] == 0 and logged["kl"] == 0
    witness(
        "eq-grpo",
        (weights(model) - weights(twin)).abs().max(),
        reference="identity: policy gradient",
        code="dsarch.post.loop.grpo_update",
    )


def test_later_epochs_are_off_policy_and_get_clipped():
    model = small()
    batch = batch_of(model)
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    logged = grpo_update(
        model,
        optimizer_of(model, 0.5),
        with_rewards(batch, rewards),
        objective("grpo", beta=0.1),
        reference=small(),
        epochs=3,
        minibatches=2,
    )
    assert logged["clipped"] > 0 and logged["kl"] > 0
    assert logged["reward"] == pytest.approx(rewards.mean().item())
    assert 1 <= logged["length"] <= TASK.max_new_tokens
    assert 0 < logged["entropy"] <= math.log(VOCABULARY)


def test_the_off_policy_mask_reaches_the_loss():
    """With every drift above the limit only the good rows push.

    The clip is opened wide, or it would hold the bad rows anyway.
    """
    wide = objective("grpo", eps_low=10.0, eps_high=10.0)
    model = small()
    batch = batch_of(model)
    stale = batch.rollout._replace(logp=batch.rollout.logp + 1.0)
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    batch = Batch(stale, rewards)
    good = advantages(rewards).flatten() >= 0
    moved = []
    for limit, advantage in (
        (0.5, None),
        (None, advantages(rewards).flatten() * good),
        (None, None),
    ):
        twin = copy.deepcopy(model)
        grpo_update(
            twin,
            optimizer_of(twin),
            batch,
            wide,
            delta=limit,
            advantage=advantage,
        )
        moved.append(weights(twin))
    close(moved[0], moved[1])
    assert (moved[0] - moved[2]).abs().max() > 1e-5


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (0.8, 0.7)])
def test_updates_see_the_policy_that_sampled(temperature, top_p):
    """At the right temperature and set, nothing is clipped at first."""
    model = small()
    batch = batch_of(model, temperature=temperature, top_p=top_p)
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    batch = with_rewards(batch, rewards)
    narrow = Objective(eps_low=1e-4, eps_high=1e-4)
    clipped = [
        grpo_update(
            copy.deepcopy(model),
            torch.optim.SGD(model.parameters(), 0.0),
            batch,
            narrow,
            temperature=t,
        )["clipped"]
        for t in (temperature, 1.0)
    ]
    assert clipped[0] == 0 < clipped[1]


def test_process_advantages_drive_an_update():
    model = small()
    batch = batch_of(model)
    mask = shift(batch.rollout.mask)
    ends = (mask.sum(1) - 1 + 3)[:, None].unflatten(0, (6, 4))
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    spread = process_advantages(rewards[..., None], ends, mask.shape[1])
    batch = with_rewards(batch, rewards)
    moved = []
    for advantage in (None, spread.flatten(0, 1)):
        twin = copy.deepcopy(model)
        grpo_update(
            twin,
            optimizer_of(twin),
            batch,
            objective("grpo"),
            advantage=advantage,
        )
        moved.append(weights(twin))
    close(moved[0], moved[1])


def test_a_loss_that_is_not_finite_changes_nothing():
    model = small()
    before = weights(model)
    loss = weights_sum(model) * math.nan
    with pytest.raises(ValueError, match="the loss is nan"):
        step(loss, optimizer_of(model))
    assert torch.equal(weights(model), before)


def weights_sum(model) -> torch.Tensor:
    return torch.stack([p.sum() for p in model.parameters()]).sum()


def test_curated_answers_are_right_and_distinct():
    tokens = torch.tensor([[1, 5], [1, 5], [1, 6], [2, 7], [2, 8], [2, 9]])
    mask = torch.tensor([[False, True]] * 6)
    rollout = Rollout(tokens, mask, torch.zeros(6, 1))
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
    kept, trained = curate(Batch(rollout, rewards), 2)
    assert kept.tolist() == [[1, 5], [1, 6], [2, 8]]
    assert trained.tolist() == mask[:3].tolist()
    one, _ = curate(Batch(rollout, rewards), 1)
    assert one.tolist() == [[1, 5], [2, 8]]
    none, _ = curate(Batch(rollout, rewards * 0), 2)
    assert none.shape == (0, 2)


def learned(seed: int) -> tuple[float, float]:
    """Greedy success before and after GRPO on one-digit sums."""
    generator = torch.Generator().manual_seed(seed)
    model = policy(VOCABULARY, seed, dim=64)
    every = TASK.every()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    while success(model, TASK, every) < 0.25:
        for _ in range(10):
            asked = TASK.prompts(64, generator)
            sft_step(model, optimizer, *TASK.solve(asked))
    before = success(model, TASK, every)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    for _ in range(100):
        batch = collect(model, TASK, generator, questions=32, group=8)
        grpo_update(model, optimizer, batch, objective("grpo"))
    return before, success(model, TASK, every)


@pytest.mark.slow
def test_grpo_raises_the_success_rate():
    before, after = learned(0)
    assert after > before + 0.2, (before, after)
