"""Golden vectors of routers, balance losses and mixtures of experts."""

import torch
from torch import Generator, Tensor

from dsarch import balance as balancing
from dsarch.config import Config
from dsarch.dispatch import dispatch_grouped
from dsarch.moe import DeepSeekMoE, SparseMoE, choose
from dsarch.router import (
    Routing,
    affinities,
    capacity,
    drop_overflow,
    gshard_top2,
    noisy_top_k,
    route,
)
from tests.golden.parts import Vectors, random, sizes, weights

# All extents differ: z 9, d 14, e 12, groups of 3, k 4.
ROUTED = Config(
    hidden_size=14,
    n_routed_experts=12,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
)
V2 = ROUTED.replace(
    topk_method="group_limited_greedy",
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
)
MIXED = Config(
    hidden_size=10,
    moe_intermediate_size=6,
    n_shared_experts=2,
    n_routed_experts=8,
    num_experts_per_tok=3,
)


def named(name: str, routing: Routing) -> Vectors:
    """The three tensors of a routing."""
    return {f"out.{name}.{k}": x for k, x in routing._asdict().items()}


def router(generator: Generator) -> Vectors:
    """Every selection: V3, V2, greedy, noisy, Switch, GShard, capacity."""
    x, weight = random(generator, 9, 14), random(generator, 12, 14)
    bias = random(generator, 12) * 0.4 - 0.3
    made: Vectors = {}
    for name, cfg, added in (
        ("v3", ROUTED, bias),
        ("v2", V2, None),
        ("greedy", V2.replace(topk_method="greedy"), None),
    ):
        wide = x.double(), weight.double()
        scores = affinities(*wide, cfg.scoring_func)
        made |= named(name, route(scores, added, cfg))
    # A token whose scores all underflow, and a gate that reads bf16.
    faint = affinities(x, weight)
    faint[4] = 0.0
    made |= named("faint", route(faint.double(), bias, ROUTED))
    coarse = x.bfloat16(), weight.bfloat16()
    made["out.coarse"] = affinities(*coarse)
    logits, spread = random(generator, 9, 12), random(generator, 9, 12)
    for name in ("top_k", "switch", "gshard"):
        made |= named(name, choose(name, logits.double(), None, 3))
    noise, u = torch.empty(9, 12), torch.empty(9)
    noise.normal_(generator=Generator().manual_seed(7))
    u.uniform_(generator=Generator().manual_seed(8))
    noisy = noisy_top_k(logits, spread, 3, Generator().manual_seed(7))
    some = gshard_top2(logits.softmax(1), Generator().manual_seed(8))
    full = choose("top_k", logits.double(), None, 3)
    limit = capacity(9, 3, 12, 0.75)
    return {
        **sizes(k=3, capacity_factor=0.75),
        "weight": weight,
        "e_score_correction_bias": bias,
        "in.x": x,
        "in.faint": faint,
        "in.coarse.x": coarse[0],
        "in.coarse.weight": coarse[1],
        "in.logits": logits,
        "in.spread": spread,
        "in.noise": noise,
        "in.u": u,
        **made,
        **named("noisy", noisy.routing),
        "out.noisy.probability": noisy.probability,
        **named("gshard_drawn", some),
        **named("dropped", drop_overflow(full, limit)),
    }


def balance(generator: Generator) -> Vectors:
    """Load statistics, every balance loss, and three updates of the bias."""
    b, t, e, k = 2, 7, 12, 3
    scores = random(generator, b, t, e).sigmoid()
    experts = random(generator, b, t, e).topk(k).indices
    experts[0, 2, 1] = e  # one slot was dropped
    flat, slots = scores.double().flatten(0, 1), experts.flatten(0, 1)
    counts = balancing.loads(experts, e)
    bias, view = random(generator, e), balancing.balance(counts)
    losses = {
        "expert": balancing.expert_loss(flat, slots),
        "gshard": balancing.gshard_loss(flat, slots),
        "device": balancing.device_loss(flat, slots, 4),
        "communication": balancing.communication_loss(flat, slots, 4, 2),
        "sequence": balancing.sequence_loss(scores.double(), k),
        "chosen": balancing.sequence_loss(scores.double(), k, experts),
        "z": balancing.z_loss(flat),
    }
    rules = ("sign", "centred", "proportional")
    moved = {x: balancing.updated_bias(bias, counts, 0.1, x) for x in rules}
    weight = random(generator, b * t, k)
    numbers = [view.max_violation, view.variation, view.entropy]
    return {
        **sizes(devices=4, limit=2, speed=0.1),
        "in.scores": scores,
        "in.experts": experts,
        "in.bias": bias,
        "in.weights": weight,
        "out.loads": counts,
        "out.share": view.share,
        "out.statistics": torch.tensor(numbers),
        "out.dense": balancing.dense(weight, slots, e),
        **{f"out.{name}_loss": x.reshape(1) for name, x in losses.items()},
        **{f"out.{rule}": x for rule, x in moved.items()},
    }


def expert_sizes(cfg: Config) -> Vectors:
    """What a reader needs to build the layer."""
    fields = (
        "hidden_size moe_intermediate_size n_shared_experts n_routed_experts "
        "num_experts_per_tok n_group topk_group routed_scaling_factor"
    ).split()
    return sizes(**{name: getattr(cfg, name) for name in fields})


def moe(generator: Generator) -> Vectors:
    """Shared and routed experts of V3, grouped; one expert stays idle."""
    layer = DeepSeekMoE(MIXED)
    own = weights(layer, generator)
    bias = random(generator, 8) * 0.2
    bias[5] = -9.0
    layer.gate.e_score_correction_bias = bias
    x = random(generator, 2, 5, 10)
    layer = layer.double()
    flat = x.double().flatten(0, 1)
    routing = layer.gate(flat)
    routed = dispatch_grouped(flat, routing, layer.experts)
    return {
        **expert_sizes(MIXED),
        **own,
        "gate.e_score_correction_bias": bias,
        "in.x": x,
        **named("routing", routing),
        "out.routed": routed,
        "out.layer": layer(x.double()),
    }


def sparse_moe(generator: Generator) -> Vectors:
    """The classic layer with four routers and a capacity, grouped."""
    layer = SparseMoE(10, 6, 8, 2, kind="noisy", capacity_factor=0.75)
    own = weights(layer, generator)
    x = random(generator, 2, 7, 10)
    outputs = {}
    for kind, k in (("noisy", 2), ("top_k", 2), ("gshard", 2), ("switch", 1)):
        made = SparseMoE(10, 6, 8, k, kind=kind, capacity_factor=0.75)
        made.load_state_dict(kept(own, made), strict=True)
        outputs[f"out.{kind}"] = made.double()(x.double())
    return {
        **sizes(hidden=6, n_experts=8, capacity_factor=0.75),
        **own,
        "in.x": x,
        **outputs,
    }


def kept(own: Vectors, layer: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that a layer has a place for."""
    return {name: own[name] for name in layer.state_dict()}


FUNCTIONS = (router, balance, moe, sparse_moe)
