r"""One trainer: accumulation, clipping, schedule, balance, resumable state."""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsarch.balance import balance, loads, updated_bias
from dsarch.model import DeepSeek
from dsarch.router import Router, Routing
from dsarch.train import state
from dsarch.train.data import Batch, Corpus
from dsarch.train.loss import Loss, even_out, routings, token_loss
from dsarch.train.monitor import (
    Metrics,
    Progress,
    check_finite,
)
from dsarch.train.optim import clip_grad_norm

# Norms under autocast keep fp32 weights: exact, only not torch's fused form.
warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")

Schedule = Callable[[int], float]
Counts = dict[Router, Tensor]


@dataclass(frozen=True, kw_only=True)
class Plan:
    r"""What a run does; schedules are functions of the optimizer step.

    ``bias_speed`` moves the routing biases, once per optimizer step;
    ``balance_weight`` is $\alpha$ of the sequence-wise balance loss.
    ``autocast`` is the dtype of matrix products; weights stay as they are.
    """

    steps: int
    rate: Schedule
    accumulation: int = 1
    clip: float = 1.0
    mtp_weight: Schedule = lambda step: 0.3
    bias_speed: Schedule = lambda step: 0.001
    balance_weight: float = 1e-4
    autocast: torch.dtype | None = None
    save_every: int = 100
    keep: int = 3

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        probes = [self.steps * k // 8 for k in range(9)]
        schedules = {
            "rate": self.rate,
            "mtp_weight": self.mtp_weight,
            "bias_speed": self.bias_speed,
        }
        return {
            "steps": self.steps,
            "accumulation": self.accumulation,
            "clip": self.clip,
            "balance_weight": self.balance_weight,
            "autocast": self.autocast,
        } | {
            name: [float(schedule(step)) for step in probes]
            for name, schedule in schedules.items()
        }


class Ranks(NamedTuple):
    """The processes that share a step; ``add`` sums in place over them."""

    rank: int = 0
    size: int = 1
    add: Callable[[Tensor], object] = lambda total: None


class Trainer:
    """Trains a model on a corpus, and may be killed at any moment.

    With a ``folder`` it keeps ``metrics.jsonl`` and states there, and goes on
    from the newest sound state it finds.
    """

    def __init__(
        self,
        model: DeepSeek,
        optimizers: Sequence[torch.optim.Optimizer],
        corpus: Corpus,
        plan: Plan,
        folder: str | Path | None = None,
        *,
        loss: Callable[..., Loss] = token_loss,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.optimizers, self.loss = model, optimizers, loss
        self.corpus, self.plan, self.ranks = corpus, plan, ranks or Ranks()
        self.step = self.position = 0
        self.folder = None if folder is None else Path(folder)
        if self.folder and (found := state.latest(self.folder)):
            restore(self, found)
        self.metrics = Metrics(self.folder, self.step)

    def run(self, until: int | None = None, show: bool = False) -> list[dict]:
        """Train up to step ``until``, saving on the way; a row per step."""
        end = self.plan.steps if until is None else until
        progress = Progress(end, self.step) if show else None
        rows = []
        while self.step < end:
            rows.append(self.train_step())
            self.metrics.write(rows[-1])
            if progress:
                progress.show(self.step, f"loss {rows[-1]['loss']:.3f}")
            if self.step % self.plan.save_every == 0 or self.step == end:
                self.save()
        return rows

    def train_step(self) -> dict[str, float]:
        """One optimizer step; losses in its row are means over tokens."""
        start, step = time.perf_counter(), self.step
        row, counts = gradients(self)
        norm = clip_grad_norm(list(self.model.parameters()), self.plan.clip)
        require(self, norm, "gradient norm")
        rate = self.plan.rate(step)
        for optimizer in self.optimizers:
            apply(optimizer, rate)
        move_biases(counts, self.plan.bias_speed(step))
        self.step += 1
        loaded = (balance(n).max_violation for n in counts.values())
        worst = max(loaded, default=0.0)
        row |= {"norm": norm.item(), "rate": rate, "violation": worst}
        return {"step": step, **row, "seconds": time.perf_counter() - start}

    def save(self) -> None:
        """Write the state; with several ranks, the first one does it."""
        if self.folder is not None and self.ranks.rank == 0:
            state.save(self.folder, self.step, snapshot(self), self.plan.keep)


def apply(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One step at this rate, after which the gradients are gone."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def gradients(trainer: Trainer) -> tuple[dict[str, float], Counts]:
    """Accumulate the gradients of one step over micro-batches and ranks.

    Each sum of losses is divided by the tokens of the whole step. Averaging
    the micro-batches' means instead weighs tokens by how few stand beside
    them. Frameworks average gradients over ranks, hence a factor
    in :func:`micro_step`.
    """
    batches = [draw(trainer) for _ in range(trainer.plan.accumulation)]
    count = sum(batch.counted[:, 1:].sum() for batch in batches)
    tokens = torch.as_tensor(count).double()
    trainer.ranks.add(tokens)
    sums: dict[str, float] = defaultdict(float)
    counts: Counts = {}
    for batch in batches:
        parts, seen = micro_step(trainer, batch, tokens.item())
        for name, value in parts.items():
            sums[name] += value
        for router, routing in seen:
            new = loads(routing.experts, routing.scores.size(1))
            counts[router] = counts.get(router, 0) + new
    for weight in trainer.model.parameters():
        # An expert that saw no token decays too, on every layout alike.
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return share(trainer, sums, counts, tokens), counts


def micro_step(
    trainer: Trainer, batch: Batch, tokens: float
) -> tuple[dict[str, float], list[tuple[Router, Routing]]]:
    """Forward and backward of one micro-batch of a step of ``tokens``."""
    model, plan = trainer.model, trainer.plan
    device = next(model.parameters()).device.type
    enabled = plan.autocast is not None
    with (
        torch.autocast(device, plan.autocast, enabled),
        routings(model) as seen,
    ):
        total, parts = trainer.loss(model, batch, plan.mtp_weight(trainer.step))
    require(trainer, total, "loss", batch)
    if seen and plan.balance_weight:
        own = batch.counted[:, 1:].sum() * plan.balance_weight
        total = total + own * even_out(seen, len(batch.tokens))
    (total * (trainer.ranks.size / tokens)).backward()
    return parts, seen


def draw(trainer: Trainer) -> Batch:
    """The next batch of this rank; the position counts those of all."""
    number = trainer.position + trainer.ranks.rank
    trainer.position += trainer.ranks.size
    return trainer.corpus.batch(number)


def share(
    trainer: Trainer, sums: dict[str, float], counts: Counts, tokens: Tensor
) -> dict[str, float]:
    """Add counts and measured sums over the ranks; means per token."""
    for count in counts.values():
        trainer.ranks.add(count)
    total = torch.tensor([*sums.values()], dtype=torch.float64)
    trainer.ranks.add(total)
    means = (total / tokens).tolist()
    return dict(zip(sums, means, strict=True)) | {"tokens": tokens.item()}


@torch.no_grad()
def move_biases(counts: Counts, speed: float) -> None:
    """Bias the routers against the experts that this step overloaded."""
    for router, count in counts.items():
        bias = router.e_score_correction_bias
        if bias is not None:
            bias.copy_(updated_bias(bias, count, speed))


def require(
    trainer: Trainer, value: Tensor, what: str, batch: Batch | None = None
) -> None:
    """Stop with the step and the cause unless a value is finite."""
    model, weight = trainer.model, trainer.plan.mtp_weight(trainer.step)
    check_finite(
        value,
        f"{what} at step {trainer.step}",
        model,
        lambda: batch and trainer.loss(model, batch, weight),
    )


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """All that the rest of a run depends on."""
    return {
        "fingerprint": fingerprint(trainer),
        "step": trainer.step,
        "position": trainer.position,
        "model": trainer.model.state_dict(),
        "optimizers": [x.state_dict() for x in trainer.optimizers],
        "random": state.random_state(),
    }


def restore(trainer: Trainer, found: dict[str, Any]) -> None:
    """Go on where a snapshot was taken.

    Raises ``ValueError`` with both values if the run is set up differently.
    """
    ours, theirs = fingerprint(trainer), found["fingerprint"]
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"cannot resume step {found['step']}: {name} was "
                f"{theirs.get(name)}, now it is {ours.get(name)}"
            )
    trainer.step, trainer.position = found["step"], found["position"]
    trainer.model.load_state_dict(found["model"])
    for optimizer, saved in zip(
        trainer.optimizers, found["optimizers"], strict=True
    ):
        optimizer.load_state_dict(saved)
    state.set_random_state(found["random"])


def fingerprint(trainer: Trainer) -> dict[str, Any]:
    """The set-up of a run, one named value each."""
    return (
        asdict(trainer.model.cfg)
        | trainer.corpus._asdict()
        | trainer.plan.fingerprint()
        | {"optimizers": [type(x).__name__ for x in trainer.optimizers]}
        | {"ranks": trainer.ranks.size}
    )
