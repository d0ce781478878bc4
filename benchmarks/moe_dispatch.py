"""Speed of the mixture layer beside transformers' block, as ratios.

    python benchmarks/moe_dispatch.py [rounds]

Both layers hold the same weights and get the same tokens. Timings are
interleaved and compared by their medians, so that a busy machine slows all
of them alike. Above one we are faster. transformers' block comes in two
forms: ``eager``, a loop, and ``grouped_mm``, the default of whole models.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from dsarch import Config
from dsarch.dispatch import dispatch_loop
from dsarch.moe import DeepSeekMoE

# tokens, experts, chosen, hidden size, expert width
SHAPES = [
    (4096, 16, 4, 256, 128),
    (1024, 32, 4, 512, 256),
    (64, 64, 6, 256, 128),
    (4096, 64, 6, 256, 128),
    (2048, 64, 6, 512, 256),
    (512, 256, 8, 256, 128),
    (4096, 256, 8, 256, 128),
]
THREADS = 2


class Looped(DeepSeekMoE):
    """The same layer with the loop of the text."""

    def combine(self, x, routing):
        y = dispatch_loop(x, routing, self.experts)
        return y + self.shared_experts(x)


def sizes(experts: int, chosen: int, dim: int, width: int) -> dict[str, int]:
    return {
        "hidden_size": dim,
        "moe_intermediate_size": width,
        "n_routed_experts": experts,
        "num_experts_per_tok": chosen,
        "n_group": 8,
        "topk_group": 4,
    }


def ours(cls: type[DeepSeekMoE], shape: dict[str, int]) -> DeepSeekMoE:
    layer = cls(Config(**shape))
    for weight in layer.parameters():
        nn.init.normal_(weight, 0.0, 0.1)
    return layer


def theirs(
    layer: DeepSeekMoE, shape: dict[str, int], form: str
) -> DeepseekV3MoE:
    config = AutoConfig.for_model("deepseek_v3", **shape)
    config._experts_implementation = form
    block = DeepseekV3MoE(config)
    block.load_state_dict(fused(layer))
    return block


def fused(layer: DeepSeekMoE) -> dict[str, Tensor]:
    """Our weights in the layout that transformers keeps in memory."""
    state = {
        name: value
        for name, value in layer.state_dict().items()
        if not name.startswith("experts.")
    }
    state["experts.gate_up_proj"] = torch.stack(
        [
            torch.cat([expert.gate_proj.weight, expert.up_proj.weight])
            for expert in layer.experts
        ]
    ).detach()
    state["experts.down_proj"] = torch.stack(
        [expert.down_proj.weight for expert in layer.experts]
    ).detach()
    return state


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def once(layer: nn.Module, x: Tensor) -> tuple[float, float, float]:
    """Seconds of a pass without gradients, of one with, and of its way back."""
    layer.zero_grad(set_to_none=True)
    x.grad = None
    with torch.no_grad():
        plain, _ = timed(lambda: layer(x))
    forward, y = timed(lambda: layer(x))
    backward, _ = timed(y.sum().backward)
    return plain, forward, backward


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Median seconds of each layer: inference, forward, backward, both."""
    tokens, *rest = shape
    fields = sizes(*rest)
    grouped = ours(DeepSeekMoE, fields)
    looped = ours(Looped, fields)
    looped.load_state_dict(grouped.state_dict())
    layers = {
        "grouped": grouped,
        "loop": looped,
        "eager": theirs(grouped, fields, "eager"),
        "grouped_mm": theirs(grouped, fields, "grouped_mm"),
    }
    x = torch.randn(1, tokens, rest[2], requires_grad=True)
    with torch.no_grad():
        expected = layers["grouped_mm"](x)
        for name, layer in layers.items():
            gap = (layer(x) - expected).abs().max() / expected.abs().max()
            assert gap < 1e-5, f"{name} computes something else: {gap}"
    taken = {name: [] for name in layers}
    for turn in range(rounds + 1):
        for name, layer in layers.items():
            times = once(layer, x)
            if turn:
                taken[name].append((*times, times[1] + times[2]))
    return {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in taken.items()
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(
        f"{THREADS} threads, fp32, median of {rounds}; "
        "times of transformers / times of the grouped layer\n"
    )
    print(
        f"{'tokens experts top  d->f':26}{'ms':>7}"
        f"{'loop':>7}{'eager':>8}{'grouped_mm':>12}"
        f"{'  infer':>9}{'fwd':>7}{'bwd':>7}"
    )
    for shape in SHAPES:
        tokens, experts, chosen, dim, width = shape
        result = measure(shape, rounds)
        own, peer = result["grouped"], result["grouped_mm"]
        whole = [result[n][3] / own[3] for n in ("loop", "eager", "grouped_mm")]
        parts = [peer[i] / own[i] for i in range(3)]
        print(
            f"{tokens:6} {experts:6} {chosen:4}  {dim:>3}->{width:<4}"
            f"{own[3] * 1e3:9.1f}{whole[0]:7.2f}{whole[1]:8.2f}{whole[2]:12.2f}"
            f"{parts[0]:9.2f}{parts[1]:7.2f}{parts[2]:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
