r"""Bytes of the key-value cache and numbers of parameters, from sizes alone.

Nothing is allocated and no model is built, so the 671B model counts as fast
as the tiny one. What decoding costs is in :mod:`dsarch.analysis.decode`.
"""

import math

from dsarch.analysis.presets import Preset
from dsarch.config import Config

Model = Config | Preset


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, found {value}")


def kv_elements_per_token(model: Model) -> int:
    r"""Numbers cached for one token in all layers.

    $$E = L\,(d_c + d_r) \quad\text{(MLA)}, \qquad
      E = 2\,L\,n_{kv}\,d_h \quad\text{(MHA, GQA, MQA)}$$

    Index keys of sparse attention are counted apart, by
    :func:`index_bytes_per_token`.
    """
    if isinstance(model, Config):
        return model.num_hidden_layers * sum(model.kv_widths)
    return model.layers * model.kv_elements


def kv_bytes_per_token(model: Model, bytes_per_element: float = 2) -> float:
    """Bytes that one token occupies in the key-value cache of all layers.

    ``bytes_per_element`` is 2 for BF16, 1 for FP8, 0.75 for 6 bits; a value
    of zero or below raises ``ValueError``.
    """
    _positive(bytes_per_element=bytes_per_element)
    return kv_elements_per_token(model) * bytes_per_element


def cache_bytes(
    model: Model, context: int, batch: int = 1, bytes_per_element: float = 2
) -> float:
    """Bytes of the cache of ``batch`` sequences of ``context`` tokens each."""
    _positive(context=context, batch=batch)
    return kv_bytes_per_token(model, bytes_per_element) * context * batch


