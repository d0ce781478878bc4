//! PPO from human feedback: a critic instead of a group's mean.
//!
//! The divergence from the reference is part of the reward, not of the loss.

use crate::grpo::Term;
use crate::objective::{surrogate, Objective};
use crate::sft::{masked_mean, require_finite, Loss};
use crate::tensor::Tensor;

// ANCHOR: shaped_rewards
/// A penalty for every token, and the score on the last trained one.
///
/// # Panics
/// For log-probabilities that are not finite where unmasked.
pub fn shaped_rewards(
    score: &[f32],
    logp: &Tensor,
    ref_logp: &Tensor,
    mask: &Tensor<bool>,
    beta: f32,
) -> Tensor {
    require_finite("logp", logp, mask);
    require_finite("ref_logp", ref_logp, mask);
    let mut found = logp.zip(ref_logp, |new, old| -beta * (new - old));
    for (row, mask) in mask.rows().enumerate() {
        let places = &mut found.data[row * mask.len()..][..mask.len()];
        if let Some(last) = mask.iter().rposition(|&used| used) {
            places[last] += score[row];
        }
        for (place, used) in places.iter_mut().zip(mask) {
            *place = if *used { *place } else { 0.0 };
        }
    }
    found
}
// ANCHOR_END: shaped_rewards

// ANCHOR: gae
/// Advantages and returns of one row, by generalised advantage estimation.
///
/// Masked places are stepped over: the recursion continues at the next
/// trained token.
pub fn gae(
    [rewards, values]: [&[f32]; 2],
    mask: &[bool],
    gamma: f32,
    lam: f32,
) -> [Vec<f32>; 2] {
    let mut found = [vec![0.0; mask.len()], vec![0.0; mask.len()]];
    let (mut after, mut carried) = (0.0, 0.0);
    for t in (0..mask.len()).rev().filter(|&t| mask[t]) {
        let delta = rewards[t] + gamma * after - values[t];
        carried = delta + gamma * lam * carried;
        after = values[t];
        found[0][t] = carried;
        found[1][t] = carried + values[t];
    }
    found
}
// ANCHOR_END: gae

// ANCHOR: whiten
/// Mean 0 and variance 1 over the unmasked tokens of the batch.
pub fn whiten(x: &Tensor, mask: &Tensor<bool>) -> Tensor {
    let mean = masked_mean(&x.data, &mask.data);
    let centre = |x: &f32, used: &bool| if *used { x - mean } else { 0.0 };
    let centred = x.zip(mask, centre);
    let count = mask.data.iter().filter(|used| **used).count();
    let square: f32 = centred.data.iter().map(|x| x * x).sum();
    let variance = square / (count.max(2) - 1) as f32;
    &centred * (1.0 / (variance + 1e-8).sqrt())
}
// ANCHOR_END: whiten

/// The mean of a term over the unmasked places; its slopes are the gradient.
fn mean(mask: &Tensor<bool>, at: impl Fn(usize) -> (f32, f32)) -> Loss {
    let used = (0..mask.data.len()).filter(|&i| mask.data[i]);
    let count = used.clone().count().max(1) as f32;
    let mut loss = Loss { value: 0.0, gradient: Tensor::zeros(&mask.shape) };
    for i in used {
        let (value, slope) = at(i);
        loss.value += value / count;
        loss.gradient.data[i] = slope / count;
    }
    loss
}

// ANCHOR: ppo_loss
/// The clipped surrogate, averaged over tokens, and its gradient by `logp`.
///
/// The clip is GRPO's; only where the advantage comes from differs.
///
/// # Panics
/// For log-probabilities that are not finite where unmasked.
pub fn ppo_loss(
    logp: &Tensor,
    old_logp: &Tensor,
    advantage: &Tensor,
    mask: &Tensor<bool>,
    eps: f32,
) -> Loss {
    require_finite("logp", logp, mask);
    require_finite("old_logp", old_logp, mask);
    let clip =
        Objective { eps_low: eps, eps_high: eps, ..Objective::default() };
    mean(mask, |i| {
        let (new, advantage) = (logp.data[i], advantage.data[i]);
        let ratio = (new - old_logp.data[i]).exp();
        let Term { value, by_ratio, .. } =
            surrogate(ratio, advantage, new, &clip);
        (value, by_ratio)
    })
}
// ANCHOR_END: ppo_loss

// ANCHOR: value_loss
/// Half the larger of two squared errors, the second one clipped, and its
/// gradient by the values.
///
/// Where the clip binds and its error is the larger, nothing pulls.
pub fn value_loss(
    values: &Tensor,
    old_values: &Tensor,
    returns: &Tensor,
    mask: &Tensor<bool>,
    eps: f32,
) -> Loss {
    mean(mask, |i| {
        let (value, old) = (values.data[i], old_values.data[i]);
        let near = old + (value - old).clamp(-eps, eps);
        let error = value - returns.data[i];
        let clipped = near - returns.data[i];
        let free = error.abs() >= clipped.abs() || (value - old).abs() <= eps;
        let larger = error.abs().max(clipped.abs());
        (0.5 * larger * larger, if free { error } else { 0.0 })
    })
}
// ANCHOR_END: value_loss
