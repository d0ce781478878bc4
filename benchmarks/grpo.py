"""Records for chapter 9: GRPO on sums of two-digit numbers.

``OMP_NUM_THREADS=1 python -m benchmarks.grpo`` fine-tunes three small DeepSeek
models until they answer about a quarter of the questions, then trains each of
them further with GRPO, in several ways (about 7 minutes of one core), and
writes ``chapters/data/grpo.json``. With the argument ``tiny`` only the tiny
pre-trained model is asked again, in seconds.
"""

import copy
import json
import sys
from pathlib import Path

import torch

from dsarch import Config, DeepSeek, load_checkpoint
from dsarch.post.addition import VOCABULARY, Addition
from dsarch.post.loop import (
    collect,
    grpo_update,
    informative,
    sft_step,
    success,
)
from dsarch.post.objective import Objective, objective
from dsarch.post.rollout import rollout
from dsarch.train.tokenizer import BOS

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.grpo"
TARGET = Path(__file__).parents[1] / "chapters" / "data" / "grpo.json"
SEEDS, TASK, EVERY = (0, 1, 2), Addition(2), 20
QUESTIONS, GROUP, EXAM = 32, 8, 2000
SMALL = Config(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    q_lora_rank=None,
    kv_lora_rank=24,
    qk_nope_head_dim=12,
    v_head_dim=12,
    intermediate_size=128,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    num_nextn_predict_layers=0,
)
# name: (objective, learning rate, updates, seeds, dynamic sampling)
RUNS: dict[str, tuple[Objective, float, int, tuple[int, ...], bool]] = {
    "grpo": (objective("grpo"), 5e-4, 400, SEEDS, False),
    "rate 4 times": (objective("grpo"), 2e-3, 200, SEEDS, False),
    "rate 20 times": (objective("grpo"), 1e-2, 200, SEEDS, False),
    "dr_grpo": (objective("dr_grpo", max_length=4), 5e-4, 200, SEEDS, False),
    "dapo": (objective("dapo"), 5e-4, 200, SEEDS, True),
    "k1": (objective("grpo", beta=0.2, kl="k1"), 5e-4, 200, (0, 1), False),
    "k3": (objective("grpo", beta=0.2, kl="k3"), 5e-4, 200, (0, 1), False),
    "unbiased": (
        objective("grpo", beta=0.2, kl="unbiased"),
        5e-4,
        200,
        (0, 1),
        False,
    ),
}


def adam(model: DeepSeek, rate: float) -> torch.optim.Optimizer:
    """The optimizer of both phases."""
    return torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)


def exam() -> torch.Tensor:
    """Questions that measure, the same for all runs."""
    every = TASK.every()
    generator = torch.Generator().manual_seed(99)
    return every[torch.randperm(len(every), generator=generator)[:EXAM]]


def pupil(seed: int) -> tuple[DeepSeek, int]:
    """A model fine-tuned until it answers a quarter, and its steps."""
    generator = torch.Generator().manual_seed(seed)
    model, steps = DeepSeek(SMALL, generator), 0
    optimizer, asked = adam(model, 3e-3), exam()[:500]
    while success(model, TASK, asked) < 0.25:
        for _ in range(EVERY):
            questions = TASK.prompts(64, generator)
            sft_step(model, optimizer, *TASK.solve(questions))
        steps += EVERY
    return model, steps


def train(start: DeepSeek, name: str, seed: int) -> dict:
    """One run: its curves in means of 20 updates, its exams between."""
    choice, rate, updates, _, dynamic = RUNS[name]
    model, generator = copy.deepcopy(start), torch.Generator()
    generator.manual_seed(1000 + seed)
    optimizer, rows, passed = adam(model, rate), [], []
    passed.append(success(model, TASK, exam()))
    for update in range(1, updates + 1):
        asked = QUESTIONS * 2 if dynamic else QUESTIONS
        drawn = collect(model, TASK, generator, questions=asked, group=GROUP)
        batch = informative(drawn, QUESTIONS) if dynamic else drawn
        logged = grpo_update(model, optimizer, batch, choice, reference=start)
        if logged:
            rows.append(logged | {"reward": drawn.rewards.mean().item()})
        if update % EVERY == 0:
            passed.append(success(model, TASK, exam()))
    print(name, seed, [round(x, 3) for x in passed], flush=True)
    return {"seed": seed, "success": [round(x, 4) for x in passed]} | {
        key: means([row[key] for row in rows])
        for key in ("reward", "length", "entropy", "kl", "useful", "clipped")
    }


def means(values: list[float]) -> list[float]:
    """Means of 20 updates each, the last one of what is left."""
    parts = torch.tensor(values, dtype=torch.float64).split(EVERY)
    return [round(part.mean().item(), 4) for part in parts]


def quiz(digits: int, generator: torch.Generator) -> dict:
    """Answers of the tiny pre-trained model to 64 questions, 8 to each."""
    weights = Path(__file__).parents[1] / "weights" / "tiny-pretrained"
    model = load_checkpoint(weights, dtype=torch.float32)
    shape, low = (64, 2), 10 ** (digits - 1)
    pairs = torch.randint(low, 10 * low, shape, generator=generator)
    pairs = pairs.repeat_interleave(GROUP, 0).tolist()
    prompts = torch.tensor([[BOS, *f"{a}+{b}=".encode()] for a, b in pairs])
    found = rollout(model, prompts, 32, eos=ord("\n"), generator=generator)
    right = torch.tensor(
        [
            said(row[prompts.shape[1] :]).split(";")[-1] == str(a + b)
            for row, (a, b) in zip(found.tokens.tolist(), pairs, strict=True)
        ]
    ).unflatten(0, (64, GROUP))
    useful = right.any(1) & ~right.all(1)
    return {
        "digits": digits,
        "answers": right.numel(),
        "right": int(right.sum()),
        "useful": int(useful.sum()),
        "first": said(found.tokens[0].tolist()),
    }


def said(row: list[int]) -> str:
    """Characters up to the end of the line or of the document."""
    text = "".join(chr(x) if x < 256 else "" if x == BOS else "\n" for x in row)
    return text.split("\n")[0]


def tiny() -> None:
    """Ask the tiny model and add the answers to the record."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    out = json.loads(TARGET.read_text(encoding="utf8"))
    out["tiny"] = [quiz(digits, generator) for digits in (2, 3)]
    write(out)


def write(out: dict) -> None:
    """Store the record."""
    text = json.dumps(out, separators=(",", ":"))
    TARGET.write_text(text + "\n", encoding="utf8")


def main(names: list[str]) -> None:
    """Train everything and write the record."""
    torch.set_num_threads(1)
    starts = {seed: pupil(seed) for seed in SEEDS}
    first = next(iter(starts.values()))[0]
    out: dict = {"command": COMMAND, "every": EVERY, "runs": {}}
    out["parameters"] = sum(x.numel() for x in first.parameters())
    out["sft_steps"] = [steps for _, steps in starts.values()]
    for name in names:
        seeds = RUNS[name][3]
        runs = [train(starts[s][0], name, s) for s in seeds]
        out["runs"][name] = {"rate": RUNS[name][1], "seeds": runs}
    write(out)
    tiny()


if __name__ == "__main__":
    if sys.argv[1:] == ["tiny"]:
        tiny()
    else:
        main(sys.argv[1:] or list(RUNS))
