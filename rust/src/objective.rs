//! The policy losses of the GRPO family, one table of their differences.

use crate::grpo::{kl_estimate, log_ratio, Kl, Term};
use crate::sft::{require_finite, Loss};
use crate::tensor::Tensor;

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
///
/// There is one advantage for each row or, with process supervision, for
/// each token. `keep` silences the surrogate of a row, not its divergence.
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
/// For shapes that differ, for log-probabilities that are not finite where
/// unmasked, and for a divergence without a reference.
pub fn policy_loss(samples: &Samples<'_>, choice: &Objective) -> Loss {
    check(samples, choice);
    let [b, t] = samples.logp.dims();
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
        let (new, old) = (&samples.logp.data, &samples.old_logp.data);
        let ratios = log_ratio(new, old, &used, choice.sequence_level);
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

fn check(samples: &Samples<'_>, choice: &Objective) {
    let [b, t] = samples.logp.dims();
    require_finite("logp", samples.logp, samples.mask);
    require_finite("old_logp", samples.old_logp, samples.mask);
    if let Some(reference) = samples.ref_logp {
        require_finite("ref_logp", reference, samples.mask);
    }
    let count = samples.advantage.len();
    assert!([b, b * t].contains(&count), "{count} advantages, {b} x {t}");
    let known = choice.beta == 0.0 || samples.ref_logp.is_some();
    assert!(known, "beta {} weighs nothing", choice.beta);
}

/// Surrogate and divergence of one token together.
fn token_loss(
    samples: &Samples<'_>,
    row: usize,
    i: usize,
    ratio: f32,
    choice: &Objective,
) -> Term {
    let (logp, tokens) = (samples.logp.data[i], samples.logp.data.len());
    let advantage = samples.advantage[i * samples.advantage.len() / tokens];
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
