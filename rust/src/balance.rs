//! Keeping experts busy: load statistics, balance losses, the bias update.
//!
//! Losses come without their coefficient.

use crate::tensor::{topk, Tensor};

// ANCHOR: loads
/// How many slots each expert got; dropped slots do not count.
pub fn loads(experts: &Tensor<usize>, n_experts: usize) -> Vec<usize> {
    let mut counts = vec![0; n_experts + 1];
    experts.data.iter().for_each(|&e| counts[e] += 1);
    counts.truncate(n_experts);
    counts
}
// ANCHOR_END: loads

/// Four views of how even a load is.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// Each expert's part of all slots.
    pub share: Vec<f64>,
    /// The greatest load over the mean, less one.
    pub max_violation: f64,
    /// The standard deviation over the mean.
    pub variation: f64,
    /// In nats, at most `ln e`.
    pub entropy: f64,
}

// ANCHOR: balance
/// Measure a load; no tokens at all are an even load.
pub fn balance(counts: &[usize]) -> Balance {
    let e = counts.len() as f64;
    let total = counts.iter().sum::<usize>() as f64;
    let part = |&c: &usize| match total > 0.0 {
        true => c as f64 / total,
        false => 1.0 / e,
    };
    let share: Vec<f64> = counts.iter().map(part).collect();
    let nats = |&p: &f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    Balance {
        max_violation: share.iter().copied().fold(0.0, f64::max) * e - 1.0,
        variation: variation_squared(&share).sqrt(),
        entropy: share.iter().map(nats).sum(),
        share,
    }
}
// ANCHOR_END: balance

// ANCHOR: variation_squared
/// The variance over the squared mean, zero for an empty load.
pub fn variation_squared(load: &[f64]) -> f64 {
    let n = load.len() as f64;
    let mean = load.iter().sum::<f64>() / n;
    let square = |x: &f64| (x - mean) * (x - mean);
    let variance = load.iter().map(square).sum::<f64>() / n;
    variance / if mean == 0.0 { 1.0 } else { mean * mean }
}
// ANCHOR_END: variation_squared

// ANCHOR: dense
/// The sparse gates written out, zero for experts not chosen.
pub fn dense(
    weights: &Tensor,
    experts: &Tensor<usize>,
    n_experts: usize,
) -> Tensor {
    let [z, k] = experts.dims();
    let mut gates = Tensor::zeros(&[z, n_experts]);
    let slots = experts.data.iter().zip(&weights.data).enumerate();
    for (slot, (&e, &weight)) in slots.filter(|x| *x.1 .0 < n_experts) {
        gates.data[slot / k * n_experts + e] = weight;
    }
    gates
}
// ANCHOR_END: dense

// ANCHOR: z_loss
/// Keep the router's logits small: the mean squared log of their sum.
pub fn z_loss(logits: &Tensor) -> f32 {
    let square = |row: &[f32]| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|x| (x - top).exp()).sum();
        (top + sum.ln()).powi(2)
    };
    logits.rows().map(square).sum::<f32>() / logits.shape[0].max(1) as f32
}
// ANCHOR_END: z_loss

// ANCHOR: fractions
/// The load over its even share, and the mean score, of each expert.
pub fn fractions(
    scores: &Tensor,
    experts: &Tensor<usize>,
) -> (Vec<f32>, Vec<f32>) {
    let [z, e] = scores.dims();
    let slots = experts.data.len().max(1) as f32;
    let load = |c: usize| c as f32 * e as f32 / slots;
    let mut p = vec![0.0; e];
    for row in scores.rows() {
        p.iter_mut().zip(row).for_each(|(p, s)| *p += s / z as f32);
    }
    (loads(experts, e).into_iter().map(load).collect(), p)
}
// ANCHOR_END: fractions

fn sum_of_products(f: &[f32], p: &[f32]) -> f32 {
    f.iter().zip(p).map(|(f, p)| f * p).sum()
}

// ANCHOR: expert_loss
/// One for an even load of softmax scores; the Switch loss for one expert.
pub fn expert_loss(scores: &Tensor, experts: &Tensor<usize>) -> f32 {
    let (f, p) = fractions(scores, experts);
    sum_of_products(&f, &p)
}
// ANCHOR_END: expert_loss

