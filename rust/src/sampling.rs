//! From logits to tokens: temperature, nucleus, and lossless verification.

use crate::error::{error, Result};
use crate::tensor::{argmax, softmax, Tensor};

/// How tokens are chosen; temperature zero takes the likeliest.
#[derive(Clone, Debug)]
pub struct Sampling {
    temperature: f32,
    top_p: f32,
    state: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, state: 0 }
    }

    /// Draw tokens; the seed makes it repeatable.
    ///
    /// # Errors
    /// For a negative temperature or a `top_p` outside (0, 1].
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Self> {
        if !temperature.is_finite() || temperature < 0.0 {
            return error(format!("temperature {temperature} is below 0"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return error(format!("top_p {top_p} is outside (0, 1]"));
        }
        Ok(Self { temperature, top_p, state: seed })
    }

    // ANCHOR: probabilities
    /// Softmax of `logits / temperature`, cut to the nucleus.
    ///
    /// At temperature zero all probability is on the likeliest token, so
    /// greedy decoding is a case of sampling.
    ///
    /// # Errors
    /// For logits that are not finite.
    pub fn probabilities(&self, logits: &Tensor) -> Result<Tensor> {
        if !logits.data.iter().all(|x| x.is_finite()) {
            return error("the logits are not finite");
        }
        let (mut p, width) = (logits.clone(), logits.width());
        for row in p.data.chunks_exact_mut(width) {
            if self.temperature == 0.0 {
                let best = argmax(row);
                row.fill(0.0);
                row[best] = 1.0;
            } else {
                row.iter_mut().for_each(|x| *x /= self.temperature);
                softmax(row);
                nucleus(row, self.top_p);
            }
        }
        Ok(p)
    }
    // ANCHOR_END: probabilities

    /// One token for each distribution of `[b, t, w]`.
    pub fn draw(&mut self, p: &Tensor) -> Tensor<usize> {
        let [b, t, _] = p.dims();
        let tokens = p.rows().map(|row| self.pick(row)).collect();
        Tensor::new(&[b, t], tokens)
    }

    /// One token from weights that need not sum to one.
    pub fn pick(&mut self, weights: &[f32]) -> usize {
        let mut left = self.uniform() * weights.iter().sum::<f32>();
        let mut last = 0;
        for (token, &weight) in weights.iter().enumerate() {
            if weight > 0.0 {
                last = token;
                if left < weight {
                    break;
                }
                left -= weight;
            }
        }
        last
    }

    /// A number in [0, 1): 24 bits of SplitMix64.
    pub fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    }
}

// ANCHOR: nucleus
/// Keep the fewest likeliest tokens that together reach `top_p`.
pub fn nucleus(row: &mut [f32], top_p: f32) {
    if top_p == 1.0 {
        return;
    }
    let (mut before, mut kept) = (0.0, 0.0);
    for token in crate::tensor::topk(row, row.len()) {
        let p = row[token];
        match before >= top_p {
            true => row[token] = 0.0,
            false => kept += p,
        }
        before += p;
    }
    row.iter_mut().for_each(|p| *p /= kept);
}
// ANCHOR_END: nucleus

// ANCHOR: verify
/// Drafted tokens `[b, k]` as far as they hold, and one token more.
///
/// A draft from `q` is kept where `u < p / q`; the first that is not is drawn
/// again from what `p` has over `q`, and if all are kept one more comes from
/// the last row of `p`. The sequences of a batch stop together, at the first
/// refusal of any.
pub fn verify(
    drafts: &Tensor<usize>,
    [q, p]: [&Tensor; 2],
    u: &Tensor,
    pick: &mut dyn FnMut(&[f32]) -> usize,
) -> Tensor<usize> {
    let [b, count] = drafts.dims();
    let at = |i: usize, k: usize| i * (count + 1) + k;
    let kept = |i: usize, k: usize| {
        let (slot, token) = (i * count + k, drafts.data[i * count + k]);
        u.data[slot] < p.row(at(i, k))[token] / q.row(slot)[token]
    };
    let held = |i: usize| (0..count).take_while(|&k| kept(i, k)).count();
    let good = (0..b).map(held).min().unwrap_or(0);
    let mut last = Vec::new();
    for i in 0..b {
        let p = p.row(at(i, good));
        last.push(match good < count {
            true if kept(i, good) => drafts.data[i * count + good],
            true => pick(&residual(p, q.row(i * count + good))),
            false => pick(p),
        });
    }
    drafts.slice(1, 0..good).cat(&Tensor::new(&[b, 1], last), 1)
}
// ANCHOR_END: verify

// ANCHOR: residual
/// What is left for a refused draft: what `p` has over `q`, or `p` itself if
/// they agree.
pub fn residual(p: &[f32], q: &[f32]) -> Vec<f32> {
    let over = |(p, q): (&f32, &f32)| (p - q).max(0.0);
    let left: Vec<f32> = p.iter().zip(q).map(over).collect();
    match left.iter().sum::<f32>() > 0.0 {
        true => left,
        false => p.to_vec(),
    }
}
// ANCHOR_END: residual
