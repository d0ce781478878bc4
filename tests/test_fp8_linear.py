"""The three products of training, and the swap of a model's layers."""

import pytest
import torch
from torch import nn

from dsarch.config import Config
from dsarch.fp8 import ops
from dsarch.fp8.linear import (
    DEEPSEEK,
    KEPT,
    FP8Linear,
    Recipe,
    convert,
    dgrad,
    precision_map,
    wgrad,
)
from dsarch.fp8.reference import (
    BLOCK,
    TENSOR,
    TILE,
    dequantize,
    difference,
    fp8_gemm,
    quantize,
)
from dsarch.layers import Linear, SwiGLU
from dsarch.mla import MLA
from dsarch.model import DeepSeek

COLUMN = TILE[::-1]


def layer(generator, d=300, f=200, bias=False, **recipe):
    linear = nn.Linear(d, f, bias=bias)
    with torch.no_grad():
        linear.weight.normal_(0, 0.05, generator=generator)
    return linear, FP8Linear(linear, Recipe(**recipe))


def operands(generator, z=150, d=300, f=200):
    """An input and a gradient whose tokens differ in size by 2^12."""
    size = torch.linspace(-6, 6, z).exp2()[:, None]
    x = torch.randn(z, d, generator=generator) * size
    dy = torch.randn(z, f, generator=generator) * size.flip(0) * 1e-3
    return x, dy


def backward(module, x, dy):
    x = x.clone().requires_grad_()
    module.weight.grad = None
    y = module(x)
    y.backward(dy)
    return y.detach(), x.grad, module.weight.grad


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("cache", ["e4m3", "e5m6"])
def test_the_three_products_are_those_of_the_paper(
    pow2, cache, generator, witness
):
    """Tiles along the summed axis; the weight's blocks serve both ways."""
    _, module = layer(generator, pow2=pow2, cache=cache)
    x, dy = operands(generator)
    y, dx, dw = backward(module, x, dy)
    w = quantize(module.weight.detach(), BLOCK, pow2=pow2)
    assert torch.equal(y, fp8_gemm(quantize(x, TILE, pow2=pow2), w))
    rows = quantize(dy, TILE, pow2=pow2)
    assert torch.equal(dx, fp8_gemm(rows, w.t()))
    kept = quantize(x, TILE, format=cache, pow2=pow2 or cache == "e5m6")
    again = quantize(dequantize(kept), COLUMN, pow2=pow2)
    cols = quantize(dy, COLUMN, pow2=pow2)
    assert torch.equal(dw, fp8_gemm(cols.t(), again.t()))
    exact = dequantize(cols).double().T @ dequantize(again).double()
    witness(
        "eq-fp8-three",
        (dw - exact).abs().max() / exact.abs().max(),
        reference="identity: float64 product of the decoded operands",
        code="dsarch.fp8.linear.ScaledLinear",
    )


