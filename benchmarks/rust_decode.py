"""Decoding in Rust beside PyTorch, one thread, the same fp32 weights.

    python -m benchmarks.rust_decode [rounds]

Both decode greedily with a latent cache, prompt and loading left out, in
turn, round after round. Times are those of the processor, so that other work
on the machine counts as little as possible. The tiny model is the one in
`weights`, where a step of PyTorch is mostly calling; the medium one has random
weights, and matrix products that count. The table shows the median time of a
token, and the ratio above 1 where Rust is faster.
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dsarch import Config, DeepSeek, load_checkpoint, save_checkpoint
from dsarch.generate import decode
from dsarch.sampling import Sampling
from dsarch.train.tokenizer import encode

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "rust" / "target" / "release" / "dsarch"
TINY = ROOT / "weights" / "tiny-pretrained"
PROMPT = "The tall fox hunts the girl."
COUNT = 128
MEDIUM = Config(
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    q_lora_rank=256,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    intermediate_size=1024,
    moe_intermediate_size=256,
    n_routed_experts=16,
    num_nextn_predict_layers=0,
)


def build() -> None:
    """Compile the crate with optimisation, without a network."""
    command = "cargo build --release --offline --locked --quiet".split()
    subprocess.run(command, cwd=ROOT / "rust", check=True)


def python_seconds(model: DeepSeek) -> float:
    """One token in PyTorch."""
    tokens = torch.tensor([encode(PROMPT)])
    pieces = decode(model, tokens, Sampling())
    next(pieces)
    start = time.process_time()
    for _ in itertools.islice(pieces, COUNT):
        pass
    return (time.process_time() - start) / COUNT


def rust_seconds(folder: Path) -> float:
    """One token in Rust: a run with tokens less a run without."""
    return (spent(folder, COUNT) - spent(folder, 0)) / COUNT


def spent(folder: Path, count: int) -> float:
    """Processor time of a run that loads, reads the prompt and decodes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(BINARY), "bench", str(folder), PROMPT, str(count)]
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime, after.ru_stime
    return user - before.ru_utime + system - before.ru_stime


def compare(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """Measure in turn, print one line."""
    model = load_checkpoint(folder, dtype=torch.float32)
    python_seconds(model), rust_seconds(folder)
    pairs = [
        (python_seconds(model), rust_seconds(folder)) for _ in range(rounds)
    ]
    torch_, rust = map(statistics.median, zip(*pairs, strict=True))
    size = sum(x.numel() for x in model.parameters()) / 1e6
    times = f"{torch_ * 1e3:12.2f}{rust * 1e3:10.2f}{torch_ / rust:9.1f}"
    print(f"{name:8}{size:8.1f} M{times}")
    return {"torch": torch_, "rust": rust}


def main() -> None:
    """Print the table, and the numbers as JSON on the last line."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    build()
    print(f"{'model':8}{'size':>10}{'torch ms':>12}{'rust ms':>10}{'ratio':>9}")
    results = {"tiny": compare("tiny", TINY, rounds)}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "medium"
        made = DeepSeek(MEDIUM, torch.Generator().manual_seed(0))
        save_checkpoint(made.to(torch.bfloat16), folder)
        results["medium"] = compare("medium", folder, rounds)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
