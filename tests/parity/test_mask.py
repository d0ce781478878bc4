"""The causal mask against torch's own notion of causality."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from dsarch.attention import grouped
from dsarch.layers import causal_mask, positions
from tests.conftest import close


@pytest.mark.parametrize(
    ("start", "count"), [(0, 7), (3, 4), (6, 1)], ids=["prompt", "chunk", "one"]
)
def test_the_mask_is_torchs_causal_mask(start, count, witness):
    length = start + count
    q, k, v = (
        torch.randn(2, t, 3, 5, dtype=torch.float64)
        for t in (count, length, length)
    )
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=causal_lower_right(count, length),
    ).transpose(1, 2)
    mask = causal_mask(positions(2, start, count), length)
    actual = grouped(q, k, v, mask)
    close(actual, expected)
    triangle = torch.ones(length, length).tril()[start:].bool()
    assert torch.equal(mask, triangle.expand(2, -1, -1))
    witness(
        "eq-causal",
        (actual - expected).abs().max(),
        reference="torch causal_lower_right",
        code="dsarch.layers.causal_mask",
    )
