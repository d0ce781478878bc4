//! GRPO: advantages of a group, clipped surrogates, estimates of divergence.
//!
//! A term knows its slope, so that [`policy_loss`] returns the gradient by
//! the log-probabilities beside the loss.

use crate::sft::Loss;
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
        let equal = group.iter().all(|x| *x == group[0]);
        let size = match scale {
            Scale::Group => deviation(group) + STD_EPS,
            Scale::Batch => whole + STD_EPS,
            Scale::None => 1.0,
        };
        let centred = |x: &f32| if equal { 0.0 } else { (x - mean) / size };
        found.extend(group.iter().map(centred));
    }
    Tensor::new(&rewards.shape, found)
}
// ANCHOR_END: advantages

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

/// What the sum over tokens is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reduction {
    Sequence,
    Token,
    Constant(usize),
}

/// The choices that make a policy loss.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Objective {
    pub sequence_level: bool,
    pub reduction: Reduction,
    pub eps_low: f32,
    pub eps_high: f32,
    pub delta: Option<f32>,
    pub beta: f32,
    pub kl: Kl,
    pub detached: bool,
}

impl Default for Objective {
    /// GRPO as DeepSeekMath has it, without a divergence.
    fn default() -> Self {
        Self {
            sequence_level: false,
            reduction: Reduction::Sequence,
            eps_low: 0.2,
            eps_high: 0.2,
            delta: None,
            beta: 0.0,
            kl: Kl::K3,
            detached: false,
        }
    }
}

// ANCHOR: surrogate
/// The smaller of the gain and the clipped gain, negated, with its slope.
///
/// A clipped token has no slope. CISPO caps the ratio instead and lets the
/// log-probability carry one.
pub fn surrogate(
    ratio: f32,
    advantage: f32,
    logp: f32,
    choice: &Objective,
) -> Term {
    let (low, high) = (1.0 - choice.eps_low, 1.0 + choice.eps_high);
    if choice.detached {
        let slope = -ratio.min(high) * advantage;
        return Term { value: slope * logp, by_logp: slope, by_ratio: 0.0 };
    }
    let cap = choice.delta.unwrap_or(f32::INFINITY);
    let gain = ratio.min(cap) * advantage;
    let clipped = ratio.clamp(low, high) * advantage;
    let free = match gain <= clipped {
        true => ratio < cap,
        false => (low..=high).contains(&ratio),
    };
    Term {
        value: -gain.min(clipped),
        by_logp: 0.0,
        by_ratio: if free { -ratio * advantage } else { 0.0 },
    }
}
// ANCHOR_END: surrogate

/// What a policy loss reads; a row is a completion, `[b, t]`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Samples<'a> {
    pub logp: &'a Tensor,
    pub old_logp: &'a Tensor,
    pub ref_logp: Option<&'a Tensor>,
    pub advantage: &'a [f32],
    pub mask: &'a Tensor<bool>,
    pub keep: Option<&'a [bool]>,
}

// ANCHOR: policy_loss
/// The clipped surrogate plus the divergence, and its gradient by `logp`.
///
/// # Panics
/// For shapes that differ, or a divergence without a reference.
pub fn policy_loss(samples: &Samples<'_>, choice: &Objective) -> Loss {
    let ([b, t], shape) = (samples.logp.dims(), &samples.mask.shape);
    assert!(shape[..] == [b, t], "{shape:?} masks for {b} x {t}");
    let known = choice.beta == 0.0 || samples.ref_logp.is_some();
    assert!(known, "beta {} weighs nothing", choice.beta);
    let every = samples.mask.data.iter().filter(|x| **x).count();
    let (mut value, mut gradient) = (0.0, Tensor::zeros(&[b, t]));
    for row in 0..b {
        let used: Vec<usize> =
            (row * t..row * t + t).filter(|&i| samples.mask.data[i]).collect();
        let divisor = match choice.reduction {
            Reduction::Sequence => b * used.len(),
            Reduction::Token => every,
            Reduction::Constant(longest) => b * longest,
        };
        let divisor = divisor.max(1) as f32;
        let ratios = log_ratio(samples, &used, choice.sequence_level);
        let mut through = 0.0;
        for (&i, log_ratio) in used.iter().zip(ratios) {
            let term = token_loss(samples, row, i, log_ratio.exp(), choice);
            value += term.value / divisor;
            gradient.data[i] += term.by_logp / divisor;
            through += term.by_ratio / divisor;
            if !choice.sequence_level {
                gradient.data[i] += std::mem::take(&mut through);
            }
        }
        // All tokens of a sequence share its ratio, and so the slope.
        let share = through / used.len().max(1) as f32;
        used.iter().for_each(|&i| gradient.data[i] += share);
    }
    Loss { value, gradient }
}
// ANCHOR_END: policy_loss

// ANCHOR: log_ratio
/// The logarithm of each token's ratio, or their mean for all (GSPO).
fn log_ratio(samples: &Samples<'_>, used: &[usize], one: bool) -> Vec<f32> {
    let (new, old) = (&samples.logp.data, &samples.old_logp.data);
    let each: Vec<f32> = used.iter().map(|&i| new[i] - old[i]).collect();
    if !one {
        return each;
    }
    let mean = each.iter().sum::<f32>() / each.len().max(1) as f32;
    vec![mean; each.len()]
}
// ANCHOR_END: log_ratio

/// Surrogate and divergence of one token together.
fn token_loss(
    samples: &Samples<'_>,
    row: usize,
    i: usize,
    ratio: f32,
    choice: &Objective,
) -> Term {
    let (logp, advantage) = (samples.logp.data[i], samples.advantage[row]);
    let gain = match samples.keep.map_or(true, |keep| keep[row]) {
        true => surrogate(ratio, advantage, logp, choice),
        false => Term::default(),
    };
    let far = samples.ref_logp.map_or(Term::default(), |reference| {
        kl_estimate(logp, reference.data[i], choice.kl, ratio)
    });
    Term {
        value: gain.value + choice.beta * far.value,
        by_logp: gain.by_logp + choice.beta * far.by_logp,
        by_ratio: gain.by_ratio + choice.beta * far.by_ratio,
    }
}

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
