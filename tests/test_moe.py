"""The two mixture layers, and loop against grouped dispatch to the bit."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from dsarch import dispatch
from dsarch.config import Config
from dsarch.dispatch import dispatch_grouped, dispatch_loop
from dsarch.experts import Experts, block, by_kind, joined, plain
from dsarch.layers import Linear, SwiGLU
from dsarch.moe import DeepSeekMoE, SparseMoE
from dsarch.router import Routing, drop, drop_overflow, top_k
from tests.conftest import close

CFG = Config(
    hidden_size=20,
    moe_intermediate_size=12,
    n_routed_experts=15,
    n_group=5,
    topk_group=3,
    num_experts_per_tok=4,
    n_shared_experts=2,
    initializer_range=0.3,
)
# tokens, experts, chosen, width, expert width: odd and aligned widths, more
# experts than slots, all experts chosen, no tokens
SHAPES = [
    (63, 16, 3, 65, 33),
    (400, 5, 2, 64, 64),
    (900, 64, 6, 48, 40),
    (1, 8, 3, 12, 5),
    (7, 6, 6, 32, 16),
    (0, 4, 2, 8, 4),
    (700, 48, 6, 64, 32),
    (64, 64, 6, 32, 96),
]
# Odd widths, and widths whose matrices are worked off as blocks.
WIDE = [
    (3001, 5, 2, 16, 16),
    (1500, 16, 4, 30, 7),
    (3001, 5, 2, 32, 32),
    (2000, 16, 4, 64, 96),
]
FORMS = {"loop": dispatch_loop, "grouped": dispatch_grouped}


def problem(shape, dtype=torch.float32, limit=None):
    """Tokens, a routing that leaves experts idle, and the experts."""
    z, e, k, d, f = shape
    x = torch.randn(z, d, dtype=dtype, requires_grad=True)
    skew = torch.linspace(-3, 3, e, dtype=dtype)
    logits = (torch.randn(z, e, dtype=dtype) + skew).requires_grad_()
    experts = Experts(SwiGLU(d, f) for _ in range(e)).to(dtype)

    def routing():
        chosen = top_k(logits.softmax(1), k)
        return chosen if limit is None else drop_overflow(chosen, limit)

    return x, logits, routing, experts


def outcome(form, x, logits, routing, experts, **how):
    """The sum and the gradients of everything it depends on."""
    leaves = [x, logits, *experts.parameters()]
    y = form(x, routing(), experts, **how)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    total = (y * weight).sum() + 0 * (x.sum() + logits.sum())
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [y, *found]


def assert_same_bits(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        if b is None:
            assert a is None
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("rows", [1, 100, dispatch.ROWS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grouped_equals_loop_to_the_bit(
    shape, rows, limit, dtype, monkeypatch, witness
):
    monkeypatch.setattr(dispatch, "ROWS", rows)
    given = problem(shape, dtype, limit)
    wanted = outcome(dispatch_loop, *given)
    found = outcome(dispatch_grouped, *given)
    assert_same_bits(found, wanted)
    witness(
        "eq-moe",
        (found[0] - wanted[0]).abs().sum(),
        reference="identity: loop over experts",
        code="dsarch.dispatch.dispatch_grouped",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_one_token_without_sorting_is_the_same_to_the_bit(dtype):
    x, _, routing, experts = problem((1, 16, 5, 48, 40), dtype)
    chosen = routing()
    assert chosen.experts[0].tolist() != sorted(chosen.experts[0].tolist())
    wanted = dispatch_loop(x, chosen, experts)
    assert torch.equal(dispatch.dispatch_one(x, chosen, experts), wanted)
    assert torch.equal(dispatch_grouped(x, chosen, experts), wanted)
    for slot in range(5):
        kept = torch.arange(5)[None] != slot
        fewer = drop(chosen, kept)
        wanted = dispatch_loop(x, fewer, experts)
        assert torch.equal(dispatch_grouped(x, fewer, experts), wanted)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_how_threads_cut(threads):
    """Wide enough that elementwise work is shared among threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for shape in WIDE:
            given = problem(shape)
            wanted = outcome(dispatch_loop, *given)
            for _ in range(3):
                assert_same_bits(outcome(dispatch_grouped, *given), wanted)
    finally:
        torch.set_num_threads(before)


