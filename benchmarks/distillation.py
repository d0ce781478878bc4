"""Records for chapter 13: small students of the tiny DeepSeek.

``OMP_NUM_THREADS=1 python -m benchmarks.distillation`` trains every student
with one compute budget (about eight minutes on one core) and writes
``chapters/data/distillation.json``, which holds this command, the sizes and
the seeds.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dsarch import Config, DeepSeek, generate, load_checkpoint
from dsarch.analysis.count import parameters
from dsarch.post.distill import (
    jsd_loss,
    kd_loss,
    keep_layers,
    layer_map,
    reverse_kl_loss,
)
from dsarch.post.logprobs import masked_mean, token_logprobs
from dsarch.post.loop import step
from dsarch.train.data import Corpus
from dsarch.train.loss import evaluate
from dsarch.train.optim import AdamW
from dsarch.train.pretrain import WEIGHTS
from dsarch.train.tokenizer import BOS, PAD

ROOT = Path(__file__).parents[1]
COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.distillation"
TARGET = ROOT / "chapters" / "data" / "distillation.json"
LENGTH, BATCH, PROMPT, SEEDS = 96, 16, 8, (0, 1, 2)
REAL, SAMPLED, UPDATES = 96, 768, 300


def student_config(width: int = 64, layers: int = 2) -> Config:
    """A dense student of this width, with the teacher's kind of attention."""
    return Config(
        hidden_size=width,
        num_hidden_layers=layers,
        q_lora_rank=None,
        kv_lora_rank=24,
        qk_nope_head_dim=12,
        v_head_dim=12,
        intermediate_size=2 * width,
        first_k_dense_replace=layers,
        num_nextn_predict_layers=0,
    )


def teacher() -> DeepSeek:
    """The tiny DeepSeek, frozen."""
    model = load_checkpoint(ROOT / "weights/tiny-pretrained", torch.float32)
    return model.requires_grad_(False)


def forward_cost(cfg: Config) -> int:
    """FLOP of one token: two for every active parameter."""
    return 2 * parameters(cfg)[1]


class Text(NamedTuple):
    """Rows ``[b, t]``, which tokens are trained, and stored logits."""

    tokens: Tensor
    mask: Tensor
    logits: Tensor | None = None

    def rows(self, index: Tensor) -> "Text":
        """Some of the rows."""
        return Text(*(None if x is None else x[index] for x in self))


def real_text(rows: int, seed: int) -> Text:
    """Documents of the four domains, in the mixture the teacher read."""
    batch = Corpus(WEIGHTS, rows, LENGTH, seed).batch(0)
    return Text(batch.tokens, batch.counted)


def written(model: DeepSeek, start: Tensor, generator: torch.Generator) -> Text:
    """Rows that a model goes on with; what it was given is not trained."""
    more = LENGTH + 1 - start.size(1)
    found = generate(model, start, more, temperature=1.0, generator=generator)
    mask = (found != BOS) & (found != PAD)
    mask[:, : start.size(1)] = False
    return Text(found, mask)


@torch.no_grad()
def annotated(text: Text, model: DeepSeek) -> Text:
    """The same text with a teacher's logits, in bf16 as one stores them."""
    parts = [model(x) for x in text.tokens.split(32)]
    return text._replace(logits=torch.cat(parts).bfloat16())


def hard(found: Tensor, text: Text) -> Tensor:
    """Cross-entropy of the next byte."""
    logp = token_logprobs(found, text.tokens)
    return -masked_mean(logp, text.mask[:, 1:])


def soft(found: Tensor, text: Text, temperature: float = 1.0) -> Tensor:
    """Hinton's loss against the stored logits."""
    assert text.logits is not None
    return kd_loss(
        found[:, :-1],
        text.logits[:, :-1],
        temperature=temperature,
        mask=text.mask[:, 1:],
    )


def mixed(found: Tensor, text: Text) -> Tensor:
    """Half the labels, half the teacher at a temperature of two."""
    return 0.5 * hard(found, text) + 0.5 * soft(found, text, 2.0)


def reverse(found: Tensor, text: Text) -> Tensor:
    """The divergence that samples of the student are judged by."""
    assert text.logits is not None
    return reverse_kl_loss(
        found[:, :-1], text.logits[:, :-1], mask=text.mask[:, 1:]
    )


