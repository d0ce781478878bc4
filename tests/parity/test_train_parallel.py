"""Splitting a layer over ranks, against torch's own whole layer."""

import torch
from torch.nn import functional as F

from dsarch.layers import SwiGLU
from tests.conftest import close


def test_columns_then_rows_are_the_mlp(witness):
    """Shares of the inner width add up, values and gradients."""
    mlp = SwiGLU(6, 15).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    whole = [
        m.weight.detach().clone().requires_grad_()
        for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    ]
    parts = [w.detach().clone().requires_grad_() for w in whole]
    cuts = zip(
        parts[0].chunk(3, 0),
        parts[1].chunk(3, 0),
        parts[2].chunk(3, 1),
        strict=True,
    )
    y = sum(
        F.linear(F.silu(F.linear(x, a)) * F.linear(x, b), c) for a, b, c in cuts
    )
    a, b, c = whole
    want = F.linear(F.silu(F.linear(x, a)) * F.linear(x, b), c)
    close(y.detach(), want.detach())
    close(mlp(x).detach(), want.detach())
    for out in (y, want):
        out.square().sum().backward()
    for mine, theirs in zip(parts, whole, strict=True):
        close(mine.grad, theirs.grad)
    witness(
        "eq-column-row",
        (y - want).abs().max().item(),
        code="dsarch.train.parallel.split_mlp",
        reference="torch.nn.functional.linear",
    )


def test_merged_blocks_are_one_softmax(witness):
    """Uneven blocks of keys, the last with scores that dwarf the others."""
    q, k = torch.randn(5, 8).double(), torch.randn(14, 8).double()
    v = torch.randn(14, 3).double()
    k[9:] *= 20
    most = torch.full((5,), -torch.inf, dtype=torch.float64)
    total, out = torch.zeros(5).double(), torch.zeros(5, 3).double()
    for keys, values in zip(
        k.split([4, 5, 5]), v.split([4, 5, 5]), strict=True
    ):
        score = q @ keys.T * 8**-0.5
        before, most = most, torch.maximum(most, score.amax(1))
        shrink, p = (before - most).exp(), (score - most[:, None]).exp()
        total = total * shrink + p.sum(1)
        out = out * shrink[:, None] + p @ values
    want = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    close(out / total[:, None], want)
    witness(
        "eq-block-merge",
        (out / total[:, None] - want).abs().max().item(),
        code="dsarch.train.parallel.ring_attention",
        reference="torch scaled_dot_product_attention",
    )
