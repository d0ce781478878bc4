"""A small complete model in which no exchanged axis can hide."""

import torch

from dsarch.config import Config, Yarn
from dsarch.model import DeepSeek

CFG = Config(
    vocab_size=53,
    hidden_size=40,
    num_hidden_layers=3,
    num_attention_heads=5,
    q_lora_rank=28,
    kv_lora_rank=20,
    qk_nope_head_dim=14,
    qk_rope_head_dim=6,
    v_head_dim=10,
    intermediate_size=44,
    moe_intermediate_size=18,
    n_routed_experts=12,
    num_experts_per_tok=3,
    n_shared_experts=2,
    rope_scaling=Yarn(original_max_position_embeddings=8),
    initializer_range=0.3,
)
SPARSE = CFG.replace(
    model_type="deepseek_v32",
    index_topk=6,
    index_n_heads=9,
    index_head_dim=16,
)


def model(cfg: Config = CFG, dtype: torch.dtype = torch.float64) -> DeepSeek:
    """Random weights, norms and router biases that all matter."""
    made = DeepSeek(cfg, torch.Generator().manual_seed(0)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, x in [*made.named_parameters(), *made.named_buffers()]:
            if x.ndim == 1:
                mean = float("norm" in key and "bias" not in key)
                x.normal_(mean, 0.3, generator=generator)
    return made
