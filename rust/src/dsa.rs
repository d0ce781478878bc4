//! Sparse attention: an indexer picks the keys that attention reads.

use crate::cache::{length, Cache};
use crate::checkpoint::Weights;
use crate::config::Config;
use crate::einsum::einsum;
use crate::error::Result;
use crate::layers::{expect_chunk, masked_softmax, LayerNorm, Linear};
use crate::mla::{absorbed, absorbs, expanded, MLA};
use crate::rope::{rotate, Layout, Phase};
use crate::tensor::{topk, Tensor};

const INDEX_EPS: f64 = 1e-6;

// ANCHOR: Indexer
/// A small scorer that says which keys a query should read.
///
/// Its rotary part stands first and is half-split, both unlike the attention
/// that it serves; the key passes a LayerNorm with bias.
#[derive(Clone, Debug)]
pub struct Indexer {
    heads: usize,
    widths: [usize; 2],
    wq_b: Linear,
    wk: Linear,
    k_norm: LayerNorm,
    weights_proj: Linear,
}

impl Indexer {
    /// Take the weights of one layer's indexer.
    pub fn load(cfg: &Config, mut w: Weights) -> Result<Self> {
        let (heads, width) = (cfg.index_n_heads, cfg.index_head_dim);
        let (d, rank) = (cfg.hidden_size, cfg.q_lora_rank.unwrap_or(0));
        let r = cfg.qk_rope_head_dim;
        let made = Self {
            heads,
            widths: [r, width - r],
            wq_b: Linear::load(&mut w, "wq_b", [heads * width, rank])?,
            wk: Linear::load(&mut w, "wk", [width, d])?,
            k_norm: LayerNorm::load(&mut w, "k_norm", width, INDEX_EPS)?,
            weights_proj: Linear::load(&mut w, "weights_proj", [heads, d])?,
        };
        w.done()?;
        Ok(made)
    }

    /// Score every cached key for every query, visible or not.
    pub fn forward(
        &self,
        x: &Tensor,
        latent: &Tensor,
        phase: &Phase,
        k: &Tensor,
    ) -> Tensor {
        let q = self.wq_b.forward(latent);
        let q = q.unflatten([self.heads, self.widths.iter().sum()]);
        let w = self.weights_proj.forward(x);
        index_scores(&self.turn(&q, phase), k, &w)
    }

    /// What the cache keeps of a token: normed and turned.
    pub fn keys(&self, x: &Tensor, phase: &Phase) -> Tensor {
        self.turn(&self.k_norm.forward(&self.wk.forward(x)), phase)
    }

    /// Rotate the first part of a query or key.
    pub fn turn(&self, x: &Tensor, phase: &Phase) -> Tensor {
        let last = x.shape.len() - 1;
        let [rope, rest] = x.split(last, self.widths);
        rotate(rope, phase, Layout::HalfSplit).cat(&rest, last)
    }
}
// ANCHOR_END: Indexer

// ANCHOR: SparseMLA
/// Latent attention that reads only the `index_topk` best keys.
///
/// All heads of a query share one choice. As long as there are no more keys
/// than that, this is [`MLA`].
#[derive(Clone, Debug)]
pub struct SparseMLA {
    /// Attention over what was chosen.
    pub mla: MLA,
    /// How many keys a query reads.
    pub topk: usize,
    /// What chooses.
    pub indexer: Indexer,
}
// ANCHOR_END: SparseMLA

impl SparseMLA {
    /// Take the weights of one layer.
    pub fn load(cfg: &Config, topk: usize, w: &mut Weights) -> Result<Self> {
        let mla = MLA::load(cfg, w)?;
        let indexer = Indexer::load(cfg, w.at("indexer"))?;
        Ok(Self { mla, topk, indexer })
    }

    // ANCHOR: SparseMLA.forward
    /// Attend from `x`, `[b, t, d]`, to the chosen of all visible keys.
    pub fn forward(
        &self,
        x: &Tensor,
        phase: &Phase,
        mask: &Tensor<bool>,
        cache: Option<&mut Cache>,
    ) -> Tensor {
        expect_chunk(x, mask, length(cache.as_deref()));
        let (q, q_rope, latent) = self.mla.queries(x, phase);
        let (c, k_rope) = self.mla.memories(x, phase);
        let k = self.indexer.keys(x, phase);
        let mut own = Cache::default();
        let cache = cache.unwrap_or(&mut own);
        let new = [("latent", c), ("k_rope", k_rope), ("k_index", k)];
        let [c, k_rope, k] = cache.extend(new);
        let latent = latent.expect("a query latent, as the config checks");
        let index = match mask.width() <= self.topk {
            true => None,
            false => {
                let score = self.indexer.forward(x, &latent, phase, k);
                Some(top_k(&score, mask, self.topk))
            }
        };
        let o = self.attend([&q, &q_rope, c, k_rope], mask, index.as_ref());
        self.mla.o_proj.forward(&o.merge())
    }
    // ANCHOR_END: SparseMLA.forward

