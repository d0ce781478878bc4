"""Rebuild committed weights: ``python -m dsarch.train pretrain``."""

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

import torch

from dsarch.train import distributed, measure, pretrain


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; every default is that of the committed weights."""
    parser = argparse.ArgumentParser(prog="python -m dsarch.train")
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("pretrain", help="the tiny DeepSeek, 7 minutes")
    first.add_argument("--steps", type=int, default=2000)
    first.add_argument("--rate", type=float, default=6e-3)
    first.add_argument("--seed", type=int, default=0)
    first.add_argument("--rows", type=int, default=16)
    first.add_argument("--save-every", type=int, default=100)
    first.add_argument("--threads", type=int, default=2)
    first.add_argument(
        "--run",
        type=Path,
        default=Path("runs/tiny-pretrained"),
        help="states and metrics; a killed run goes on from here",
    )
    first.add_argument(
        "--out",
        type=Path,
        default=Path("weights/tiny-pretrained"),
        help="the finished weights; replaced only when the run is complete",
    )
    second = commands.add_parser(
        "measure", help="bytes per rank of strategies; run it by torchrun"
    )
    second.add_argument("strategy", choices=measure.STRATEGIES, nargs="+")
    second.add_argument("--steps", type=int, default=3)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Train, or go on where a killed run stopped, and write the weights."""
    given = arguments(words)
    if given.command == "measure":
        ranks = distributed.start()
        for strategy in given.strategy:
            found = measure.measure(strategy, ranks, given.steps)
            if ranks.rank == 0:
                print(json.dumps(found))
        distributed.finish()
        return
    torch.set_num_threads(given.threads)
    plan = pretrain.plan(given.steps, given.rate, given.save_every)
    data = pretrain.corpus(given.seed, given.rows)
    run = pretrain.trainer(plan, seed=given.seed, data=data, folder=given.run)
    run.run(show=True)
    words = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "-m", "dsarch.train", *words])
    if given.out.exists():
        shutil.rmtree(given.out)
    report = pretrain.export(run, given.out, command)
    for name, (loss, floor) in report["validation"].items():
        print(f"{name:>12}: loss {loss:.3f}, floor {floor:.3f}")


if __name__ == "__main__":
    main()
