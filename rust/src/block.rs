//! One layer of the model: attention and a feed-forward part.

use crate::cache::Cache;
use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dsa::SparseMLA;
use crate::error::Result;
use crate::layers::{RMSNorm, SwiGLU};
use crate::mla::MLA;
use crate::moe::DeepSeekMoE;
use crate::rope::Phase;
use crate::tensor::Tensor;

/// How a layer attends.
#[derive(Clone, Debug)]
pub enum Attention {
    /// To every visible key.
    Dense(Box<MLA>),
    /// To the keys that an indexer picks.
    Sparse(Box<SparseMLA>),
}

/// What follows attention.
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// One plain MLP.
    Dense(SwiGLU),
    /// Experts.
    Experts(Box<DeepSeekMoE>),
}

// ANCHOR: Block
/// Attention, then a feed-forward part, each added to the stream.
#[derive(Clone, Debug)]
pub struct Block {
    input_layernorm: RMSNorm,
    self_attn: Attention,
    post_attention_layernorm: RMSNorm,
    mlp: FeedForward,
}
// ANCHOR_END: Block

impl Block {
    /// Take the weights of layer `index`; those of an MTP layer are left.
    pub fn load(cfg: &Config, w: &mut Weights, index: usize) -> Result<Self> {
        let (dim, eps) = (cfg.hidden_size, cfg.rms_norm_eps);
        let mut own = w.at("self_attn");
        let self_attn = match cfg.index_topk {
            None => Attention::Dense(Box::new(MLA::load(cfg, &mut own)?)),
            Some(k) => {
                let mla = SparseMLA::load(cfg, k, &mut own)?;
                Attention::Sparse(Box::new(mla))
            }
        };
        own.done()?;
        let mlp = w.at("mlp");
        let mlp = match cfg.is_dense(index) {
            true => FeedForward::Dense(SwiGLU::load(
                mlp,
                dim,
                cfg.intermediate_size,
            )?),
            false => {
                let moe = DeepSeekMoE::load(cfg, mlp)?;
                FeedForward::Experts(Box::new(moe))
            }
        };
        let mut norm = |name: &str| RMSNorm::load(w, name, dim, eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
        })
    }

    // ANCHOR: Block.forward
    /// Pass the stream `[b, t, d]` through the layer.
    pub fn forward(
        &self,
        x: &Tensor,
        phase: &Phase,
        mask: &Tensor<bool>,
        cache: Option<&mut Cache>,
    ) -> Tensor {
        let normed = self.input_layernorm.forward(x);
        let x = x + &match &self.self_attn {
            Attention::Dense(mla) => mla.forward(&normed, phase, mask, cache),
            Attention::Sparse(mla) => mla.forward(&normed, phase, mask, cache),
        };
        let normed = self.post_attention_layernorm.forward(&x);
        &x + &match &self.mlp {
            FeedForward::Dense(mlp) => mlp.forward(&normed),
            FeedForward::Experts(moe) => moe.forward(&normed),
        }
    }
    // ANCHOR_END: Block.forward
}
