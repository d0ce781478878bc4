"""One decoded token of latent attention beside transformers', as ratios.

    python -m benchmarks.mla_decode [threads]

Same weights, same context, batch 1, fp32. transformers caches the
latent as well but rebuilds every key and value for each token; the absorbed
form reads the latents themselves.
"""

import sys

import torch
from transformers import AutoConfig, DynamicCache
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from benchmarks.model_speed import compare, heading
from dsarch import MLA, Cache, Config
from dsarch.layers import causal_mask, positions
from dsarch.rope import phases

# The attention of V2-Lite, with the query latent of the larger models.
SIZES = {
    "hidden_size": 2048,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 8192,
}


def layers() -> tuple[
    v3.DeepseekV3Attention, v3.DeepseekV3RotaryEmbedding, MLA
]:
    """The same random weights in both layers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("deepseek_v3", **SIZES)
    config._attn_implementation = "sdpa"
    theirs = v3.DeepseekV3Attention(config, 0).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, float(weight.ndim == 1), 0.02)
    ours = MLA(Config.from_hf(config.to_dict()))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, v3.DeepseekV3RotaryEmbedding(config), ours


@torch.no_grad()
def decode(context: int, rounds: int) -> float:
    """Compare one token behind `context` others, each with its own cache."""
    theirs, rotary, ours = layers()
    x = torch.randn(1, context + 1, SIZES["hidden_size"])
    position = positions(1, 0, context + 1)
    table, phase = rotary(x, position), phases(ours.cfg, position)
    past, cache = DynamicCache(), Cache(2 * context)
    mask = causal_mask(position, context + 1)

    def their(span: slice) -> torch.Tensor:
        return theirs(
            hidden_states=x[:, span],
            position_embeddings=tuple(y[:, span] for y in table),
            attention_mask=mask[:, None, span, : span.stop],
            past_key_values=past,
        )[0]

    def our(span: slice) -> torch.Tensor:
        end = span.stop
        return ours(x[:, span], phase[:, span], mask[:, span, :end], cache)

    def again(run, crop):
        def call():
            y = run(slice(context, context + 1))
            crop()
            return y

        return call

    their(slice(0, context)), our(slice(0, context))
    calls = (
        again(their, lambda: past.crop(-1)),
        again(our, lambda: cache.crop(context)),
    )
    gap = (calls[0]() - calls[1]()).abs().max()
    print(f"largest difference {gap:.1e}")
    return compare(f"attention, context {context}", *calls, rounds)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if sys.argv[1:] else 2)
    heading()
    for context in (512, 4096):
        decode(context, 31)


if __name__ == "__main__":
    main()
