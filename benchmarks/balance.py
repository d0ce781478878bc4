"""Records for chapter 6: small mixtures trained with each way of balancing.

``OMP_NUM_THREADS=1 python -m benchmarks.balance`` trains 26 models for 300
steps each (about 20 minutes on one core) and writes
``chapters/data/balance.json``, which holds this command, the sizes and seeds.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from dsarch import Config, DeepSeek
from dsarch.balance import balance, loads
from dsarch.train.data import Batch, Corpus
from dsarch.train.loop import Plan, Trainer
from dsarch.train.loss import evaluate, routings
from dsarch.train.optim import AdamW

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.balance"
TARGET = Path(__file__).parents[1] / "chapters" / "data" / "balance.json"
STEPS, SEEDS, HELD_OUT = 300, (0, 1), range(10_000, 10_006)
KEPT = (0, 5, 10, 20, 40, 80, 120, 180, 240, 299)
DOMAINS = ("story", "arithmetic", "recall", "brackets")
SMALL = Config(
    hidden_size=64,
    num_hidden_layers=2,
    q_lora_rank=None,
    kv_lora_rank=24,
    qk_nope_head_dim=12,
    v_head_dim=12,
    intermediate_size=128,
    num_nextn_predict_layers=0,
)
# name: (alpha of the sequence-wise loss, gamma of the bias)
METHODS = {
    "nothing": (0.0, 0.0),
    "loss 0.001": (0.001, 0.0),
    "loss 0.01": (0.01, 0.0),
    "loss 0.1": (0.1, 0.0),
    "bias 0.001": (0.0, 0.001),
    "bias 0.01": (0.0, 0.01),
    "bias 0.1": (0.0, 0.1),
}
# name: (routed experts, width, chosen, shared); 128 of 512 are active
SHAPES = {
    "8 experts, 2 chosen": (8, 64, 2, 0),
    "16 experts, 4 chosen": (16, 32, 4, 0),
    "32 experts, 8 chosen": (32, 16, 8, 0),
    "15 experts, 3 chosen, 1 shared": (15, 32, 3, 1),
}


def rate(step: int) -> float:
    """Warm-up over 20 steps, then a line down to a tenth."""
    return 4e-3 * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / STEPS)


def trainer(cfg: Config, alpha: float, gamma: float, seed: int) -> Trainer:
    """A run of one method; the seed draws both the weights and the text."""
    model = DeepSeek(cfg, torch.Generator().manual_seed(seed))
    corpus = Corpus(dict.fromkeys(DOMAINS, 1), 8, 96, seed)
    plan = Plan(
        steps=STEPS,
        rate=rate,
        balance_weight=alpha,
        bias_speed=lambda step: gamma,
    )
    return Trainer(model, [AdamW(model.parameters(), lr=0.0)], corpus, plan)


def by_domain(experts: Tensor, batch: Batch, n: int) -> list[list[int]]:
    """How many slots of each domain every expert got."""
    domain = batch.domain[:, :-1].flatten()
    return [
        loads(experts[domain == i], n).tolist() for i in range(len(DOMAINS))
    ]


def probe() -> tuple[Tensor, list[dict]]:
    """A row of each domain, and two tokens of each to follow."""
    rows, tokens = [], []
    for i, name in enumerate(DOMAINS):
        row = Corpus({name: 1}, 1, 40, 77).batch(0).tokens[0]
        rows.append(row)
        for at in (9, 22):
            text = bytes(x for x in row[: at + 1].tolist() if x < 256)
            tokens.append({"domain": i, "at": at, "text": text.decode()[-12:]})
    return torch.stack(rows), tokens


@torch.no_grad()
def scores(model: DeepSeek) -> list[list[int]]:
    """Ten-thousandths of the scores of the followed tokens."""
    rows, tokens = probe()
    with routings(model) as seen:
        model(rows)
    table = seen[0][1].scores.unflatten(0, rows.shape)
    picked = [table[t["domain"], t["at"]] for t in tokens]
    return (torch.stack(picked) * 1e4).round().int().tolist()


def snapshot(run: Trainer) -> dict:
    """One recorded step: what was routed before its weights changed."""
    gate = run.model.layers[-1].mlp.gate
    bias = [round(x, 4) for x in gate.e_score_correction_bias.tolist()]
    kept = {"step": run.step, "bias": bias, "scores": scores(run.model)}
    batch = run.corpus.batch(run.position)
    with torch.no_grad(), routings(run.model) as seen:
        run.model(batch.tokens[:, :-1])
    experts = seen[0][1].experts
    return kept | {"loads": by_domain(experts, batch, 16)}


def fives(values: Iterable[float]) -> list[float]:
    """Means of five steps each."""
    return [
        round(x, 4)
        for x in torch.tensor([*values]).view(-1, 5).mean(1).tolist()
    ]


@torch.no_grad()
def final(run: Trainer) -> dict:
    """Losses and loads on text that no run has seen."""
    batches = [run.corpus._replace(seed=99).batch(i) for i in HELD_OUT]
    found = evaluate(run.model, batches, list(DOMAINS))
    n = run.model.cfg.n_routed_experts
    total = torch.zeros(len(DOMAINS), n, dtype=torch.int64)
    for batch in batches:
        with routings(run.model) as seen:
            run.model(batch.tokens[:, :-1])
        total += torch.tensor(by_domain(seen[0][1].experts, batch, n))
    return {
        "loss": {k: round(v[0], 4) for k, v in found.items()},
        "floor": {k: round(v[1], 4) for k, v in found.items()},
        "loads": total.tolist(),
        "violation": round(balance(total.sum(0)).max_violation, 3),
    }


def train(cfg: Config, alpha: float, gamma: float, seed: int) -> tuple:
    """All of one run: its record, and the trainer for further questions."""
    run, rows, shots = trainer(cfg, alpha, gamma, seed), [], []
    while run.step < STEPS:
        if cfg == SMALL and seed == 0 and run.step in KEPT:
            shots.append(snapshot(run))
        rows.append(run.train_step())
    record = {
        "seed": seed,
        "excess": fives(row["loss"] - row["floor"] for row in rows),
        "violation": fives(row["violation"] for row in rows),
        "final": final(run),
    }
    return record | ({"steps": shots} if shots else {}), run


def without_shared(run: Trainer) -> dict:
    """The same model with one routed expert more and no shared one."""
    layer = run.model.layers[-1].mlp
    cfg = layer.cfg.replace(num_experts_per_tok=5)
    layer.shared_experts, layer.gate.cfg = None, cfg
    return final(run)


def shape(name: str) -> Config:
    """The small model with experts of one of the shapes."""
    routed, width, chosen, shared = SHAPES[name]
    return SMALL.replace(
        n_routed_experts=routed,
        moe_intermediate_size=width,
        num_experts_per_tok=chosen,
        n_shared_experts=shared,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
    )


def main() -> None:
    """Train everything and write the record after every run."""
    torch.set_num_threads(1)
    out: dict = {"command": COMMAND, "steps": STEPS, "every": 5}
    out |= {"tokens": probe()[1], "domains": DOMAINS}
    out |= {"methods": {}, "shapes": {}}
    for seed in SEEDS:
        for name, strength in METHODS.items():
            record, run = train(SMALL, *strength, seed)
            out["methods"].setdefault(name, []).append(record)
            print(name, seed, record["final"]["loss"]["all"], flush=True)
            if name == "bias 0.01":
                record["without shared"] = without_shared(run)["loss"]["all"]
    for seed in (*SEEDS, 2):
        for name in SHAPES:
            record, _ = train(shape(name), 0.0, 0.01, seed)
            out["shapes"].setdefault(name, []).append(record)
            print(name, seed, record["final"]["loss"]["all"], flush=True)
    text = json.dumps(out, separators=(",", ":"), ensure_ascii=False)
    TARGET.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
