//! Small shared parts: a linear map, norms, the gated MLP, masks, softmax.

use crate::checkpoint::Weights;
use crate::einsum::einsum;
use crate::error::Result;
use crate::tensor::{softmax, Tensor};

/// `y = W x` without a bias, as everywhere in DeepSeek's models.
#[derive(Clone, Debug)]
pub struct Linear {
    /// One row for each output.
    pub weight: Tensor,
}

impl Linear {
    /// Take `name.weight` of shape `[out, inputs]`.
    pub fn load(
        weights: &mut Weights,
        name: &str,
        [out, inputs]: [usize; 2],
    ) -> Result<Self> {
        let mut own = weights.at(name);
        let weight = own.take("weight", &[out, inputs])?;
        own.done()?;
        Ok(Self { weight })
    }

    /// The map for every vector along the last axis.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight)
    }
}

/// `x W^T` for every vector along the last axis.
pub fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    let mut shape = x.shape.clone();
    let flat = x.clone().flatten();
    *shape.last_mut().expect("an axis") = weight.shape[0];
    einsum("zd,ed->ze", [&flat, weight]).reshape(&shape)
}

/// Divide each vector by its root mean square, then weigh each entry.
#[derive(Clone, Debug)]
pub struct RMSNorm {
    weight: Tensor,
    eps: f32,
}

impl RMSNorm {
    /// Take `name.weight` of shape `[width]`.
    pub fn load(
        weights: &mut Weights,
        name: &str,
        width: usize,
        eps: f64,
    ) -> Result<Self> {
        let mut own = weights.at(name);
        let weight = own.take("weight", &[width])?;
        own.done()?;
        Ok(Self { weight, eps: eps as f32 })
    }

    /// Norm every vector along the last axis.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut y = x.clone();
        for row in y.data.chunks_exact_mut(x.width()) {
            let squares: f32 = row.iter().map(|x| x * x).sum();
            let size = (squares / row.len() as f32 + self.eps).sqrt();
            let pairs = row.iter_mut().zip(&self.weight.data);
            pairs.for_each(|(x, w)| *x = *x / size * w);
        }
        y
    }
}

/// Centre each vector, divide it by its deviation, weigh and shift it.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Take `name.weight` and `name.bias` of shape `[width]`.
    pub fn load(
        weights: &mut Weights,
        name: &str,
        width: usize,
        eps: f64,
    ) -> Result<Self> {
        let mut own = weights.at(name);
        let weight = own.take("weight", &[width])?;
        let bias = own.take("bias", &[width])?;
        own.done()?;
        Ok(Self { weight, bias, eps: eps as f32 })
    }

    /// Norm every vector along the last axis.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut y = x.clone();
        for row in y.data.chunks_exact_mut(x.width()) {
            let n = row.len() as f32;
            let mean = row.iter().sum::<f32>() / n;
            row.iter_mut().for_each(|x| *x -= mean);
            let variance = row.iter().map(|x| x * x).sum::<f32>() / n;
            let size = (variance + self.eps).sqrt();
            let maps = self.weight.data.iter().zip(&self.bias.data);
            let pairs = row.iter_mut().zip(maps);
            pairs.for_each(|(x, (w, b))| *x = *x / size * w + b);
        }
        y
    }
}

// ANCHOR: SwiGLU
/// The gated MLP, dense layer and expert alike.
#[derive(Clone, Debug)]
pub struct SwiGLU {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl SwiGLU {
    /// Take the three matrices of an MLP of this width.
    pub fn load(mut w: Weights, dim: usize, hidden: usize) -> Result<Self> {
        let made = Self {
            gate_proj: Linear::load(&mut w, "gate_proj", [hidden, dim])?,
            up_proj: Linear::load(&mut w, "up_proj", [hidden, dim])?,
            down_proj: Linear::load(&mut w, "down_proj", [dim, hidden])?,
        };
        w.done()?;
        Ok(made)
    }

    /// `W_down (SiLU(W_gate x) * W_up x)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let up = self.up_proj.forward(x);
        let silu = |gate: &f32, up: &f32| gate / (1.0 + (-gate).exp()) * up;
        self.down_proj.forward(&self.gate_proj.forward(x).zip(&up, silu))
    }
}
// ANCHOR_END: SwiGLU

/// The positions `start` to `start + count` for every sequence.
pub fn positions(batch: usize, start: usize, count: usize) -> Tensor<usize> {
    let row = || start..start + count;
    Tensor::new(&[batch, count], (0..batch).flat_map(|_| row()).collect())
}

// ANCHOR: causal_mask
/// Which of `length` keys each query may see: `s <=` its position.
pub fn causal_mask(position: &Tensor<usize>, length: usize) -> Tensor<bool> {
    let [b, t] = position.dims();
    let visible = |&t: &usize| (0..length).map(move |s| s <= t);
    let data = position.data.iter().flat_map(visible).collect();
    Tensor::new(&[b, t, length], data)
}
// ANCHOR_END: causal_mask

// ANCHOR: masked_softmax
/// Softmax over the visible keys; `score` is `[b, .., t, s]`.
///
/// Every query must see at least one key, as a causal mask grants.
///
/// # Panics
/// Unless `mask` is `[b, t, s]` of the same sizes.
pub fn masked_softmax(mut score: Tensor, mask: &Tensor<bool>) -> Tensor {
    let [b, t, s] = mask.dims();
    let shape = &score.shape;
    let fits = shape[0] == b && shape[shape.len() - 2..] == [t, s];
    assert!(fits, "scores {shape:?} and a mask {:?}", mask.shape);
    let heads: usize = shape[1..shape.len() - 2].iter().product();
    for (i, row) in score.data.chunks_exact_mut(s).enumerate() {
        let visible = mask.row(i / (heads * t) * t + i % t);
        for (x, _) in row.iter_mut().zip(visible).filter(|x| !x.1) {
            *x = f32::NEG_INFINITY;
        }
        softmax(row);
    }
    score
}
// ANCHOR_END: masked_softmax

/// Panic unless a chunk and its mask fit what came before.
pub fn expect_chunk(x: &Tensor, mask: &Tensor<bool>, past: usize) {
    let [b, t, _] = x.dims();
    let want = [b, t, past + t];
    assert!(mask.shape == want, "mask is {:?}, not {want:?}", mask.shape);
}