// ANCHOR: gshard_loss
/// From first choices only.
pub fn gshard_loss(scores: &Tensor, experts: &Tensor<usize>) -> f32 {
    let e = scores.width() as f32;
    expert_loss(scores, &experts.slice(1, 0..1)) / (e * e)
}
// ANCHOR_END: gshard_loss

// ANCHOR: device_loss
/// Over devices that hold neighbouring experts: a mean and a sum.
pub fn device_loss(
    scores: &Tensor,
    experts: &Tensor<usize>,
    devices: usize,
) -> f32 {
    let (f, p) = fractions(scores, experts);
    let size = (f.len() / devices) as f32;
    let f = by_device(&f, devices).into_iter().map(|x| x / size);
    let f: Vec<f32> = f.collect();
    sum_of_products(&f, &by_device(&p, devices))
}
// ANCHOR_END: device_loss

/// The sum on each device.
///
/// # Panics
/// If the devices do not divide the experts.
fn by_device(x: &[f32], devices: usize) -> Vec<f32> {
    let e = x.len();
    assert!(e % devices == 0, "{devices} devices do not divide {e} experts");
    x.chunks_exact(e / devices).map(|part| part.iter().sum()).collect()
}

// ANCHOR: communication_loss
/// No device should receive too many tokens, of which each may reach `limit`.
pub fn communication_loss(
    scores: &Tensor,
    experts: &Tensor<usize>,
    devices: usize,
    limit: usize,
) -> f32 {
    let [z, e] = scores.dims();
    let (_, p) = fractions(scores, experts);
    let p = by_device(&p, devices);
    let mut sent = vec![0.0; devices];
    for row in experts.rows() {
        for (device, count) in sent.iter_mut().enumerate() {
            let here = |&x: &usize| x < e && x / (e / devices) == device;
            *count += f32::from(u8::from(row.iter().any(here)));
        }
    }
    let scale = devices as f32 / (limit * z.max(1)) as f32;
    sum_of_products(&sent, &p) * scale
}
// ANCHOR_END: communication_loss

// ANCHOR: sequence_loss
/// The expert loss within each sequence, averaged over sequences.
///
/// As printed in the report, the load counts the best unbiased scores; hand
/// in `experts` to count the real choice. `scores` is `[b, t, e]`.
pub fn sequence_loss(
    scores: &Tensor,
    k: usize,
    experts: Option<&Tensor<usize>>,
) -> f32 {
    let [b, t, e] = scores.dims();
    let mut total = 0.0;
    for sequence in 0..b {
        let (mut chosen, mut p) = (vec![0.0; e + 1], vec![0.0; e]);
        for token in sequence * t..(sequence + 1) * t {
            let row = scores.row(token);
            let best =
                experts.map_or_else(|| topk(row, k), |x| x.row(token).to_vec());
            best.into_iter().for_each(|e| chosen[e] += 1.0);
            let sum: f32 = row.iter().sum();
            p.iter_mut().zip(row).for_each(|(p, s)| *p += s / sum);
        }
        total += sum_of_products(&chosen[..e], &p);
    }
    total * e as f32 / (k * t * t * b).max(1) as f32
}
// ANCHOR_END: sequence_loss

/// How the selection bias moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rule {
    Sign,
    Centred,
    Proportional,
}

// ANCHOR: updated_bias
/// The selection bias after one step: up for idle experts, else down.
pub fn updated_bias(
    bias: &[f32],
    counts: &[usize],
    speed: f32,
    rule: Rule,
) -> Vec<f32> {
    let e = counts.len() as f32;
    let mean = counts.iter().sum::<usize>() as f32 / e;
    let sign = |error: f32| match error == 0.0 {
        true => 0.0,
        false => error.signum(),
    };
    let errors = counts.iter().map(|&c| mean - c as f32);
    let steps: Vec<f32> = match rule {
        Rule::Proportional => errors.map(|x| x / mean.max(1.0 / e)).collect(),
        Rule::Sign | Rule::Centred => errors.map(sign).collect(),
    };
    let drift = match rule {
        Rule::Centred => steps.iter().sum::<f32>() / e,
        Rule::Sign | Rule::Proportional => 0.0,
    };
    let moved = |(b, step): (&f32, f32)| b + speed * (step - drift);
    bias.iter().zip(steps).map(moved).collect()
}
// ANCHOR_END: updated_bias
