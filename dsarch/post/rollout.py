r"""Sampling completions with a cache, and keeping what training needs of it.

Training must see the very policy that sampled: the same temperature, the same
truncated vocabulary (keep-sampling-mask) and, in a mixture of experts, the
same experts (keep-routing; V3.2 report, section 3.1).
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsarch.layers import widen
from dsarch.post.logprobs import token_logprobs


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

    @property
    def lengths(self) -> Int[Tensor, "b"]:
        """Tokens chosen by the policy, the end token included."""
        return self.mask.sum(1)

    def rescore(self, model: nn.Module, temperature: float = 1.0) -> Tensor:
        """Log-probabilities ``[b, t-1]`` of the choices under ``model``."""
        return token_logprobs(
            model(self.tokens),
            self.tokens,
            temperature=temperature,
            allowed=self.allowed,
        )


class Draw(NamedTuple):
    """One sampled token per row, its log-probability, and its set."""

    token: Int[Tensor, "b"]
    logp: Float[Tensor, "b"]
    allowed: Bool[Tensor, "b w"]


def nucleus(logits: Float[Tensor, "b w"], top_p: float) -> Bool[Tensor, "b w"]:
    """The smallest set of likeliest tokens whose probability reaches top_p.

    The likeliest token is always in it. Raises ``ValueError`` unless
    ``top_p`` is in (0, 1].
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], found {top_p}")
    if top_p == 1:
        return torch.ones_like(logits, dtype=torch.bool)
    p, order = widen(logits).softmax(-1).sort(-1, descending=True)
    before = p.cumsum(-1) - p
    kept = before < top_p
    return torch.zeros_like(kept).scatter(-1, order, kept)


def draw(
    logits: Float[Tensor, "b w"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Draw:
    r"""Sample from $\mathrm{softmax}(z/T)$ restricted to the nucleus.

    Temperature 0 takes the likeliest token, whose log-probability is 0.
    Raises ``ValueError`` for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be >= 0, found {temperature}")
    if temperature == 0:
        token = logits.argmax(-1)
        allowed = nn.functional.one_hot(token, logits.shape[-1]).bool()
        return Draw(token, torch.zeros_like(widen(logits[:, 0])), allowed)
    scores = widen(logits) / temperature
    allowed = nucleus(scores, top_p)
    logp = scores.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    token = torch.multinomial(logp.exp(), 1, generator=generator)
    return Draw(token.squeeze(1), logp.gather(1, token).squeeze(1), allowed)


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
    record = Recorder(prompts, top_p < 1)
    choose = partial(draw, temperature=temperature, top_p=top_p)
    alive = torch.ones_like(prompts[:, 0], dtype=torch.bool)
    caches, fed = model.caches(), prompts
    for _ in range(max_new_tokens):
        drawn = choose(model(fed, caches)[:, -1], generator=generator)
        token = torch.where(alive, drawn.token, eos)
        record.add(token, alive, drawn)
        alive, fed = alive & (token != eos), token[:, None]
        if not alive.any():
            break
    return record.rollout()
