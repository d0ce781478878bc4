//! The parts of GRPO: advantages, ratios, estimates of divergence, masks.
//!
//! A term knows its slope, so that a loss made of terms returns its gradient
//! beside it; [`crate::objective`] makes them.

use crate::sft::masked_mean;
use crate::tensor::Tensor;

const STD_EPS: f32 = 1e-4;

/// Over what the deviation of rewards is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Scale {
    Group,
    Batch,
    None,
}

// ANCHOR: advantages
/// How much better each sample is than its group, `[q, g]`.
///
/// A group of equal rewards gets exact zeros.
///
/// # Panics
/// For a reward that is not finite.
pub fn advantages(rewards: &Tensor, scale: Scale) -> Tensor {
    let finite = rewards.data.iter().all(|x| x.is_finite());
    assert!(finite, "rewards must be finite");
    let whole = deviation(&rewards.data);
    let mut found = Vec::with_capacity(rewards.data.len());
    for group in rewards.rows() {
        let mean = group.iter().sum::<f32>() / group.len() as f32;
        let same = equal(group);
        let size = match scale {
            Scale::Group => deviation(group) + STD_EPS,
            Scale::Batch => whole + STD_EPS,
            Scale::None => 1.0,
        };
        let centred = |x: &f32| if same { 0.0 } else { (x - mean) / size };
        found.extend(group.iter().map(centred));
    }
    Tensor::new(&rewards.shape, found)
}
// ANCHOR_END: advantages

/// A group without a signal: every sample has the same reward.
fn equal(group: &[f32]) -> bool {
    group.iter().all(|x| *x == group[0])
}

/// Unbiased; zero for a single value.
fn deviation(x: &[f32]) -> f32 {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let square: f32 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    (square / (x.len().max(2) - 1) as f32).sqrt()
}

/// Which estimate of the divergence from the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kl {
    K1,
    K2,
    K3,
    Unbiased,
}

/// A number of one token, with its slopes by the log-probability itself and
/// by the logarithm of the ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Term {
    pub value: f32,
    pub by_logp: f32,
    pub by_ratio: f32,
}

// ANCHOR: kl_estimate
/// An estimate of the divergence from one sampled token.
///
/// The unbiased one is weighed by the ratio of policy and sampler and has a
/// slope through that as well.
pub fn kl_estimate(logp: f32, ref_logp: f32, kind: Kl, ratio: f32) -> Term {
    let log_rho = ref_logp - logp;
    let (rho, k3) = (log_rho.exp(), log_rho.exp() - log_rho - 1.0);
    let term = |value, by_logp| Term { value, by_logp, by_ratio: 0.0 };
    match kind {
        Kl::K1 => term(-log_rho, 1.0),
        Kl::K2 => term(log_rho * log_rho / 2.0, -log_rho),
        Kl::K3 => term(k3, 1.0 - rho),
        Kl::Unbiased => Term {
            value: k3 * ratio,
            by_logp: (1.0 - rho) * ratio,
            by_ratio: k3 * ratio,
        },
    }
}
// ANCHOR_END: kl_estimate

// ANCHOR: log_ratio
/// The logarithm of each used token's ratio, or their mean for all (GSPO).
pub fn log_ratio(
    logp: &[f32],
    old_logp: &[f32],
    used: &[usize],
    one: bool,
) -> Vec<f32> {
    let each = used.iter().map(|&i| logp[i] - old_logp[i]).collect();
    if !one {
        return each;
    }
    let mean = each.iter().sum::<f32>() / each.len().max(1) as f32;
    vec![mean; each.len()]
}
// ANCHOR_END: log_ratio

// ANCHOR: dynamic_sampling
/// DAPO's filter: keep a question only if its rewards differ, `[q, g]`.
pub fn dynamic_sampling(rewards: &Tensor) -> Vec<bool> {
    rewards.rows().map(|group| !equal(group)).collect()
}
// ANCHOR_END: dynamic_sampling

// ANCHOR: process_advantages
/// Process supervision: a token earns the steps that end at or after it.
///
/// Rewards and ends are `[q, g, j]`, the result is `[q, g, length]`. An
/// unused slot has no end. The rewards of all steps of a group are
/// normalised together.
///
/// # Panics
/// For a step that ends beyond the length.
pub fn process_advantages(
    step_rewards: &Tensor,
    step_ends: &Tensor<Option<usize>>,
    length: usize,
) -> Tensor {
    let ([q, g, j], ends) = (step_rewards.dims(), &step_ends.data);
    assert!(step_ends.shape == [q, g, j], "{:?} ends", step_ends.shape);
    let mut found = Tensor::zeros(&[q, g, length]);
    for group in 0..q {
        let slots = group * g * j..(group + 1) * g * j;
        let used: Vec<usize> = slots.filter(|&i| ends[i].is_some()).collect();
        let earned = used.iter().map(|&i| step_rewards.data[i]).collect();
        let earned = Tensor::new(&[1, used.len()], earned);
        let scores = advantages(&earned, Scale::Group).data;
        for (&slot, score) in used.iter().zip(scores) {
            let last = ends[slot].unwrap_or(0);
            assert!(last < length, "a step ends at {last} of {length}");
            let row = &mut found.data[slot / j * length..][..=last];
            row.iter_mut().for_each(|x| *x += score);
        }
    }
    found
}
// ANCHOR_END: process_advantages

// ANCHOR: off_policy_mask
/// Which sequences V3.2 keeps: a stale *negative* sample is dropped.
///
/// `sampler_logp` is what the sampler itself returned.
pub fn off_policy_mask(
    logp: &Tensor,
    sampler_logp: &Tensor,
    advantage: &[f32],
    mask: &Tensor<bool>,
    delta: f32,
) -> Vec<bool> {
    let fell = sampler_logp.zip(logp, |old, new| old - new);
    let rows = fell.rows().zip(mask.rows()).zip(advantage);
    let keeps = |((fell, mask), &advantage): ((&[f32], &[bool]), &f32)| {
        advantage >= 0.0 || masked_mean(fell, mask) <= delta
    };
    rows.map(keeps).collect()
}
// ANCHOR_END: off_policy_mask
