"""A training step of the tiny model beside transformers with torch's AdamW.

    python -m benchmarks.train_step [--quick] [--threads 2]

Same sizes, same tokens, forward, backward, clipping and update; transformers
has no MTP layer, so ours is left out too. The steps take turns, so that a
busy machine slows both alike: a figure is the median over rounds of the
ratio, above one if we are faster. transformers' experts come in two forms,
of which whole models take ``grouped_mm``. The last column is our trainer's
complete step: with MTP, balance loss, Muon, data and measurements.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import AutoConfig, DeepseekV3ForCausalLM

from benchmarks.model_speed import seconds
from dsarch import Config, DeepSeek
from dsarch.fused import fuse
from dsarch.mtp import nll
from dsarch.train import pretrain
from dsarch.train.optim import AdamW, clip_grad_norm

FIELDS = (
    "vocab_size hidden_size num_hidden_layers max_position_embeddings "
    "num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim intermediate_size moe_intermediate_size "
    "first_k_dense_replace n_routed_experts n_shared_experts "
    "num_experts_per_tok n_group topk_group norm_topk_prob "
    "routed_scaling_factor initializer_range"
).split()


def theirs(cfg: Config, form: str) -> Callable[[torch.Tensor], None]:
    config = AutoConfig.for_model(
        "deepseek_v3",
        num_key_value_heads=cfg.num_attention_heads,
        use_cache=False,
        **{name: getattr(cfg, name) for name in FIELDS},
    )
    config._experts_implementation = form
    model = DeepseekV3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(cfg: Config) -> Callable[[torch.Tensor], None]:
    model = DeepSeek(cfg)
    fuse(model)
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(tokens: torch.Tensor) -> None:
        nll(model(tokens)[:, :-1], tokens[:, 1:]).mean().backward()
        clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def complete(rows: int, length: int) -> Callable[[torch.Tensor], None]:
    """A step of the command that trains the tiny model."""
    data = pretrain.corpus(0, rows, length)
    run = pretrain.trainer(pretrain.plan(10**6), data=data)
    return lambda tokens: run.train_step()


def compare(
    steps: dict[str, Callable], tokens: torch.Tensor, rounds: int
) -> dict[str, torch.Tensor]:
    """Seconds of each step, ``[round, (clock, processor)]``."""
    taken: dict[str, list] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            both = seconds(partial(step, tokens))
            if turn > 1:
                taken[name].append(both)
    return {name: torch.tensor(rows) for name, rows in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rounds = 5 if arguments.quick else 15
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    cfg = Config(num_nextn_predict_layers=0)
    print(
        f"{arguments.threads} threads, fp32, median of {rounds} rounds: time "
        "of each step / time of ours, on the clock (of the processor)\n\n"
        "            tokens/s     grouped_mm          eager        trainer"
    )
    for rows, length in ((16, 128), (8, 256), (32, 128)):
        steps = {
            "ours": ours(cfg),
            "grouped_mm": theirs(cfg, "grouped_mm"),
            "eager": theirs(cfg, "eager"),
            "trainer": complete(rows, length),
        }
        tokens = torch.randint(0, 256, (rows, length))
        times = compare(steps, tokens, rounds)
        own = times.pop("ours")
        speed = rows * length / own[:, 0].median().item()
        line = f"{rows:4} x {length}{speed:11.0f}"
        for taken in times.values():
            clock, cpu = (taken / own).median(0).values.tolist()
            line += f"{clock:8.2f} ({cpu:4.2f})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
