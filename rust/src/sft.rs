//! The loss of supervised fine-tuning, with its gradient in closed form.
//!
//! Nothing records what was computed, so every loss of post-training says by
//! itself how it changes with its inputs.

use crate::tensor::{softmax, Tensor};

/// A loss, and how it changes with what it is a loss of.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Loss<G = Tensor> {
    pub value: f32,
    pub gradient: G,
}

// ANCHOR: token_logprobs
/// Log-probability of every token given the ones before it, `[b, t - 1]`.
///
/// # Panics
/// Unless logits and tokens agree and the temperature is positive.
pub fn token_logprobs(
    logits: &Tensor,
    tokens: &Tensor<usize>,
    temperature: f32,
) -> Tensor {
    assert!(temperature > 0.0, "the temperature is {temperature}");
    let ([b, t, _], known) = (logits.dims(), &tokens.shape);
    assert!(known[..] == [b, t], "{known:?} tokens for {b} x {t} logits");
    let mut logp = Vec::with_capacity(b * (t - 1));
    for (i, row) in logits.rows().enumerate() {
        if (i + 1) % t > 0 {
            let row = row.iter().map(|z| z / temperature).collect();
            logp.push(log_softmax(row)[tokens.data[i + 1]]);
        }
    }
    Tensor::new(&[b, t - 1], logp)
}
// ANCHOR_END: token_logprobs

/// The logarithm of [`softmax`], without its rounding to zero.
pub fn log_softmax(mut row: Vec<f32>) -> Vec<f32> {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|x| (x - top).exp()).sum();
    row.iter_mut().for_each(|x| *x -= top + sum.ln());
    row
}

/// The mask of the targets: the first token is never one.
pub fn shift(mask: &Tensor<bool>) -> Tensor<bool> {
    mask.slice(1, 1..mask.width())
}

// ANCHOR: masked_mean
/// Mean over the unmasked entries; 0 where there are none.
pub fn masked_mean(x: &[f32], mask: &[bool]) -> f32 {
    let kept = x.iter().zip(mask).filter(|(_, used)| **used);
    let count = kept.clone().count().max(1) as f32;
    kept.map(|(x, _)| x).sum::<f32>() / count
}
// ANCHOR_END: masked_mean

/// Refuse what a loss would read: values under the mask may be anything.
///
/// # Panics
/// For NaN and infinities where unmasked, and for shapes that differ.
pub fn require_finite(name: &str, x: &Tensor, mask: &Tensor<bool>) {
    let fits = x.zip(mask, |x, used| x.is_finite() || !used);
    let wrong = fits.data.iter().filter(|fits| !**fits).count();
    assert!(wrong == 0, "{name}: {wrong} values are not finite");
}

// ANCHOR: sft_loss
/// Mean negative log-likelihood of the trained tokens.
///
/// The gradient at a trained place is the softmax less one at the target.
/// Without a trained token both are zero.
pub fn sft_loss(
    logits: &Tensor,
    tokens: &Tensor<usize>,
    mask: &Tensor<bool>,
) -> Loss {
    let (logp, trained) = (token_logprobs(logits, tokens, 1.0), shift(mask));
    let count = trained.data.iter().filter(|x| **x).count().max(1) as f32;
    let ([b, t, w], mut value) = (logits.dims(), 0.0);
    let mut gradient = Tensor::zeros(&[b, t, w]);
    for place in (0..logp.data.len()).filter(|&i| trained.data[i]) {
        value -= logp.data[place] / count;
        let i = place / (t - 1) * t + place % (t - 1);
        let slope = &mut gradient.data[i * w..][..w];
        slope.copy_from_slice(logits.row(i));
        softmax(slope);
        slope[tokens.data[i + 1]] -= 1.0;
        slope.iter_mut().for_each(|x| *x /= count);
    }
    Loss { value, gradient }
}
// ANCHOR_END: sft_loss
