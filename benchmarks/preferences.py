"""Records for chapter 12: several ways from the same preferences.

``OMP_NUM_THREADS=1 python -m benchmarks.preferences`` fine-tunes a small
model on sums of which many were written by someone who forgets to carry. Its
own answers give pairs of a right and a wrong one, and these pairs train a
reward model with PPO, DPO in three settings, and a plain imitation of the
right answers; GRPO gets the rule itself. Three seeds take about 5 minutes on
one core and are written to ``chapters/data/preferences.json``. All settings
were chosen on seed 9, which is not recorded.
"""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dsarch import Config, DeepSeek
from dsarch.post.addition import EOS, VOCABULARY, Addition
from dsarch.post.dpo import dpo_loss, implicit_rewards
from dsarch.post.logprobs import shift, token_logprobs
from dsarch.post.loop import Batch, grpo_update, sft_step, step, success
from dsarch.post.objective import objective
from dsarch.post.reward import pass_at_k
from dsarch.post.rollout import Rollout, rollout
from dsarch.post.sft import sft_loss
from dsarch.post.steps import (
    Scored,
    Texts,
    completions,
    estimate,
    ppo_step,
    reward_step,
)

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.preferences"
TARGET = Path(__file__).parents[1] / "chapters/data/preferences.json"
SEEDS = (0, 1, 2)
SHOWN, ASKED, TESTED = 6000, 3000, 1000
FORGOTTEN, SAMPLES, EVERY = 0.6, 8, 10
SFT_STEPS, PAIR_STEPS, REWARD_STEPS, UPDATES = 900, 150, 400, 60
RATE = 1e-4
# name: (beta, weight of the NLL of the chosen answer)
DPO = {
    "DPO, beta 0.1": (0.1, 0.0),
    "DPO, beta 1": (1.0, 0.0),
    "DPO, beta 0.1, NLL": (0.1, 1.0),
}
PPO = {"PPO, beta 0.05": 0.05, "PPO, beta 1": 1.0}
TASK = Addition(2)
SMALL = Config(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    first_k_dense_replace=2,
    q_lora_rank=None,
    kv_lora_rank=24,
    intermediate_size=128,
    num_nextn_predict_layers=0,
    initializer_range=0.05,
)


class Questions(NamedTuple):
    """Three disjoint parts of the questions, and the source of chance."""

    shown: Tensor
    asked: Tensor
    tested: Tensor
    generator: torch.Generator

    def draw(self, rows: Tensor, count: int) -> Tensor:
        """Some rows, with repetition."""
        picked = torch.randint(len(rows), (count,), generator=self.generator)
        return rows[picked]


