//! Multi-head latent attention: every head from one small memory.

use crate::cache::{length, Cache};
use crate::checkpoint::Weights;
use crate::config::Config;
use crate::einsum::einsum;
use crate::error::Result;
use crate::layers::{expect_chunk, masked_softmax, Linear, RMSNorm};
use crate::rope::{rotate, softmax_factor, Layout, Phase};
use crate::tensor::Tensor;

/// The released models norm both latents with this.
const LATENT_EPS: f64 = 1e-6;

// ANCHOR: Query
/// How queries come about: directly, or through a latent of their own.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Query {
    Plain { q_proj: Linear },
    LowRank { q_a_proj: Linear, q_a_layernorm: RMSNorm, q_b_proj: Linear },
}
// ANCHOR_END: Query

// ANCHOR: MLA
/// Attention whose keys and values are all rebuilt from one latent.
#[derive(Clone, Debug)]
pub struct MLA {
    pub(crate) cfg: Config,
    pub(crate) scale: f32,
    query: Query,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: RMSNorm,
    up: [Tensor; 2],
    pub(crate) o_proj: Linear,
}
// ANCHOR_END: MLA

impl MLA {
    /// Take the weights of one layer.
    pub fn load(cfg: &Config, w: &mut Weights) -> Result<Self> {
        let (h, d, c) =
            (cfg.num_attention_heads, cfg.hidden_size, cfg.kv_lora_rank);
        let (width, v) = (h * cfg.v_head_dim, cfg.v_head_dim);
        let memory = [c + cfg.qk_rope_head_dim, d];
        let rows = [cfg.qk_nope_head_dim, v];
        let up = [h * (cfg.qk_nope_head_dim + v), c];
        let up = Linear::load(w, "kv_b_proj", up)?.weight;
        let up = up.reshape(&[h, cfg.qk_nope_head_dim + v, c]);
        let factor = softmax_factor(cfg.rope_scaling.as_ref());
        let scale = (cfg.qk_head_dim() as f64).powf(-0.5) * factor;
        Ok(Self {
            cfg: cfg.clone(),
            scale: scale as f32,
            query: Query::load(cfg, w)?,
            kv_a_proj_with_mqa: Linear::load(w, "kv_a_proj_with_mqa", memory)?,
            kv_a_layernorm: RMSNorm::load(w, "kv_a_layernorm", c, LATENT_EPS)?,
            up: up.split(1, rows),
            o_proj: Linear::load(w, "o_proj", [d, width])?,
        })
    }

    // ANCHOR: forward
    /// Attend from `x`, `[b, t, d]`, to what is cached and to itself.
    pub fn forward(
        &self,
        x: &Tensor,
        phase: &Phase,
        mask: &Tensor<bool>,
        cache: Option<&mut Cache>,
    ) -> Tensor {
        expect_chunk(x, mask, length(cache.as_deref()));
        let (q, q_rope, _) = self.queries(x, phase);
        let (c, k_rope) = self.memories(x, phase);
        let mut own = Cache::default();
        let cache = cache.unwrap_or(&mut own);
        let [c, k_rope] = cache.extend([("latent", c), ("k_rope", k_rope)]);
        let [_, t, s] = mask.dims();
        let form = if absorbs(&self.cfg, t, s) { absorbed } else { expanded };
        let o = form([&q, &q_rope, c, k_rope], self.up(), mask, self.scale);
        self.o_proj.forward(&o.merge())
    }
    // ANCHOR_END: forward

    // ANCHOR: queries
    /// Content queries, turned queries, and the latent they come from.
    pub fn queries(
        &self,
        x: &Tensor,
        phase: &Phase,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        let cfg = &self.cfg;
        let (q, latent) = match &self.query {
            Query::Plain { q_proj } => (q_proj.forward(x), None),
            Query::LowRank { q_a_proj, q_a_layernorm, q_b_proj } => {
                let latent = q_a_layernorm.forward(&q_a_proj.forward(x));
                (q_b_proj.forward(&latent), Some(latent))
            }
        };
        let q = q.unflatten([cfg.num_attention_heads, cfg.qk_head_dim()]);
        let [q, q_rope] = q.split(3, cfg.qk_widths());
        (q, rotate(q_rope, phase, Layout::Interleaved), latent)
    }
    // ANCHOR_END: queries

