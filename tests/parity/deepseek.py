"""Small random DeepSeek models of transformers, the oracle of the tests."""

import torch
from transformers import AutoConfig
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

# Every extent differs, so that no exchanged axis can hide.
SIZES = {
    "vocab_size": 97,
    "hidden_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 28,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "intermediate_size": 52,
    "moe_intermediate_size": 18,
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 640,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def hf_config(kind: str, mscale: float = 1.0, **changes):
    """A small transformers config; eager, so that fp64 works."""
    rope = YARN | {"mscale": mscale, "mscale_all_dim": mscale}
    config = AutoConfig.for_model(
        kind, **SIZES | {"rope_parameters": rope} | changes
    )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def hf_attention(config, dtype=torch.float64):
    """One attention layer of transformers with weights worth testing."""
    layer = {
        "deepseek_v2": v2.DeepseekV2Attention,
        "deepseek_v3": v3.DeepseekV3Attention,
    }[config.model_type](config, 0)
    for name, weight in layer.named_parameters():
        spread = 1.0 if "layernorm" in name else config.initializer_range
        torch.nn.init.normal_(weight, float("layernorm" in name), spread)
    return layer.to(dtype).eval()


def hf_rotary(config, x, position):
    """The rotary tables that the layer of this config expects."""
    kind = {
        "deepseek_v2": v2.DeepseekV2RotaryEmbedding,
        "deepseek_v3": v3.DeepseekV3RotaryEmbedding,
    }[config.model_type]
    return kind(config)(x, position)


def hf_mask(mask, dtype):
    """A boolean mask [b, t, s] as the additive one of transformers."""
    zeros = torch.zeros(mask.shape, dtype=dtype)
    return zeros.masked_fill(~mask, torch.finfo(dtype).min)[:, None]
