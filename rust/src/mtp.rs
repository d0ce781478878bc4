//! Multi-token prediction: one more layer that looks one token further.

use std::rc::Rc;

use crate::block::Block;
use crate::cache::{length, Cache};
use crate::checkpoint::Weights;
use crate::config::Config;
use crate::error::Result;
use crate::layers::{causal_mask, positions, Linear, RMSNorm};
use crate::model::embed;
use crate::rope::phases;
use crate::tensor::Tensor;

// ANCHOR: MTP
/// The module that drafts the token after next.
///
/// Embedding and head are the main model's own, norm and layer are not.
#[derive(Clone, Debug)]
pub struct MTP {
    cfg: Config,
    block: Block,
    embed_tokens: Rc<Tensor>,
    enorm: RMSNorm,
    hnorm: RMSNorm,
    eh_proj: Linear,
    norm: RMSNorm,
    head: Rc<Linear>,
}
// ANCHOR_END: MTP

impl MTP {
    /// Take the weights of layer `index`; share embedding and head.
    pub fn load(
        cfg: &Config,
        mut w: Weights,
        index: usize,
        embed_tokens: Rc<Tensor>,
        head: Rc<Linear>,
    ) -> Result<Self> {
        let (dim, eps) = (cfg.hidden_size, cfg.rms_norm_eps);
        let mut last = w.at("shared_head");
        let made = Self {
            cfg: cfg.clone(),
            block: Block::load(cfg, &mut w, index)?,
            embed_tokens,
            enorm: RMSNorm::load(&mut w, "enorm", dim, eps)?,
            hnorm: RMSNorm::load(&mut w, "hnorm", dim, eps)?,
            eh_proj: Linear::load(&mut w, "eh_proj", [dim, 2 * dim])?,
            norm: RMSNorm::load(&mut last, "norm", dim, eps)?,
            head,
        };
        last.done()?;
        w.done()?;
        Ok(made)
    }

    // ANCHOR: merge
    /// Join states with the tokens that follow them, embedding first.
    ///
    /// `hidden` has passed the model's final norm.
    pub fn merge(&self, hidden: &Tensor, tokens: &Tensor<usize>) -> Tensor {
        let embedding = self.enorm.forward(&embed(&self.embed_tokens, tokens));
        self.eh_proj.forward(&embedding.cat(&self.hnorm.forward(hidden), 2))
    }
    // ANCHOR_END: merge

    /// How many tokens the head knows.
    pub fn vocabulary(&self) -> usize {
        self.head.weight.shape[0]
    }

    /// Logits of the states that [`advance`] returns.
    pub fn head(&self, hidden: &Tensor) -> Tensor {
        self.head.forward(hidden)
    }
}

// ANCHOR: advance
/// States one step further, from the position after the cached ones.
pub fn advance(
    module: &MTP,
    hidden: &Tensor,
    tokens: &Tensor<usize>,
    cache: Option<&mut Cache>,
) -> Tensor {
    let ([b, count], start) = (tokens.dims(), length(cache.as_deref()));
    let position = positions(b, start, count);
    let mask = causal_mask(&position, start + count);
    let (x, phase) =
        (module.merge(hidden, tokens), phases(&module.cfg, &position));
    module.norm.forward(&module.block.forward(&x, &phase, &mask, cache))
}
// ANCHOR_END: advance

// ANCHOR: mtp_losses
/// One loss for each depth; training adds a multiple of their mean.
///
/// `tokens` are one more than the states `hidden`. A depth `k` has `k` terms
/// fewer than there are states, yet the report divides by the states.
///
/// # Panics
/// If the lengths do not fit or leave a depth empty.
pub fn mtp_losses(
    modules: &[MTP],
    hidden: &Tensor,
    tokens: &Tensor<usize>,
) -> Vec<f32> {
    let ([b, count, _], [_, known]) = (hidden.dims(), tokens.dims());
    let fits = known == count + 1 && count > modules.len();
    assert!(fits, "{known} tokens and {count} states do not fit");
    let (mut hidden, mut losses) = (hidden.clone(), Vec::new());
    for (depth, module) in (1..).zip(modules) {
        let next = tokens.slice(1, depth..count);
        let target = tokens.slice(1, depth + 1..count + 1);
        let states = hidden.slice(1, 0..count - depth);
        hidden = advance(module, &states, &next, None);
        let total: f32 = nll(&module.head(&hidden), &target).iter().sum();
        losses.push(total / (b * count) as f32);
    }
    losses
}
// ANCHOR_END: mtp_losses

// ANCHOR: nll
/// Minus the log probability of every target.
pub fn nll(logits: &Tensor, target: &Tensor<usize>) -> Vec<f32> {
    let surprise = |(row, &token): (&[f32], &usize)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|x| (x - top).exp()).sum();
        top + sum.ln() - row[token]
    };
    logits.rows().zip(&target.data).map(surprise).collect()
}
// ANCHOR_END: nll
