//! Tile and block scaling, the scaled product and its accumulator.

use super::formats::{cast, decode, exponent, Format};
use crate::tensor::Tensor;

/// Rows and columns under one scale; what is beyond a matrix is cut off.
pub type Block = [usize; 2];
/// One scale for each token and 128 channels.
pub const TILE: Block = [1, 128];
/// One scale for a square of a weight.
pub const BLOCK: Block = [128, 128];

const SMALLEST_AMAX: f32 = 1e-4;

/// A matrix as codes and one scale per block.
///
/// Codes stand in 16 bits because E5M6 needs 12; where bytes count, as in
/// [`super::layout`], they are bytes.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Quantized {
    pub codes: Tensor<u16>,
    pub scale: Tensor,
    pub block: Block,
    pub format: Format,
}

impl Quantized {
    /// The scale of one value.
    fn scale_of(&self, row: usize, column: usize) -> f32 {
        let [rows, cols] = self.block;
        self.scale.row(row / rows)[column / cols]
    }

    /// The value of a code without its scale.
    fn values(&self) -> Tensor {
        self.codes.map(|&code| decode(code, self.format))
    }

    /// The transposed matrix; its blocks are transposed with it.
    pub fn t(&self) -> Self {
        let (codes, scale) = (self.codes.t(), self.scale.t());
        let [rows, cols] = self.block;
        Self { codes, scale, block: [cols, rows], format: self.format }
    }
}

// ANCHOR: quantize
/// Scale each block by its largest magnitude, then round.
///
/// A block with a NaN or an infinity decodes to NaN as a whole.
///
/// # Panics
/// For a block without a side.
pub fn quantize(
    x: &Tensor,
    [rows, cols]: Block,
    format: Format,
    pow2: bool,
) -> Quantized {
    assert!(rows * cols > 0, "a block of {rows} rows and {cols} columns");
    let [z, d] = x.dims();
    let (down, across) = ((z + rows - 1) / rows, (d + cols - 1) / cols);
    let place = |i: usize| i / d / rows * across + i % d / cols;
    let mut amax = Tensor::zeros(&[down, across]);
    for (i, x) in x.data.iter().enumerate() {
        let top: &mut f32 = &mut amax.data[place(i)];
        // A comparison with NaN is false: the first NaN stays.
        if x.is_nan() || x.abs() > *top {
            *top = x.abs();
        }
    }
    let scale = amax.map(|&amax| scale_for(amax, format, pow2));
    let scaled =
        x.data.iter().enumerate().map(|(i, x)| x / scale.data[place(i)]);
    let codes = scaled.map(|x| cast(x, format)).collect();
    let codes = Tensor::new(&[z, d], codes);
    Quantized { codes, scale, block: [rows, cols], format }
}
// ANCHOR_END: quantize

/// The largest magnitude of a tile; NaN if it holds one.
pub(super) fn top(tile: &[f32]) -> f32 {
    let larger = |top: f32, x: &f32| match x.is_nan() || x.abs() > top {
        true => x.abs(),
        false => top,
    };
    tile.iter().fold(0.0, larger)
}

// ANCHOR: scale_for
/// The scale of a block with this largest magnitude; NaN if it is spoilt.
pub fn scale_for(amax: f32, format: Format, pow2: bool) -> f32 {
    if !amax.is_finite() {
        return f32::NAN;
    }
    let s = amax.max(SMALLEST_AMAX) / format.max();
    if pow2 {
        power_of_two(s)
    } else {
        s
    }
}
// ANCHOR_END: scale_for

// ANCHOR: power_of_two
/// The next power of two up, without a logarithm.
///
/// Adding all mantissa bits carries into the exponent unless they are zero.
pub fn power_of_two(s: f32) -> f32 {
    if s.is_nan() {
        return s;
    }
    f32::from_bits((s.to_bits() + 0x7F_FFFF) & 0x7F80_0000)
}
// ANCHOR_END: power_of_two

// ANCHOR: dequantize
/// Scale times value.
pub fn dequantize(q: &Quantized) -> Tensor {
    let (mut x, d) = (q.values(), q.codes.width());
    for (i, x) in x.data.iter_mut().enumerate() {
        *x *= q.scale_of(i / d, i % d);
    }
    x
}
// ANCHOR_END: dequantize

// ANCHOR: rounded
/// What is left after rounding: quantised and decoded again, `[.., d]`.
pub fn rounded(x: &Tensor, block: Block, format: Format, pow2: bool) -> Tensor {
    let q = quantize(&x.clone().flatten(), block, format, pow2);
    dequantize(&q).reshape(&x.shape)
}
// ANCHOR_END: rounded

/// How a chunk is added up: in fp32, or as Hopper's FP8 unit does.
pub type Product = fn(&[f32], &[f32]) -> f32;

// ANCHOR: fp8_gemm
/// `a b^T` of two scaled matrices, every `promote` columns added in fp32.
///
/// # Panics
/// Unless the widths agree and no scale changes inside a chunk.
pub fn fp8_gemm(
    a: &Quantized,
    b: &Quantized,
    promote: usize,
    product: Product,
) -> Tensor {
    let ([z, d], [f, width]) = (a.codes.dims(), b.codes.dims());
    assert!(d == width, "inner widths {d} and {width} differ");
    let whole = |q: &Quantized| q.block[1] % promote == 0 || q.block[1] >= d;
    assert!(whole(a) && whole(b), "{promote} columns do not divide a tile");
    let (left, right, mut out) =
        (a.values(), b.values(), Tensor::zeros(&[z, f]));
    for start in (0..d).step_by(promote) {
        let part = start..d.min(start + promote);
        for (i, out) in out.data.iter_mut().enumerate() {
            let (i, j) = (i / f, i % f);
            let (x, y) = (&left.row(i)[part.clone()], right.row(j));
            let partial = product(x, &y[part.clone()]) * a.scale_of(i, start);
            *out += partial * b.scale_of(j, start);
        }
    }
    out
}
// ANCHOR_END: fp8_gemm

/// Added in fp32.
pub fn exact(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

const STEP: usize = 32;
const FRACTION_BITS: i32 = 13;

// ANCHOR: tensor_core
/// Added as Hopper's FP8 unit does, emulated: all terms of an instruction
/// are aligned to the largest and cut.
pub fn tensor_core(a: &[f32], b: &[f32]) -> f32 {
    let mut total = 0f32;
    for (a, b) in a.chunks(STEP).zip(b.chunks(STEP)) {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(x * y));
        let terms: Vec<f64> = products.chain([f64::from(total)]).collect();
        let amax = terms.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
        // Of nothing but zeros the sum is zero in any unit.
        let unit = 2f64.powi(FRACTION_BITS - exponent(amax).max(-99));
        let steps: f64 = terms.iter().map(|x| (x * unit).trunc()).sum();
        total = cut((steps / unit) as f32);
    }
    total
}
// ANCHOR_END: tensor_core

// ANCHOR: cut
/// Drop all but 13 fraction bits, towards zero.
pub fn cut(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & !((1 << (23 - FRACTION_BITS)) - 1))
}
// ANCHOR_END: cut

// ANCHOR: difference
/// One number for how far two results are apart; zero for equal ones.
pub fn difference(x: &Tensor, y: &Tensor) -> f64 {
    let dot = |a: &Tensor, b: &Tensor| {
        let pairs = a.data.iter().zip(&b.data);
        pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    let norms = dot(x, x) + dot(y, y);
    if norms == 0.0 {
        return 0.0;
    }
    1.0 - 2.0 * dot(x, y) / norms
}
// ANCHOR_END: difference
