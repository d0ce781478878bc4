r"""Multi-token prediction: one more layer that looks one token further."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dsarch.block import Block
from dsarch.cache import Cache, length
from dsarch.config import Config
from dsarch.layers import Linear, causal_mask, positions, widen
from dsarch.rope import phases


class SharedHead(nn.Module):
    """A final norm of its own before the output head of the main model."""

    def __init__(self, norm: nn.RMSNorm, head: Linear) -> None:
        super().__init__()
        self.norm, self.head = norm, head


class MTP(Block):
    r"""The module that drafts the token after next.

    :meth:`merge` joins the state of position $i$ with the embedding of token
    $t_{i+1}$, the layer runs on the result at position $i$, and
    ``shared_head.head`` turns its normed output into logits of $t_{i+2}$:
    :func:`advance` is all but the last step. Embedding and head are the main
    model's own, norm and layer are not.
    Source: DeepSeek-V3 report, equations 21 to 23; the released layer 61.
    """

    def __init__(
        self,
        cfg: Config,
        index: int,
        embed_tokens: nn.Embedding,
        lm_head: Linear,
    ) -> None:
        super().__init__(cfg, index)
        dim, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.cfg = cfg
        self.embed_tokens = embed_tokens
        self.enorm = nn.RMSNorm(dim, eps)
        self.hnorm = nn.RMSNorm(dim, eps)
        self.eh_proj = Linear(2 * dim, dim)
        self.shared_head = SharedHead(nn.RMSNorm(dim, eps), lm_head)

    def merge(
        self, hidden: Float[Tensor, "b t d"], tokens: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t d"]:
        r"""Join states with the tokens that follow them.

        $$x_i = M\,[\mathrm{norm}(\mathrm{Emb}(t_{i+1}));\,
          \mathrm{norm}(h_i)]$$

        The report prints the state first; the released weights expect the
        embedding first. ``hidden`` has passed the model's final norm.
        """
        embedding = self.enorm(self.embed_tokens(tokens))
        return self.eh_proj(torch.cat([embedding, self.hnorm(hidden)], -1))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        phase: Complex[Tensor, "b t p"],
        mask: Bool[Tensor, "b t s"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Run the layer on merged states; the result is normed."""
        return self.shared_head.norm(super().forward(x, phase, mask, cache))


def advance(
    module: MTP,
    hidden: Float[Tensor, "b t d"],
    tokens: Int[Tensor, "b t"],
    cache: Cache | None = None,
) -> Float[Tensor, "b t d"]:
    """States one step further, from the position after the cached ones."""
    start, count = length(cache), tokens.size(1)
    position = positions(len(tokens), start, count, tokens.device)
    mask = causal_mask(position, start + count)
    x = module.merge(hidden, tokens)
    return module(x, phases(module.cfg, position), mask, cache)


def mtp_losses(
    modules: Sequence[MTP],
    hidden: Float[Tensor, "b t d"],
    tokens: Int[Tensor, "b after"],
) -> Float[Tensor, " depth"]:
    r"""One loss for each depth; training adds $\lambda$ times their mean.

    $$L^k = -\frac1T \sum_{i=1}^{T-k} \log P^k_i[t_{i+k+1}], \qquad
      L = L_{main} + \frac\lambda D \sum_k L^k$$

    ``tokens`` are $t_1 \ldots t_{T+1}$ and ``hidden`` the model's states of
    the first $T$ of them. Depth $k$ has $T-k$ terms, yet the report divides
    by $T$. ``ValueError`` if the lengths do not fit or leave a depth empty.
    Source: DeepSeek-V3 report, equations 24 and 25.
    """
    sequences, count = hidden.shape[:2]
    if tokens.size(1) != count + 1 or count <= len(modules):
        raise ValueError(
            f"{len(modules)} depths over {count} states need more states "
            f"than depths and {count + 1} tokens, found {tokens.size(1)}"
        )
    losses = []
    for depth, module in enumerate(modules, 1):
        known, target = tokens[:, depth:-1], tokens[:, depth + 1 :]
        hidden = advance(module, hidden[:, : count - depth], known)
        total = nll(module.shared_head.head(hidden), target).sum()
        losses.append(total / (sequences * count))
    return torch.stack(losses)


def nll(
    logits: Float[Tensor, "b t w"], target: Int[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    r"""$-\log P[t]$ of every target, in fp32 or wider."""
    flat = F.cross_entropy(
        widen(logits).flatten(0, 1), target.flatten(), reduction="none"
    )
    return flat.unflatten(0, target.shape)