def between(found: Tensor, text: Text) -> Tensor:
    """GKD's divergence, halfway between the two directions."""
    assert text.logits is not None
    return jsd_loss(found[:, :-1], text.logits[:, :-1], mask=text.mask[:, 1:])


class Run:
    """A student in training that stops when its budget is spent."""

    def __init__(self, model: DeepSeek, seed: int, budget: float) -> None:
        self.model, self.budget, self.spent = model, budget, 0.0
        self.optimizer = AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95))
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.cost = forward_cost(model.cfg)
        self.updates = 0

    def pay(self, tokens: int, cost: float) -> None:
        """Note what so many tokens at this price have cost."""
        self.spent += tokens * cost

    def update(self, text: Text, loss: Callable) -> None:
        """One update; the rate falls with what is left of the budget."""
        warm = min(1.0, (self.updates + 1) / 20)
        rate = 6e-3 * warm * (1 - 0.9 * min(1.0, self.spent / self.budget))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        step(loss(self.model(text.tokens), text), self.optimizer)
        self.pay(text.tokens.numel(), 3 * self.cost)
        self.updates += 1

    def some(self, text: Text) -> Text:
        """A batch of random rows."""
        rows = len(text.tokens)
        return text.rows(
            torch.randint(rows, (BATCH,), generator=self.generator)
        )

    def study(self, text: Text, loss: Callable, share: float = 1.0) -> None:
        """Updates on a stored text until a share of the budget is spent."""
        while self.spent < share * self.budget:
            self.update(self.some(text), loss)

    def practise(self, text: Text, guide: DeepSeek, loss: Callable) -> None:
        """Updates on what the student writes, judged by its teacher."""
        while self.spent < self.budget:
            start = self.some(text).tokens[:, :PROMPT]
            own = annotated(written(self.model, start, self.generator), guide)
            price = self.cost + forward_cost(guide.cfg)
            self.pay(own.tokens.numel(), price)
            self.update(own, loss)


def budget_of(cfg: Config, updates: int = UPDATES) -> float:
    """FLOP of so many updates on labels alone."""
    return updates * BATCH * (LENGTH + 1) * 3 * forward_cost(cfg)


def begin(width: int, seed: int) -> Run:
    """A fresh student of this width."""
    cfg = student_config(width)
    model = DeepSeek(cfg, torch.Generator().manual_seed(seed))
    return Run(model, seed, budget_of(cfg))


def prepared(run: Run, text: Text, guide: DeepSeek) -> Text:
    """A text with its teacher's logits, charged to the student."""
    run.pay(text.tokens.numel(), forward_cost(guide.cfg))
    return annotated(text, guide)


def labels(run: Run, guide: DeepSeek, text: Text) -> None:
    """From scratch: the text alone."""
    run.study(text, hard)


def soft_labels(run: Run, guide: DeepSeek, text: Text) -> None:
    """The teacher's distribution for each byte of the text."""
    run.study(prepared(run, text, guide), soft)


def hinton(run: Run, guide: DeepSeek, text: Text) -> None:
    """Labels and softened teacher together."""
    run.study(prepared(run, text, guide), mixed)


def sequences(run: Run, guide: DeepSeek, text: Text) -> None:
    """Texts that the teacher wrote, as if they were real."""
    start = torch.full((SAMPLED, 1), BOS)
    own = written(guide, start, run.generator)
    run.pay(own.tokens.numel(), forward_cost(guide.cfg))
    run.study(own, hard)


def on_policy(run: Run, guide: DeepSeek, text: Text, loss: Callable) -> None:
    """Soft labels first, then the student's own texts."""
    run.study(prepared(run, text, guide), soft, share=0.6)
    run.practise(text, guide, loss)


def unlimited(run: Run, guide: DeepSeek, text: Text) -> None:
    """What no one has: real text that never repeats."""
    run.study(real_text(BATCH * UPDATES, seed=555), hard)


METHODS = {
    "labels": labels,
    "soft labels": soft_labels,
    "Hinton": hinton,
    "sequences": sequences,
    "own texts, reverse KL": partial(on_policy, loss=reverse),
    "own texts, JSD": partial(on_policy, loss=between),
    "unlimited text": unlimited,
}


