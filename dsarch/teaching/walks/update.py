"""Walk 4: four answers to one prompt make one step of GRPO."""

import copy
import math

import torch
from torch import Tensor

from dsarch.analysis.watch import Moment, watch
from dsarch.post import grpo, logprobs, loop, objective
from dsarch.post.loop import Batch
from dsarch.teaching.walks.base import (
    Check,
    Grid,
    Run,
    Stage,
    Walk,
    grid,
    letters,
    model,
    prompt,
    steady,
)
from dsarch.train.tokenizer import decode

TEXT, SEED, ANSWERS, RATE = "The girl reads to the ", 2, 4, 0.05
STOP = ord(".")


class Hunters:
    """A task with a rule: the sentence shall end with a fox or a wolf."""

    eos = STOP
    max_new_tokens = 6

    def prompts(self, count: int, generator: torch.Generator) -> Tensor:
        """The same prompt for all."""
        return prompt(TEXT, count)

    def reward(self, tokens: Tensor) -> Tensor:
        """1 for a fox or a wolf, else 0."""
        words = [decode(row).split(" ")[-1] for row in tokens.tolist()]
        found = [word.startswith(("fox.", "wolf.")) for word in words]
        return torch.tensor(found, dtype=torch.float64)


def functions() -> list:
    """The watched functions as they are now."""
    return [
        loop.collect,
        grpo.advantages,
        logprobs.token_logprobs,
        objective.policy_loss,
        objective.surrogate,
        loop.step,
    ]


def record(seed: int = SEED) -> tuple[Batch, list[Moment]]:
    """Four answers and two passes over them, on a copy of the model."""
    policy = copy.deepcopy(model())
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(policy.parameters(), RATE)
    choice = objective.objective("grpo")
    with watch(*functions()) as moments:
        batch = loop.collect(
            policy, Hunters(), chance, questions=1, group=ANSWERS
        )
        loop.grpo_update(policy, optimizer, batch, choice, epochs=2)
    return batch, moments


class Answers(Run):
    """A run that knows the answers: rows of tables, columns of tokens."""

    def sampled(self) -> tuple[Tensor, Tensor]:
        """The completions, and which of their tokens are no padding."""
        first = Run(self.walk, self.moments, 0).at("collect", "samples")
        samples, start = first.values["samples"], prompt(TEXT).size(1)
        return samples.tokens[:, start:], samples.mask[:, start:]

    def tokens(self) -> Tensor:
        """The completions, padded with the full stop."""
        return self.sampled()[0]

    def names(self) -> list[str]:
        """Each answer up to its full stop."""
        words = ("".join(letters(row)) for row in self.tokens())
        return [word[: word.index(".") + 1] for word in words]

    def per_token(
        self, name: str, values: Tensor, marks: Tensor | None = None
    ) -> Grid:
        """A matrix over the tokens of the answers."""
        mask = self.sampled()[1]
        count = mask.size(1)
        columns = [f"token {place + 1}" for place in range(count)]
        places = [] if marks is None else marks[:, -count:].nonzero().tolist()
        table = values[:, -count:]
        if table.dtype != torch.bool:
            table = table.masked_fill(~mask, math.nan)
        return grid(name, table, self.names(), columns, digits=3, marks=places)

    def per_answer(self, name: str, values: Tensor) -> Grid:
        """One number for each answer."""
        return grid(name, values[:, None], self.names(), [name], digits=3)


def update() -> Walk:
    """One GRPO update of the tiny model on four of its own answers."""
    _, moments = record()
    run = Answers("update", moments, 1)
    early = Run("update", moments, 0)
    first = -run.tokens().size(1)
    advantage = early.at("advantages", "return").values["return"][0].tolist()
    ratio = run.at("policy_loss", "ratio").values["ratio"][:, first].tolist()
    gain = run.at("surrogate", "gain").values["gain"][:, first].tolist()
    checks: list[Check] = [
        ("gain", [steady(r), steady(a), 0.2, 0.2], steady(g))
        for r, a, g in zip(ratio, advantage, gain, strict=True)
    ]
    return Walk(
        "update",
        "One GRPO update",
        "which token would still like to move, and which are held? Compare "
        "the marks of the ratios with the signs of the advantages.",
        functions(),
        [*_judged(run, early), *_moved(run), *_learned(run)],
        checks,
    )


def _judged(run: Answers, early: Run) -> list[Stage]:
    judged = early.at("collect", "rewards")
    centred = early.at("advantages", "centred")
    final = early.at("advantages", "return")
    rewards = judged.values["rewards"][0]
    table = run.per_answer("reward", rewards)
    apart = run.per_answer("difference", centred.values["centred"][0])
    last = run.per_answer("advantage", final.values["return"][0])
    mean = f"{int(rewards.sum())} of {ANSWERS} please the rule."
    low = f"The mean is {float(rewards.mean()):.2f}."
    size = final.values["return"][0]
    span = f"From {float(size.min()):.3f} to {float(size.max()):.3f}."
    return [
        run.stage("rewards", judged, [table], mean),
        run.stage("centred", centred, [apart], low),
        run.stage("advantages", final, [last], span.replace("-", "−")),
    ]


def _moved(run: Answers) -> list[Stage]:
    said, ratio = (
        run.at("token_logprobs", "return"),
        run.at("policy_loss", "ratio"),
    )
    found = ratio.values["ratio"]
    outside = (found < 0.8) | (found > 1.2)
    spread = f"From {float(found.min()):.3f} to {float(found.max()):.3f}."
    logp = run.per_token("log π", said.values["return"])
    table = run.per_token("ratio", found, outside)
    certain = (
        "Most letters follow from the first, so their log π is near 0. "
        "Behind its full stop an answer has no token."
    )
    return [
        run.stage("logp", said, [logp], certain),
        run.stage("ratio", ratio, [table], spread),
    ]


def _learned(run: Answers) -> list[Stage]:
    held, gain = run.at("surrogate", "clipped"), run.at("surrogate", "gain")
    end, moved = run.at("policy_loss", "loss"), run.at("step", "norm")
    clipped, gains = held.values["clipped"], gain.values["gain"]
    value, norm = float(end.values["loss"]), float(moved.values["norm"])
    count = f"{int(clipped.sum())} tokens are held."
    grids = [run.per_token("clip binds", clipped, clipped)]
    read = "Rewarded answers have positive entries, the other negative ones."
    one = grid("loss", torch.tensor([[value]]), ["L"], ["value"], digits=5)
    size = grid("norm", torch.tensor([[norm]]), ["‖∇L‖"], ["value"], digits=3)
    low = f"The loss is {value:.5f}".replace("-", "−") + "."
    return [
        run.stage("clipped", held, grids, count),
        run.stage("gain", gain, [run.per_token("gain", gains)], read),
        run.stage("loss", end, [one], low),
        run.stage("step", moved, [size], f"Before the bound: {norm:.3f}."),
    ]
