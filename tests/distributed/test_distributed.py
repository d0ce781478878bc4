"""Sharded results equal those of one process, with two and four ranks.

All checks of one size run in one launch (``worker.py``), because starting
the processes takes longer than the checks.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsarch import Config
from dsarch.teaching.ranks import free_port
from dsarch.train import stages

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "tests/distributed/worker.py").read_text(encoding="utf8")
CHECKS = re.findall(r"^def check_(\w+)", SOURCE, re.MULTILINE)

pytestmark = pytest.mark.distributed


def launch(size: int, *arguments: str, timeout: int = 240):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(size), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> dict[int, list[dict[str, str]]]:
    """What each rank found; two ranks write the state that four read."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for size in (2, 4):
        worker = ("-m", "tests.distributed.worker", str(folder))
        done = launch(size, *worker)
        assert done.returncode == 0, done.stderr[-3000:]
        found[size] = [
            json.loads((folder / f"{size}-{rank}.json").read_text())
            for rank in range(size)
        ]
    return found


@pytest.mark.parametrize("size", (2, 4))
@pytest.mark.parametrize("check", CHECKS)
def test_ranks_agree_with_one_process(results, check, size):
    for rank, found in enumerate(results[size]):
        assert found[f"check_{check}"] == "", f"rank {rank}"


def start_alone(**environment: str):
    script = "from dsarch.train import distributed; distributed.start(2)"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_missing_rank_is_named():
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = start_alone(RANK="0", WORLD_SIZE="2", **place)
    last = done.stderr.strip().splitlines()[-1]
    assert "ValueError: rank 0 waited 2 s, but not all of 2 ranks" in last


def test_a_start_without_a_launcher_is_explained():
    environment = dict.fromkeys(("RANK", "WORLD_SIZE"), "")
    done = start_alone(**environment)
    assert "use torchrun" in done.stderr.strip().splitlines()[-1]


def test_more_stages_than_layers_are_refused():
    from dsarch import DeepSeek

    model = DeepSeek(Config(num_hidden_layers=3))
    with pytest.raises(ValueError, match="3 layers.*4 stages"):
        stages.Stage(model, 0, 4)


def test_stages_in_a_row_are_the_model():
    from dsarch import DeepSeek

    model = DeepSeek(Config(num_hidden_layers=5))
    x = tokens = torch.arange(14).reshape(2, 7)
    for stage in range(3):
        x = stages.Stage(model, stage, 3)(x)
    assert torch.equal(x, model(tokens))


def test_who_holds_which_stage():
    """V-shaped schedules fold the pipeline, looped ones wind it."""
    assert [stages.stages_of("DualPipeV", r, 3) for r in range(3)] == [
        [0, 5],
        [1, 4],
        [2, 3],
    ]
    assert [stages.stages_of("Interleaved1F1B", r, 3) for r in range(3)] == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]
    assert stages.stages_of("1F1B", 2, 3) == [2]


def test_measured_bytes_follow_the_formula():
    """The command of chapter 11: same losses, shards of the stated size."""
    command = ("-m", "dsarch.train", "measure", "data", "zero3", "--steps", "2")
    done = launch(2, *command)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()[-2:]]
    found = {row["strategy"]: row for row in rows}
    losses = [row["losses"] for row in found.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    whole = found["data"]["bytes"]
    shares = {
        strategy: [row["bytes"][k] / whole[k] for k in whole]
        for strategy, row in found.items()
    }
    assert shares["zero3"] == pytest.approx([0.5, 0.5, 0.5], abs=0.01)