def test_experts_lie_side_by_side_and_are_seen_as_a_block():
    experts = problem((9, 6, 2, 64, 32))[3]
    changes = nn.Module.float, deepcopy, nn.Module.bfloat16, lambda x: x[1:4]
    for change in changes:
        experts = change(experts)
        gate, up, down = by_kind(plain(experts), None)
        for i, expert in enumerate(experts):
            assert torch.equal(gate[i], expert.gate_proj.weight)
            assert torch.equal(up[i], expert.up_proj.weight)
            assert torch.equal(down[i], expert.down_proj.weight)
        both = joined(gate, up)
        assert torch.equal(both[:, :32], gate)
        assert torch.equal(both[:, 32:], up)
        assert both.data_ptr() == experts[0].gate_proj.weight.data_ptr()
    kinds = by_kind(plain(experts.double()), None)
    assert not any(isinstance(kind, torch.Tensor) for kind in kinds)


def test_only_neighbours_are_a_block():
    experts = problem((9, 6, 2, 64, 32))[3]
    matrices = plain(experts)[:6]
    assert block(matrices) is not None
    assert block([matrices[i] for i in (0, 1, 3)]) is None
    assert block([matrices[i] for i in (1, 0, 2)]) is None
    assert block([matrices[i] for i in (0, 2, 4)]) is not None
    assert block([matrices[0], matrices[0]]) is None
    assert block([x.clone() for x in matrices]) is None
    assert block([x.t() for x in matrices]) is None
    gate, up, _ = by_kind(plain(experts), None)
    assert joined(up, gate) is None
    assert joined(gate, up.clone()) is None


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]], ids=str)
def test_replaced_parameters_are_followed(shape):
    """Whoever exchanges a matrix leaves the block, and nobody notices."""
    given = problem(shape)
    linear = given[3][1].up_proj
    linear.weight = nn.Parameter(linear.weight.detach() * 2)
    assert block(plain(given[3])) is None
    wanted = outcome(dispatch_loop, *given)
    assert_same_bits(outcome(dispatch_grouped, *given), wanted)
    given[3].pack()
    assert_same_bits(outcome(dispatch_grouped, *given), wanted)


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_torchs_grouped_product_agrees(shape):
    given = problem(shape)
    wanted = outcome(dispatch_loop, *given)
    found = outcome(dispatch_grouped, *given, backend="grouped_mm")
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a / b.abs().max(), b / b.abs().max())


def test_bf16_sums_in_fp32():
    given = problem((40, 6, 3, 24, 16), torch.float32)
    x, _, routing, experts = given
    wanted = dispatch_loop(x, routing(), experts.float())
    for form in FORMS.values():
        y = form(x.bfloat16(), routing(), experts.bfloat16())
        assert y.dtype == torch.bfloat16
        close(y, wanted)
    ones = Routing(torch.ones(1, 6), torch.arange(6)[None], torch.ones(1, 6))
    for n, expert in enumerate(experts):
        nn.init.constant_(expert.gate_proj.weight, 8.0)
        nn.init.constant_(expert.up_proj.weight, 8.0)
        nn.init.constant_(expert.down_proj.weight, 2.0 ** (-8 if n else 0))
    token = torch.ones(1, 24).bfloat16()
    exact = sum(expert(token).double() for expert in experts)
    for form in FORMS.values():
        found = form(token, ones, experts)
        assert torch.equal(found, exact.bfloat16())


def test_gradients_are_those_of_finite_differences():
    x, logits, _, experts = problem((5, 4, 2, 6, 5), torch.float64)
    weights = [p for e in experts for p in e.parameters()]

    def total(x, logits, *_):
        return dispatch_grouped(x, top_k(logits.softmax(1), 2), experts)

    assert torch.autograd.gradcheck(total, (x, logits, *weights))


