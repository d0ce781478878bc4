r"""The complete model: V2-Lite, V2, V3 and V3.2 are four configs of it."""

from collections.abc import Sequence
from itertools import repeat

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dsarch.block import Block
from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.layers import Linear, causal_mask, initialise, positions
from dsarch.mtp import MTP
from dsarch.rope import phases


class DeepSeek(nn.Module):
    r"""Tokens in, logits of the next token out.

    Parameter names are those of the released checkpoints. With caches, one
    call is a prefill, a later chunk of a prompt, a decoded token or a draft
    to verify: where the tokens stand follows from how many are cached.
    """

    def __init__(
        self, cfg: Config, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.lm_head = Linear(cfg.hidden_size, cfg.vocab_size)
        self.model = Trunk(cfg, self.lm_head)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if not self.lm_head.weight.is_meta:
            initialise(self, cfg.initializer_range, generator)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b t w"]:
        return self.lm_head(self.hidden(tokens, caches))

    def hidden(
        self,
        tokens: Int[Tensor, "b t"],
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The normed states from which the head and the MTP layer read."""
        start = behind(caches, self.cfg.num_hidden_layers)
        count = tokens.size(1)
        position = positions(len(tokens), start, count, tokens.device)
        phase = phases(self.cfg, position)
        mask = causal_mask(position, start + count)
        x = self.model.embed_tokens(tokens)
        for layer, cache in zip(
            self.layers, caches or repeat(None), strict=False
        ):
            x = layer(x, phase, mask, cache)
        return self.model.norm(x)

    def caches(self, reserve: int = 0) -> list[Cache]:
        """An empty cache for each layer, with room for so many tokens."""
        return [Cache(reserve) for _ in self.layers]

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that a plain pass runs, without those for drafting."""
        return list(self.model.layers)[: self.cfg.num_hidden_layers]

    @property
    def mtp(self) -> list[MTP]:
        """The layers behind the last, which look further ahead."""
        return [x for x in self.model.layers if isinstance(x, MTP)]


class Trunk(nn.Module):
    """What the checkpoints file under ``model``: all but the output head."""

    def __init__(self, cfg: Config, lm_head: Linear) -> None:
        super().__init__()
        depth = cfg.num_hidden_layers
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Block(cfg, i) for i in range(depth))
        for extra in range(cfg.num_nextn_predict_layers):
            self.layers.append(
                MTP(cfg, depth + extra, self.embed_tokens, lm_head)
            )
        self.norm = nn.RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)


def behind(caches: Sequence[Cache] | None, layers: int) -> int:
    """How many tokens all caches hold; ``ValueError`` if they disagree."""
    if caches is None:
        return 0
    lengths = {len(cache) for cache in caches}
    if len(caches) != layers or len(lengths) > 1:
        raise ValueError(
            f"{layers} layers need as many caches of one length, found "
            f"{len(caches)} of lengths {sorted(lengths)}"
        )
    return lengths.pop()
