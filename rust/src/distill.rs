//! Distillation: divergences between two sets of logits, with gradients.

use crate::sft::{log_softmax, sft_loss, shift, Loss};
use crate::tensor::Tensor;

// ANCHOR: divergence
/// Of `p` from `q`, both as logarithms.
///
/// An entry without probability under `p` adds nothing.
pub fn divergence(log_p: &[f32], log_q: &[f32]) -> f32 {
    let pairs = log_p.iter().zip(log_q).filter(|(p, _)| p.exp() > 0.0);
    pairs.map(|(p, q)| p.exp() * (p - q)).sum()
}
// ANCHOR_END: divergence

/// The mean of a loss of logits over the positions that count.
///
/// `at` gets the logarithms of student and teacher at one position and
/// returns the divergence with its gradient by the student's softened logits.
fn mean(
    [student, teacher]: [&Tensor; 2],
    temperature: f32,
    mask: Option<&[bool]>,
    at: impl Fn(&[f32], &[f32]) -> (f32, Vec<f32>),
) -> Loss {
    assert!(temperature > 0.0, "the temperature is {temperature}");
    let (s, t) = (&student.shape, &teacher.shape);
    assert!(s == t, "a student of {s:?}, a teacher of {t:?}");
    let kept = |i: usize| mask.map_or(true, |mask| mask[i]);
    let rows = student.rows().len();
    let count = (0..rows).filter(|&i| kept(i)).count().max(1) as f32;
    let (mut value, w) = (0.0, student.width());
    let mut gradient = Tensor::zeros(s);
    let soft = |row: &[f32]| {
        log_softmax(row.iter().map(|z| z / temperature).collect())
    };
    for i in (0..rows).filter(|&i| kept(i)) {
        let (log_q, log_p) = (soft(student.row(i)), soft(teacher.row(i)));
        let (loss, slopes) = at(&log_q, &log_p);
        value += loss / count;
        let place = gradient.data[i * w..][..w].iter_mut().zip(slopes);
        place.for_each(|(g, x)| *g = x / temperature / count);
    }
    Loss { value, gradient }
}

/// The gradient by logits of what has the gradient `slope` by `q`.
fn through_softmax(log_q: &[f32], slope: &[f32]) -> Vec<f32> {
    // Without probability the slope may be NaN: it was infinity less itself.
    let alive = |(q, g): (&f32, &f32)| match q.exp() {
        q if q > 0.0 => (q, *g),
        q => (q, 0.0),
    };
    let pairs = || log_q.iter().zip(slope).map(alive);
    let level: f32 = pairs().map(|(q, g)| q * g).sum();
    pairs().map(|(q, g)| q * (g - level)).collect()
}

fn forward(log_q: &[f32], log_p: &[f32]) -> (f32, Vec<f32>) {
    let pairs = log_q.iter().zip(log_p);
    let slopes = pairs.map(|(q, p)| q.exp() - p.exp()).collect();
    (divergence(log_p, log_q), slopes)
}

fn reverse(log_q: &[f32], log_p: &[f32]) -> (f32, Vec<f32>) {
    let gap: Vec<f32> = log_q.iter().zip(log_p).map(|(q, p)| q - p).collect();
    (divergence(log_q, log_p), through_softmax(log_q, &gap))
}

// ANCHOR: kd_loss
/// Hinton's soft loss; its gradient is the difference of the softmaxes.
///
/// Softening divides the gradient by the square of the temperature; the
/// factor takes that back.
pub fn kd_loss(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f32,
    mask: Option<&[bool]>,
) -> Loss {
    let soft = mean([student, teacher], temperature, mask, forward);
    let factor = temperature * temperature;
    let gradient = &soft.gradient * factor;
    Loss { value: factor * soft.value, gradient }
}
// ANCHOR_END: kd_loss

