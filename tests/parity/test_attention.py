"""Grouped-query attention against transformers' Llama and torch's SDPA."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

from dsarch.attention import GroupedQueryAttention, grouped, repeated
from dsarch.cache import Cache
from dsarch.layers import causal_mask, positions
from dsarch.rope import frequencies
from tests.conftest import TOL, close
from tests.parity.deepseek import hf_mask

LENGTH = 21


def turning(position, width):
    angle = position[..., None] * frequencies(width, 10000.0)
    return torch.polar(torch.ones_like(angle), angle)


@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("chunks", [[LENGTH], [4, 1, 9, 1, 6]], ids=len)
@torch.no_grad()
def test_equals_llama(kv_heads, chunks, witness):
    config = LlamaConfig(
        hidden_size=42,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        head_dim=14,
        attn_implementation="eager",
    )
    official = llama.LlamaAttention(config, 0).double().eval()
    ours = GroupedQueryAttention(42, 6, kv_heads, 14).double()
    ours.load_state_dict(official.state_dict(), strict=True)
    x = torch.randn(3, LENGTH, 42, dtype=torch.float64)
    position = positions(3, 0, LENGTH)
    rotary = llama.LlamaRotaryEmbedding(config)(x, position)
    mask = hf_mask(causal_mask(position, LENGTH), x.dtype)
    expected = official(x, rotary, mask)[0]
    cache, outputs = Cache(), []
    for chunk in x.split(chunks, 1):
        position = positions(3, len(cache), chunk.size(1))
        mask = causal_mask(position, len(cache) + chunk.size(1))
        phase = turning(position, 14)
        outputs.append(ours(chunk, phase, mask, cache))
    actual = torch.cat(outputs, 1)
    close(actual, expected, TOL[torch.float32])
    witness(
        {6: "eq-mha", 1: "eq-mqa"}.get(kv_heads, "eq-gqa"),
        (actual - expected).abs().max(),
        reference="transformers llama",
        code="dsarch.attention.GroupedQueryAttention",
    )


@pytest.mark.parametrize("form", [repeated, grouped])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_equals_torch_sdpa_with_gradients(form, kv_heads, witness):
    q = torch.randn(2, 7, 6, 5, dtype=torch.float64, requires_grad=True)
    k = torch.randn(2, 9, kv_heads, 5, dtype=q.dtype, requires_grad=True)
    v = torch.randn(2, 9, kv_heads, 4, dtype=q.dtype, requires_grad=True)
    mask = causal_mask(positions(2, 2, 7), 9)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(
        *heads_first, attn_mask=mask[:, None], enable_gqa=True
    ).transpose(1, 2)
    actual = form(q, k, v, mask)
    close(actual, expected)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), weight)
    found = torch.autograd.grad(actual, (q, k, v), weight)
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    witness(
        {6: "eq-mha", 1: "eq-mqa"}.get(kv_heads, "eq-gqa"),
        (actual - expected).abs().max(),
        reference="torch scaled_dot_product_attention",
        code=f"dsarch.attention.{form.__name__}",
    )