def questions(seed: int) -> Questions:
    """All two-digit sums in an order that depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    every = TASK.every()
    order = torch.randperm(len(every), generator=generator)
    parts = order.split([SHOWN, ASKED, TESTED])
    return Questions(*(every[part] for part in parts), generator)


def without_carry(asked: Tensor) -> tuple[Tensor, Tensor]:
    """The questions as someone answers them who forgets to carry."""
    n = TASK.digits
    digits = (asked[:, :n] + asked[:, n + 1 : -1]) % 10
    plus, equals = asked[:, n : n + 1], asked[:, -1:]
    easy = torch.cat([digits, plus, 0 * digits, equals], 1)
    tokens, mask = TASK.solve(easy)
    return torch.cat([asked, tokens[:, asked.shape[1] :]], 1), mask


def demonstrations(q: Questions, count: int) -> tuple[Tensor, Tensor]:
    """Solved questions, a share of them without carry."""
    asked = q.draw(q.shown, count)
    forgets = torch.rand(count, generator=q.generator) < FORGOTTEN
    both = zip(without_carry(asked), TASK.solve(asked), strict=True)
    tokens, mask = (torch.where(forgets[:, None], a, b) for a, b in both)
    return tokens, mask


def adam(*models: nn.Module, rate: float = RATE) -> torch.optim.AdamW:
    """An optimizer of all their weights."""
    weights = [p for model in models for p in model.parameters()]
    return torch.optim.AdamW(weights, rate, weight_decay=0.0)


def fine_tuned(q: Questions) -> DeepSeek:
    """The model that all methods start from."""
    model = DeepSeek(SMALL, q.generator)
    optimizer = adam(model)
    for at in range(SFT_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - 0.9 * at / SFT_STEPS)
        sft_step(model, optimizer, *demonstrations(q, 64))
    return model


def sampled(model: DeepSeek, asked: Tensor, q: Questions) -> Batch:
    """Several answers to each question, and which of them are right."""
    rows = asked.repeat_interleave(SAMPLES, 0)
    made = rollout(
        model, rows, TASK.max_new_tokens, eos=EOS, generator=q.generator
    )
    rewards = TASK.reward(made.tokens).view(-1, SAMPLES)
    more = 3 * TASK.digits + 4 - made.tokens.shape[1]
    tokens = pad(made.tokens, (0, more), value=EOS)
    mask, logp = pad(made.mask, (0, more)), pad(made.logp, (0, more))
    return Batch(Rollout(tokens, mask, logp), rewards)


def pairs(batch: Batch) -> tuple[Texts, Texts]:
    """A right and a wrong answer to each question that got both."""
    most, least = batch.rewards.max(1), batch.rewards.min(1)
    both = (most.values > least.values).nonzero()[:, 0]
    tokens, mask = batch.rollout.tokens, batch.rollout.mask
    rows = [both * SAMPLES + x.indices[both] for x in (most, least)]
    good, bad = (Texts(tokens[row], mask[row]) for row in rows)
    return good, bad


def some(two: tuple[Texts, Texts], q: Questions) -> tuple[Texts, Texts]:
    """A batch of pairs."""
    picked = torch.randint(len(two[0].tokens), (64,), generator=q.generator)
    good, bad = (Texts(t.tokens[picked], t.mask[picked]) for t in two)
    return good, bad


@torch.no_grad()
def divergence(model: DeepSeek, start: DeepSeek, made: Rollout) -> float:
    """Nats per answer from the start, on the policy's own samples."""
    logp, ref = (
        token_logprobs(m(made.tokens), made.tokens) for m in (model, start)
    )
    gap = (logp - ref).masked_fill(~shift(made.mask), 0.0)
    return gap.sum(1).mean().item()


def report(model: DeepSeek, start: DeepSeek, q: Questions) -> dict[str, float]:
    """How good a policy is on questions nobody has trained on."""
    batch = sampled(model, q.tested, q)
    counts = batch.rewards.sum(1).int().tolist()
    found = {"greedy": success(model, TASK, q.tested)}
    for k in (1, 2, 4, 8):
        chances = [pass_at_k(SAMPLES, c, k) for c in counts]
        found[f"pass@{k}"] = sum(chances) / len(chances)
    found["divergence"] = divergence(model, start, batch.rollout)
    found["length"] = batch.rollout.mask.sum(1).double().mean().item()
    return {k: round(v, 4) for k, v in found.items()}


def dpo(
    start: DeepSeek,
    two: tuple[Texts, Texts],
    q: Questions,
    beta: float,
    weight: float,
) -> tuple[DeepSeek, list[dict]]:
    """Preferences straight into the policy, and what is logged of it."""
    model, rows = copy.deepcopy(start), []
    optimizer = adam(model)
    for at in range(PAIR_STEPS + 1):
        batch = some(two, q)
        policy = [completions(model, x) for x in batch]
        with torch.no_grad():
            frozen = [completions(start, x) for x in batch]
        loss = dpo_loss(*policy, *frozen, beta=beta)
        if at % EVERY == 0:
            seen = implicit_rewards(*policy, *frozen, beta=1.0)
            row = {"step": at, "loss": loss.item()}
            row |= {k: v.mean().item() for k, v in seen._asdict().items()}
            row["greedy"] = success(model, TASK, q.tested)
            rows.append({k: round(v, 4) for k, v in row.items()})
        if weight:
            good = batch[0]
            nll = sft_loss(model(good.tokens), good.tokens, good.mask)
            loss = loss + weight * nll
        step(loss, optimizer)
    return model, rows


def imitation(
    start: DeepSeek, two: tuple[Texts, Texts], q: Questions
) -> DeepSeek:
    """Fine-tuning on the right answers alone: rejection sampling."""
    model = copy.deepcopy(start)
    optimizer = adam(model)
    for _ in range(PAIR_STEPS):
        sft_step(model, optimizer, *some(two, q)[0])
    return model


