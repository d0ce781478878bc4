r"""One update of each kind beside GRPO: preferences, critics, students.

What is optimised is a module whose last hidden states ``hidden(tokens)`` can
be read (a :class:`Scored` one) or one that gives logits (a policy).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsarch.post.dpo import Margins, dpo_loss, implicit_rewards
from dsarch.post.logprobs import sequence_logprobs, shift, token_logprobs
from dsarch.post.loop import step
from dsarch.post.ppo import gae, ppo_loss, shaped_rewards, value_loss, whiten
from dsarch.post.reward import ScoreHead, bradley_terry_loss, last_token
from dsarch.post.rollout import Rollout


class Texts(NamedTuple):
    """Prompts with completions; ``mask`` marks the completions."""

    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]


class Scored(nn.Module):
    """A trunk with one number per token: a reward model or a critic."""

    def __init__(self, trunk: Any, dim: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, ScoreHead(dim)

    def forward(self, texts: Texts) -> Float[Tensor, "b"]:
        """The score of each text, read at its last completion token."""
        hidden = self.trunk.hidden(texts.tokens)
        return self.head(last_token(hidden, texts.mask))

    def values(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t-1"]:
        """What a critic expects before each target is chosen."""
        return self.head(self.trunk.hidden(tokens))[:, :-1]


def completions(model: nn.Module, texts: Texts) -> Float[Tensor, "b"]:
    """Summed log-probability of each completion given its prompt."""
    logp = token_logprobs(model(texts.tokens), texts.tokens)
    return sequence_logprobs(logp, shift(texts.mask))[0]


def reward_step(
    model: Scored,
    optimizer: torch.optim.Optimizer,
    chosen: Texts,
    rejected: Texts,
    centering: float = 0.01,
) -> dict[str, float]:
    """One update of a reward model on pairs; loss and accuracy."""
    better, worse = model(chosen), model(rejected)
    loss = bradley_terry_loss(better, worse, centering=centering)
    step(loss, optimizer)
    right = (better > worse).to(torch.float32).mean()
    return {"loss": loss.item(), "accuracy": right.item()}


def dpo_step(
    model: nn.Module,
    reference: nn.Module,
    optimizer: torch.optim.Optimizer,
    chosen: Texts,
    rejected: Texts,
    *,
    beta: float = 0.1,
    variant: str = "sigmoid",
    smoothing: float = 0.0,
) -> tuple[float, Margins]:
    """One update on pairs; the loss and the rewards that it implies."""
    policy = [completions(model, x) for x in (chosen, rejected)]
    with torch.no_grad():
        frozen = [completions(reference, x) for x in (chosen, rejected)]
    lengths = shift(chosen.mask).sum(1), shift(rejected.mask).sum(1)
    loss = dpo_loss(
        *policy,
        *frozen,
        beta=beta,
        variant=variant,
        lengths=lengths,
        smoothing=smoothing,
    )
    step(loss, optimizer)
    return loss.item(), implicit_rewards(*policy, *frozen, beta=beta)


class Estimate(NamedTuple):
    """What PPO freezes before its epochs, in the alignment of the targets."""

    advantage: Float[Tensor, "b t"]
    returns: Float[Tensor, "b t"]
    values: Float[Tensor, "b t"]


@torch.no_grad()
def estimate(
    critic: Scored,
    samples: Rollout,
    score: Float[Tensor, "b"],
    reference: nn.Module,
    *,
    beta: float = 0.05,
    lam: float = 0.95,
) -> Estimate:
    """Rewards with the divergence in them, values, whitened advantages."""
    mask = shift(samples.mask)
    ref = token_logprobs(reference(samples.tokens), samples.tokens)
    rewards = shaped_rewards(score, samples.logp, ref, mask, beta)
    values = critic.values(samples.tokens)
    advantage, returns = gae(rewards, values, mask, lam=lam)
    return Estimate(whiten(advantage, mask), returns, values)


def ppo_step(
    policy: nn.Module,
    critic: Scored,
    optimizer: torch.optim.Optimizer,
    samples: Rollout,
    known: Estimate,
    *,
    eps: float = 0.2,
    value_weight: float = 0.1,
) -> dict[str, float]:
    """One update of policy and critic, both in the optimizer."""
    mask = shift(samples.mask)
    logp = token_logprobs(policy(samples.tokens), samples.tokens)
    acting = ppo_loss(logp, samples.logp, known.advantage, mask, eps)
    values = critic.values(samples.tokens)
    judging = value_loss(values, known.values, known.returns, mask, eps)
    step(acting + value_weight * judging, optimizer)
    return {"policy": acting.item(), "value": judging.item()}


def distill_step(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    texts: Texts,
    loss: Callable[..., Tensor],
) -> float:
    """One update towards the teacher on given texts; returns the loss.

    ``loss(student_logits, teacher_logits, mask=...)`` sees the targets only.
    The texts are a data set's, the teacher's (sequence-level distillation
    with logits) or the student's own (on-policy).
    """
    with torch.no_grad():
        wanted = teacher(texts.tokens)[:, :-1]
    found = student(texts.tokens)[:, :-1]
    value = loss(found, wanted, mask=shift(texts.mask))
    step(value, optimizer)
    return value.item()
