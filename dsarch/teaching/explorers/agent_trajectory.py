"""Recorded conversations of an agent, turn by turn, with its context."""

import json
from functools import cache
from typing import Any

from dsarch.post import context
from dsarch.post.sft import Message
from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.teaching.pages import root

HINT = (
    "compare attempts before and after RL: who reads both values? Then make "
    "the window small and see what each strategy would leave."
)
WORDS = [
    *"0123456789abcdef",
    "?",
    "look",
    "add",
    ";",
    "=",
    "error",
    "answer",
    ".",
]
STRATEGIES = ("none", "discard_75", "discard_all")
PROMPT = 3
ROLES = ("user", "assistant", "tool")


@cache
def recorded() -> dict[str, Any]:
    """What ``python -m benchmarks.agent`` wrote, command and seeds inside.

    ``FileNotFoundError`` where the package stands without the book.
    """
    path = root() / "chapters" / "data" / "agent.json"
    return json.loads(path.read_text(encoding="utf8"))


def split(mask: list[int], prompt: int = PROMPT) -> list[int]:
    """Who speaks, from where, to where, for each message in turn.

    The speaker is 0 for the question, 1 for the policy, 2 for a tool.
    """
    parts = [0, 0, prompt]
    for place in range(prompt, len(mask)):
        who = 1 if mask[place] else 2
        if parts[-3] == who:
            parts[-1] = place + 1
        else:
            parts += [who, place, place + 1]
    return parts


def kept(
    roles: list[str], sizes: list[int], window: int, strategy: str
) -> list[int]:
    """Which messages a strategy leaves once the window is 80 % full."""
    talk = [
        Message(role, [place] * size)
        for place, (role, size) in enumerate(zip(roles, sizes, strict=True))
    ]
    left = context.manage(talk, window, strategy)
    return [message.content[0] for message in left]


def _checks(runs: list[dict]) -> list[Check]:
    checks: list[Check] = []
    for run in runs:
        for talk in run["stages"][0][::3]:
            parts = split(talk["mask"])
            checks.append(("split", [talk["mask"], PROMPT], parts))
            roles = [ROLES[who] for who in parts[::3]]
            pairs = zip(parts[1::3], parts[2::3], strict=True)
            sizes = [end - begin for begin, end in pairs]
            for strategy in STRATEGIES:
                left = kept(roles, sizes, 20, strategy)
                checks.append(("kept", [roles, sizes, 20, strategy], left))
    return checks


def _rows(found: dict[str, Any]) -> list[tuple[int, str, str, str]]:
    return [
        (
            run["seed"],
            f"{run['unmasked']:.0%}",
            f"{run['cold']['all']:.0%}",
            f"{run['rl']['all']:.0%}",
        )
        for run in found["runs"]
    ]


def agent_trajectory() -> Explorer:
    """Real attempts of three policies, before and after RL.

    ``FileNotFoundError`` where the package stands without the book.
    """
    found = recorded()
    runs = [
        {"seed": run["seed"], "stages": list(run["episodes"].values())}
        for run in found["runs"]
    ]
    return Explorer(
        "agent_trajectory",
        {
            "words": WORDS,
            "prompt": PROMPT,
            "stages": list(found["runs"][0]["episodes"]),
            "runs": runs,
        },
        title="What does an agent say, and what is trained?",
        columns=["seed", "tools' words trained", "masked", "after GRPO"],
        rows=_rows(found),
        checks=_checks(runs),
        hint=HINT,
    )
