"""Mixture layers against transformers' deepseek_v2, deepseek_v3, Mixtral
and Switch.

Closed groups: transformers 5.23 gives them minus infinity in deepseek_v3, as
we do, and 0.0 in deepseek_v2, where scores are softmax probabilities. Both
choose the same experts as long as enough probabilities of open groups are
above zero. Its versions before April 2026 used 0.0 in deepseek_v3 as well;
`test_zero_filled_groups_would_choose_others` shows what that breaks.
"""

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.switch_transformers import (
    modeling_switch_transformers as switch,
)

from dsarch.analysis import count
from dsarch.balance import expert_loss, sequence_loss, z_loss
from dsarch.config import Config
from dsarch.dispatch import dispatch_loop
from dsarch.moe import DeepSeekMoE, SparseMoE
from dsarch.router import (
    affinities,
    drop_overflow,
    gate_logits,
    limit_to_groups,
    switch_top1,
)
from tests.conftest import TOL, close
from tests.parity.deepseek import hf_config

BLOCKS = {"deepseek_v2": DeepseekV2Moe, "deepseek_v3": DeepseekV3MoE}
V2, V3 = BLOCKS
CASES = {
    "v3": (V3, {}),
    "v3-one-group": (V3, {"n_group": 1, "topk_group": 1}),
    "v3-not-normed": (V3, {"norm_topk_prob": False}),
    "v2": (V2, {"topk_method": "group_limited_greedy"}),
    "v2-lite": (V2, {"topk_method": "greedy", "n_group": 1, "topk_group": 1}),
}


def fused(experts, of=torch.Tensor.detach):
    """Our separate matrices, or their gradients, in transformers' layout."""
    gate_up = [
        torch.cat([of(e.gate_proj.weight), of(e.up_proj.weight)])
        for e in experts
    ]
    down = [of(e.down_proj.weight) for e in experts]
    return torch.stack(gate_up), torch.stack(down)


def gradient(weight):
    """Idle experts have none here, and zeros in transformers."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def load(block, layer):
    """Copy our layer's weights into a block of transformers."""
    state = {
        name: value
        for name, value in layer.state_dict().items()
        if not name.startswith("experts.")
    }
    gate_up, down = fused(layer.experts)
    state["experts.gate_up_proj"] = gate_up
    state["experts.down_proj"] = down
    block.load_state_dict(state)


def pair(kind, changes, dtype=torch.float64, offset=-1.0):
    config = hf_config(kind, routed_scaling_factor=1.7, **changes)
    layer = DeepSeekMoE(Config.from_hf(config.to_dict()))
    for weight in layer.parameters():
        nn.init.normal_(weight, 0.0, 0.3)
    if kind == V3:
        layer.gate.e_score_correction_bias.normal_(offset, 0.3)
    block = BLOCKS[kind](config)
    load(block, layer)
    return block.to(dtype).eval(), layer.to(dtype)


@pytest.mark.parametrize("case", CASES)
def test_deepseek_block_equals_transformers(case, witness):
    """The oracle's gate is fp32 in every model, hence the tolerance."""
    block, layer = pair(*CASES[case])
    x = torch.randn(3, 11, layer.cfg.hidden_size, dtype=torch.float64)
    x = x.requires_grad_()
    wanted, found = block(x), layer(x)
    close(found, wanted, TOL[torch.float32])
    for label in ("eq-deepseekmoe", f"eq-gate-{case[:2]}", "eq-group-limit"):
        if label != "eq-group-limit" or layer.cfg.n_group > 1:
            witness(
                label,
                (found - wanted).abs().max(),
                reference=f"transformers {CASES[case][0]}",
                code="dsarch.moe.DeepSeekMoE",
            )


@pytest.mark.parametrize("case", CASES)
def test_deepseek_gradients_equal_transformers(case):
    block, layer = pair(*CASES[case])
    x = torch.randn(3, 11, layer.cfg.hidden_size, dtype=torch.float64)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    weight = torch.randn_like(x)
    (layer(mine) * weight).sum().backward()
    (block(theirs) * weight).sum().backward()
    gate_up, down = fused(layer.experts, gradient)
    wanted = {"x": theirs.grad}
    wanted |= {name: p.grad for name, p in block.named_parameters()}
    found = {"x": mine.grad}
    found |= {name: p.grad for name, p in layer.named_parameters()}
    found |= {"experts.gate_up_proj": gate_up, "experts.down_proj": down}
    for name, grad in wanted.items():
        size = grad.abs().max()
        close(found[name] / size, grad / size, TOL[torch.float32])


