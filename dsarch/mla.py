r"""Multi-head latent attention: every head from one small memory."""

from einops import rearrange
from jaxtyping import Bool, Complex, Float
from torch import Tensor, einsum, nn

from dsarch.cache import Cache, length
from dsarch.config import Config
from dsarch.layers import Linear, expect_chunk, masked_softmax
from dsarch.rope import rotate, softmax_factor

# The released models normalise both latents with this, whatever rms_norm_eps.
LATENT_EPS = 1e-6


class MLA(nn.Module):
    r"""Attention whose keys and values are all rebuilt from one latent.

    Every token leaves behind a latent $c_t$ and one rotary key $k^R_t$ for all
    heads; the cache holds nothing else. :func:`expanded` rebuilds the keys of
    every head, :func:`absorbed` moves $W^{UK}$ onto the query and reads the
    latent itself. Source: DeepSeek-V2 report, equations 37 to 47.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg, self.kv_rows = cfg, [cfg.qk_nope_head_dim, cfg.v_head_dim]
        self.scale = cfg.qk_head_dim**-0.5 * softmax_factor(cfg.rope_scaling)
        heads, rank = cfg.num_attention_heads, cfg.q_lora_rank
        if rank is None:
            self.q_proj = Linear(cfg.hidden_size, heads * cfg.qk_head_dim)
        else:
            self.q_a_proj = Linear(cfg.hidden_size, rank)
            self.q_a_layernorm = nn.RMSNorm(rank, LATENT_EPS)
            self.q_b_proj = Linear(rank, heads * cfg.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(cfg.hidden_size, sum(cfg.kv_widths))
        self.kv_a_layernorm = nn.RMSNorm(cfg.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = Linear(cfg.kv_lora_rank, heads * sum(self.kv_rows))
        self.o_proj = Linear(heads * cfg.v_head_dim, cfg.hidden_size)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        phase: Complex[Tensor, "b t p"],
        mask: Bool[Tensor, "b t s"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t d"]:
        expect_chunk(x, mask, length(cache), self.cfg.hidden_size)
        q, q_rope, _ = self.queries(x, phase)
        c, k_rope = self.memories(x, phase)
        if cache is not None:
            c, k_rope = cache.extend(latent=c, k_rope=k_rope)
        form = absorbed if absorbs(self.cfg, *mask.shape[1:]) else expanded
        o = form(q, q_rope, c, k_rope, *self.up(), mask, self.scale)
        return self.o_proj(rearrange(o, "b t h v -> b t (h v)"))

    def queries(self, x: Tensor, phase: Tensor) -> tuple[Tensor, ...]:
        """Content queries, turned queries, and the latent they come from."""
        cfg, latent = self.cfg, x
        if cfg.q_lora_rank is not None:
            latent = self.q_a_layernorm(self.q_a_proj(x))
        q = (self.q_proj if latent is x else self.q_b_proj)(latent)
        q = q.unflatten(-1, (cfg.num_attention_heads, cfg.qk_head_dim))
        q, q_rope = q.split(cfg.qk_widths, -1)
        return q, rotate(q_rope, phase), latent

    def memories(self, x: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache keeps: the normed latent and the turned key."""
        c, k_rope = self.kv_a_proj_with_mqa(x).split(self.cfg.kv_widths, -1)
        return self.kv_a_layernorm(c), rotate(k_rope, phase)

    def up(self) -> tuple[Tensor, Tensor]:
        """$W^{UK}$ and $W^{UV}$, which the checkpoint stores as one matrix."""
        w = self.kv_b_proj.matrix().unflatten(0, (-1, sum(self.kv_rows)))
        return w.split(self.kv_rows, 1)


def expanded(
    q: Float[Tensor, "b t h n"],
    q_rope: Float[Tensor, "b t h r"],
    c: Float[Tensor, "b s c"],
    k_rope: Float[Tensor, "b s r"],
    w_uk: Float[Tensor, "h n c"],
    w_uv: Float[Tensor, "h v c"],
    mask: Bool[Tensor, "b t s"],
    scale: float,
) -> Float[Tensor, "b t h v"]:
    """Rebuild keys and values, then attend: the cost of plain attention."""
    q, q_rope = q * scale, q_rope * scale
    k = einsum("bsc,hnc->bshn", c, w_uk)
    v = einsum("bsc,hvc->bshv", c, w_uv)
    score = einsum("bthn,bshn->bhts", q, k)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    p = masked_softmax(score, mask)
    return einsum("bhts,bshv->bthv", p, v)


def absorbed(
    q: Float[Tensor, "b t h n"],
    q_rope: Float[Tensor, "b t h r"],
    c: Float[Tensor, "b s c"],
    k_rope: Float[Tensor, "b s r"],
    w_uk: Float[Tensor, "h n c"],
    w_uv: Float[Tensor, "h v c"],
    mask: Bool[Tensor, "b t s"],
    scale: float,
) -> Float[Tensor, "b t h v"]:
    """Attend to the latents themselves: the cost of one wide shared head."""
    q, q_rope = q * scale, q_rope * scale
    q = einsum("bthn,hnc->bthc", q, w_uk)
    score = einsum("bthc,bsc->bhts", q, c)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    p = masked_softmax(score, mask)
    o = einsum("bhts,bsc->bthc", p, c)
    return einsum("bthc,hvc->bthv", o, w_uv)


def absorbs(cfg: Config, queries: int, keys: int) -> bool:
    r"""Whether the absorbed form needs fewer multiplications.

    Per head the expanded form needs $s\,c\,(n+v) + t\,s\,(n+r+v)$, the
    absorbed one $t\,c\,(n+v) + t\,s\,(2c+r)$: one decoded token absorbs, a
    long prompt expands.
    """
    n, r = cfg.qk_widths
    c, v = cfg.kv_lora_rank, cfg.v_head_dim
    expand = keys * c * (n + v) + queries * keys * (n + r + v)
    absorb = queries * c * (n + v) + queries * keys * (2 * c + r)
    return absorb < expand