    // ANCHOR: SparseMLA.attend
    /// Few queries gather the chosen keys, many mask all the others.
    pub fn attend(
        &self,
        pieces: [&Tensor; 4],
        mask: &Tensor<bool>,
        index: Option<&Tensor<usize>>,
    ) -> Tensor {
        let (up, scale) = (self.mla.up(), self.mla.scale);
        let [_, t, s] = mask.dims();
        let form = match absorbs(&self.mla.cfg, t, s) {
            true => absorbed,
            false => expanded,
        };
        match index {
            None => form(pieces, up, mask, scale),
            Some(index) if gathers(index, s) => {
                gathered(pieces, up, mask, index, scale)
            }
            Some(index) => form(pieces, up, &chosen(index, mask), scale),
        }
    }
    // ANCHOR_END: SparseMLA.attend
}

// ANCHOR: index_scores
/// How much each query wants each key.
///
/// The ReLU acts on each head before they are summed; the weights may be
/// negative.
pub fn index_scores(q: &Tensor, k: &Tensor, w: &Tensor) -> Tensor {
    let [_, _, heads, width] = q.dims();
    let score = einsum("btim,bsm->bits", [q, k]).map(|x| x.max(0.0));
    let scale = ((heads * width) as f32).powf(-0.5);
    &einsum("bits,bti->bts", [&score, w]) * scale
}
// ANCHOR_END: index_scores

// ANCHOR: top_k
/// The `k` best visible keys of each query.
///
/// The mask comes first, so that no hidden key displaces a visible one. A
/// query that sees fewer than `k` keys names hidden ones as well.
pub fn top_k(score: &Tensor, mask: &Tensor<bool>, k: usize) -> Tensor<usize> {
    let hide = |x: &f32, seen: &bool| match seen {
        true => *x,
        false => f32::NEG_INFINITY,
    };
    let ([b, t, s], visible) = (score.dims(), score.zip(mask, hide));
    let k = k.min(s);
    let best = visible.rows().flat_map(|row| topk(row, k)).collect();
    Tensor::new(&[b, t, k], best)
}
// ANCHOR_END: top_k

// ANCHOR: chosen
/// The keys that are both selected and visible.
pub fn chosen(index: &Tensor<usize>, mask: &Tensor<bool>) -> Tensor<bool> {
    let mut kept = Tensor::full(&mask.shape, false);
    let s = mask.width();
    for (query, row) in index.rows().enumerate() {
        for key in row {
            kept.data[query * s + key] = mask.row(query)[*key];
        }
    }
    kept
}
// ANCHOR_END: chosen

// ANCHOR: gathers
/// Whether the copies of gathered keys stay within the cache's size.
pub fn gathers(index: &Tensor<usize>, keys: usize) -> bool {
    let [_, t, k] = index.dims();
    t * k <= keys
}
// ANCHOR_END: gathers

// ANCHOR: gathered
/// Absorbed attention over the selected latents alone.
///
/// The work grows with the selected keys, not with the cached ones.
pub fn gathered(
    [q, q_rope, c, k_rope]: [&Tensor; 4],
    [w_uk, w_uv]: [&Tensor; 2],
    mask: &Tensor<bool>,
    index: &Tensor<usize>,
    scale: f32,
) -> Tensor {
    let (c, k_rope) = (take(c, index), take(k_rope, index));
    let (q, q_rope) = (q * scale, q_rope * scale);
    let q = einsum("bthn,hnc->bthc", [&q, w_uk]);
    let score = einsum("bthc,btkc->bhtk", [&q, &c]);
    let score = &score + &einsum("bthr,btkr->bhtk", [&q_rope, &k_rope]);
    let seen = index.rows().enumerate();
    let seen = seen.flat_map(|(t, row)| row.iter().map(move |&s| (t, s)));
    let seen = seen.map(|(t, s)| mask.row(t)[s]).collect();
    let p = masked_softmax(score, &Tensor::new(&index.shape, seen));
    let o = einsum("bhtk,btkc->bthc", [&p, &c]);
    einsum("bthc,hvc->bthv", [&o, w_uv])
}
// ANCHOR_END: gathered

// ANCHOR: take
/// The rows of `x`, `[b, s, c]`, that `index` names, as `[b, t, k, c]`.
pub fn take(x: &Tensor, index: &Tensor<usize>) -> Tensor {
    let ([b, t, k], [_, s, c]) = (index.dims(), x.dims());
    let slots = index.data.iter().enumerate();
    let rows: Vec<usize> =
        slots.map(|(slot, key)| slot / (t * k) * s + key).collect();
    let flat = x.clone().flatten();
    flat.index_select(&rows).reshape(&[b, t, k, c])
}
// ANCHOR_END: take