    // ANCHOR: memories
    /// What the cache keeps: the normed latent and the turned key.
    pub fn memories(&self, x: &Tensor, phase: &Phase) -> (Tensor, Tensor) {
        let both = self.kv_a_proj_with_mqa.forward(x);
        let [c, k_rope] = both.split(2, self.cfg.kv_widths());
        let k_rope = rotate(k_rope, phase, Layout::Interleaved);
        (self.kv_a_layernorm.forward(&c), k_rope)
    }
    // ANCHOR_END: memories

    /// `W^UK`, `[h, n, c]`, and `W^UV`, `[h, v, c]`: one matrix in the file.
    pub fn up(&self) -> [&Tensor; 2] {
        [&self.up[0], &self.up[1]]
    }

    /// The factor of all scores.
    pub fn scale(&self) -> f32 {
        self.scale
    }
}

impl Query {
    fn load(cfg: &Config, w: &mut Weights) -> Result<Self> {
        let (d, out) =
            (cfg.hidden_size, cfg.num_attention_heads * cfg.qk_head_dim());
        let rank = match cfg.q_lora_rank {
            None => {
                let q_proj = Linear::load(w, "q_proj", [out, d])?;
                return Ok(Query::Plain { q_proj });
            }
            Some(rank) => rank,
        };
        Ok(Query::LowRank {
            q_a_proj: Linear::load(w, "q_a_proj", [rank, d])?,
            q_a_layernorm: RMSNorm::load(w, "q_a_layernorm", rank, LATENT_EPS)?,
            q_b_proj: Linear::load(w, "q_b_proj", [out, rank])?,
        })
    }
}

// ANCHOR: expanded
/// Rebuild keys and values, then attend: the cost of plain attention.
pub fn expanded(
    [q, q_rope, c, k_rope]: [&Tensor; 4],
    [w_uk, w_uv]: [&Tensor; 2],
    mask: &Tensor<bool>,
    scale: f32,
) -> Tensor {
    let (q, q_rope) = (q * scale, q_rope * scale);
    let k = einsum("bsc,hnc->bshn", [c, w_uk]);
    let v = einsum("bsc,hvc->bshv", [c, w_uv]);
    let score = einsum("bthn,bshn->bhts", [&q, &k]);
    let score = &score + &einsum("bthr,bsr->bhts", [&q_rope, k_rope]);
    let p = masked_softmax(score, mask);
    einsum("bhts,bshv->bthv", [&p, &v])
}
// ANCHOR_END: expanded

// ANCHOR: absorbed
/// Attend to the latents themselves: the cost of one wide shared head.
pub fn absorbed(
    [q, q_rope, c, k_rope]: [&Tensor; 4],
    [w_uk, w_uv]: [&Tensor; 2],
    mask: &Tensor<bool>,
    scale: f32,
) -> Tensor {
    let (q, q_rope) = (q * scale, q_rope * scale);
    let q = einsum("bthn,hnc->bthc", [&q, w_uk]);
    let score = einsum("bthc,bsc->bhts", [&q, c]);
    let score = &score + &einsum("bthr,bsr->bhts", [&q_rope, k_rope]);
    let p = masked_softmax(score, mask);
    let o = einsum("bhts,bsc->bthc", [&p, c]);
    einsum("bthc,hvc->bthv", [&o, w_uv])
}
// ANCHOR_END: absorbed

// ANCHOR: absorbs
/// Whether the absorbed form needs fewer multiplications.
pub fn absorbs(cfg: &Config, queries: usize, keys: usize) -> bool {
    let [n, r] = cfg.qk_widths();
    let (c, v) = (cfg.kv_lora_rank, cfg.v_head_dim);
    let expand = keys * c * (n + v) + queries * keys * (n + r + v);
    let absorb = queries * c * (n + v) + queries * keys * (2 * c + r);
    absorb < expand
}
// ANCHOR_END: absorbs