def sequences_that_fit(
    model: Model, context: int, memory: float, bytes_per_element: float = 2
) -> int:
    """How many whole sequences have their cache in ``memory`` bytes."""
    _positive(memory=memory)
    return int(memory // cache_bytes(model, context, 1, bytes_per_element))


def expanded_elements_per_token(cfg: Config) -> int:
    r"""What MLA would cache with keys and values kept expanded.

    $$E = L\,n_h\,(d_n + d_r + d_v)$$
    """
    width = cfg.qk_head_dim + cfg.v_head_dim
    return cfg.num_hidden_layers * cfg.num_attention_heads * width


def index_bytes_per_token(cfg: Config, bytes_per_element: float = 2) -> float:
    """Bytes of the index keys of one token, zero without an indexer."""
    if cfg.index_topk is None:
        return 0
    _positive(bytes_per_element=bytes_per_element)
    return cfg.num_hidden_layers * cfg.index_head_dim * bytes_per_element


def fp8_bytes_per_token(cfg: Config, block: int = 128) -> tuple[int, int]:
    r"""Latent and index bytes of a token in FlashMLA's FP8 cache layout.

    One byte for each latent number, four for the scale of each ``block`` of
    them, two for each rotary number, which stays BF16; the index key is FP8
    with one scale. ``ValueError`` if the latent is not whole blocks.
    """
    latent, rotary = cfg.kv_widths
    if latent % block:
        raise ValueError(
            f"kv_lora_rank {latent} is not whole blocks of {block}"
        )
    per_layer = latent + 4 * (latent // block) + 2 * rotary
    index = 0 if cfg.index_topk is None else cfg.index_head_dim + 4
    return cfg.num_hidden_layers * per_layer, cfg.num_hidden_layers * index


def grouped_attention_parameters(
    hidden: int, heads: int, kv_heads: int, head_dim: int
) -> int:
    r"""Weights of one MHA, GQA or MQA layer: $2\,d\,d_h\,(n_h + n_{kv})$."""
    _positive(hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    return 2 * hidden * head_dim * (heads + kv_heads)


def attention_tensors(cfg: Config) -> dict[str, int]:
    """Weights of one MLA layer, under the names of the checkpoint."""
    d, heads = cfg.hidden_size, cfg.num_attention_heads
    queries = heads * cfg.qk_head_dim
    latent = cfg.kv_lora_rank
    tensors = {"q_proj": d * queries}
    if cfg.q_lora_rank is not None:
        tensors = {
            "q_a_proj": d * cfg.q_lora_rank,
            "q_a_layernorm": cfg.q_lora_rank,
            "q_b_proj": cfg.q_lora_rank * queries,
        }
    return tensors | {
        "kv_a_proj_with_mqa": d * sum(cfg.kv_widths),
        "kv_a_layernorm": latent,
        "kv_b_proj": latent * heads * (cfg.qk_nope_head_dim + cfg.v_head_dim),
        "o_proj": heads * cfg.v_head_dim * d,
    }


def indexer_tensors(cfg: Config) -> dict[str, int]:
    """Weights of one layer's indexer; nothing for models without one."""
    if cfg.index_topk is None or cfg.q_lora_rank is None:
        return {}
    return {
        "wq_b": cfg.q_lora_rank * cfg.index_n_heads * cfg.index_head_dim,
        "wk": cfg.hidden_size * cfg.index_head_dim,
        "k_norm": 2 * cfg.index_head_dim,
        "weights_proj": cfg.hidden_size * cfg.index_n_heads,
    }


def _experts(cfg: Config, layers: int) -> dict[str, int]:
    """Weights of ``layers`` expert layers, by group."""
    expert = 3 * cfg.hidden_size * cfg.moe_intermediate_size
    bias = cfg.n_routed_experts if cfg.topk_method == "noaux_tc" else 0
    router = cfg.n_routed_experts * cfg.hidden_size + bias
    return {
        "routed experts": layers * cfg.n_routed_experts * expert,
        "shared experts": layers * cfg.n_shared_experts * expert,
        "router": layers * router,
    }


def parameter_groups(cfg: Config) -> dict[str, int]:
    """Parameters of the main model by group; the MTP module is not in it."""
    d, layers = cfg.hidden_size, cfg.num_hidden_layers
    dense = min(cfg.first_k_dense_replace, layers)
    table = cfg.vocab_size * d
    return {
        "embedding": table,
        "attention": layers * sum(attention_tensors(cfg).values()),
        "indexer": layers * sum(indexer_tensors(cfg).values()),
        "norms": (2 * layers + 1) * d,
        "dense MLP": dense * 3 * d * cfg.intermediate_size,
        **_experts(cfg, layers - dense),
        "output head": 0 if cfg.tie_word_embeddings else table,
    }


def active_groups(cfg: Config) -> dict[str, int]:
    """The part of each group that one token is multiplied with.

    Of the routed experts it is the chosen ones. The embedding table is not
    multiplied, one row of it is copied, so it counts as zero; a tied table
    still counts once, as the output head.
    """
    groups = parameter_groups(cfg)
    routed = groups["routed experts"] // cfg.n_routed_experts
    return groups | {
        "embedding": 0,
        "routed experts": routed * cfg.num_experts_per_tok,
        "output head": groups["embedding"],
    }


def parameters(cfg: Config, *, embedding: bool = False) -> tuple[int, int]:
    """Total and activated parameters of the main model.

    Reports differ in whether a token activates the whole ``embedding``
    table; without it the counts round to the published 37B, 21B and 2.4B.
    """
    total = sum(parameter_groups(cfg).values())
    active = sum(active_groups(cfg).values())
    extra = 0 if cfg.tie_word_embeddings else cfg.vocab_size * cfg.hidden_size
    return total, active + (extra if embedding else 0)


def mtp_parameters(cfg: Config) -> int:
    """Parameters of the MTP modules, without their copies of the tables.

    Each module is one expert layer, two input norms, one output norm and the
    projection that joins the hidden state with the next token's embedding.
    """
    d = cfg.hidden_size
    attention = sum(attention_tensors(cfg).values())
    layer = attention + sum(indexer_tensors(cfg).values())
    layer += sum(_experts(cfg, 1).values()) + 2 * d
    return cfg.num_nextn_predict_layers * (layer + 3 * d + 2 * d * d)


def stored_parameters(cfg: Config) -> int:
    """Numbers in a released checkpoint: main model, MTP, copied tables."""
    copies = 2 * cfg.vocab_size * cfg.hidden_size
    copies *= cfg.num_nextn_predict_layers
    return parameters(cfg)[0] + mtp_parameters(cfg) + copies