def test_gradients_are_those_of_a_linear_layer(generator):
    linear, module = layer(generator)
    x, dy = operands(generator)
    ours, exact = backward(module, x, dy), backward(linear, x, dy)
    for got, want in zip(ours, exact, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert 1e-5 < difference(got, want) < 1e-3


def test_on_small_integers_nothing_is_rounded(generator):
    """All operands are on the grid with scale 1, so all sums are exact."""
    linear, module = layer(generator, 256, 128, pow2=True)
    draw = lambda *s: torch.randint(-8, 9, s, generator=generator).float()  # noqa: E731
    x, dy = draw(256, 256), draw(256, 128)
    with torch.no_grad():
        linear.weight.copy_(draw(128, 256))
    for operand in (x, dy, linear.weight.data):
        operand[:, ::128] = 448
        operand[::128] = 448
    for got, want in zip(
        backward(module, x, dy), backward(linear, x, dy), strict=True
    ):
        assert torch.equal(got, want)


def test_all_operands_are_e4m3(generator, monkeypatch):
    seen = []

    def spy(x, block=TILE, *, format, pow2=False, backend=None):
        seen.append((format, block, pow2))
        return quantize(x, block, format=format, pow2=pow2)

    monkeypatch.setattr("dsarch.fp8.linear.quantize", spy)
    _, module = layer(generator)
    backward(module, *operands(generator))
    assert seen == [
        ("e4m3", TILE, False),
        ("e4m3", BLOCK, False),
        ("e4m3", TILE, False),
        ("e4m3", COLUMN, False),
        ("e4m3", COLUMN, False),
    ]


def test_e5m6_keeps_the_activation_from_being_rounded_twice(generator):
    x, dy = operands(generator)
    exact = dy.T @ x
    # The gradient has few mantissa bits, so that only x is rounded.
    recipe = Recipe(gradient_format="e5m6")
    twice = wgrad(dy, quantize(x, TILE), recipe)
    kept = quantize(x, TILE, format="e5m6", pow2=True)
    once = wgrad(dy, kept, recipe)
    assert difference(once, exact) < 0.8 * difference(twice, exact)
    direct = fp8_gemm(
        recipe.quantize(dy, COLUMN, "e5m6").t(), quantize(x, COLUMN).t()
    )
    assert difference(once, direct) < 0.25 * difference(twice, direct)


def test_e5m2_gradients_are_less_exact(generator):
    _, dy = operands(generator)
    w = quantize(torch.randn(200, 300, generator=generator), BLOCK)
    exact = dy @ dequantize(w)
    fine = difference(dgrad(dy, w), exact)
    coarse = dgrad(dy, w, Recipe(gradient_format="e5m2"))
    assert 3 < difference(coarse, exact) / fine < 5


def test_other_recipes_reach_every_product(generator):
    x, dy = operands(generator)
    seen = []
    for recipe in (
        DEEPSEEK,
        Recipe(activation=TENSOR, weight=TENSOR, gradient=TENSOR),
        Recipe(format="e5m2", gradient_format="e5m2", cache="e5m2"),
        Recipe(accumulator="fp22"),
    ):
        _, module = layer(generator.manual_seed(1), **recipe._asdict())
        seen.append(backward(module, x[:, :], dy))
    for i, first in enumerate(seen):
        for second in seen[i + 1 :]:
            pairs = zip(first, second, strict=True)
            assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0, 4)])
