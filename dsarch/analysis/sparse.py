r"""What sparse attention costs against dense, in FLOP and in bytes.

A multiply-add counts as two FLOP. Attention is in its absorbed form, as in
decoding: for one query and one key, in one layer, all heads together,

$$a = 2\,n_h\,(2 d_c + d_r), \qquad i = 2\,H\,(m + 1)$$

are the FLOP of attention and of the indexer.
"""

from dsarch.analysis import count
from dsarch.analysis.decode import Cost
from dsarch.config import Config


def pair_flops(cfg: Config) -> tuple[int, int]:
    """FLOP of attention and of the indexer for one query and one key."""
    latent, rotary = cfg.kv_widths
    attend = 2 * cfg.num_attention_heads * (2 * latent + rotary)
    return attend, 2 * cfg.index_n_heads * (cfg.index_head_dim + 1)


def budget(cfg: Config) -> int:
    """How many keys a query reads; ``ValueError`` without an indexer."""
    if cfg.index_topk is None:
        raise ValueError("sparse attention needs index_topk, found None")
    return cfg.index_topk


def attention_flops(cfg: Config, context: int, *, sparse: bool) -> int:
    r"""FLOP of one decoded token's attention in one layer.

    $$F_{dense} = a\,s, \qquad F_{sparse} = a\,\min(k, s) + i\,s$$
    """
    attend, index = pair_flops(cfg)
    if not sparse:
        return attend * context
    return attend * min(budget(cfg), context) + index * context


def attention_bytes(cfg: Config, context: int, *, sparse: bool) -> int:
    """Cache that one decoded token reads in one layer, in FP8 as released.

    Dense attention reads every latent, sparse attention every index key and
    the latents that it selects.
    """
    latent, index = count.fp8_bytes_per_token(cfg)
    latent, index = (x // cfg.num_hidden_layers for x in (latent, index))
    if not sparse:
        return latent * context
    return latent * min(budget(cfg), context) + index * context


def touched(cfg: Config, batch: int) -> float:
    r"""Expected routed experts of a layer that ``batch`` tokens use.

    $$E\,\big(1 - (1 - k/E)^b\big)$$

    as if every token chose at random.
    """
    experts = cfg.n_routed_experts
    missed = (1 - cfg.num_experts_per_tok / experts) ** batch
    return experts * (1 - missed)


def weight_bytes(cfg: Config, batch: int) -> float:
    """Weights that one step reads, at one byte each, embedding rows aside."""
    active = count.active_groups(cfg)
    one = active.pop("routed experts") / cfg.num_experts_per_tok
    return sum(active.values()) + one * touched(cfg, batch)


def step(cfg: Config, context: int, batch: int = 1, *, sparse: bool) -> Cost:
    """The whole model decodes one token for each of ``batch`` sequences."""
    layers = cfg.num_hidden_layers
    attend = layers * attention_flops(cfg, context, sparse=sparse)
    flops = batch * (2 * count.parameters(cfg)[1] + attend)
    cache = layers * attention_bytes(cfg, context, sparse=sparse)
    return Cost(flops, weight_bytes(cfg, batch) + batch * cache)


def prompt_flops(cfg: Config, length: int, *, sparse: bool) -> int:
    r"""FLOP of one layer's attention over a whole prompt.

    Dense attention expands, $2 n_h (d_n + d_r + d_v)$ for each of the
    $s (s+1) / 2$ pairs; sparse attention reads latents and scores all pairs.
    """
    pairs = length * (length + 1) // 2
    if not sparse:
        width = cfg.qk_head_dim + cfg.v_head_dim
        return 2 * cfg.num_attention_heads * width * pairs
    attend, index = pair_flops(cfg)
    k = min(budget(cfg), length)
    read = k * (k + 1) // 2 + (length - k) * k
    return attend * read + index * pairs


def even(cfg: Config) -> float:
    r"""The context from which sparse decoding needs fewer FLOP than dense.

    $$s^* = \frac{a\,k}{a - i}$$
    """
    attend, index = pair_flops(cfg)
    return attend * budget(cfg) / (attend - index)
