//! How an indexer learns: from what attention read, and from nothing else.
//!
//! There are no gradients here, only the value of the loss.

use crate::dsa::{chosen, top_k, SparseMLA};
use crate::einsum::einsum;
use crate::layers::masked_softmax;
use crate::rope::Phase;
use crate::tensor::{softmax, Tensor};

// ANCHOR: indexer_loss
/// How far the indexer is from the attention that it serves.
pub fn indexer_loss(
    layer: &SparseMLA,
    x: &Tensor,
    phase: &Phase,
    mask: &Tensor<bool>,
) -> f32 {
    let (q, q_rope, latent) = layer.mla.queries(x, phase);
    let (c, k_rope) = layer.mla.memories(x, phase);
    let latent = latent.expect("a query latent, as the config checks");
    let k = layer.indexer.keys(x, phase);
    let score = layer.indexer.forward(x, &latent, phase, &k);
    let seen = match mask.width() <= layer.topk {
        true => mask.clone(),
        false => chosen(&top_k(&score, mask, layer.topk), mask),
    };
    let ([w_uk, _], scale) = (layer.mla.up(), layer.mla.scale());
    let p = attention([&q, &q_rope, &c, &k_rope], w_uk, &seen, scale);
    let far = divergence(&p, &score, &seen);
    far.iter().sum::<f32>() / far.len() as f32
}
// ANCHOR_END: indexer_loss

// ANCHOR: attention
/// What all heads of a layer read, as one distribution over the keys.
///
/// The mean of probabilities is their sum, normalised; it is not the softmax
/// of summed logits.
pub fn attention(
    [q, q_rope, c, k_rope]: [&Tensor; 4],
    w_uk: &Tensor,
    mask: &Tensor<bool>,
    scale: f32,
) -> Tensor {
    let score = einsum("bthn,hnc,bsc->bhts", [q, w_uk, c]);
    let score = &score + &einsum("bthr,bsr->bhts", [q_rope, k_rope]);
    let p = masked_softmax(&score * scale, mask);
    let ([_, h, t, s], mut mean) = (p.dims(), Tensor::zeros(&mask.shape));
    for (i, row) in p.rows().enumerate() {
        let query = i / (h * t) * t + i % t;
        let sums = mean.data[query * s..][..s].iter_mut();
        sums.zip(row).for_each(|(sum, p)| *sum += p / h as f32);
    }
    mean
}
// ANCHOR_END: attention

// ANCHOR: divergence
/// Of `p` from the softmax of the scores over the visible keys.
pub fn divergence(p: &Tensor, score: &Tensor, mask: &Tensor<bool>) -> Vec<f32> {
    let hide = |x: &f32, seen: &bool| match seen {
        true => *x,
        false => f32::NEG_INFINITY,
    };
    let visible = score.zip(mask, hide);
    let distance = |(row, p): (&[f32], &[f32])| {
        let mut q = row.to_vec();
        softmax(&mut q);
        let pairs = p.iter().zip(&q).filter(|x| *x.0 > 0.0);
        pairs.map(|(p, q)| p * (p.ln() - q.ln())).sum()
    };
    visible.rows().zip(p.rows()).map(distance).collect()
}
// ANCHOR_END: divergence
