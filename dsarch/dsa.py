r"""Sparse attention: an indexer picks the keys that attention reads."""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from dsarch.cache import Cache, length
from dsarch.config import Config
from dsarch.layers import Linear, expect, masked_softmax, widen
from dsarch.mla import MLA, absorbed, absorbs, expanded
from dsarch.rope import rotate

INDEX_EPS = 1e-6

# What both forms of attention take: q, q_rope, c, k_rope, W_UK and W_UV.
Pieces = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Indexer(nn.Module):
    r"""A small scorer that says which keys a query should read.

    Its queries come from the normed query latent, its keys and the weights
    of its heads from the layer's input. The rotary part stands *first* and
    is half-split, both unlike the attention that it serves; the key passes
    a LayerNorm with bias, the only one in the model. ``transform`` is
    applied to queries and keys alike: :func:`spread`, or a simulated FP8
    rounding. Source: DeepSeek-V3.2-Exp report, equation 1, and the released
    inference code.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        heads, width = cfg.index_n_heads, cfg.index_head_dim
        self.heads = heads
        self.widths = [cfg.qk_rope_head_dim, width - cfg.qk_rope_head_dim]
        self.transform: Callable[[Tensor], Tensor] = unchanged
        self.wq_b = Linear(cfg.q_lora_rank or 0, heads * width)
        self.wk = Linear(cfg.hidden_size, width)
        self.k_norm = nn.LayerNorm(width, INDEX_EPS)
        self.weights_proj = Linear(cfg.hidden_size, heads)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        latent: Float[Tensor, "b t rank"],
        phase: Complex[Tensor, "b t p"],
        k: Float[Tensor, "b s m"],
    ) -> Float[Tensor, "b t s"]:
        """Score every cached key ``k`` for every query, visible or not."""
        q = rearrange(self.wq_b(latent), "b t (i m) -> b t i m", i=self.heads)
        # In bf16 the weights of the heads would decide other near ties.
        w = F.linear(widen(x), widen(self.weights_proj.weight))
        return index_scores(self.turn(q, phase), k, w)

    def keys(
        self, x: Float[Tensor, "b t d"], phase: Complex[Tensor, "b t p"]
    ) -> Float[Tensor, "b t m"]:
        """What the cache keeps of a token: normed, turned, transformed."""
        return self.turn(self.k_norm(self.wk(x)), phase)

    def turn(
        self, x: Float[Tensor, "b t *i m"], phase: Complex[Tensor, "b t p"]
    ) -> Float[Tensor, "b t *i m"]:
        """Rotate the first part of a query or key, then transform it."""
        rope, rest = x.split(self.widths, -1)
        rope = rotate(rope, phase, interleaved=False)
        return self.transform(torch.cat([rope, rest], -1))


class SparseMLA(MLA):
    r"""Latent attention that reads only the ``index_topk`` best keys.

    All heads of a query share one choice. The choice passes no gradient:
    the indexer learns from :func:`dsarch.indexing.indexer_loss` alone. As
    long as there are no more than ``index_topk`` keys, this is :class:`MLA`.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if cfg.index_topk is None:
            raise ValueError("sparse attention needs index_topk, found None")
        self.topk = cfg.index_topk
        self.indexer = Indexer(cfg)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        phase: Complex[Tensor, "b t p"],
        mask: Bool[Tensor, "b t s"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t d"]:
        expect("x", x, None, None, self.cfg.hidden_size)
        expect("mask", mask, *x.shape[:2], x.size(1) + length(cache))
        q, q_rope, latent = self.queries(x, phase)
        c, k_rope = self.memories(x, phase)
        with torch.no_grad():
            k = self.indexer.keys(x, phase)
        if cache is not None:
            c, k_rope, k = cache.extend(latent=c, k_rope=k_rope, k_index=k)
        with torch.no_grad():
            index = self.choose(x, latent, phase, k, mask)
        o = self.attend((q, q_rope, c, k_rope, *self.up()), mask, index)
        return self.o_proj(rearrange(o, "b t h v -> b t (h v)"))

    def choose(
        self, x: Tensor, latent: Tensor, phase: Tensor, k: Tensor, mask: Tensor
    ) -> Tensor | None:
        """The keys to read, or None where every key may be read."""
        if mask.size(-1) <= self.topk:
            return None
        return top_k(self.indexer(x, latent, phase, k), mask, self.topk)

    def attend(
        self, pieces: Pieces, mask: Tensor, index: Tensor | None
    ) -> Tensor:
        """Few queries gather the chosen keys, many mask all the others."""
        if index is not None:
            if gathers(index, mask.size(-1)):
                return gathered(*pieces, mask, index, self.scale)
            mask = chosen(index, mask)
        form = absorbed if absorbs(self.cfg, *mask.shape[1:]) else expanded
        return form(*pieces, mask, self.scale)


def unchanged(x: Tensor) -> Tensor:
    """What an indexer does to its queries and keys unless told otherwise."""
    return x


def index_scores(
    q: Float[Tensor, "b t i m"],
    k: Float[Tensor, "b s m"],
    w: Float[Tensor, "b t i"],
) -> Float[Tensor, "b t s"]:
    r"""How much each query wants each key, in fp32 or wider.

    $$I_{t,s} = \frac1{\sqrt{H m}} \sum_j w_{t,j}\,
      \mathrm{ReLU}(q_{t,j} \cdot k_s)$$

    The ReLU acts on each of the $H$ heads before they are summed; the
    weights may be negative.
    """
    heads, width = q.shape[2:]
    score = einsum("btim,bsm->bits", widen(q), widen(k)).relu()
    return einsum("bits,bti->bts", score, widen(w)) * (heads * width) ** -0.5


def top_k(
    score: Float[Tensor, "b t s"], mask: Bool[Tensor, "b t s"], k: int
) -> Int[Tensor, "b t k"]:
    r"""The ``k`` best visible keys of each query, in no order.

    The mask comes first, so that no hidden key displaces a visible one. A
    query that sees fewer than ``k`` keys names hidden ones as well.
    """
    visible = score.masked_fill(~mask, -math.inf)
    return visible.topk(min(k, score.size(-1)), sorted=False).indices


def chosen(
    index: Int[Tensor, "b t k"], mask: Bool[Tensor, "b t s"]
) -> Bool[Tensor, "b t s"]:
    """The keys that are both selected and visible."""
    return torch.zeros_like(mask).scatter(-1, index, True) & mask


def gathers(index: Int[Tensor, "b t k"], keys: int) -> bool:
    """Whether the copies of gathered keys stay within the cache's size."""
    return index[0].numel() <= keys


def gathered(
    q: Float[Tensor, "b t h n"],
    q_rope: Float[Tensor, "b t h r"],
    c: Float[Tensor, "b s c"],
    k_rope: Float[Tensor, "b s r"],
    w_uk: Float[Tensor, "h n c"],
    w_uv: Float[Tensor, "h v c"],
    mask: Bool[Tensor, "b t s"],
    index: Int[Tensor, "b t k"],
    scale: float,
) -> Float[Tensor, "b t h v"]:
    r"""Absorbed attention over the selected latents alone.

    $$u_t = \mathrm{Attn}\big(h_t, \{c_s \mid I_{t,s} \in
      \mathrm{Top}_k(I_{t,:})\}\big)$$

    The work grows with the selected keys, not with the cached ones.
    """
    c, k_rope = take(c, index), take(k_rope, index)
    q, q_rope = q * scale, q_rope * scale
    q = einsum("bthn,hnc->bthc", q, w_uk)
    score = einsum("bthc,btkc->bhtk", q, c)
    score = score + einsum("bthr,btkr->bhtk", q_rope, k_rope)
    p = masked_softmax(score, mask.gather(-1, index))
    o = einsum("bhtk,btkc->bthc", p, c)
    return einsum("bthc,hvc->bthv", o, w_uv)


def take(
    x: Float[Tensor, "b s c"], index: Int[Tensor, "b t k"]
) -> Float[Tensor, "b t k c"]:
    """The rows of ``x`` that ``index`` names, sequence by sequence."""
    rows = [F.embedding(i, x) for i, x in zip(index, x, strict=True)]
    return torch.stack(rows)


def hadamard(width: int) -> Float[Tensor, "{width} {width}"]:
    r"""The orthonormal Walsh-Hadamard matrix in Sylvester's order.

    $$H_1 = 1, \qquad H_{2m} = \frac1{\sqrt2}
      \begin{pmatrix} H_m & H_m \\ H_m & -H_m \end{pmatrix}$$

    It is its own inverse. ``ValueError`` unless ``width`` is a power of two.
    """
    if width < 1 or width & (width - 1):
        raise ValueError(f"a Hadamard matrix needs a power of 2, not {width}")
    matrix, step = torch.ones(1, 1), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(matrix) < width:
        matrix = torch.kron(step, matrix)
    return matrix * width**-0.5


def spread(x: Float[Tensor, "*z m"]) -> Float[Tensor, "*z m"]:
    """Mix each vector with all signs, which flattens outliers before FP8.

    Products of two spread vectors are those of the vectors themselves.
    """
    return x @ hadamard(x.size(-1)).to(x)
