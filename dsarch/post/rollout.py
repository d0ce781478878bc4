r"""Sampling completions with a cache, and keeping what training needs of it.

Training must see the very policy that sampled: the same temperature, the same
truncated vocabulary (keep-sampling-mask) and, in a mixture of experts, the
same experts (keep-routing; V3.2 report, section 3.1).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsarch.post.routing import Routes, record_routes, replay_routes
from dsarch.sampling import Sampling


class Rollout(NamedTuple):
    """Prompts with their completions, padded behind the end token.

    ``mask`` is true on the tokens the policy chose, its end token included;
    ``logp`` is what the sampler gave them, in the alignment of the targets,
    and ``allowed`` the set it drew from, if that was not everything.
    """

    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    logp: Float[Tensor, "b t-1"]
    allowed: Bool[Tensor, "b t-1 w"] | None = None
    routes: Routes | None = None

    @property
    def lengths(self) -> Int[Tensor, "b"]:
        """Tokens chosen by the policy, the end token included."""
        return self.mask.sum(1)

    def rows(self, index: Int[Tensor, "z"]) -> "Rollout":
        """Some of the rows, in the order of ``index``."""
        tokens, mask, logp = (x[index] for x in self[:3])
        sets = None if self.allowed is None else self.allowed[index]
        routes = self.routes and {k: v[index] for k, v in self.routes.items()}
        return Rollout(tokens, mask, logp, sets, routes)

    def logits(self, model: nn.Module) -> Float[Tensor, "b t w"]:
        """What a policy says to these texts, through the kept routes."""
        with replay_routes(model, self.routes or {}):
            return model(self.tokens)


class Draw(NamedTuple):
    """One sampled token per row, its log-probability, and its set."""

    token: Int[Tensor, "b"]
    logp: Float[Tensor, "b"]
    allowed: Bool[Tensor, "b w"]


def draw(logits: Float[Tensor, "b w"], sampling: Sampling) -> Draw:
    """One token per row; at temperature 0 its log-probability is 0."""
    p = sampling.probabilities(logits[:, None])
    token = sampling.draw(p)
    logp = p.squeeze(1).gather(1, token).log()
    return Draw(token.squeeze(1), logp.squeeze(1), p.squeeze(1) > 0)


class Recorder:
    """Collects a rollout column by column."""

    def __init__(self, prompts: Int[Tensor, "b t"], keep_sets: bool) -> None:
        self.keep_sets = keep_sets
        self.tokens = [prompts]
        self.mask = [torch.zeros_like(prompts, dtype=torch.bool)]
        self.prefix = prompts.shape[1] - 1
        self.logp: list[Tensor] = []
        self.allowed: list[Tensor] = []

    def add(self, token: Tensor, chosen: Tensor, drawn: Draw) -> None:
        """Append a column; ``chosen`` marks the rows the policy filled."""
        self.tokens.append(token[:, None])
        self.mask.append(chosen[:, None])
        self.logp.append(drawn.logp.masked_fill(~chosen, 0.0))
        if self.keep_sets:
            self.allowed.append(drawn.allowed | ~chosen[:, None])

    def rollout(self) -> Rollout:
        """Everything so far; the prompt has log-probability 0 here."""
        logp = torch.stack(self.logp, 1)
        empty = logp.new_zeros(len(logp), self.prefix)
        allowed = None
        if self.keep_sets:
            sets = torch.stack(self.allowed, 1)
            free = sets.new_ones(len(sets), self.prefix, sets.shape[-1])
            allowed = torch.cat([free, sets], 1)
        return Rollout(
            torch.cat(self.tokens, 1),
            torch.cat(self.mask, 1),
            torch.cat([empty, logp], 1),
            allowed,
        )


@torch.no_grad()
def rollout(
    model: Any,
    prompts: Int[Tensor, "b t"],
    max_new_tokens: int,
    *,
    eos: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Complete every prompt until its end token or ``max_new_tokens``.

    The prompts are one prefill; after it each step feeds one token and reads
    the past from the caches. A completion without an end token was cut.
    Raises ``ValueError`` for fewer than one new token.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    sampling = Sampling(temperature, top_p, generator)
    record, caches = Recorder(prompts, top_p < 1), model.caches()
    alive, fed = torch.ones_like(prompts[:, 0], dtype=torch.bool), prompts
    with record_routes(model, len(prompts)) as routes:
        for _ in range(max_new_tokens):
            drawn = draw(model(fed, caches)[:, -1], sampling)
            token = torch.where(alive, drawn.token, eos)
            record.add(token, alive, drawn)
            alive, fed = alive & (token != eos), token[:, None]
            if not alive.any():
                break
    return record.rollout()._replace(routes=routes or None)
