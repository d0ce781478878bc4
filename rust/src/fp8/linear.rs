//! A linear layer whose three products run in FP8.
//!
//! Each product sums over another axis, and a scale must be constant along
//! the axis that is summed. So activations and gradients are scaled per token
//! and 128 channels for two of them, and per channel and 128 tokens for the
//! third; square blocks of the weight serve both ways.

use super::formats::{Format, E4M3, E5M6};
use super::reference::{
    dequantize, exact, fp8_gemm, quantize, Block, Product, Quantized, BLOCK,
    TILE,
};
use crate::tensor::Tensor;

const PROMOTE: usize = 128;

// ANCHOR: Recipe
/// How each operand is rounded; the default is DeepSeek-V3's.
///
/// `cache` is the format of the activation kept for the weight gradient.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Recipe {
    pub activation: Block,
    pub weight: Block,
    pub gradient: Block,
    pub format: Format,
    pub gradient_format: Format,
    pub cache: Format,
    pub pow2: bool,
    pub product: Product,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            activation: TILE,
            weight: BLOCK,
            gradient: TILE,
            format: E4M3,
            gradient_format: E4M3,
            cache: E4M3,
            pow2: false,
            product: exact,
        }
    }
}

impl Recipe {
    /// One operand; E5M6 always comes with power-of-two scales.
    fn quantize(&self, x: &Tensor, block: Block, format: Format) -> Quantized {
        quantize(x, block, format, self.pow2 || format == E5M6)
    }

    /// `a b^T` with this recipe's accumulator.
    fn product(&self, a: &Quantized, b: &Quantized) -> Tensor {
        fp8_gemm(a, b, PROMOTE, self.product)
    }
}
// ANCHOR_END: Recipe

// ANCHOR: dgrad
/// The gradient of the input, summed over output channels.
pub fn dgrad(dy: &Tensor, w: &Quantized, recipe: &Recipe) -> Tensor {
    let grad = recipe.quantize(dy, recipe.gradient, recipe.gradient_format);
    recipe.product(&grad, &w.t())
}
// ANCHOR_END: dgrad

// ANCHOR: wgrad
/// The gradient of the weight, summed over tokens.
///
/// The kept activation has tiles along the channels; they are decoded and
/// rounded again along the tokens.
pub fn wgrad(dy: &Tensor, x: &Quantized, recipe: &Recipe) -> Tensor {
    let along = |[rows, cols]: Block| [cols, rows];
    let format = recipe.gradient_format;
    let grad = recipe.quantize(dy, along(recipe.gradient), format);
    let tiles = along(recipe.activation);
    let x_again = recipe.quantize(&dequantize(x), tiles, recipe.format);
    recipe.product(&grad.t(), &x_again.t())
}
// ANCHOR_END: wgrad

// ANCHOR: ScaledLinear
/// What the first of the three products keeps for the other two.
///
/// Rounding counts as the identity: the gradient of a rounded value is
/// passed on to the value itself.
pub struct ScaledLinear {
    x: Quantized,
    weight: Quantized,
    recipe: Recipe,
}

impl ScaledLinear {
    /// The output `[z, f]` of an input `[z, d]` and a weight `[f, d]`.
    pub fn forward(
        x: &Tensor,
        weight: &Tensor,
        recipe: Recipe,
    ) -> (Tensor, Self) {
        let q = recipe.quantize(x, recipe.activation, recipe.format);
        let weight = recipe.quantize(weight, recipe.weight, recipe.format);
        let y = recipe.product(&q, &weight);
        let x = match recipe.cache == recipe.format {
            true => q,
            false => recipe.quantize(x, recipe.activation, recipe.cache),
        };
        (y, Self { x, weight, recipe })
    }

    /// The gradients of the input and of the weight.
    pub fn backward(self, dy: &Tensor) -> [Tensor; 2] {
        let dx = dgrad(dy, &self.weight, &self.recipe);
        [dx, wgrad(dy, &self.x, &self.recipe)]
    }
}
// ANCHOR_END: ScaledLinear
