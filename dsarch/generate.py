r"""Text from a model: token by token, or several with a draft to verify."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsarch.cache import Cache
from dsarch.model import DeepSeek
from dsarch.mtp import MTP, advance
from dsarch.sampling import Sampling, verify


@torch.no_grad()
def generate(
    model: DeepSeek,
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    speculative: bool = False,
    drafts: int = 1,
    stop: int | None = None,
    stream: Callable[[Tensor], None] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b total"]:
    """Continue prompts of equal length; the prompt comes first.

    ``speculative`` lets the MTP layer draft ``drafts`` tokens at a time and
    changes nothing but the number of passes. A sequence that has produced
    ``stop`` is filled up with it. ``stream`` is called with every piece
    ``[b, n]`` as soon as it stands. ``ValueError`` for tokens outside the
    vocabulary, an empty prompt, or drafts without an MTP layer.
    """
    check_prompt(tokens, model.cfg.vocab_size)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} is below 0")
    sampling = Sampling(temperature, top_p, generator)
    pieces = decode(model, tokens, sampling)
    if speculative:
        pieces = speculate(model, tokens, sampling, drafts)
    new = gather(pieces, max_new_tokens, stop, stream)
    return torch.cat([tokens, *new], 1)


def gather(
    pieces: Iterator[Tensor],
    count: int,
    stop: int | None = None,
    stream: Callable[[Tensor], None] | None = None,
) -> list[Tensor]:
    """Pieces until ``count`` tokens stand or every sequence has stopped."""
    taken: list[Tensor] = []
    ended: Tensor | None = None
    while count and (ended is None or not ended.all()):
        new = next(pieces)[:, :count]
        if stop is not None:
            new, ended = halted(new, ended, stop)
        taken.append(new)
        count -= new.size(1)
        if stream is not None:
            stream(new)
    return taken


@torch.no_grad()
def decode(
    model: DeepSeek, tokens: Int[Tensor, "b t"], sampling: Sampling
) -> Iterator[Tensor]:
    """One token after the other, without end."""
    caches = model.caches()
    while True:
        logits = model.lm_head(model.hidden(tokens, caches)[:, -1:])
        tokens = sampling.draw(sampling.probabilities(logits))
        yield tokens


@torch.no_grad()
def speculate(
    model: DeepSeek,
    tokens: Int[Tensor, "b t"],
    sampling: Sampling,
    drafts: int = 1,
) -> Iterator[Tensor]:
    """One to ``drafts + 1`` tokens for each pass of the model, without end.

    The first piece is the token that the prompt yields. Every later one
    took one pass, which verified all drafts at once; what was refused is
    forgotten by every cache.
    """
    if not model.mtp or drafts < 1:
        raise ValueError(
            f"{drafts} drafts from {len(model.mtp)} MTP layers: speculation "
            "needs at least one of each"
        )
    caches, memory = model.caches(), Cache()
    hidden = model.hidden(tokens, caches)
    new = sampling.draw(sampling.probabilities(model.lm_head(hidden[:, -1:])))
    known = torch.cat([tokens[:, 1:], new], 1)
    while True:
        yield new
        guess, q = draft(model.mtp[0], hidden, known, memory, sampling, drafts)
        hidden = model.hidden(torch.cat([known[:, -1:], guess], 1), caches)
        p = sampling.probabilities(model.lm_head(hidden))
        known = new = verify(guess, q, p, sampling)
        hidden = hidden[:, : new.size(1)]
        for cache in caches:
            cache.crop(len(cache) - 1 - drafts + new.size(1))


def draft(
    module: MTP,
    hidden: Float[Tensor, "b t d"],
    known: Int[Tensor, "b t"],
    memory: Cache,
    sampling: Sampling,
    count: int,
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k w"]]:
    """Draft tokens, and the distributions that they were drawn from.

    ``hidden`` are true states and ``known`` the tokens that follow them.
    Beyond the first draft the module reads its own last state in place of
    the model's; ``memory`` keeps what came from true states only.
    """
    true = len(memory) + hidden.size(1)
    tokens, chances = [], []
    for _ in range(count):
        hidden = advance(module, hidden, known, memory)[:, -1:]
        chances.append(sampling.probabilities(module.shared_head.head(hidden)))
        known = sampling.draw(chances[-1])
        tokens.append(known)
    memory.crop(true)
    return torch.cat(tokens, 1), torch.cat(chances, 1)


def halted(
    new: Int[Tensor, "b n"], ended: Tensor | None, stop: int
) -> tuple[Tensor, Tensor]:
    """The piece with ``stop`` after every end, cut where all have ended."""
    hits = new == stop
    over = hits.cumsum(1) - hits.long() > 0
    over = over if ended is None else over | ended
    new = new.masked_fill(over, stop)
    return new[:, ~over.all(0)], over[:, -1:] | hits[:, -1:]


def check_prompt(tokens: Tensor, vocabulary: int) -> None:
    """Raise ``ValueError`` unless these are sequences of known tokens."""
    if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point():
        raise ValueError(
            "a prompt is [b, t] whole numbers and not empty, found "
            f"{tuple(tokens.shape)} in {tokens.dtype}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens {low} to {high} leave the vocabulary of {vocabulary}"
        )
