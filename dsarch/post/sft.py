r"""Supervised fine-tuning: a chat template, loss masks, packing, the loss.

The template works on token ids, so that it serves bytes and abstract
vocabularies alike; its layout is DeepSeek's: one beginning-of-sequence token,
the system text behind it, a marker before each turn, and an end-of-sequence
token after every assistant turn, which is trained, or the model would never
learn to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsarch.post.logprobs import masked_mean, shift, token_logprobs

ROLES = ("system", "user", "assistant", "tool")


class Message(NamedTuple):
    """One turn: who speaks, the token ids, and the thoughts before them."""

    role: str
    content: Sequence[int]
    reasoning: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """The special token ids; by default those after the 256 bytes."""

    bos: int = 256
    eos: int = 257
    user: int = 258
    assistant: int = 259
    tool: int = 260
    think: int = 261
    end_think: int = 262

    def __post_init__(self) -> None:
        if len(set(self.special)) < len(self.special):
            raise ValueError(f"special ids must differ, found {self.special}")

    @property
    def special(self) -> tuple[int, ...]:
        """All special ids; a message may contain none of them."""
        return tuple(getattr(self, f.name) for f in fields(self))


class Example(NamedTuple):
    """Token ids and, per token, whether it is trained."""

    tokens: list[int]
    mask: list[bool]


def render(
    messages: Sequence[Message],
    template: Template,
    *,
    train: str = "last",
    keep: str = "user",
    prompt: bool = False,
) -> Example:
    """Write a dialogue as the model sees it, with the mask of what it learns.

    ``train="last"`` trains what the assistant wrote since the last user
    message, ``"all"`` every assistant turn, ``"none"`` nothing. ``keep`` says
    what makes earlier reasoning disappear: a new ``"user"`` message (V3.2),
    ``"any"`` later message (R1), or ``"never"``. ``prompt`` opens an assistant
    turn at the end. Raises ``ValueError`` for a special id inside a message.
    """
    _check_words("train", train, ("last", "all", "none"))
    _check_words("keep", keep, ("user", "any", "never"))
    tokens, mask = [template.bos], [False]
    last, end = last_user(messages), len(messages) - 1
    for place, message in enumerate(messages):
        _check_message(message, template)
        keeps = {"user": place > last, "any": place == end, "never": True}
        learns = {"last": place > last, "all": True, "none": False}
        words = _words(message, template, keeps[keep])
        trained = message.role == "assistant" and learns[train]
        mask += [False] + [trained] * (len(words) - 1) if words else []
        tokens += words
    opened = [template.assistant] * prompt
    return Example(tokens + opened, mask + [False] * prompt)


def last_user(messages: Sequence[Message]) -> int:
    """Index of the last user message, -1 if there is none."""
    users = [i for i, m in enumerate(messages) if m.role == "user"]
    return users[-1] if users else -1


def _words(message: Message, template: Template, keeps: bool) -> list[int]:
    body = list(message.content)
    if message.role == "system":
        return body
    if message.role != "assistant":
        return [getattr(template, message.role), *body]
    thought: list[int] = []
    if message.reasoning and keeps:
        thought = [template.think, *message.reasoning, template.end_think]
    return [template.assistant, *thought, *body, template.eos]


def _check_words(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is none of {allowed}")


def _check_message(message: Message, template: Template) -> None:
    _check_words("role", message.role, ROLES)
    for token in (*message.content, *message.reasoning):
        if token in template.special:
            raise ValueError(
                f"special token {token} inside a {message.role} message "
                "would be read as a turn of its own"
            )


class Packed(NamedTuple):
    """Documents side by side in rows ``[b, t]``; padding is document -1."""

    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    document: Int[Tensor, "b t"]
    position: Int[Tensor, "b t"]


def pack(examples: Sequence[Example], length: int, pad: int = 0) -> Packed:
    """Fill rows of ``length`` tokens, longest example first, first fit.

    Positions restart with every document, and a document's first token is
    never trained: what stands before it is another text. Raises
    ``ValueError`` for an example longer than a row or with a mask of another
    length; nothing is cut silently.
    """
    rows: list[list[int]] = []
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].tokens))
    for index in order:
        size = len(examples[index].tokens)
        if size > length or size != len(examples[index].mask):
            raise ValueError(
                f"example {index} has {size} tokens and "
                f"{len(examples[index].mask)} mask entries; a row holds "
                f"{length}"
            )
        for row in rows:
            if sum(len(examples[i].tokens) for i in row) + size <= length:
                row.append(index)
                break
        else:
            rows.append([index])
    return _fill([[examples[i] for i in row] for row in rows], length, pad)


def _fill(rows: list[list[Example]], length: int, pad: int) -> Packed:
    tokens = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    document = torch.full((len(rows), length), -1)
    position = torch.zeros(len(rows), length, dtype=torch.long)
    for b, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            span = slice(start, start + len(example.tokens))
            tokens[b, span] = torch.tensor(example.tokens, dtype=torch.long)
            mask[b, span] = torch.tensor(example.mask, dtype=torch.bool)
            mask[b, start : start + 1] = False
            document[b, span] = number
            position[b, span] = torch.arange(len(example.tokens))
            start = span.stop
    return Packed(tokens, mask, document, position)


def document_mask(document: Int[Tensor, "b t"]) -> Bool[Tensor, "b t t"]:
    """Causal attention that stays inside each document of a packed row.

    Padding sees itself, so that no row of the softmax is empty.
    """
    place = torch.arange(document.shape[1], device=document.device)
    causal = place[:, None] >= place
    same = document[:, :, None] == document[:, None, :]
    return causal & same


def sft_loss(
    logits: Float[Tensor, "b t w"],
    tokens: Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
) -> Float[Tensor, ""]:
    r"""Mean negative log-likelihood of the trained tokens.

    $$L = -\frac{1}{\sum_t m_t}\sum_t m_t \log\pi_\theta(x_t\mid x_{<t})$$

    The shift happens here and only here: the first token of a completion is
    a target, predicted from the last token of the prompt. Without a trained
    token the loss is 0 and so is its gradient.
    """
    return -masked_mean(token_logprobs(logits, tokens), shift(mask))
