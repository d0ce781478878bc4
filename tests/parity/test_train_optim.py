"""Optimizers, clipping and averages against torch's own."""

import inspect
import math

import pytest
import torch
from torch import nn

from dsarch.train import optim
from tests.conftest import close

DTYPES = (torch.float64, torch.float32)
SHAPES = ((5, 3), (7,), (2, 3, 4), (11, 6))


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(1)
    return [
        nn.Parameter(torch.randn(shape, generator=g, dtype=dtype))
        for shape in SHAPES
    ]


def run(make, dtype=torch.float64, steps=7, sparse_turns=True, rates=True):
    """Train with given gradients; one tensor misses some steps."""
    params = weights(dtype)
    optimizer = make(params)
    g = torch.Generator().manual_seed(2)
    for step in range(steps):
        for i, w in enumerate(params):
            grad = torch.randn(w.shape, generator=g, dtype=dtype) * 10**-i
            w.grad = None if sparse_turns and i == step % 4 else grad
        if rates:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
        optimizer.step()
    return params, optimizer


OPTIONS = (
    {},
    {"lr": 0.03, "betas": (0.8, 0.93), "eps": 1e-3, "weight_decay": 0.3},
    {"weight_decay": 0.0},
    {"maximize": True, "weight_decay": 0.2},
    {"amsgrad": True, "betas": (0.5, 0.6)},
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "path", ({"foreach": False}, {}, {"foreach": True}, {"fused": True})
)
def test_adamw_is_torchs(options, path, dtype, witness):
    ours, mine = run(lambda p: optim.AdamW(p, **path, **options), dtype)
    theirs, torchs = run(lambda p: torch.optim.AdamW(p, **options), dtype)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
        for name, value in torchs.state[b].items():
            close(mine.state[a][name], value)
        if dtype == torch.float64:
            witness(
                "eq-adamw",
                (a - b).abs().max(),
                code="dsarch.train.optim.adamw_update",
                reference="torch optim.AdamW",
            )


def test_adamw_one_by_one_is_bit_equal():
    ours, _ = run(lambda p: optim.AdamW(p, foreach=False), torch.float32)
    theirs, _ = run(
        lambda p: torch.optim.AdamW(p, foreach=False), torch.float32
    )
    assert all(map(torch.equal, ours, theirs))


def test_adamw_takes_torchs_arguments():
    ours = inspect.signature(optim.AdamW.__init__).parameters
    theirs = inspect.signature(torch.optim.AdamW.__init__).parameters
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind, name
    assert set(ours) - set(theirs) == {"state_dtype"}


def test_states_can_be_exchanged():
    """A run started by torch goes on with ours, and the other way round."""

    def continued(first, second):
        params, optimizer = run(first, steps=4)
        follower = second(params)
        follower.load_state_dict(optimizer.state_dict())
        for w in params:
            w.grad = w.detach().sin()
        follower.step()
        return params

    pure = continued(torch.optim.AdamW, torch.optim.AdamW)
    for first, second in (
        (torch.optim.AdamW, optim.AdamW),
        (optim.AdamW, torch.optim.AdamW),
    ):
        for a, b in zip(continued(first, second), pure, strict=True):
            close(a, b)


@pytest.mark.parametrize(
    ("eps", "expected"),
    (
        (1e-8, (0.890000002, 0.8462203448, 0.7827367781)),
        (1e-2, (0.8919607843, 0.8490622501, 0.7870697953)),
    ),
)
def test_adamw_golden(eps, expected):
    """Values worked out independently, in fp64, for three gradients."""
    w = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = optim.AdamW(
        [w], lr=0.1, betas=(0.9, 0.95), eps=eps, weight_decay=0.1
    )
    for gradient, value in zip((0.5, -0.2, 0.3), expected, strict=True):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        close(w.detach(), torch.tensor(value, dtype=torch.float64))


def test_closure_is_called_with_gradients():
    w = nn.Parameter(torch.tensor([2.0]))

    def closure():
        w.grad = None
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optim.AdamW([w]).step(closure).item() == 4.0
    assert w.item() < 2.0


