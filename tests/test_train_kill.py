"""Processes that are really killed end with bit-identical weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsarch.train.monitor import read_metrics

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STEPS = 24


@pytest.mark.slow
def test_thirty_kills_change_no_bit(tmp_path):
    """At random times, and at every stage of a save."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", str(tmp_path), "0"],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["hashes"] == [found["calm"]]
    kills = found["kills"]
    assert sum(kills.values()) == 30 and len(kills) == 6
    assert min(kills.values()) == 2 and kills["at any time"] == 20
    assert found["rows"] == list(range(STEPS))
    assert len(found["files"]) == 4 and "metrics.jsonl" in found["files"]


def command(folder: Path, name: str) -> list[str]:
    words = [sys.executable, "-m", "dsarch.train", "pretrain"]
    words += ["--steps", "5", "--save-every", "2", "--threads", "1"]
    words += ["--rows", "2", "--run", str(folder / f"run-{name}")]
    return [*words, "--out", str(folder / name)]


@pytest.mark.slow
def test_the_command_can_be_killed(tmp_path):
    """The real command line, killed after its third step and called again."""
    run = tmp_path / "run-killed" / "metrics.jsonl"
    options = {"cwd": ROOT, "env": ENV}
    process = subprocess.Popen(
        command(tmp_path, "killed"), stderr=subprocess.DEVNULL, **options
    )
    end = time.monotonic() + 200
    while not run.exists() or len(read_metrics(run)) < 3:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "calm"):
        subprocess.run(command(tmp_path, name), check=True, **options)
    written = [
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("killed", "calm")
    ]
    assert written[0] == written[1]
    report = json.loads((tmp_path / "killed" / "training.json").read_text())
    assert report["steps"] == 5 and report["tokens"] > 0
    assert set(report["validation"]) >= {"story", "recall", "all"}