def scored(start: DeepSeek) -> Scored:
    """A reward model or critic on the trunk, with a head of zeros."""
    model = Scored(copy.deepcopy(start), SMALL.hidden_size)
    nn.init.zeros_(model.head.score.weight)
    return model


def judge(start: DeepSeek, two: tuple[Texts, Texts], q: Questions) -> Scored:
    """A reward model of the pairs."""
    model = scored(start)
    optimizer = adam(model, rate=1e-3)
    for _ in range(REWARD_STEPS):
        reward_step(model, optimizer, *some(two, q))
    return model


@torch.no_grad()
def judged(model: Scored, start: DeepSeek, q: Questions) -> dict[str, float]:
    """The reward model on new questions: pairs, and picking of several."""
    batch = sampled(start, q.tested, q)
    better, worse = (model(texts) for texts in pairs(batch))
    scores = model(Texts(batch.rollout.tokens, batch.rollout.mask))
    found = {"agreement": (better > worse).double().mean().item()}
    for n in (1, 2, 4, 8):
        best = scores.view(-1, SAMPLES)[:, :n].argmax(1, keepdim=True)
        right = batch.rewards.gather(1, best).mean()
        found[f"best of {n}"] = right.item()
    return {k: round(v, 4) for k, v in found.items()}


def ppo(
    start: DeepSeek, judge: Scored, q: Questions, beta: float
) -> tuple[DeepSeek, list[dict]]:
    """The policy against the reward model, and what it pretends to win."""
    model, critic, rows = copy.deepcopy(start), scored(start), []
    optimizer = adam(model, critic, rate=2 * RATE)
    for at in range(UPDATES + 1):
        made = rollout(
            model,
            q.draw(q.asked, 256),
            TASK.max_new_tokens,
            eos=EOS,
            generator=q.generator,
        )
        with torch.no_grad():
            score = judge(Texts(made.tokens, made.mask))
        if at % EVERY == 0:
            row = {"step": at, "score": score.mean().item()}
            row["greedy"] = success(model, TASK, q.tested)
            row["divergence"] = divergence(model, start, made)
            rows.append({k: round(v, 4) for k, v in row.items()})
        known = estimate(critic, made, score, start, beta=beta)
        for _ in range(2):
            ppo_step(model, critic, optimizer, made, known)
    return model, rows


def grpo(start: DeepSeek, q: Questions) -> DeepSeek:
    """The rule itself as the reward, on as many samples as PPO has."""
    model = copy.deepcopy(start)
    optimizer = adam(model, rate=2 * RATE)
    for _ in range(UPDATES):
        made = sampled(model, q.draw(q.asked, 32), q)
        grpo_update(model, optimizer, made, objective("v3.2"), epochs=2)
    return model


def one(seed: int) -> dict[str, Any]:
    """All methods from one start."""
    q = questions(seed)
    start = fine_tuned(q)
    two = pairs(sampled(start, q.asked, q))
    sizes = [t.mask.sum(1).double().mean().item() for t in two]
    found: dict[str, Any] = {"seed": seed, "pairs": len(two[0].tokens)}
    found |= {"lengths": sizes, "curves": {}, "methods": {}}
    methods, curves = found["methods"], found["curves"]
    methods["SFT"] = report(start, start, q)
    methods["imitation"] = report(imitation(start, two, q), start, q)
    for name, setting in DPO.items():
        model, curves[name] = dpo(start, two, q, *setting)
        methods[name] = report(model, start, q)
    scorer = judge(start, two, q)
    found["judge"] = judged(scorer, start, q)
    for name, beta in PPO.items():
        model, curves[name] = ppo(start, scorer, q, beta)
        methods[name] = report(model, start, q)
    methods["GRPO, rule"] = report(grpo(start, q), start, q)
    return found


def main() -> None:
    """Record every seed."""
    torch.set_num_threads(1)
    runs = []
    for seed in SEEDS:
        runs.append(one(seed))
        print(json.dumps(runs[-1]["methods"], indent=1), flush=True)
    out = {"command": COMMAND, "every": EVERY, "runs": runs}
    text = json.dumps(out, separators=(",", ":"))
    TARGET.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
