"""What golden files are made of: sizes, weights, random numbers."""

import torch
from torch import Generator, Tensor

from dsarch.config import Config, Yarn

Vectors = dict[str, Tensor]

YARN = Yarn(
    factor=8.0,
    original_max_position_embeddings=16,
    beta_fast=4.0,
    mscale=0.707,
    mscale_all_dim=0.707,
)
# All extents differ: b 2, t 7, h 3, d 20, q latent 11, c 16, n 8, r 4, v 6.
LATENT = Config(
    hidden_size=20,
    num_attention_heads=3,
    q_lora_rank=11,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    rope_theta=100.0,
    rope_scaling=YARN,
)
START = 13  # positions 13 to 19 straddle the end of the original window


def random(generator: Generator, *shape: int) -> Tensor:
    """Normal numbers in fp32, the precision of the files."""
    return torch.randn(*shape, generator=generator)


def sizes(**values: float | None) -> Vectors:
    """Sizes as tensors of one number: no reader needs JSON for them."""
    kept = {k: v for k, v in values.items() if v is not None}
    return {f"cfg.{k}": torch.tensor([float(v)]) for k, v in kept.items()}


def weights(module: torch.nn.Module, generator: Generator) -> Vectors:
    """Fill a module: matrices around 0, norms around 1; return its names."""
    named = dict(module.named_parameters())
    with torch.no_grad():
        for weight in named.values():
            drawn = random(generator, *weight.shape) * 0.3
            weight.copy_(drawn + float(weight.ndim == 1))
    return {name: weight.detach().clone() for name, weight in named.items()}
