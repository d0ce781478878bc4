"""Records for chapter 10: one very small model under five schedules.

``OMP_NUM_THREADS=1 python -m benchmarks.schedules`` trains 40 models for 400
steps each (about 4 minutes on one core) and writes
``chapters/data/schedules.json``, which holds this command and the sizes.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from dsarch import Config, DeepSeek
from dsarch.fused import fuse
from dsarch.train import schedule
from dsarch.train.data import Batch, Corpus
from dsarch.train.loss import Loss, evaluate, token_loss
from dsarch.train.optim import AdamW, clip_grad_norm, weight_decay_groups

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.schedules"
FOLDER = Path(__file__).parents[1] / "chapters" / "data"
STEPS, WARMUP, SEEDS, PEAKS = 400, 20, (0, 1, 2, 3), (3e-3, 1e-2)
EVEN = dict.fromkeys(("story", "arithmetic", "recall", "brackets"), 1)
DATA = Corpus(EVEN, rows=8, length=96)
HELD_OUT = range(10_000, 10_008)
# name: the rate as a function of the step; all end at a tenth of the peak,
# but for the constant one.
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": schedule.constant,
    "cosine": partial(schedule.cosine, total=STEPS, floor=0.1),
    "WSD, linear": partial(
        schedule.wsd, total=STEPS, decay_steps=STEPS // 5, floor=0.1
    ),
    "WSD, 1-sqrt": partial(
        schedule.wsd,
        total=STEPS,
        decay_steps=STEPS // 5,
        floor=0.1,
        shape="sqrt",
    ),
    "multi-step": partial(schedule.multi_step, total=STEPS),
}


def small(hidden: int) -> Config:
    """A dense model with latent attention; all widths follow the hidden."""
    return Config(
        hidden_size=hidden,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        q_lora_rank=None,
        kv_lora_rank=max(8, hidden // 4),
        qk_nope_head_dim=max(4, hidden // 8),
        qk_rope_head_dim=4,
        v_head_dim=max(4, hidden // 8),
        intermediate_size=2 * hidden,
        num_nextn_predict_layers=0,
    )


@cache
def batch(data: tuple, index: int) -> Batch:
    """A batch of a corpus, kept: many runs read the same ones."""
    weights, *rest = data
    return Corpus(dict(weights), *rest).batch(index)


def key(data: Corpus) -> tuple:
    """A corpus that can be looked up."""
    return (tuple(data.weights.items()), *data[1:])


def train(
    cfg: Config,
    data: Corpus,
    rate: Callable[[int], float],
    steps: int,
    loss: Callable[..., Loss] = token_loss,
) -> tuple[DeepSeek, list[float]]:
    """A model trained by AdamW, and its loss above the floor, every step."""
    model = DeepSeek(cfg, torch.Generator().manual_seed(data.seed))
    fuse(model)
    weights = list(model.parameters())
    groups = weight_decay_groups(weights, 0.1)
    optimizer = AdamW(groups, betas=(0.9, 0.95), fused=True)
    above = []
    for step in range(steps):
        now = batch(key(data), step)
        count = now.counted[:, 1:].sum()
        total, parts = loss(model, now, 0.0)
        (total / count).backward()
        clip_grad_norm(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        above.append((parts["loss"] - parts["floor"]) / count.item())
    return model, above


def held_out(model: DeepSeek, data: Corpus = DATA) -> dict[str, float]:
    """Loss above the floor on unseen text, by domain and for all."""
    unseen = key(data._replace(seed=99, rows=32))
    found = evaluate(
        model, (batch(unseen, i) for i in HELD_OUT), list(data.weights)
    )
    return {k: round(loss - floor, 4) for k, (loss, floor) in found.items()}


def means(values: list[float], width: int = 10) -> list[float]:
    """Means over neighbouring steps."""
    rows = torch.tensor(values).view(-1, width).mean(1)
    return [round(x, 4) for x in rows.tolist()]


def write(name: str, record: dict) -> None:
    """Store a record beside the chapters."""
    text = json.dumps(record, separators=(",", ":"))
    (FOLDER / name).write_text(text + "\n", encoding="utf8")


def main() -> None:
    """Every schedule with every peak and seed."""
    torch.set_num_threads(1)
    out: dict = {"command": COMMAND, "steps": STEPS, "every": 10}
    out |= {
        "parameters": sum(w.numel() for w in DeepSeek(small(32)).parameters())
    }
    out |= {"seeds": SEEDS, "peaks": PEAKS, "runs": []}
    for seed in SEEDS:
        for peak in PEAKS:
            for name, shape in SCHEDULES.items():
                rate = partial(shape, peak=peak, warmup_steps=WARMUP, first=1)
                data = DATA._replace(seed=seed)
                model, above = train(small(32), data, rate, STEPS)
                final = held_out(model)
                row = {"schedule": name, "peak": peak, "seed": seed}
                row |= {"excess": final["all"], "by domain": final}
                out["runs"].append(row | {"curve": means(above)})
                print(name, peak, seed, final, flush=True)
    write("schedules.json", out)


if __name__ == "__main__":
    main()
