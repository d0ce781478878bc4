"""Kill a training process again and again, at random and on purpose.

    python -m tests.kill folder seed

torch is imported once and every attempt is a fork, so that dozens of kills
take seconds. Prints one JSON line: how often the run was killed, where, and
the hashes of the weights at its end and at the end of an undisturbed run.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from dsarch import Config
from dsarch.train import pretrain, state
from dsarch.train.data import Corpus
from dsarch.train.loop import Plan
from dsarch.train.monitor import read_metrics

CFG = Config(
    hidden_size=24,
    num_hidden_layers=2,
    intermediate_size=40,
    moe_intermediate_size=16,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=2,
)
STEPS = 24


def train(folder: Path) -> None:
    """Train to the end, or from where the folder's state stands."""
    plan = Plan(
        steps=STEPS,
        rate=lambda step: 3e-3,
        accumulation=2,
        save_every=2,
        bias_speed=lambda step: 0.01,
    )
    data = Corpus({"story": 1, "brackets": 1}, rows=2, length=24)
    run = pretrain.trainer(plan, cfg=CFG, data=data, folder=folder)
    # Draws from the global generator, which a resumed run has to continue.
    noise = run.loss

    def noisy(model, batch, weight):
        loss = noise(model, batch, weight)
        return loss._replace(total=loss.total * (1 + 0.1 * torch.rand(())))

    run.loss = noisy
    run.run()


def die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(path: Path, chunks: list[bytes]) -> str:
    """Write the first half of a state, let it reach the disk, and die."""
    content = b"".join(chunks)
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        os.fsync(file.fileno())
    die()
    return ""


def renamed_only(source: str, target: str) -> None:
    """Die between the rename and the sync of the folder."""
    os.rename(source, target)
    die()


# Where a save can be hit: (a name in `state`, what stands there instead).
MOMENTS: dict[str, Callable[[], None]] = {
    "half of the bytes are written": lambda: setattr(
        state, "_write", half_written
    ),
    "before the bytes are synced": lambda: setattr(state.os, "fsync", die),
    "before the rename": lambda: setattr(state.os, "replace", die),
    "after the rename": lambda: setattr(state.os, "replace", renamed_only),
    "while old states are removed": lambda: setattr(state, "_tidy", die),
}


def attempt(folder: Path, prepare: Callable[[], None], wait: float) -> int:
    """Fork a run; kill it after ``wait`` seconds unless it is done or dead."""
    child = os.fork()
    if child == 0:
        prepare()
        train(folder)
        os._exit(0)
    end = time.monotonic() + wait
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def digest(folder: Path) -> str:
    """A hash of all weights, buffers and moments of the newest state."""
    found = state.latest(folder)
    assert found["step"] == STEPS
    content = b"".join(
        chunk
        for part in ("model", "optimizers")
        for chunk in state._serialise(found[part])
    )
    return hashlib.sha256(content).hexdigest()


def kill_until(folder: Path, seed: int, length: float) -> dict:
    """Kill runs at every moment on the list; finished ones are compared.

    A run that reaches its end is followed by a fresh one, until every kill
    of the list has hit.
    """
    chance = random.Random(seed)
    moments = [*MOMENTS, *["at any time"] * 10] * 2
    chance.shuffle(moments)
    kills: Counter[str] = Counter()
    hashes, number = set(), 0
    while moments:
        here = folder / f"run-{number}"
        moment = moments[-1]
        prepare = MOMENTS.get(moment, lambda: None)
        at_random = length * chance.random() / 2
        status = attempt(here, prepare, 600 if moment in MOMENTS else at_random)
        if status:
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            kills[moments.pop()] += 1
        else:
            hashes.add(digest(here))
            number += 1
    assert attempt(here, lambda: None, 600) == 0
    hashes.add(digest(here))
    files = sorted(path.name for path in here.iterdir())
    rows = [row["step"] for row in read_metrics(here / "metrics.jsonl")]
    return {
        "kills": kills,
        "runs": number + 1,
        "hashes": sorted(hashes),
        "files": files,
        "rows": rows,
    }


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    start = time.monotonic()
    assert attempt(folder / "calm", lambda: None, 600) == 0
    length = time.monotonic() - start
    found = kill_until(folder, seed, length)
    print(json.dumps(found | {"calm": digest(folder / "calm")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
