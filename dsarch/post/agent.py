r"""An agent with tools: environment, verifier, multi-turn rollouts.

The environment is deterministic and small enough to read, and built like
V3.2's synthetic ones (report section 3.2): a database, tools as functions, a
task that only tool calls can solve, and a verifier. A question names two
keys; the policy looks both up, lets the calculator add the digits, and
answers with the last digit of the sum:

    ``? k k'`` · ``look k ;`` → ``= 7`` · ``look k' ;`` → ``= 5`` ·
    ``add 7 5 ;`` → ``= 2`` · ``answer 2 .``

The words of a tool are part of the context and of the length, but not of the
loss: the policy did not choose them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsarch.post.rollout import Recorder, Rollout, draw
from dsarch.post.routing import record_routes
from dsarch.sampling import Sampling

KEYS = 6
ASK, LOOK, ADD, CALL, RESULT, ERROR, ANSWER, EOS = range(10 + KEYS, 18 + KEYS)
VOCABULARY = 18 + KEYS


def key(index: int) -> int:
    """The token of a database key; digits are their own tokens."""
    return 10 + index


class Desk(NamedTuple):
    """One instance: what the database holds, and which keys are asked."""

    database: tuple[int, ...]
    asked: tuple[int, int]

    @property
    def prompt(self) -> list[int]:
        """The question; the database is hidden behind the tools."""
        return [ASK, key(self.asked[0]), key(self.asked[1])]

    @property
    def answer(self) -> int:
        """What the verifier expects."""
        return sum(self.database[k] for k in self.asked) % 10

    def respond(self, words: Sequence[int]) -> list[int]:
        """A tool's reply to a call; any malformed call is an error."""
        match words:
            case [tool, k] if tool == LOOK and 0 <= k - 10 < KEYS:
                return [RESULT, self.database[k - 10]]
            case [tool, a, b] if tool == ADD and a < 10 and b < 10:
                return [RESULT, (a + b) % 10]
        return [ERROR]

    def verify(self, words: Sequence[int]) -> bool:
        """Whether the last turn is exactly the right answer."""
        return list(words) == [ANSWER, self.answer]

    def solution(self) -> list[list[int]]:
        """The turns that solve the task, each with its closing token."""
        first, second = self.asked
        a, b = self.database[first], self.database[second]
        return [
            [LOOK, key(first), CALL],
            [LOOK, key(second), CALL],
            [ADD, a, b, CALL],
            [ANSWER, self.answer, EOS],
        ]


def desks(count: int, generator: torch.Generator) -> list[Desk]:
    """Draw instances: a random database and two different keys each."""
    digits = torch.randint(10, (count, KEYS), generator=generator).tolist()
    order = torch.rand(count, KEYS, generator=generator).argsort(1)
    asked = order[:, :2].tolist()
    return [
        Desk(tuple(d), (a, b)) for d, (a, b) in zip(digits, asked, strict=True)
    ]


@dataclass
class Episode:
    """One conversation in progress, fed a token at a time."""

    desk: Desk
    max_turns: int
    said: list[int] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)
    turns: int = 0
    done: bool = False
    solved: bool = False

    def take(self, word: int) -> tuple[int, bool]:
        """The token to write and whether the policy chose it."""
        if self.queue:
            return self.queue.popleft(), False
        if self.done:
            return EOS, False
        self._hear(word)
        return word, True

    def _hear(self, word: int) -> None:
        if word == EOS:
            self.done = True
            self.solved = self.desk.verify(self.said)
        elif word == CALL:
            self.turns += 1
            self.queue.extend(self.desk.respond(self.said))
            self.said = []
            self.done = self.turns >= self.max_turns
        else:
            self.said.append(word)


class Played(NamedTuple):
    """Multi-turn rollouts; ``mask`` leaves out what the tools said."""

    rollout: Rollout
    solved: Bool[Tensor, "b"]
    calls: Int[Tensor, "b"]


@torch.no_grad()
def play(
    model: Any,
    instances: Sequence[Desk],
    *,
    max_tokens: int = 24,
    max_turns: int = 5,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Played:
    """Let the policy talk to every environment, all in lock step.

    At each position a row either samples or is fed a tool's next word, so
    rows of different turns share one cache. A conversation without an end
    token after ``max_tokens`` or ``max_turns`` calls is not solved.
    """
    episodes = [Episode(desk, max_turns) for desk in instances]
    fed = torch.tensor([desk.prompt for desk in instances])
    record, caches = Recorder(fed, False), model.caches()
    sampling = Sampling(temperature, generator=generator)
    with record_routes(model, len(fed)) as routes:
        for _ in range(max_tokens):
            drawn = draw(model(fed, caches)[:, -1], sampling)
            fed, chosen = _advance(episodes, drawn.token)
            record.add(fed.squeeze(1), chosen, drawn)
            if all(e.done and not e.queue for e in episodes):
                break
    solved = torch.tensor([e.solved for e in episodes])
    calls = torch.tensor([e.turns for e in episodes])
    found = record.rollout()._replace(routes=routes or None)
    return Played(found, solved, calls)


def _advance(
    episodes: Sequence[Episode], words: Int[Tensor, "b"]
) -> tuple[Int[Tensor, "b 1"], Bool[Tensor, "b"]]:
    """The next token of every conversation, and whether it was chosen."""
    pairs = zip(episodes, words.tolist(), strict=True)
    tokens, chosen = zip(*(e.take(word) for e, word in pairs), strict=True)
    return torch.tensor(tokens)[:, None], torch.tensor(chosen)


def demonstration(
    instances: Sequence[Desk],
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Perfect conversations with the mask of what the assistant says."""
    tokens, mask = [], []
    for desk in instances:
        row, trained = desk.prompt, [False] * len(desk.prompt)
        for turn in desk.solution():
            reply = desk.respond(turn[:-1]) if turn[-1] == CALL else []
            row = [*row, *turn, *reply]
            trained += [True] * len(turn) + [False] * len(reply)
        tokens.append(row)
        mask.append(trained)
    return torch.tensor(tokens), torch.tensor(mask)


def turn_ends(
    mask: Bool[Tensor, "b t"], turns: int
) -> Int[Tensor, "b {turns}"]:
    r"""Where each of the policy's turns ends, $-1$ for turns not taken.

    A turn is a run of chosen tokens; with its end as the end of a step,
    :func:`dsarch.post.grpo.process_advantages` gives GRPO over turns. Raises
    ``ValueError`` for more runs than ``turns``.
    """
    after = torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    last = mask & ~after
    most = int(last.sum(1).max()) if len(mask) else 0
    if most > turns:
        raise ValueError(f"a row has {most} turns, room for {turns}")
    ends = torch.full((len(mask), turns), -1)
    row, place = last.nonzero(as_tuple=True)
    number = last.cumsum(1)[row, place] - 1
    ends[row, number] = place
    return ends


def turn_rewards(
    tokens: Int[Tensor, "b t"],
    ends: Int[Tensor, "b j"],
    solved: Bool[Tensor, "b"],
) -> Float[Tensor, "b j"]:
    """What each turn earns: -0.5 for a failed call, 1 for the answer.

    The solved bonus falls on the last turn taken.
    """
    following = (ends + 1).clamp(min=0, max=tokens.shape[1] - 1)
    failed = (ends >= 0) & (tokens.gather(1, following) == ERROR)
    final = ends == ends.amax(1, keepdim=True)
    bonus = (final & (ends >= 0) & solved[:, None]).to(torch.float32)
    return bonus - 0.5 * failed.to(torch.float32)
