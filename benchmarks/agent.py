"""Records for chapter 14: an agent with tools, from cold start to mixed RL.

``OMP_NUM_THREADS=1 python -m benchmarks.agent`` trains small policies on the
desk of ``dsarch.post.agent``, three seeds, about 2 minutes on one core, and
writes ``chapters/data/agent.json``, which holds this command and the seeds.
"""

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsarch import Config, DeepSeek
from dsarch.post.agent import (
    CALL,
    KEYS,
    VOCABULARY,
    Desk,
    Played,
    demonstration,
    play,
)
from dsarch.post.grpo import advantages
from dsarch.post.loop import Batch, curate, grpo_update, sft_step
from dsarch.post.objective import objective
from dsarch.train.muon import Muon, muon_groups

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.agent"
TARGET = Path(__file__).parents[1] / "chapters" / "data" / "agent.json"
SEEDS = (0, 1, 2)
GROUP, QUESTIONS = 8, 8
STEPS = {
    "cold start": 66,
    "rl": 50,
    "hasty": 25,
    "specialist": 25,
    "distil": 16,
    "mixed": 20,
}
SMALL = Config(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    q_lora_rank=None,
    intermediate_size=128,
    first_k_dense_replace=2,
    num_nextn_predict_layers=0,
)
# Which database keys the questions of a domain ask for.
DOMAINS = {"near": (0, 1, 2), "far": (3, 4, 5)}


class Both(torch.optim.Optimizer):
    """Muon for the hidden matrices, AdamW for all else, at one rate."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        hidden, rest = muon_groups(model)
        kind = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}
        self.parts = [
            Muon(hidden, lr, **kind),
            torch.optim.AdamW(rest, lr, weight_decay=0.0),
        ]
        super().__init__([*hidden, *rest], {})

    def step(self, closure: Any = None) -> None:
        """Update everything that has a gradient."""
        for part in self.parts:
            part.step(closure)


def drawn(
    count: int, generator: torch.Generator, keys: Sequence[int] = range(KEYS)
) -> list[Desk]:
    """Instances that ask for two different keys of a domain."""
    digits = torch.randint(10, (count, KEYS), generator=generator).tolist()
    order = torch.rand(count, len(keys), generator=generator).argsort(1)
    return [
        Desk(tuple(d), (keys[a], keys[b]))
        for d, (a, b, *_) in zip(digits, order.tolist(), strict=True)
    ]


def success(model: DeepSeek, keys: Sequence[int] = range(KEYS)) -> float:
    """Share of 200 unseen tasks that greedy play solves."""
    unseen = drawn(200, torch.Generator().manual_seed(123), keys)
    solved = play(model, unseen, temperature=0.0).solved
    return round(solved.double().mean().item(), 3)


def cold_start(seed: int, steps: int, masked: bool = True) -> DeepSeek:
    """A policy that saw some perfect conversations."""
    model = DeepSeek(SMALL, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    optimizer = Both(model, 6e-3)
    for _ in range(steps):
        tokens, mask = demonstration(drawn(32, generator))
        if not masked:
            mask = torch.arange(tokens.size(1)).expand_as(tokens) >= 3
        sft_step(model, optimizer, tokens, mask)
    return model


def grouped(
    model: DeepSeek, generator: torch.Generator, keys: Sequence[int]
) -> tuple[Batch, Played]:
    """Several attempts at each task, rewarded by the verifier alone."""
    tasks = drawn(QUESTIONS, generator, keys)
    repeated = [desk for desk in tasks for _ in range(GROUP)]
    played = play(model, repeated, generator=generator)
    reward = played.solved.float().unflatten(0, (QUESTIONS, GROUP))
    return Batch(played.rollout, reward), played


def reinforce(
    model: DeepSeek,
    seed: int,
    steps: int,
    keys: Callable[[int], Sequence[int]] = lambda step: range(KEYS),
    rate: float = 1e-3,
) -> list[dict[str, float]]:
    """GRPO without the deviation, as V3.2 prints it; means of five steps."""
    generator = torch.Generator().manual_seed(seed + 50)
    optimizer = Both(model, rate)
    rows = []
    for step in range(steps):
        batch, played = grouped(model, generator, keys(step))
        grpo_update(model, optimizer, batch, objective("v3.2"))
        reward = batch.rewards.mean().item()
        rows.append((reward, played.calls.double().mean().item()))
    parts = torch.tensor(rows).unflatten(0, (-1, 5)).mean(1)
    return [
        {"reward": round(r, 3), "calls": round(c, 2)} for r, c in parts.tolist()
    ]


def reject(model: DeepSeek, teachers: dict, seed: int, steps: int) -> None:
    """Fine-tune on what the teachers got right, two answers to a task."""
    generator = torch.Generator().manual_seed(seed + 80)
    optimizer = Both(model, 1e-3)
    for step in range(steps):
        name = list(teachers)[step % len(teachers)]
        keys = DOMAINS.get(name, range(KEYS))
        tokens, mask = curate(grouped(teachers[name], generator, keys)[0], 2)
        if len(tokens):
            sft_step(model, optimizer, tokens, mask)


def scores(model: DeepSeek) -> dict[str, float]:
    """Success on each domain and on all questions."""
    found = {name: success(model, keys) for name, keys in DOMAINS.items()}
    return found | {"all": success(model)}


def train_rl(seed: int) -> tuple[dict, DeepSeek]:
    """Cold start with and without the tools' words, then RL on all tasks."""
    steps = STEPS["cold start"]
    blurred = success(cold_start(seed, steps, masked=False))
    model = cold_start(seed, steps)
    found: dict = {"seed": seed, "unmasked": blurred, "cold": scores(model)}
    found["cold sampled"] = sampled(model)
    found["episodes"] = {"after the cold start": episodes(model)}
    base = copy.deepcopy(model)
    found["curve"] = reinforce(model, seed, STEPS["rl"])
    found["rl"], found["rl sampled"] = scores(model), sampled(model)
    found["episodes"]["after RL"] = episodes(model)
    hasty = copy.deepcopy(base)
    found["hasty curve"] = reinforce(hasty, seed, STEPS["hasty"], rate=2e-3)
    found["hasty"] = scores(hasty)
    picky = copy.deepcopy(base)
    reject(picky, {"all": base}, seed, STEPS["distil"])
    found["rejection"] = scores(picky)
    found["rejection sampled"] = sampled(picky)
    return found, base