@pytest.mark.parametrize("adjust", (None, "original", "match_rms_adamw"))
@pytest.mark.parametrize("nesterov", (True, False))
@pytest.mark.parametrize("shape", ((8, 5), (5, 8), (6, 6)))
def test_muon_is_torchs(shape, nesterov, adjust, witness):
    options = {
        "lr": 0.05,
        "weight_decay": 0.2,
        "momentum": 0.9,
        "nesterov": nesterov,
        "adjust_lr_fn": adjust,
        "ns_steps": 4,
    }
    results = []
    for kind in (optim.Muon, torch.optim.Muon):
        g = torch.Generator().manual_seed(3)
        w = nn.Parameter(torch.randn(shape, generator=g))
        optimizer = kind([w], **options)
        for _ in range(5):
            w.grad = torch.randn(shape, generator=g)
            optimizer.step()
        results.append(w.detach())
    # Both run the same bf16 products in the same order.
    close(*results)
    witness(
        "eq-muon",
        (results[0] - results[1]).abs().max(),
        code="dsarch.train.muon.orthogonalise",
        reference="torch optim.Muon",
    )


def test_muon_of_many_matrices_is_torchs():
    """Matrices of one shape go through the products together."""
    results = []
    for kind in (optim.Muon, torch.optim.Muon):
        g = torch.Generator().manual_seed(3)
        shapes = 3 * [(8, 5)] + 2 * [(5, 8)] + 2 * [(4, 4)]
        params = [nn.Parameter(torch.randn(x, generator=g)) for x in shapes]
        optimizer = kind(params, lr=0.05)
        for step in range(4):
            for i, w in enumerate(params):
                grad = torch.randn(w.shape, generator=g)
                w.grad = None if i == step else grad
            optimizer.step()
        results.append(params)
    for a, b in zip(*results, strict=True):
        close(a.detach(), b.detach())


def test_muon_takes_torchs_arguments():
    ours = inspect.signature(optim.Muon.__init__).parameters
    theirs = inspect.signature(torch.optim.Muon.__init__).parameters
    assert {k: p.default for k, p in ours.items()} == {
        k: p.default for k, p in theirs.items()
    }


@pytest.mark.parametrize("norm_type", (2.0, 1.0, math.inf))
@pytest.mark.parametrize("max_norm", (0.1, 1e3))
@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_is_torchs(dtype, max_norm, norm_type, witness):
    norms, grads = [], []
    for clip in (optim.clip_grad_norm, nn.utils.clip_grad_norm_):
        params = weights(dtype)
        for w in params[:-1]:
            w.grad = w.detach().sin() * 3
        norms.append(clip(params, max_norm, norm_type))
        grads.append([w.grad for w in params[:-1]])
    close(norms[0], norms[1])
    for a, b in zip(*grads, strict=True):
        close(a, b)
        if dtype == torch.float64:
            witness(
                "eq-clip",
                (a - b).abs().max(),
                code="dsarch.train.optim.clip_grad_norm",
                reference="torch nn.utils.clip_grad_norm_",
            )


def test_clipping_golden():
    a = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    b = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    a.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    b.grad = torch.tensor([12.0], dtype=torch.float64)
    assert optim.clip_grad_norm([a, b], 1.0).item() == 13.0
    expected = torch.tensor(
        [0.2307692130, 0.3076922840, 0.9230768521], dtype=torch.float64
    )
    close(torch.cat([a.grad, b.grad]), expected)


def test_average_is_torchs():
    torch.manual_seed(4)
    model, mean = nn.Linear(3, 2), nn.Linear(3, 2)
    decay = 0.8
    reference = torch.optim.swa_utils.AveragedModel(
        mean, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )
    reference.n_averaged.fill_(1)
    for _ in range(3):
        with torch.no_grad():
            for w in model.parameters():
                w.add_(1.0)
        reference.update_parameters(model)
        optim.average_update(mean, model, decay)
    close(mean.weight, reference.module.weight)
    close(mean.bias, reference.module.bias)
