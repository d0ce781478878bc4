"""The whole model beside transformers' with the same weights, as ratios.

    python -m benchmarks.model_speed [--quick] [--threads 2]

Both use torch's fused attention (:mod:`dsarch.fused`; ``sdpa``) and run in
turn, round after round, so that a busy machine slows both. The table shows
medians of the time on the clock and its ratio, and the ratio of the
processor's time (above 1: dsarch is faster). On a machine with other work look
at the last, with one thread. A decoded token is one of eight in a row, as
tokens come, and both decode in torch's inference mode.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from dsarch import DeepSeek, load_checkpoint
from dsarch.fused import fuse

SIZES = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 8192,
}


def models() -> tuple[torch.nn.Module, DeepSeek]:
    """The same random weights in both models."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("deepseek_v3", **SIZES)
    theirs = AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_checkpoint(folder)
    fuse(ours)
    return theirs, ours


def seconds(call: Callable[[], object], row: int = 1) -> tuple[float, float]:
    """Time on the clock and of the processor for one of so many in a row."""
    start = time.perf_counter(), time.process_time()
    for _ in range(row):
        call()
    end = time.perf_counter(), time.process_time()
    return (end[0] - start[0]) / row, (end[1] - start[1]) / row


def compare(
    name: str,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    n: int,
    row: int = 1,
) -> float:
    """Print one line; return how many times faster `ours` is."""
    theirs(), ours()
    rounds = [(*seconds(theirs, row), *seconds(ours, row)) for _ in range(n)]
    wall, cpu, our_wall, our_cpu = map(
        statistics.median, zip(*rounds, strict=True)
    )
    print(
        f"{name:26} {wall * 1e3:10.1f} {our_wall * 1e3:10.1f} "
        f"{wall / our_wall:8.2f} {cpu / our_cpu:8.2f}",
        flush=True,
    )
    return wall / our_wall


def heading() -> None:
    print(
        f"{'':26} {'theirs ms':>10} {'dsarch ms':>10} {'ratio':>8} {'cpu':>8}"
    )


def forwards(theirs, ours, tokens: Tensor, rounds: int) -> None:
    with torch.no_grad():
        gap = (theirs(tokens).logits - ours(tokens)).abs().max()
        print(f"largest difference of logits {gap:.1e}")
        compare(
            "forward",
            lambda: theirs(tokens, use_cache=False),
            lambda: ours(tokens),
            rounds,
        )


def steps(theirs, ours, tokens: Tensor, rounds: int) -> None:
    """A whole training step: forward, loss, backward, fused AdamW."""
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        for model in (theirs, ours)
    ]

    def step(logits: Callable[[], Tensor], optimizer) -> None:
        loss = F.cross_entropy(
            logits()[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    compare(
        "training step",
        lambda: step(
            lambda: theirs(tokens, use_cache=False).logits, optimizers[0]
        ),
        lambda: step(lambda: ours(tokens), optimizers[1]),
        rounds,
    )


@torch.inference_mode()
def decodes(theirs, ours, context: int, rounds: int) -> None:
    """More tokens behind a prompt of `context`, both with their cache."""
    prompt = torch.randint(SIZES["vocab_size"], (1, context))
    past = theirs(prompt, use_cache=True).past_key_values
    caches = ours.caches()
    ours(prompt, caches)
    token = prompt[:, :1]
    compare(
        f"decode at {context}",
        lambda: theirs(token, past_key_values=past, use_cache=True).logits,
        lambda: ours(token, caches),
        rounds,
        row=8,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(options.threads)
    theirs, ours = models()
    count = sum(x.numel() for x in ours.parameters())
    print(
        f"{count / 1e6:.0f} million parameters, fp32, {options.threads} threads"
    )
    heading()
    tokens = torch.randint(SIZES["vocab_size"], (4, 256))
    forwards(theirs, ours, tokens, 3 if quick else 7)
    for context in (128, 512, 2048, 3500):
        decodes(theirs, ours, context, 5 if quick else 15)
    steps(theirs, ours, tokens, 2 if quick else 5)


if __name__ == "__main__":
    main()