@torch.no_grad()
def judge(model: DeepSeek, guide: DeepSeek) -> dict:
    """Loss above the floor on unseen text, and KL on the student's own."""
    unseen = Corpus(WEIGHTS, 32, LENGTH, 1_000_000)
    batches = [unseen.batch(i) for i in range(4)]
    found = evaluate(model, batches, unseen.domains)
    generator = torch.Generator().manual_seed(7)
    start = torch.full((64, 1), BOS)
    own = annotated(written(model, start, generator), guide)
    excess = {name: round(a - b, 4) for name, (a, b) in found.items()}
    own_kl = round(reverse(model(own.tokens), own).item(), 4)
    return {"excess": excess, "own": own_kl}


def record(run: Run, guide: DeepSeek) -> dict:
    """How a finished student did, and for how much."""
    spent = round(run.spent / run.budget, 3)
    return {"updates": run.updates, "spent": spent} | judge(run.model, guide)


def methods(guide: DeepSeek) -> dict:
    """Every method with every seed; the seed draws weights and text."""
    out: dict = {name: [] for name in METHODS}
    for seed in SEEDS:
        for name, method in METHODS.items():
            run = begin(64, seed)
            method(run, guide, real_text(REAL, seed))
            out[name].append(record(run, guide))
            print(name, seed, out[name][-1], flush=True)
    return out


def amounts(guide: DeepSeek) -> dict:
    """Labels and soft labels with more and with less text."""
    out: dict = {}
    for rows in (24, 384):
        for name in ("labels", "soft labels"):
            run = begin(64, 0)
            METHODS[name](run, guide, real_text(rows, 0))
            out.setdefault(name, {})[rows] = record(run, guide)
            print(rows, name, out[name][rows], flush=True)
    return out


def gap(guide: DeepSeek) -> dict:
    """A small student of the teacher, of an assistant, and of no one."""
    out: dict = {"labels": [], "teacher": [], "assistant": []}
    for seed in SEEDS:
        text = real_text(REAL, seed)
        helper = begin(64, seed)
        soft_labels(helper, guide, text)
        helper.model.requires_grad_(False)
        for name, source in (
            ("labels", None),
            ("teacher", guide),
            ("assistant", helper.model),
        ):
            run = begin(24, seed)
            if source is None:
                labels(run, guide, text)
            else:
                run.study(annotated(text, source), soft)
            out[name].append(record(run, guide))
            print(name, seed, out[name][-1], flush=True)
    return out


def shallow(guide: DeepSeek, depth: int, kept: bool) -> DeepSeek:
    """Some of the teacher's layers, or fresh ones of the same kind."""
    layers = guide.cfg.num_hidden_layers
    chosen = layer_map(depth, layers)
    cfg = guide.cfg.replace(
        num_hidden_layers=depth,
        first_k_dense_replace=sum(map(guide.cfg.is_dense, chosen)),
        num_nextn_predict_layers=0,
    )
    model = DeepSeek(cfg, torch.Generator().manual_seed(0))
    if kept:
        mine = {
            name: value
            for name, value in guide.state_dict().items()
            if not name.startswith(f"model.layers.{layers}.")
        }
        model.load_state_dict(keep_layers(mine, chosen))
    return model


def inheritance(guide: DeepSeek, updates: int = 60) -> list:
    """What a few updates make of inherited and of fresh layers."""
    out = []
    text = annotated(real_text(384, 0), guide)
    for depth in (3, 2):
        for kept in (False, True):
            model = shallow(guide, depth, kept)
            start = judge(model, guide)["excess"]["all"]
            run = Run(model, 0, budget_of(model.cfg, updates))
            run.study(text, soft)
            found = {"depth": depth, "inherited": kept, "before": start}
            out.append(found | record(run, guide))
            print(out[-1], flush=True)
    return out


def main() -> None:
    """Train everything and write the record."""
    torch.set_num_threads(1)
    guide = teacher()
    out = {
        "command": COMMAND,
        "updates": UPDATES,
        "rows": REAL,
        "sampled": SAMPLED,
        "length": LENGTH,
        "teacher": judge(guide, guide),
        "budget": budget_of(student_config()),
        "methods": methods(guide),
        "amounts": amounts(guide),
        "gap": gap(guide),
        "inheritance": inheritance(guide),
    }
    text = json.dumps(out, indent=1)
    TARGET.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
