"""A small transformer that stands in for any policy in these tests."""

import torch
from torch import Tensor, nn

from dsarch.attention import GroupedQueryAttention
from dsarch.cache import Cache, length
from dsarch.layers import SwiGLU, causal_mask, positions
from dsarch.rope import frequencies


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.attention = GroupedQueryAttention(dim, heads, heads)
        self.mlp = SwiGLU(dim, 2 * dim)

    def forward(self, x, phase, mask, cache):
        x = x + self.attention(self.norms[0](x), phase, mask, cache)
        return x + self.mlp(self.norms[1](x))


class Policy(nn.Module):
    """Embedding, a few layers, logits; `caches()` as the real model has it."""

    def __init__(
        self, words: int, dim: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, words, bias=False)
        self.register_buffer("turns", frequencies(dim // heads, 10000.0))

    def caches(self) -> list[Cache]:
        return [Cache() for _ in self.layers]

    def hidden(self, tokens: Tensor, caches=None, mask=None, position=None):
        start = length(caches[0]) if caches else 0
        if position is None:
            position = positions(*_place(tokens, start))
        if mask is None:
            mask = causal_mask(position, start + tokens.shape[1])
        angle = position[..., None] * self.turns
        phase = torch.polar(torch.ones_like(angle), angle)
        x = self.embedding(tokens)
        for i, layer in enumerate(self.layers):
            x = layer(x, phase, mask, caches[i] if caches else None)
        return self.norm(x)

    def forward(self, tokens: Tensor, caches=None, mask=None, position=None):
        return self.head(self.hidden(tokens, caches, mask, position))


def _place(tokens: Tensor, start: int) -> tuple[int, int, int]:
    return tokens.shape[0], start, tokens.shape[1]


def policy(words: int, seed: int = 0, **sizes) -> Policy:
    """A policy with weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    model = Policy(words, **sizes)
    for weight in model.parameters():
        if weight.ndim > 1:
            std = 0.02 if weight.shape[0] == words else weight.shape[1] ** -0.5
            nn.init.normal_(weight, 0.0, std, generator=generator)
    return model