@pytest.mark.parametrize("form", ["eager", "grouped_mm"])
def test_fp32_block_equals_both_forms_of_transformers(form):
    config = hf_config(V3, hidden_size=44, moe_intermediate_size=20)
    config._experts_implementation = form
    layer = DeepSeekMoE(Config.from_hf(config.to_dict()))
    for weight in layer.parameters():
        nn.init.normal_(weight, 0.0, 0.1)
    block = DeepseekV3MoE(config)
    load(block, layer)
    x = torch.randn(3, 40, 44)
    close(layer(x), block(x))


@torch.no_grad()
def test_routing_equals_transformers_expert_by_expert():
    block, layer = pair(V3, {}, torch.float32)
    x = torch.randn(200, layer.cfg.hidden_size)
    _, weights, experts = block.gate(x)
    mine = layer.gate(x)
    order, mine_order = experts.argsort(1), mine.experts.argsort(1)
    assert torch.equal(
        experts.gather(1, order), mine.experts.gather(1, mine_order)
    )
    close(mine.weights.gather(1, mine_order), weights.gather(1, order))


@torch.no_grad()
def test_zero_filled_groups_would_choose_others():
    """With biased scores below zero a closed group at 0.0 wins."""
    block, layer = pair(V3, {}, torch.float32, offset=-2.0)
    x = torch.randn(50, layer.cfg.hidden_size)
    _, _, experts = block.gate(x)
    size = layer.cfg.n_routed_experts // layer.cfg.n_group
    mine = layer.gate(x).experts
    for chosen in (experts, mine):
        groups = [len(set((row // size).tolist())) for row in chosen]
        assert max(groups) <= layer.cfg.topk_group
    routing = layer.gate(x)
    biased = routing.scores + layer.gate.e_score_correction_bias
    assert (biased.gather(1, mine) < 0).all()
    open_ = limit_to_groups(biased, 4, layer.cfg.topk_group, 2)
    filled = open_.masked_fill(open_.isinf(), 0.0).topk(mine.size(1)).indices
    assert biased.max() < 0
    assert open_.gather(1, filled).isinf().all()


def test_mixtral_block_and_loss_equal_transformers(witness):
    config = AutoConfig.for_model(
        "mixtral",
        hidden_size=42,
        intermediate_size=18,
        num_local_experts=7,
        num_experts_per_tok=3,
        num_attention_heads=6,
        num_key_value_heads=6,
    )
    config._experts_implementation = "eager"
    layer = SparseMoE(42, 18, 7, 3)
    for weight in layer.parameters():
        nn.init.normal_(weight, 0.0, 0.3)
    block = mixtral.MixtralSparseMoeBlock(config)
    load(block, layer)
    layer, block = layer.double(), block.double().eval()
    x = torch.randn(3, 11, 42, dtype=torch.float64)
    found, wanted = layer(x), block(x)
    close(found, wanted, TOL[torch.float32])
    flat = x.flatten(0, 1)
    routing = layer.route(flat)
    logits = gate_logits(flat, layer.gate.weight)
    theirs = mixtral.load_balancing_loss_func((logits,), 7, 3)
    # transformers sums the load over slots, the paper averages it.
    ours = 3 * expert_loss(routing.scores, routing.experts)
    close(ours, theirs.double(), TOL[torch.float32])
    for label, gap in (
        ("eq-moe", (found - wanted).abs().max()),
        ("eq-expert-loss", abs(ours - theirs)),
    ):
        witness(label, gap, reference="transformers mixtral", code="dsarch.moe")


def switch_pair(room):
    config = AutoConfig.for_model(
        "switch_transformers",
        d_model=42,
        d_ff=18,
        num_experts=7,
        expert_capacity=room,
        dropout_rate=0.0,
        dense_act_fn="relu",
    )
    block = switch.SwitchTransformersSparseMLP(config).eval()
    for weight in block.parameters():
        nn.init.normal_(weight, 0.0, 0.3)
    return block


@pytest.mark.parametrize("room", [2, 64])
@torch.no_grad()
def test_switch_with_overflow_equals_transformers(room, witness):
    """Its capacity is per sequence, and its experts are ReLU MLPs."""
    block = switch_pair(room)
    x = torch.randn(2, 23, 42)
    wanted = block(x)
    probabilities = block.router(x)[2].softmax(-1)
    experts = nn.ModuleList(block.experts.values())
    found, dropped = torch.zeros_like(x), 0
    for b, u in enumerate(x):
        scores = affinities(u, block.router.classifier.weight, "softmax")
        close(scores, probabilities[b])
        routing = drop_overflow(switch_top1(scores), room)
        dropped += int((routing.experts == 7).sum())
        found[b] = dispatch_loop(u, routing, experts)
    assert (dropped > 0) == (room == 2)
    close(found, wanted)
    witness(
        "eq-switch",
        (found - wanted).abs().max(),
        reference="transformers switch_transformers",
        code="dsarch.router.switch_top1",
    )


def test_switch_losses_equal_transformers(witness):
    logits = torch.randn(3, 23, 7)
    scores = logits.softmax(-1)
    best = scores.argmax(-1)
    theirs = switch.load_balancing_loss_func(scores, best)
    ours = sequence_loss(scores, 1)
    close(ours, theirs)
    close(
        expert_loss(scores[0], best[0, :, None]),
        switch.load_balancing_loss_func(scores[:1], best[:1]),
    )
    z = z_loss(logits.flatten(0, 1))
    close(z, switch.router_z_loss_func(logits))
    for label, gap in (
        ("eq-switch-loss", abs(ours - theirs)),
        ("eq-z-loss", abs(z - switch.router_z_loss_func(logits))),
    ):
        witness(
            label,
            gap,
            reference="transformers switch_transformers",
            code="dsarch.balance",
        )


# Published totals less everything that is no mixture layer, per layer: the
# arithmetic of experts, shared experts, gate and bias.
PUBLISHED = {
    "v2_lite": (64 * 8_650_752 + 2 * 8_650_752 + 131_072, 26, 15_706_484_224),
    "v2": (160 * 23_592_960 + 2 * 23_592_960 + 819_200, 59, 235_741_434_880),
    "v3": (257 * 44_040_192 + 256 * 7168 + 256, 58, 671_026_419_200),
}
REST = {
    # attention, dense layers, norms, embedding and head
    "v2_lite": 371_602_944 + 67_239_936 + 112_640 + 2 * 209_715_200,
    "v2": 8_953_651_200 + 188_743_680 + 619_520 + 2 * 524_288_000,
    "v3": 11_413_547_008 + 1_189_085_184 + 881_664 + 2 * 926_679_040,
}


def count_of(module):
    return sum(x.numel() for x in module.state_dict().values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_released_models(name, witness):
    cfg = getattr(Config, name)()
    per_layer, layers, total = PUBLISHED[name]
    with torch.device("meta"):
        layer = DeepSeekMoE(cfg)
        config = AutoConfig.for_model(
            cfg.model_type,
            hidden_size=cfg.hidden_size,
            moe_intermediate_size=cfg.moe_intermediate_size,
            n_routed_experts=cfg.n_routed_experts,
            n_shared_experts=cfg.n_shared_experts,
        )
        block = BLOCKS[cfg.model_type](config)
    assert count_of(layer) == count_of(block) == per_layer
    assert layers == cfg.num_hidden_layers - cfg.first_k_dense_replace
    assert layers * per_layer + REST[name] == total
    groups, active = count.parameter_groups(cfg), count.active_groups(cfg)
    parts = ("routed experts", "shared experts", "router")
    assert sum(groups[x] for x in parts) == layers * count_of(layer)
    idle = cfg.n_routed_experts - cfg.num_experts_per_tok
    unused = sum(x.numel() for x in layer.experts[:idle].parameters())
    used = sum(active[x] for x in parts)
    assert used == layers * (count_of(layer) - unused)
    witness(
        "eq-moe-parameters",
        float(used - layers * (count_of(block) - unused)),
        reference=f"transformers {cfg.model_type} on the meta device",
        code="dsarch.analysis.count.active_groups",
    )
