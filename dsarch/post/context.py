r"""What stays in an agent's context, and what is thrown out when it is full.

Two different rules. *Reasoning* is dropped only when a new user message
arrives, not at each tool result, while tool calls and results stay (V3.2
report, section 3.2); :func:`dsarch.post.sft.render` applies it. *History*
is cut when the window fills, at test time, by one of the strategies here
(section 4 of the report).
"""

from collections.abc import Callable, Sequence

from dsarch.post.sft import Message, last_user

Summary = Callable[[Sequence[Message]], Sequence[int]]


def visible(messages: Sequence[Message]) -> list[Message]:
    """The dialogue with the reasoning that V3.2 still shows.

    Thoughts before the last user message are gone, those since then stay,
    across any number of tool results.
    """
    last = last_user(messages)
    return [
        m if i > last else m._replace(reasoning=())
        for i, m in enumerate(messages)
    ]


def size(messages: Sequence[Message]) -> int:
    """Tokens of a dialogue, one marker per message included."""
    return sum(1 + len(m.content) + len(m.reasoning) for m in messages)


def manage(
    messages: Sequence[Message],
    window: int,
    strategy: str = "discard_all",
    *,
    trigger: float = 0.8,
    summarise: Summary | None = None,
) -> list[Message]:
    """Make room once the dialogue exceeds ``trigger`` of the window.

    What the assistant and the tools said since the last user message is the
    history; everything before it stays. ``summary`` replaces the history by a
    text, ``discard_75`` drops its older three quarters, ``discard_all`` all
    of it, ``none`` nothing. Raises ``ValueError`` for another strategy or a
    summary without ``summarise``.
    """
    if strategy not in ("none", "summary", "discard_75", "discard_all"):
        raise ValueError(f"{strategy!r} is no strategy to manage a context")
    if strategy == "none" or size(messages) <= trigger * window:
        return list(messages)
    start = last_user(messages) + 1
    kept, history = list(messages[:start]), list(messages[start:])
    if strategy == "discard_all":
        return kept
    if strategy == "discard_75":
        return kept + _from_assistant(history, 3 * len(history) // 4)
    if summarise is None:
        raise ValueError("the strategy 'summary' needs a summarise function")
    return [*kept, Message("assistant", summarise(history))]


def _from_assistant(history: list[Message], cut: int) -> list[Message]:
    """The tail from ``cut`` on; no tool result without its call."""
    while cut < len(history) and history[cut].role == "tool":
        cut += 1
    return history[cut:]