def test_leading_axes_bias_and_empty_batches(shape, generator):
    linear, module = layer(generator, 130, 70, bias=True)
    x = torch.randn(*shape, 130, generator=generator, requires_grad=True)
    y = module(x)
    assert y.shape == (*shape, 70)
    y.sum().backward()
    assert x.grad.shape == x.shape
    flat = quantize(x.detach().reshape(-1, 130), TILE)
    want = fp8_gemm(flat, quantize(linear.weight.detach(), BLOCK))
    assert torch.equal(y.detach(), want.reshape(y.shape) + linear.bias.detach())
    count = float(x.numel() // 130)
    assert torch.equal(linear.bias.grad, torch.full((70,), count))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_the_gradients_asked_for_are_made(frozen, generator):
    _, module = layer(generator)
    x, dy = operands(generator)
    x.requires_grad_(frozen != "x")
    module.weight.requires_grad_(frozen != "weight")
    module(x).backward(dy)
    assert (x.grad is None) == (frozen == "x")
    assert (module.weight.grad is None) == (frozen == "weight")


def test_outputs_and_gradients_follow_their_own_dtype(generator):
    _, module = layer(generator)
    x, dy = operands(generator)
    y, dx, dw = backward(module, x.bfloat16(), dy.bfloat16())
    assert (y.dtype, dx.dtype) == (torch.bfloat16, torch.bfloat16)
    assert dw.dtype == torch.float32 == module.weight.dtype


class Toy(nn.Module):
    """Every kind of layer that the precision map names."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 24)
        self.norm = nn.RMSNorm(24)
        self.self_attn = nn.ModuleDict(
            {
                name: Linear(24, 24)
                for name in ("q_a_proj", "o_proj", "weights_proj", "wk")
            }
        )
        self.gate = Linear(24, 8)
        self.mlp = SwiGLU(24, 40)
        self.tied = self.mlp.up_proj
        self.eh_proj = Linear(48, 24)
        self.shared_head = nn.ModuleDict({"head": Linear(24, 11)})
        self.lm_head = Linear(24, 11)


SWAPPED = {
    "self_attn.q_a_proj",
    "self_attn.o_proj",
    "self_attn.wk",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
}


def swapped(model: nn.Module) -> set[str]:
    return {
        name for name, m in model.named_modules() if isinstance(m, FP8Linear)
    }


def test_convert_follows_the_precision_map_of_v3():
    model = Toy().eval()
    before = {name: id(p) for name, p in model.named_parameters()}
    assert convert(model) is model
    assert swapped(model) == SWAPPED
    after = {name: id(p) for name, p in model.named_parameters()}
    assert before == after
    assert model.tied is model.mlp.up_proj
    assert not any(m.training for m in model.modules())
    found = precision_map(model)
    assert {name for name, p in found.items() if p == "e4m3"} == SWAPPED
    assert {found[name] for name in ("norm", "gate", "lm_head")} == {"float32"}


def test_only_the_layer_after_attention_keeps_e5m6():
    model = convert(Toy())
    cache = {name: model.get_submodule(name).recipe.cache for name in SWAPPED}
    assert cache.pop("self_attn.o_proj") == "e5m6"
    assert set(cache.values()) == {"e4m3"}


def test_convert_twice_other_skips_and_a_bare_layer():
    model = convert(Toy())
    first = model.mlp.gate_proj
    assert convert(model).mlp.gate_proj is first
    model = convert(Toy(), skip=(*KEPT, "mlp", "tied"))
    assert swapped(model) == {n for n in SWAPPED if n.startswith("self_attn")}
    assert "gate" in swapped(convert(Toy(), skip=()))
    assert isinstance(convert(nn.Linear(3, 4)), FP8Linear)
    norm = nn.RMSNorm(4)
    assert convert(norm) is norm


def test_a_converted_layer_learns_what_the_plain_one_learns(generator):
    """Same noisy data, same start: the loss stays within a percent."""
    x = torch.randn(512, 64, generator=generator)
    target = x @ torch.randn(64, 32, generator=generator) / 8
    target = target + torch.randn(512, 32, generator=generator)
    losses = []
    for swap in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 32))
        model = convert(model) if swap else model
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(60):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.5 * target.square().mean().item()
    assert 0 < abs(losses[1] / losses[0] - 1) < 0.01


def test_bad_input_is_named(generator):
    _, module = layer(generator)
    with pytest.raises(ValueError, match="256 wide.*takes 300"):
        module(torch.ones(2, 256))
    with pytest.raises(ValueError, match="backend='torch' takes any"):
        ops.quantize(torch.ones(2, 2), TENSOR, backend="triton")


def test_a_nan_reaches_the_output_of_its_token_only(generator):
    _, module = layer(generator)
    x, _ = operands(generator)
    x[7, 3] = torch.nan
    y = module(x).detach()
    assert y[7].isnan().all() and y.isnan().any(1).sum() == 1


def test_a_converted_attention_reads_rounded_weights(generator):
    """MLA contracts the latent's weight itself; both forms see FP8."""
    cfg = Config(num_hidden_layers=1)
    attention = MLA(cfg).double()
    plain = [w.detach() for w in attention.up()]
    convert(attention)
    rounded = attention.up()
    whole = quantize(attention.kv_b_proj.weight.detach(), BLOCK)
    want = dequantize(whole, torch.float64).unflatten(
        0, (cfg.num_attention_heads, -1)
    )
    for w, old, new in zip(
        rounded, plain, want.split(attention.kv_rows, 1), strict=True
    ):
        assert torch.equal(w, new) and not torch.equal(w, old)
    rounded[0].sum().backward()
    n = attention.kv_rows[0]
    grad = attention.kv_b_proj.weight.grad.unflatten(0, want.shape[:2])
    assert (grad[:, :n] == 1).all() and (grad[:, n:] == 0).all()


@pytest.mark.parametrize("topk", [None, 9])
def test_a_whole_model_converts_and_learns(topk):
    """Experts go through the loop, so that their FP8 layers are called."""
    cfg = Config(num_hidden_layers=2, index_topk=topk)
    model = DeepSeek(cfg)
    tokens = torch.randint(0, cfg.vocab_size, (2, 21))
    plain = model(tokens).detach()
    convert(model)
    kept = {
        name.rpartition(".")[2]
        for name, precision in precision_map(model).items()
        if precision != "e4m3" and not name.endswith("norm")
    }
    wanted = {"embed_tokens", "lm_head", "gate", "eh_proj"}
    assert kept == wanted | ({"weights_proj"} if topk else set())
    experts = model.model.layers[1].mlp.experts
    assert isinstance(experts[0].up_proj, FP8Linear)
    logits = model(tokens)
    assert 1e-6 < difference(logits.detach(), plain) < 0.1
    logits.square().mean().backward()
    used = [e for e in experts if e.up_proj.weight.grad is not None]
    assert used and all(e.up_proj.weight.grad.isfinite().all() for e in used)
