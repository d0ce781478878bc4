//! AdamW and Muon on plain slices, and clipping by the global norm.

use crate::tensor::Tensor;

/// What an optimizer is told for one step.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Settings {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
}

/// What AdamW remembers of one tensor.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct State {
    pub step: i32,
    pub exp_avg: Vec<f32>,
    pub exp_avg_sq: Vec<f32>,
}

impl State {
    /// Before the first step, for a tensor of `count` numbers.
    pub fn new(count: usize) -> Self {
        let zeros = vec![0.0; count];
        Self { step: 0, exp_avg: zeros.clone(), exp_avg_sq: zeros }
    }
}

// ANCHOR: adamw_update
/// One AdamW step of one tensor, in place; it counts the step.
///
/// The decay comes first; epsilon is added to the corrected root.
///
/// # Panics
/// Unless weight, gradient and state have one size.
pub fn adamw_update(
    weight: &mut [f32],
    gradient: &[f32],
    state: &mut State,
    now: &Settings,
) {
    let (n, m) = (weight.len(), state.exp_avg.len());
    assert!(n == gradient.len() && n == m, "{n} weights, {m} moments");
    state.step += 1;
    let [beta1, beta2] = now.betas.map(|beta| beta as f32);
    let [rest1, rest2] = now.betas.map(|beta| (1.0 - beta) as f32);
    let [left1, left2] = now.betas.map(|beta| 1.0 - beta.powi(state.step));
    let keep = (1.0 - now.lr * now.weight_decay) as f32;
    let (rate, root2) = ((now.lr / left1) as f32, left2.sqrt() as f32);
    let moments = state.exp_avg.iter_mut().zip(&mut state.exp_avg_sq);
    for ((w, g), (m, v)) in weight.iter_mut().zip(gradient).zip(moments) {
        *w *= keep;
        *m = beta1 * *m + rest1 * g;
        *v = beta2 * *v + rest2 * g * g;
        *w -= rate * *m / (v.sqrt() / root2 + now.eps as f32);
    }
}
// ANCHOR_END: adamw_update

// ANCHOR: clip_grad_norm
/// Scale all gradients so that their joint norm is at most `max_norm`.
///
/// Returns the norm before clipping.
pub fn clip_grad_norm(gradients: &mut [&mut [f32]], max_norm: f32) -> f32 {
    let all = gradients.iter().flat_map(|g| g.iter());
    let square: f64 = all.map(|&x| f64::from(x) * f64::from(x)).sum();
    let norm = square.sqrt() as f32;
    let factor = (max_norm / (norm + 1e-6)).min(1.0);
    for g in gradients.iter_mut().flat_map(|g| g.iter_mut()) {
        *g *= factor;
    }
    norm
}
// ANCHOR_END: clip_grad_norm

/// The polynomial of one step of Newton-Schulz: `a x + b x^3 + c x^5`.
pub type Triple = [f32; 3];
/// Steep at zero, so that small singular values rise fast.
pub const NS_COEFFICIENTS: Triple = [3.4445, -4.7750, 2.0315];

// ANCHOR: orthogonalise
/// Push all singular values of a matrix towards one (Newton-Schulz).
pub fn orthogonalise(update: &Tensor, coefficients: &[Triple]) -> Tensor {
    let [rows, columns] = update.dims();
    if rows > columns {
        // The smaller of the two Gram matrices is that of the transpose.
        return transpose(&orthogonalise(&transpose(update), coefficients));
    }
    let norm = update.data.iter().map(|x| x * x).sum::<f32>().sqrt();
    let mut x = update.map(|x| x / norm.max(1e-7));
    for &[a, b, c] in coefficients {
        let gram = times(&x, &transpose(&x));
        let powers = &(&gram * b) + &(&times(&gram, &gram) * c);
        x = &(&x * a) + &times(&powers, &x);
    }
    x
}
// ANCHOR_END: orthogonalise

fn transpose(x: &Tensor) -> Tensor {
    let [rows, columns] = x.dims();
    let places = (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c)));
    let data = places.map(|(r, c)| x.row(r)[c]).collect();
    Tensor::new(&[columns, rows], data)
}

fn times(a: &Tensor, b: &Tensor) -> Tensor {
    crate::einsum::einsum("rk,kc->rc", [a, b])
}

// ANCHOR: muon_scale
/// By how much an orthogonal update of this shape is stretched.
///
/// `matched` gives it the size of AdamW's updates (Moonlight).
pub fn muon_scale(rows: usize, columns: usize, matched: bool) -> f64 {
    let (r, c) = (rows as f64, columns as f64);
    if matched {
        0.2 * r.max(c).sqrt()
    } else {
        (r / c).max(1.0).sqrt()
    }
}
// ANCHOR_END: muon_scale
