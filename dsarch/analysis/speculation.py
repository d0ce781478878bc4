r"""What speculative decoding gains: tokens per pass, speed, agreement."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsarch.analysis import count
from dsarch.analysis.decode import Cost
from dsarch.analysis.presets import Machine
from dsarch.config import Config
from dsarch.model import DeepSeek
from dsarch.mtp import advance
from dsarch.train.data import Batch


def tokens_per_pass(chance: float, drafts: int) -> float:
    r"""$1 + \alpha + \dots + \alpha^k = (1 - \alpha^{k+1})/(1 - \alpha)$.

    ``ValueError`` for a chance outside [0, 1] or fewer than no drafts.
    """
    if not 0 <= chance <= 1:
        raise ValueError(f"a chance lies in 0 to 1, found {chance}")
    if drafts < 0:
        raise ValueError(f"drafts must be at least 0, found {drafts}")
    return expected_tokens([chance] * drafts)


def expected_tokens(chances: Sequence[float]) -> float:
    r"""$1 + \alpha_1 + \alpha_1 \alpha_2 + \dots$: one chance per place."""
    total = kept = 1.0
    for chance in chances:
        kept *= chance
        total += kept
    return total


def speedup(
    chance: float, drafts: int, draft: float, extra: float = 0.0
) -> float:
    r"""Tokens per round over the time of a round, in plain passes.

    $$S = \frac{1 - \alpha^{k+1}}{(1 - \alpha)(1 + k\,(c + \varepsilon))}$$

    ``draft`` is $c$, the time of one draft, and ``extra`` is
    $\varepsilon$, the time that one token more adds to a pass. Source:
    Leviathan et al. 2023 for $\varepsilon = 0$.
    """
    return tokens_per_pass(chance, drafts) / (1 + drafts * (draft + extra))


def best_drafts(
    chance: float, draft: float, extra: float = 0.0, most: int = 16
) -> int:
    """The number of drafts with the highest speed-up; 0 if none pays."""
    return max(
        range(most + 1),
        key=lambda drafts: (speedup(chance, drafts, draft, extra), -drafts),
    )


def experts_met(cfg: Config, tokens: int) -> float:
    r"""$N\,(1 - (1 - k/N)^z)$: experts that $z$ tokens need together.

    As if every token drew its experts evenly and on its own.
    """
    n = cfg.n_routed_experts
    return n * (1 - (1 - cfg.num_experts_per_tok / n) ** tokens)


def pass_cost(cfg: Config, tokens: int, size: float = 2) -> Cost:
    """FLOP and weight bytes of one pass over so many tokens.

    Cached keys and the embedding table are left out. ``size`` is the bytes
    of one weight.
    """
    stored, active = count.parameter_groups(cfg), count.active_groups(cfg)
    routed, table = stored["routed experts"], stored["embedding"]
    fixed = sum(stored.values()) - routed - table
    read = fixed + routed * experts_met(cfg, tokens) / cfg.n_routed_experts
    used = fixed + active["routed experts"]
    return Cost(2 * tokens * used, size * read)


def draft_cost(cfg: Config, tokens: int, size: float = 2) -> Cost:
    """The same for one step of the MTP layer and the shared head."""
    width = 3 * cfg.hidden_size * cfg.moe_intermediate_size
    n, k = cfg.n_routed_experts, cfg.num_experts_per_tok
    head = cfg.vocab_size * cfg.hidden_size
    fixed = count.mtp_parameters(cfg) - n * width + head
    read = fixed + width * experts_met(cfg, tokens)
    return Cost(2 * tokens * (fixed + k * width), size * read)


def served(
    cfg: Config, batch: int, chance: float, drafts: int, machine: Machine
) -> float:
    """The speed-up of ``drafts`` drafts at a batch size, by roofline."""
    plain = pass_cost(cfg, batch).seconds(machine)
    verify = pass_cost(cfg, batch * (drafts + 1)).seconds(machine)
    guess = draft_cost(cfg, batch).seconds(machine)
    gained = tokens_per_pass(chance, drafts)
    return gained * plain / (verify + drafts * guess)


class Agreement(NamedTuple):
    r"""How the MTP layer agrees with the model, place by place.

    ``overlap`` is $\sum \min(p, q)$, the chance that a sampled draft is
    kept, ``same`` whether both think the same token likeliest. ``counted``
    leaves out padding and starts of documents.
    """

    overlap: Float[Tensor, "b t"]
    same: Bool[Tensor, "b t"]
    counted: Bool[Tensor, "b t"]

    def chances(self) -> tuple[float, float]:
        """Both means: for sampled and for greedy text."""
        here = self.counted
        means = (self.overlap[here].mean(), self.same[here].float().mean())
        return means[0].item(), means[1].item()


@torch.no_grad()
def agreement(model: DeepSeek, batch: Batch) -> Agreement:
    """Compare the first draft with the model along given text.

    The layer at position $i$, told token $i+1$, speaks of token $i+2$, as
    does the model at position $i+1$.
    """
    tokens = batch.tokens
    hidden, module = model.hidden(tokens[:, :-1]), model.mtp[0]
    state = advance(module, hidden[:, :-1], tokens[:, 1:-1])
    p = model.lm_head(hidden[:, 1:]).softmax(-1)
    q = module.shared_head.head(state).softmax(-1)
    counted = batch.counted[:, 2:] & batch.counted[:, 1:-1]
    same = p.argmax(-1) == q.argmax(-1)
    return Agreement(torch.minimum(p, q).sum(-1), same, counted)