def test_modules_that_are_no_plain_experts_are_called():
    """Whatever replaces a linear layer must not be bypassed."""

    class Doubled(Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Negative(SwiGLU):
        def forward(self, x):
            return -super().forward(x)

    x, _, routing, experts = problem((30, 4, 2, 8, 6))
    plain = dispatch_grouped(x, routing(), experts)
    doubled = Doubled(6, 8)
    for expert in experts:
        expert.down_proj, doubled.weight = doubled, expert.down_proj.weight
        doubled = Doubled(6, 8)
    close(dispatch_grouped(x, routing(), experts), 2 * plain)
    negative = nn.ModuleList(Negative(8, 6) for _ in range(4))
    negative.load_state_dict(experts.state_dict())
    close(dispatch_grouped(x, routing(), negative), -plain)


def test_idle_experts_are_left_alone():
    given = problem((3, 9, 2, 8, 4))
    chosen = set(given[2]().experts.flatten().tolist())
    assert len(chosen) < 9
    for form in FORMS.values():
        grads = outcome(form, *given)[3:]
        idle = {i // 3 for i, grad in enumerate(grads) if grad is None}
        assert idle == set(range(9)) - chosen


def layer(cfg=CFG, dtype=torch.float64):
    module = DeepSeekMoE(cfg).to(dtype)
    for weight in module.parameters():
        nn.init.normal_(weight, 0.0, 0.3)
    if cfg.topk_method == "noaux_tc":
        module.gate.e_score_correction_bias.normal_(-1.0, 0.3)
    return module


def test_deepseek_moe_is_the_sum(witness):
    module = layer()
    x = torch.randn(2, 7, 20, dtype=torch.float64)
    y = module(x)
    for b in range(2):
        for t in range(7):
            u = x[b, t]
            routing = module.gate(u[None])
            wanted = module.shared_experts(u)
            for g, i in zip(
                routing.weights[0], routing.experts[0], strict=True
            ):
                wanted = wanted + g * module.experts[int(i)](u)
            close(y[b, t], wanted)
    witness(
        "eq-deepseekmoe",
        (y[1, 6] - wanted).abs().max(),
        reference="definition, token by token",
        code="dsarch.moe.DeepSeekMoE",
    )


def test_shared_experts_are_one_wide_mlp():
    module = layer()
    wide = module.shared_experts
    x = torch.randn(5, 20, dtype=torch.float64)
    total = torch.zeros_like(x)
    for half in (slice(0, 12), slice(12, 24)):
        small = SwiGLU(20, 12).double()
        small.gate_proj.weight.data = wide.gate_proj.weight[half]
        small.up_proj.weight.data = wide.up_proj.weight[half]
        small.down_proj.weight.data = wide.down_proj.weight[:, half]
        total += small(x)
    close(wide(x), total)


def test_one_expert_is_a_dense_mlp():
    cfg = CFG.replace(
        n_routed_experts=1,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=1,
        n_shared_experts=0,
        routed_scaling_factor=1.0,
    )
    module = layer(cfg)
    x = torch.randn(2, 5, 20, dtype=torch.float64)
    close(module(x), module.experts[0](x))


def test_splitting_an_expert_in_two_changes_nothing():
    """Halves of one expert with its weight are the expert: segmentation."""
    coarse = SparseMoE(20, 12, 3, k=1, kind="switch").double()
    x = torch.randn(9, 20, dtype=torch.float64)
    routing = coarse.route(x)
    fine = nn.ModuleList(SwiGLU(20, 6).double() for _ in range(6))
    for i, small in enumerate(fine):
        big, half = coarse.experts[i // 2], slice(i % 2 * 6, i % 2 * 6 + 6)
        small.gate_proj.weight.data = big.gate_proj.weight[half]
        small.up_proj.weight.data = big.up_proj.weight[half]
        small.down_proj.weight.data = big.down_proj.weight[:, half]
    pair = torch.cat([2 * routing.experts, 2 * routing.experts + 1], 1)
    weights = routing.weights.expand(-1, 2)
    both = Routing(weights, pair, routing.scores.repeat_interleave(2, 1))
    close(
        dispatch_loop(x, both, fine),
        dispatch_loop(x, routing, coarse.experts),
    )


def test_tokens_do_not_see_each_other():
    module = layer()
    x = torch.randn(3, 6, 20, dtype=torch.float64)
    whole = module(x)
    for t in range(6):
        close(module(x[:, t : t + 1]), whole[:, t : t + 1])
    x[1, 2] = math.nan
    dirty = module(x)
    assert dirty[1, 2].isnan().all()
    clean = torch.ones(3, 6, dtype=torch.bool)
    clean[1, 2] = False
    close(dirty[clean], whole[clean])


def test_forward_writes_nothing_and_hooks_see_the_routing():
    module, seen = layer(), []
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.gate.register_forward_hook(lambda *args: seen.append(args[-1]))
    x = torch.randn(2, 5, 20, dtype=torch.float64)
    y = module(x)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert isinstance(seen[0], Routing)
    close(module.combine(x.flatten(0, 1), seen[0]), y.flatten(0, 1))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_no_tokens_are_no_error(shape):
    x = torch.randn(*shape, 20, dtype=torch.float64, requires_grad=True)
    for module in (
        layer(),
        SparseMoE(20, 8, 4, capacity_factor=1.0).double(),
    ):
        y = module(x)
        assert y.shape == x.shape
        y.sum().backward()


def test_names_are_the_checkpoints():
    names = set(layer().state_dict())
    assert {n for n in names if not n.startswith("experts.")} == {
        "gate.weight",
        "gate.e_score_correction_bias",
        "shared_experts.gate_proj.weight",
        "shared_experts.up_proj.weight",
        "shared_experts.down_proj.weight",
    }
    assert {n for n in names if n.startswith("experts.14.")} == {
        f"experts.14.{kind}_proj.weight" for kind in ("gate", "up", "down")
    }


def test_same_gradients_in_every_run():
    """The backward of plain indexing adds in a random order."""
    module = layer(dtype=torch.float32)
    x = torch.randn(4, 200, 20, requires_grad=True)
    leaves = [x, *module.parameters()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs = [
            torch.autograd.grad(module(x).sum(), leaves, allow_unused=True)
            for _ in range(6)
        ]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


KINDS = [("top_k", 3), ("noisy", 2), ("gshard", 2), ("switch", 1)]


@pytest.mark.parametrize(("kind", "k"), KINDS)
def test_sparse_moe_is_the_sum(kind, k):
    module = SparseMoE(10, 6, 5, k, kind=kind).double()
    x = torch.randn(2, 4, 10, dtype=torch.float64)
    routing = module.route(x.flatten(0, 1))
    assert routing.experts.size(1) == k
    y = module(x).flatten(0, 1)
    for z, u in enumerate(x.flatten(0, 1)):
        wanted = sum(
            g * module.experts[int(i)](u)
            for g, i in zip(routing.weights[z], routing.experts[z], strict=True)
        )
        close(y[z], wanted)


@pytest.mark.parametrize(("kind", "k"), KINDS)
def test_dropped_tokens_get_nothing_and_no_expert_too_many(kind, k):
    module = SparseMoE(10, 6, 5, k, kind=kind, capacity_factor=0.25).double()
    x = torch.randn(1, 20, 10, dtype=torch.float64)
    routing = module.route(x[0])
    counts = torch.bincount(routing.experts.flatten(), minlength=6)
    assert counts[:5].max() == k
    lost = (routing.experts == 5).all(1)
    assert lost.any()
    y = module(x)[0]
    assert (y[lost] == 0).all()
    assert (y[~lost] != 0).all()


def test_only_a_generator_makes_it_random():
    for kind in ("noisy", "gshard"):
        module = SparseMoE(10, 6, 5, 2, kind=kind)
        x = torch.randn(1, 50, 10)
        assert torch.equal(module(x), module(x))
        seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
        first, again, other = (module(x, g) for g in seeds)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 6}, "cannot choose 6 of 5"),
        ({"k": 0}, "cannot choose 0 of 5"),
        ({"k": 2, "kind": "switch"}, "switch chooses 1 experts, not 2"),
        ({"k": 1, "kind": "gshard"}, "gshard chooses 2 experts, not 1"),
        ({"capacity_factor": -0.5}, "-0.5"),
    ],
)
def test_impossible_layers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseMoE(10, 6, 5, **arguments)
