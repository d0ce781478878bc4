"""The mixture layer beside transformers' block, as ratios.

    python -m benchmarks.moe_dispatch [--quick] [--threads 2]

All layers hold the same weights, get the same tokens and run in turn, so that
a busy machine slows all alike; a figure is the median over rounds of their
ratio, above one if we are faster. transformers' block has two forms:
``eager``, a loop, which the block alone takes, and ``grouped_mm``, which whole
models take. The last three columns split the comparison with ``grouped_mm``.

With a few rows per expert ``grouped_mm`` wins: it keeps two parameters where
we keep three per expert, each of which autograd visits, and its way back has
four products where the loop's order of adding asks for five.
"""

import argparse
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


def compare(
    shape: tuple[int, ...], rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """Our milliseconds, and how many times more each layer takes.

    Four columns: inference, forward, backward, forward and backward.
    """
    tokens, *rest = shape
    layers = built(*rest)
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
                taken[name].append([*times, times[1] + times[2]])
    rows = {name: torch.tensor(row) for name, row in taken.items()}
    own = rows["grouped"]
    ratios = {
        name: (row / own).median(0).values.tolist()
        for name, row in rows.items()
    }
    return 1e3 * own[:, 3].median().item(), ratios


def built(
    experts: int, chosen: int, dim: int, width: int
) -> dict[str, nn.Module]:
    """Four layers with the same weights."""
    shape = sizes(experts, chosen, dim, width)
    grouped, looped = ours(DeepSeekMoE, shape), ours(Looped, shape)
    looped.load_state_dict(grouped.state_dict())
    return {
        "grouped": grouped,
        "loop": looped,
        "eager": theirs(grouped, shape, "eager"),
        "grouped_mm": theirs(grouped, shape, "grouped_mm"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 11
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(
        f"{arguments.threads} threads, fp32, median of {rounds} rounds: "
        "time of each / time of the grouped layer\n\n"
        "                          own ms    loop   eager  grouped_mm"
        "   infer    fwd    bwd"
    )
    for shape in SHAPES:
        tokens, experts, chosen, dim, width = shape
        own, ratios = compare(shape, rounds)
        peer = ratios["grouped_mm"]
        print(
            f"{tokens:5} x {dim:3}->{width:3} {experts:4} top {chosen}"
            f"{own:9.1f}{ratios['loop'][3]:8.2f}"
            f"{ratios['eager'][3]:8.2f}{peer[3]:12.2f}"
            f"{peer[0]:8.2f}{peer[1]:7.2f}{peer[2]:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
