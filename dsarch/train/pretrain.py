r"""The tiny DeepSeek: what it is trained on, and how it is rebuilt."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dsarch.checkpoint import save_checkpoint
from dsarch.config import Config
from dsarch.fused import fuse
from dsarch.model import DeepSeek
from dsarch.train import schedule
from dsarch.train.data import Corpus
from dsarch.train.loop import Plan, Trainer
from dsarch.train.loss import evaluate
from dsarch.train.monitor import read_metrics
from dsarch.train.muon import Muon, muon_groups
from dsarch.train.optim import AdamW, weight_decay_groups

WEIGHTS = {"story": 1, "arithmetic": 1, "recall": 2, "brackets": 1}


def plan(steps: int, rate: float = 6e-3, save_every: int = 100) -> Plan:
    """Warm-up, constant, decay over the last third; biases then freeze.

    As in V3 the weight of the MTP loss falls late in the run.
    """
    return Plan(
        steps=steps,
        rate=partial(
            schedule.wsd,
            total=steps,
            peak=rate,
            warmup_steps=min(50, steps // 3),
            decay_steps=steps // 3,
            floor=0.05,
            first=1,
        ),
        mtp_weight=lambda step: 0.3 if 3 * step < 2 * steps else 0.1,
        bias_speed=lambda step: 0.001 if 20 * step < 19 * steps else 0.0,
        save_every=save_every,
    )


def corpus(seed: int = 0, rows: int = 16, length: int = 128) -> Corpus:
    """Documents of all four domains, two of five about looking things up."""
    return Corpus(WEIGHTS, rows, length, seed)


def trainer(
    plan: Plan,
    *,
    seed: int = 0,
    cfg: Config | None = None,
    data: Corpus | None = None,
    folder: str | Path | None = None,
) -> Trainer:
    """A trainer of the tiny model, ready to run or to be resumed."""
    generator = torch.Generator().manual_seed(seed)
    model = DeepSeek(cfg or Config(), generator)
    fuse(model)
    return Trainer(model, optimizers(model), data or corpus(seed), plan, folder)


def optimizers(model: DeepSeek) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices as in V4, AdamW for all else.

    AdamW alone, as in V3, at a peak rate of 0.003 ends the same 2,000 steps
    at 1.38 nats on unseen look-ups, Muon at 0.90; the floor is 0.88.
    """
    hidden, rest = muon_groups(model)
    groups = weight_decay_groups(rest, 0.1)
    return [
        Muon(hidden, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW(groups, betas=(0.9, 0.95), fused=True),
    ]


def validation(
    model: DeepSeek, data: Corpus, batches: int = 8
) -> dict[str, tuple[float, float]]:
    """Loss and floor on documents of another seed."""
    unseen = data._replace(seed=data.seed + 1_000_000, rows=32)
    return evaluate(
        model, (unseen.batch(i) for i in range(batches)), data.domains
    )


def thin(rows: Sequence[dict[str, Any]], count: int = 150) -> list[dict]:
    """Means over neighbouring steps: enough points for a curve."""
    width = max(1, len(rows) // count)
    points = []
    for first in range(0, len(rows), width):
        part = rows[first : first + width]
        names = [name for name in part[0] if name not in ("step", "seconds")]
        means = {k: sum(row[k] for row in part) / len(part) for k in names}
        points.append({k: float(f"{v:.4g}") for k, v in means.items()})
        points[-1]["step"] = part[-1]["step"]
    return points


def export(run: Trainer, out: str | Path, command: str) -> dict[str, Any]:
    """Write bf16 weights as a Hugging Face folder, and how they came about.

    ``training.json`` holds the command, the loss on unseen documents beside
    its floor, and the curves.
    """
    model = run.model.to(torch.bfloat16)
    save_checkpoint(model, out)
    rows = read_metrics(run.metrics.path) if run.metrics.path else []
    report = {
        "command": command,
        "steps": run.step,
        "tokens": sum(row["tokens"] for row in rows),
        "minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "validation": validation(model, run.corpus),
        "curve": thin(rows),
    }
    text = json.dumps(report, indent=1)
    Path(out, "training.json").write_text(text + "\n", encoding="utf8")
    return report
