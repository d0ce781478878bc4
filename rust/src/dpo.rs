//! Preferences: Bradley and Terry's loss, DPO and its relatives.

use crate::sft::Loss;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `log sigmoid(x)` without an exponential that overflows.
fn logsigmoid(x: f32) -> f32 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// # Panics
/// For NaN and infinities, and for lists of different lengths.
fn check(lists: &[&[f32]]) {
    let count = lists[0].len();
    for list in lists {
        let (found, finite) = (list.len(), list.iter().all(|x| x.is_finite()));
        assert!(found == count && finite, "{found} of {count}, or not finite");
    }
}

// ANCHOR: bradley_terry_loss
/// Negative log-likelihood that the chosen answer wins.
///
/// The gradients are those of the chosen and of the rejected rewards.
pub fn bradley_terry_loss(
    chosen: &[f32],
    rejected: &[f32],
    margin: Option<&[f32]>,
    centering: f32,
) -> Loss<[Vec<f32>; 2]> {
    check(&[chosen, rejected, margin.unwrap_or(chosen)]);
    let (b, mut value) = (chosen.len() as f32, 0.0);
    let mut gradient = [Vec::new(), Vec::new()];
    for (i, (c, r)) in chosen.iter().zip(rejected).enumerate() {
        let gap = c - r - margin.map_or(0.0, |m| m[i]);
        let level = c + r;
        value += (centering * level * level - logsigmoid(gap)) / b;
        let (push, pull) = (sigmoid(-gap) / b, 2.0 * centering * level / b);
        gradient[0].push(pull - push);
        gradient[1].push(pull + push);
    }
    Loss { value, gradient }
}
// ANCHOR_END: bradley_terry_loss

/// How the margin of a pair becomes a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Variant {
    Sigmoid,
    Conservative,
    Robust,
    Hinge,
    Ipo,
    SigmoidNorm,
    ExoPair,
    NcaPair,
    BcoPair,
    SppoHard,
    ApoZero,
    ApoDown,
}

/// What all variants are told.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Choice {
    pub variant: Variant,
    pub beta: f32,
    pub smoothing: f32,
}

// ANCHOR: dpo_loss
/// Mean preference loss over pairs of summed log-probabilities.
///
/// The gradients are those of the policy's two sums; `lengths` matter to
/// IPO and to the normalised sigmoid.
///
/// # Panics
/// For settings out of range, sums that are not finite, lists that differ.
pub fn dpo_loss(
    policy: [&[f32]; 2],
    reference: [&[f32]; 2],
    choice: Choice,
    lengths: Option<[&[usize]; 2]>,
) -> Loss<[Vec<f32>; 2]> {
    check(&[policy[0], policy[1], reference[0], reference[1]]);
    check_choice(choice);
    let averaged =
        matches!(choice.variant, Variant::Ipo | Variant::SigmoidNorm);
    let lengths = lengths.filter(|_| averaged);
    let (count, mut value) = (policy[0].len(), 0.0);
    let mut gradient = [Vec::new(), Vec::new()];
    for i in 0..count {
        let size = |k: usize| lengths.map_or(1, |x| x[k][i].max(1)) as f32;
        let h = |k: usize| (policy[k][i] - reference[k][i]) / size(k);
        let (loss, slopes) = pair_loss(choice, h(0), h(1));
        value += loss / count as f32;
        for k in 0..2 {
            gradient[k].push(slopes[k] / size(k) / count as f32);
        }
    }
    Loss { value, gradient }
}
// ANCHOR_END: dpo_loss

fn check_choice(choice: Choice) {
    let Choice { variant, beta, smoothing } = choice;
    assert!(beta > 0.0, "beta must be positive, found {beta}");
    let fits = (0.0..0.5).contains(&smoothing);
    assert!(fits, "smoothing must be in [0, 0.5), found {smoothing}");
    let defined = variant != Variant::ExoPair || smoothing > 0.0;
    assert!(defined, "exo_pair takes the logarithm of the smoothing");
}

/// The loss of one pair, and its slopes in `c` and `r`.
fn pair_loss(choice: Choice, c: f32, r: f32) -> (f32, [f32; 2]) {
    let Choice { variant, beta, smoothing: e } = choice;
    let m = beta * (c - r);
    let (win, lose) = (logsigmoid(m), logsigmoid(-m));
    let (p, q) = (sigmoid(m), sigmoid(-m));
    let (loss, slope) = match variant {
        Variant::Sigmoid | Variant::SigmoidNorm => (-win, -q),
        Variant::Conservative => {
            (-(1.0 - e) * win - e * lose, e * p - (1.0 - e) * q)
        }
        Variant::Robust => {
            let size = 1.0 - 2.0 * e;
            let loss = e * lose - (1.0 - e) * win;
            (loss / size, -(e * p + (1.0 - e) * q) / size)
        }
        Variant::Hinge if m < 1.0 => (1.0 - m, -1.0),
        Variant::Hinge => (0.0, 0.0),
        Variant::ExoPair => {
            let (kept, flipped) = (win - (-e).ln_1p(), lose - e.ln());
            (p * kept + q * flipped, p * q * (kept - flipped))
        }
        _ => return single_loss(choice, c, r),
    };
    (loss, [beta * slope, -beta * slope])
}

/// The variants that do not read the margin alone.
fn single_loss(choice: Choice, c: f32, r: f32) -> (f32, [f32; 2]) {
    let Choice { variant, beta, .. } = choice;
    let (target, m) = (1.0 / (2.0 * beta), beta * (c - r));
    let (u, v) = (beta * c, beta * r);
    let bell = |x: f32| beta * sigmoid(x) * sigmoid(-x);
    match variant {
        Variant::Ipo => {
            let miss = c - r - target;
            (miss * miss, [2.0 * miss, -2.0 * miss])
        }
        Variant::NcaPair => {
            let even = logsigmoid(-u) + logsigmoid(-v);
            let up = 0.5 * sigmoid(u) - sigmoid(-u);
            let slopes = [beta * up, 0.5 * beta * sigmoid(v)];
            (-logsigmoid(u) - 0.5 * even, slopes)
        }
        Variant::BcoPair => {
            let loss = -logsigmoid(u) - logsigmoid(-v);
            (loss, [-beta * sigmoid(-u), beta * sigmoid(v)])
        }
        Variant::SppoHard => {
            let (up, down) = (c - target, r + target);
            (up * up + down * down, [2.0 * up, 2.0 * down])
        }
        Variant::ApoZero => {
            (1.0 - sigmoid(u) + sigmoid(v), [-bell(u), bell(v)])
        }
        _ => {
            let loss = sigmoid(u) + 1.0 - sigmoid(m);
            (loss, [bell(u) - bell(m), bell(m)])
        }
    }
}
