r"""The loops that feed the losses: one update of each kind.

A policy is any module with ``model(tokens) -> logits`` and ``caches()``; an
optimizer is any with torch's interface. Nothing here keeps state of its own,
and all randomness comes from the generator that is passed in.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsarch.post.grpo import advantages, dynamic_sampling, off_policy_mask
from dsarch.post.logprobs import entropy, masked_mean, shift, token_logprobs
from dsarch.post.objective import Objective, Samples, policy_loss
from dsarch.post.rollout import Rollout, rollout
from dsarch.post.sft import sft_loss


@runtime_checkable
class Task(Protocol):
    """Questions whose answers a rule can judge."""

    eos: int
    max_new_tokens: int

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw questions of one length."""

    def reward(self, tokens: Tensor) -> Tensor:
        """One number per completed row."""


class Batch(NamedTuple):
    """Rollouts ``[q g]`` side by side and what each of them earned."""

    rollout: Rollout
    rewards: Float[Tensor, "q g"]

    def select(self, questions: Bool[Tensor, "q"]) -> "Batch":
        """Only some questions, each with its whole group."""
        group = self.rewards.shape[1]
        rows = questions.repeat_interleave(group).nonzero().squeeze(1)
        return Batch(self.rollout.rows(rows), self.rewards[questions])


def step(
    loss: Float[Tensor, ""],
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
) -> float:
    """Backward, clip, update; returns the norm before clipping.

    Raises ``ValueError`` for a loss that is not finite, before anything
    changes.
    """
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}; nothing was updated")
    optimizer.zero_grad()
    loss.backward()
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    return float(norm)


def sft_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
) -> float:
    """One update on demonstrations; returns the loss."""
    loss = sft_loss(model(tokens), tokens, mask)
    step(loss, optimizer)
    return loss.item()


def collect(
    model: Any,
    task: Task,
    generator: torch.Generator,
    *,
    questions: int,
    group: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Batch:
    """Sample ``group`` answers to each question and judge them."""
    prompts = task.prompts(questions, generator).repeat_interleave(group, 0)
    samples = rollout(
        model,
        prompts,
        task.max_new_tokens,
        eos=task.eos,
        temperature=temperature,
        top_p=top_p,
        generator=generator,
    )
    rewards = task.reward(samples.tokens).unflatten(0, (questions, group))
    return Batch(samples, rewards)


def informative(batch: Batch, most: int | None = None) -> Batch:
    """DAPO's dynamic sampling: only groups whose rewards differ.

    Oversample with :func:`collect` and take at most ``most`` of them.
    """
    chosen = dynamic_sampling(batch.rewards)
    if most is not None:
        chosen = chosen & (chosen.cumsum(0) <= most)
    return batch.select(chosen)


def curate(
    batch: Batch, per_question: int, threshold: float = 1.0
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Rejection sampling: right and distinct answers, as data to fine-tune.

    At most ``per_question`` rows of a question are kept, in their order; none
    may be left. This is how R1's own samples became its students' texts.
    """
    rows, group = [], batch.rewards.shape[1]
    for question, earned in enumerate(batch.rewards.tolist()):
        seen: set[tuple[int, ...]] = set()
        for place, reward in enumerate(earned):
            row = question * group + place
            words = tuple(batch.rollout.tokens[row].tolist())
            good = reward >= threshold and words not in seen
            if good and len(seen) < per_question:
                seen.add(words)
                rows.append(row)
    index = torch.tensor(rows, dtype=torch.long)
    tokens, mask = batch.rollout.tokens, batch.rollout.mask
    return tokens.index_select(0, index), mask.index_select(0, index)


def grpo_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    choice: Objective,
    *,
    reference: nn.Module | None = None,
    advantage: Float[Tensor, "b *t"] | None = None,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    delta: float | None = None,
) -> dict[str, float]:
    """Updates on one batch; returns means to plot, none without rows.

    ``advantage`` replaces the group's own (process supervision), ``delta``
    turns on V3.2's off-policy mask.
    """
    if advantage is None:
        advantage = advantages(batch.rewards, choice.scale).flatten()
    score = Scorer(model, temperature)
    ref_logp = _reference_logp(reference, batch.rollout, temperature)
    whole = Reading(batch.rollout, advantage, ref_logp)
    rows = torch.arange(batch.rewards.numel()).chunk(minibatches) * epochs
    found = [
        _policy_step(score, optimizer, whole.part(part), choice, delta)
        for part in rows
        if len(part)
    ]
    return _means(batch, found)


class Scorer(NamedTuple):
    """A policy at the temperature that it samples with."""

    model: nn.Module
    temperature: float = 1.0

    def __call__(self, samples: Rollout) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[b, t-1]`` of the choices, and entropies."""
        logits = samples.logits(self.model)
        logp = token_logprobs(
            logits,
            samples.tokens,
            temperature=self.temperature,
            allowed=samples.allowed,
        )
        with torch.no_grad():
            spread = entropy(logits[:, :-1] / self.temperature)
        return logp, spread


class Reading(NamedTuple):
    """Part of a batch with what one update needs beside the samples."""

    samples: Rollout
    advantage: Float[Tensor, "b *t"]
    ref_logp: Float[Tensor, "b t"] | None

    def part(self, rows: Int[Tensor, "z"]) -> "Reading":
        """Some rows of everything."""
        ref = None if self.ref_logp is None else self.ref_logp[rows]
        return Reading(self.samples.rows(rows), self.advantage[rows], ref)


@torch.no_grad()
def _reference_logp(
    reference: nn.Module | None, samples: Rollout, temperature: float
) -> Tensor | None:
    if reference is None:
        return None
    free = samples._replace(routes=None)  # its own experts, not the policy's
    return Scorer(reference, temperature)(free)[0]


def _policy_step(
    score: Scorer,
    optimizer: torch.optim.Optimizer,
    read: Reading,
    choice: Objective,
    delta: float | None,
) -> dict[str, float]:
    mask = shift(read.samples.mask)
    logp, spread = score(read.samples)
    old, keep = read.samples.logp, None
    if delta is not None:
        keep = off_policy_mask(logp, old, read.advantage, mask, delta)
    result = policy_loss(
        Samples(logp, read.advantage, mask, old, read.ref_logp, keep), choice
    )
    norm = step(result.loss, optimizer)
    return {
        "loss": result.loss.item(),
        "norm": norm,
        "kl": masked_mean(result.kl, mask).item(),
        "entropy": masked_mean(spread, mask).item(),
        "clipped": masked_mean(result.clipped.to(logp.dtype), mask).item(),
    }


def _means(batch: Batch, found: list[dict[str, float]]) -> dict[str, float]:
    """One row of a training log; empty where there was nothing to do."""
    if not found:
        return {}
    means = {k: sum(f[k] for f in found) / len(found) for k in found[0]}
    useful = dynamic_sampling(batch.rewards)
    return means | {
        "reward": batch.rewards.mean().item(),
        "length": batch.rollout.mask.sum(1, dtype=torch.float32).mean().item(),
        "useful": useful.sum().item() / len(useful),
    }


@torch.no_grad()
def success(model: Any, task: Task, prompts: Int[Tensor, "b t"]) -> float:
    """Share of the questions that greedy decoding answers right."""
    done = rollout(
        model, prompts, task.max_new_tokens, eos=task.eos, temperature=0.0
    )
    return task.reward(done.tokens).mean().item()