// ANCHOR: reverse_kl_loss
/// The divergence of the student from its teacher, mode-seeking.
pub fn reverse_kl_loss(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f32,
    mask: Option<&[bool]>,
) -> Loss {
    mean([student, teacher], temperature, mask, reverse)
}
// ANCHOR_END: reverse_kl_loss

// ANCHOR: jsd_loss
/// GKD's generalised Jensen-Shannon divergence.
///
/// Zero is the forward and one the reverse divergence by definition.
///
/// # Panics
/// For a `beta` outside [0, 1].
pub fn jsd_loss(
    student: &Tensor,
    teacher: &Tensor,
    beta: f32,
    temperature: f32,
    mask: Option<&[bool]>,
) -> Loss {
    assert!((0.0..=1.0).contains(&beta), "beta is {beta}, not in [0, 1]");
    let mixed = |log_q: &[f32], log_p: &[f32]| {
        let (a, b) = (beta.ln(), (-beta).ln_1p());
        let pairs = log_p.iter().zip(log_q);
        let log_m: Vec<f32> =
            pairs.map(|(p, q)| logaddexp(p + a, q + b)).collect();
        let (far, near) =
            (divergence(log_p, &log_m), divergence(log_q, &log_m));
        let pairs = log_q.iter().zip(&log_m);
        // What changes through the mixture cancels.
        let gap: Vec<f32> =
            pairs.map(|(q, m)| (1.0 - beta) * (q - m)).collect();
        let loss = beta * far + (1.0 - beta) * near;
        (loss, through_softmax(log_q, &gap))
    };
    let both = [student, teacher];
    if beta == 0.0 {
        return mean(both, temperature, mask, forward);
    }
    if beta == 1.0 {
        return mean(both, temperature, mask, reverse);
    }
    mean(both, temperature, mask, mixed)
}
// ANCHOR_END: jsd_loss

fn logaddexp(x: f32, y: f32) -> f32 {
    x.max(y) + (-(x - y).abs()).exp().ln_1p()
}

// ANCHOR: mixed_loss
/// The hard loss of labels and the soft one of a teacher, `weight` of it, on
/// the same trained targets.
///
/// # Panics
/// For a weight outside [0, 1].
pub fn mixed_loss(
    [student, teacher]: [&Tensor; 2],
    tokens: &Tensor<usize>,
    mask: &Tensor<bool>,
    temperature: f32,
    weight: f32,
) -> Loss {
    assert!((0.0..=1.0).contains(&weight), "weight {weight} not in [0, 1]");
    let [b, t, w] = student.dims();
    let early = |logits: &Tensor| logits.slice(1, 0..t - 1);
    let (q, p, trained) = (early(student), early(teacher), shift(mask).data);
    let soft = kd_loss(&q, &p, temperature, Some(&trained));
    let hard = sft_loss(student, tokens, mask);
    // The last logits speak about no token of the row.
    let last = Tensor::zeros(&[b, 1, w]);
    let gradient = &(&soft.gradient * weight).cat(&last, 1)
        + &(&hard.gradient * (1.0 - weight));
    let value = (1.0 - weight) * hard.value + weight * soft.value;
    Loss { value, gradient }
}
// ANCHOR_END: mixed_loss

// ANCHOR: layer_map
/// The teacher layer each student layer starts from: evenly spaced, last to
/// last.
///
/// # Panics
/// For a student deeper than its teacher, or without a layer.
pub fn layer_map(student: usize, teacher: usize) -> Vec<usize> {
    let fits = (1..=teacher).contains(&student);
    assert!(fits, "{student} layers cannot be chosen from {teacher}");
    (0..student).map(|j| (j + 1) * teacher / student - 1).collect()
}
// ANCHOR_END: layer_map

// ANCHOR: keep_probability
/// Progressive layer dropping: how likely a layer runs at this step.
pub fn keep_probability(step: usize, floor: f64, gamma: f64) -> f64 {
    (1.0 - floor) * (-gamma * step as f64).exp() + floor
}
// ANCHOR_END: keep_probability
