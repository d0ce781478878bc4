"""Records for chapter 10: sizes against tokens, mixtures, packing.

``OMP_NUM_THREADS=1 python -m benchmarks.small_runs`` trains 34 very small
models (about 3 minutes on one core) and writes
``chapters/data/small_runs.json``, which holds this command and the sizes.
With ``fit`` behind it, the command only fits the runs of that file again.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import schedules as small
from dsarch import DeepSeek
from dsarch.mtp import nll
from dsarch.train import scaling, schedule
from dsarch.train.data import Batch, Corpus
from dsarch.train.loss import Loss, isolated

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.small_runs"
PEAK = 1e-2
WIDTHS, LENGTHS, SEEDS = (8, 16, 32, 48), (100, 200, 400), (0, 1)
DOMAINS = tuple(small.EVEN)
MIXTURES: dict[str, dict[str, float]] = {
    "even": dict.fromkeys(DOMAINS, 1.0),
    "story seven of ten": dict.fromkeys(DOMAINS, 1.0) | {"story": 7.0},
    "recall seven of ten": dict.fromkeys(DOMAINS, 1.0) | {"recall": 7.0},
}
LONG = small.DATA._replace(rows=4, length=192)


def cosine(steps: int) -> Callable[[int], float]:
    """Warm-up over 20 steps, then half a cosine to a tenth."""
    return partial(
        schedule.cosine,
        total=steps,
        peak=PEAK,
        warmup_steps=20,
        floor=0.1,
        first=1,
    )


def alone(model: DeepSeek, batch: Batch, weight: float) -> Loss:
    """The loss of the next token where packed documents are blind."""
    hidden = isolated(model, batch.tokens[:, :-1], batch.document[:, :-1])
    losses = nll(model.lm_head(hidden), batch.tokens[:, 1:])
    counted = batch.counted[:, 1:]
    total = losses.where(counted, 0.0).sum()
    floor = batch.surprise[:, 1:][counted].sum().item()
    return Loss(total, {"loss": total.item(), "floor": floor})


@torch.no_grad()
def excess(model: DeepSeek, data: Corpus, loss: Callable[..., Loss]) -> float:
    """Loss above the floor on unseen text, by this way of attending."""
    unseen = small.key(data._replace(seed=99, rows=16))
    total = count = 0.0
    for index in small.HELD_OUT:
        batch = small.batch(unseen, index)
        parts = loss(model, batch, 0.0).parts
        total += parts["loss"] - parts["floor"]
        count += batch.counted[:, 1:].sum().item()
    return round(total / count, 4)


def size_run(width: int, steps: int, seed: int) -> dict[str, Any]:
    """One model of one size after one number of tokens."""
    data, cfg = small.DATA._replace(seed=seed), small.small(width)
    model, _ = small.train(cfg, data, cosine(steps), steps)
    tokens = sum(
        small.batch(small.key(data), i).counted[:, 1:].sum().item()
        for i in range(steps)
    )
    size = sum(w.numel() for w in model.parameters())
    above = small.held_out(model)["all"]
    return {
        "parameters": size,
        "tokens": tokens,
        "excess": above,
        "seed": seed,
    }


def mixture_run(name: str, seed: int) -> dict[str, Any]:
    """A model trained on one mixture, tested on the even one."""
    data = small.DATA._replace(weights=MIXTURES[name], seed=seed)
    model, _ = small.train(small.small(32), data, cosine(300), 300)
    return {"mixture": name, "seed": seed} | small.held_out(model)


def packing_run(seed: int, masked: bool) -> dict[str, Any]:
    """Rows of several documents, with and without a mask between them."""
    loss = alone if masked else small.token_loss
    data = LONG._replace(seed=seed)
    model, _ = small.train(small.small(32), data, cosine(300), 300, loss)
    return {"seed": seed, "masked": masked, "excess": excess(model, LONG, loss)}


def floor() -> float:
    """The loss of a perfect predictor on the unseen text."""
    data = small.key(small.DATA._replace(seed=99, rows=32))
    batches = [small.batch(data, i) for i in small.HELD_OUT]
    chosen = [b.surprise[:, 1:][b.counted[:, 1:]] for b in batches]
    return round(torch.cat(chosen).mean().item(), 4)


def fitted(out: dict[str, Any]) -> list[list[float]]:
    """Chinchilla's five constants, then those of ten resamplings."""
    names = ("parameters", "tokens")
    sizes, tokens = ([run[name] for run in out["sizes"]] for name in names)
    losses = [run["excess"] + out["floor"] for run in out["sizes"]]
    best = scaling.fit_chinchilla(sizes, tokens, losses)
    fits = scaling.bootstrap(
        sizes,
        tokens,
        losses,
        draws=10,
        generator=torch.Generator().manual_seed(0),
    )
    return [[float(f"{x:.4g}") for x in fit] for fit in (best, *fits)]


def trained() -> dict[str, Any]:
    """All three questions, in this order."""
    out: dict[str, Any] = {"command": COMMAND, "peak": PEAK, "floor": floor()}
    out["packing"] = [
        packing_run(seed, masked) for seed in SEEDS for masked in (0, 1)
    ]
    print(out["packing"], flush=True)
    out["mixtures"] = [
        mixture_run(name, seed) for seed in SEEDS for name in MIXTURES
    ]
    print(out["mixtures"], flush=True)
    out["sizes"] = []
    for seed in SEEDS:
        for width in WIDTHS:
            for steps in LENGTHS:
                out["sizes"].append(size_run(width, steps, seed))
                print(out["sizes"][-1], flush=True)
    return out


def main() -> None:
    """Train, fit and write."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["fit"]:
        out = json.loads((small.FOLDER / "small_runs.json").read_text())
    else:
        out = trained()
    small.write("small_runs.json", out | {"fits": fitted(out)})


if __name__ == "__main__":
    main()
