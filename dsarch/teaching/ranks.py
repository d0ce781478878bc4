r"""Several real processes, started from a notebook.

``launch`` is ``torchrun`` on this machine; run as a module this file is what
two ranks do together in chapter 11.
"""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from dsarch.config import Config
from dsarch.model import DeepSeek
from dsarch.train import distributed, parallel, pretrain
from dsarch.train.loop import Plan, Ranks, Trainer
from dsarch.train.optim import AdamW


def launch(ranks: int, *words: str) -> list[dict[str, Any]]:
    """Run ``python -m words`` in that many processes; the rows they print.

    Every launch finds a free port by itself. If a process fails, raises
    ``ValueError`` with the beginning of the error output: the cause comes
    first, the launcher's summary last.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", *words]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise ValueError(f"{words} failed: {done.stderr[:4000]}")
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def free_port() -> int:
    """A port that nothing listens on, so that runs side by side never meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_alone(size: int, patience: float = 2.0) -> str:
    """The last line of a rank 0 of ``size`` that starts alone."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"RANK": "0", "WORLD_SIZE": str(size)}
    script = f"from dsarch.train import distributed as d; d.start({patience})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stderr.strip().splitlines()[-1]


def trainer(ranks: int, seed: int = 0) -> Trainer:
    """The tiny model in one process, on the batches of ``ranks`` processes."""
    model = DeepSeek(Config(), torch.Generator().manual_seed(seed))
    data = pretrain.corpus(0, rows=4, length=64)
    plan = Plan(steps=3, rate=lambda step: 3e-3, accumulation=ranks)
    return Trainer(model, [AdamW(model.parameters())], data, plan)


def _together(folder: str) -> dict[str, float | int]:
    """What both ranks find; the largest value of all ranks counts."""
    ranks = distributed.start()
    found: dict[str, float | int] = {
        "tokens sent and answered": experts(ranks),
        "attention round the ring": ring(ranks),
        "same seed": apart(ranks, 0),
        "seed = rank": apart(ranks, ranks.rank),
    }
    most = torch.tensor(list(found.values()), dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    save(folder, ranks)
    distributed.finish()
    return dict(zip(found, most.tolist(), strict=True))


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference of two results, relative to the second."""
    return float((a - b).abs().max() / b.abs().max())


def experts(ranks: Ranks) -> float:
    """Half of the experts and other tokens on each rank, against all in one."""
    model = DeepSeek(Config(), torch.Generator().manual_seed(1)).double()
    whole: Any = model.layers[-1].mlp
    split = copy.deepcopy(whole)
    parallel.split_experts(split)
    g = torch.Generator().manual_seed(2)
    shape = (1, 24 * ranks.size, model.cfg.hidden_size)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    own = x.chunk(ranks.size, 1)[ranks.rank]
    return gap(split(own), whole(x).chunk(ranks.size, 1)[ranks.rank])


def ring(ranks: Ranks) -> float:
    """Half of a sequence on each rank, against torch's attention to all."""
    g = torch.Generator().manual_seed(3)
    shape = (3, 2, 16 * ranks.size, 4, 8)
    q, k, v = torch.randn(shape, generator=g, dtype=torch.float64)
    own = q.chunk(ranks.size, 1)[ranks.rank]
    near, mixed = (x.chunk(ranks.size, 1)[ranks.rank] for x in (k, v))
    mine = parallel.ring_attention(own, near, mixed, 8**-0.5)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return gap(mine, whole.transpose(1, 2).chunk(ranks.size, 1)[ranks.rank])


def apart(ranks: Ranks, seed: int) -> float:
    """How far the ranks' weights differ after one averaged step."""
    model = DeepSeek(Config(), torch.Generator().manual_seed(seed))
    batch = pretrain.corpus(0, rows=4, length=64).batch(ranks.rank)
    distributed.token_loss(model, batch, 0.3).total.backward()
    distributed.average_gradients(model)
    AdamW(model.parameters(), lr=3e-3).step()
    head = model.lm_head.weight.detach()
    first = head.clone()
    dist.broadcast(first, 0)
    return gap(head, first)


def save(folder: str, ranks: Ranks) -> None:
    """Train under ZeRO-3, then let every rank write its own shards."""
    run = trainer(1)
    loss, optimizer = distributed.zero(run.model, 3, AdamW)
    run = Trainer(
        run.model, [optimizer], run.corpus, run.plan, loss=loss, ranks=ranks
    )
    run.run()
    distributed.save_sharded(folder, run.model, optimizer)


if __name__ == "__main__":
    rows = _together(str(Path(sys.argv[1])))
    if os.environ["RANK"] == "0":
        print(json.dumps(rows))
