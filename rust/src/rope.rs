//! Rotary positions in both layouts, and YaRN as DeepSeek uses it.

use std::f64::consts::TAU;

use crate::config::{Config, Yarn};
use crate::tensor::Tensor;

/// The cosine and sine of each pair: a complex number of two parts.
pub type Phase = Tensor<[f32; 2]>;

// ANCHOR: frequencies
/// Radians per position of each of the `p = r / 2` pairs.
///
/// # Panics
/// If the width is odd.
pub fn frequencies(width: usize, theta: f64, yarn: Option<&Yarn>) -> Vec<f32> {
    assert!(width % 2 == 0, "rotation needs an even width, found {width}");
    let exponent = |m: usize| 2.0 * m as f32 / width as f32;
    let plain = (0..width / 2).map(|m| 1.0 / (theta as f32).powf(exponent(m)));
    let yarn = match yarn {
        None => return plain.collect(),
        Some(yarn) => yarn,
    };
    let gamma = ramp(width, theta, yarn);
    let slowed = |x: f32, g: f32| x / yarn.factor as f32 * g + x * (1.0 - g);
    plain.zip(gamma).map(|(x, g)| slowed(x, g)).collect()
}
// ANCHOR_END: frequencies

// ANCHOR: ramp
/// How far each pair is slowed: 0 keeps it, 1 divides it by the factor.
pub fn ramp(width: usize, theta: f64, yarn: &Yarn) -> Vec<f32> {
    let (low, high) = correction_range(width, theta, yarn);
    let share = |m: usize| (m as f64 - low) / (high - low);
    (0..width / 2).map(|m| share(m).clamp(0.0, 1.0) as f32).collect()
}
// ANCHOR_END: ramp

// ANCHOR: correction_range
/// The pairs between which YaRN's ramp rises, rounded outwards.
pub fn correction_range(width: usize, theta: f64, yarn: &Yarn) -> (f64, f64) {
    let pair = |turns: f64| {
        let window = yarn.original_max_position_embeddings as f64;
        let turn = (window / (turns * TAU)).ln();
        width as f64 * turn / (2.0 * theta.ln())
    };
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(width as f64 - 1.0);
    (low, if low == high { high + 0.001 } else { high })
}
// ANCHOR_END: correction_range

// ANCHOR: magnitude
/// YaRN's `0.1 a ln s + 1`; 1 where nothing is stretched.
pub fn magnitude(factor: f64, weight: f64) -> f64 {
    match factor > 1.0 {
        true => 0.1 * weight * factor.ln() + 1.0,
        false => 1.0,
    }
}
// ANCHOR_END: magnitude

// ANCHOR: softmax_factor
/// What YaRN multiplies onto the whole logit.
pub fn softmax_factor(yarn: Option<&Yarn>) -> f64 {
    yarn.map_or(1.0, |x| magnitude(x.factor, x.mscale_all_dim).powi(2))
}
// ANCHOR_END: softmax_factor

// ANCHOR: phases
/// The unit numbers that turn queries and keys, `[b, t, p]`.
pub fn phases(cfg: &Config, position: &Tensor<usize>) -> Phase {
    let yarn = cfg.rope_scaling.as_ref();
    let theta = frequencies(cfg.qk_rope_head_dim, cfg.rope_theta, yarn);
    let size = yarn.map_or(1.0, |yarn| {
        let whole = magnitude(yarn.factor, yarn.mscale);
        (whole / magnitude(yarn.factor, yarn.mscale_all_dim)) as f32
    });
    turns(&theta, position).map(|[cos, sin]| [size * cos, size * sin])
}
// ANCHOR_END: phases

/// The unit numbers of these frequencies at these positions.
pub fn turns(theta: &[f32], position: &Tensor<usize>) -> Phase {
    let [b, t] = position.dims();
    let mut data = Vec::with_capacity(b * t * theta.len());
    for &position in &position.data {
        for theta in theta {
            let (sin, cos) = (position as f32 * theta).sin_cos();
            data.push([cos, sin]);
        }
    }
    Tensor::new(&[b, t, theta.len()], data)
}

// ANCHOR: Layout
/// Which two entries of a vector are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Entries `2m` and `2m + 1`, as in DeepSeek's attention.
    Interleaved,
    /// Entries `m` and `m + r/2`, as in Llama and DeepSeek's indexer.
    HalfSplit,
}

impl Layout {
    /// The two places of pair `m` in a vector of `p` pairs.
    fn places(self, m: usize, p: usize) -> [usize; 2] {
        match self {
            Layout::Interleaved => [2 * m, 2 * m + 1],
            Layout::HalfSplit => [m, m + p],
        }
    }
}
// ANCHOR_END: Layout

// ANCHOR: rotate
/// Turn each pair of the last axis by its phase; `x` is `[b, t, .., r]`.
///
/// # Panics
/// Unless phase and vectors agree in batch, time and pairs.
pub fn rotate(mut x: Tensor, phase: &Phase, layout: Layout) -> Tensor {
    let [b, t, p] = phase.dims();
    let fits = x.shape[..2] == [b, t] && x.width() == 2 * p;
    assert!(fits, "{:?} turned by {:?}", x.shape, phase.shape);
    let heads: usize = x.shape[2..x.shape.len() - 1].iter().product();
    for (i, row) in x.data.chunks_exact_mut(2 * p).enumerate() {
        for (m, [cos, sin]) in phase.row(i / heads).iter().enumerate() {
            let [re, im] = layout.places(m, p);
            let (x, y) = (row[re], row[im]);
            row[re] = x * cos - y * sin;
            row[im] = x * sin + y * cos;
        }
    }
    x
}
// ANCHOR_END: rotate

/// Reorder interleaved pairs so that half-split rotation fits them.
pub fn to_half_split(x: &Tensor) -> Tensor {
    reorder(x, Layout::Interleaved, Layout::HalfSplit)
}

/// The inverse of [`to_half_split`].
pub fn to_interleaved(x: &Tensor) -> Tensor {
    reorder(x, Layout::HalfSplit, Layout::Interleaved)
}

fn reorder(x: &Tensor, from: Layout, to: Layout) -> Tensor {
    let (mut y, p) = (x.clone(), x.width() / 2);
    for (row, old) in y.data.chunks_exact_mut(2 * p).zip(x.rows()) {
        for m in 0..p {
            let places = to.places(m, p).into_iter().zip(from.places(m, p));
            places.for_each(|(new, place)| row[new] = old[place]);
        }
    }
    y
}