def specialise(base: DeepSeek, seed: int) -> dict:
    """Specialists, a student of both, mixed RL, and RL one after the other."""
    found, teachers = {}, {}
    for name, keys in DOMAINS.items():
        teachers[name] = copy.deepcopy(base)
        reinforce(
            teachers[name], seed, STEPS["specialist"], lambda _, k=keys: k
        )
        found[f"specialist {name}"] = scores(teachers[name])
    student = copy.deepcopy(base)
    reject(student, teachers, seed, STEPS["distil"])
    found["distilled"] = scores(student)
    both = list(DOMAINS.values())
    reinforce(student, seed + 9, STEPS["mixed"], lambda step: both[step % 2])
    found["mixed RL"] = scores(student)
    later = copy.deepcopy(teachers["near"])
    reinforce(later, seed, STEPS["specialist"], lambda _: DOMAINS["far"])
    found["near, then far"] = scores(later)
    return found


def sampled(model: DeepSeek) -> float:
    """Share of tasks solved when every word is sampled."""
    generator = torch.Generator().manual_seed(321)
    played = play(model, drawn(200, generator), generator=generator)
    return round(played.solved.double().mean().item(), 3)


def episodes(model: DeepSeek) -> list[dict]:
    """A group of four attempts at two tasks, with their advantages."""
    generator = torch.Generator().manual_seed(7)
    kept = []
    for desk in drawn(2, generator):
        played = play(model, [desk] * 4, max_tokens=30, generator=generator)
        reward = played.solved.float()[None]
        gained = advantages(reward, "none")[0].tolist()
        for row in range(4):
            tokens = played.rollout.tokens[row].tolist()
            mask = played.rollout.mask[row].int().tolist()
            end = max(i for i, m in enumerate(mask) if m) + 1
            reply = int(tokens[end - 1] == CALL) * 2
            kept.append(
                {
                    "database": list(desk.database),
                    "asked": list(desk.asked),
                    "tokens": tokens[: end + reply],
                    "mask": mask[: end + reply],
                    "solved": bool(played.solved[row]),
                    "advantage": round(gained[row], 3),
                }
            )
    return kept


def main() -> None:
    runs = []
    for seed in SEEDS:
        found, base = train_rl(seed)
        runs.append(found | {"specialists": specialise(base, seed)})
        short = {k: v for k, v in runs[-1].items() if k != "episodes"}
        print(json.dumps(short), file=sys.stderr, flush=True)
    kept = {"command": COMMAND, "steps": STEPS, "group": GROUP, "runs": runs}
    TARGET.write_text(json.dumps(kept) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
