r"""One layer of the model: attention and a feed-forward part."""

from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.dsa import SparseMLA
from dsarch.layers import SwiGLU
from dsarch.mla import MLA
from dsarch.moe import DeepSeekMoE


class Block(nn.Module):
    r"""Attention, then a feed-forward part, each added to the stream.

    $$u = x + \mathrm{Attn}(\mathrm{norm}(x)), \qquad
      y = u + \mathrm{FFN}(\mathrm{norm}(u))$$

    ``index`` counts the layers: the first ``first_k_dense_replace`` have one
    plain MLP, the others experts. A config with ``index_topk`` attends
    sparsely.
    """

    def __init__(self, cfg: Config, index: int) -> None:
        super().__init__()
        dim, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(dim, eps)
        self.self_attn = MLA(cfg) if cfg.index_topk is None else SparseMLA(cfg)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps)
        self.mlp = (
            SwiGLU(dim, cfg.intermediate_size)
            if cfg.is_dense(index)
            else DeepSeekMoE(cfg)
        )

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        phase: Complex[Tensor, "b t p"],
        mask: Bool[Tensor, "b t s"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t d"]:
        x = x + self.self_attn(self.input_layernorm(x), phase, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
