//! Eight-bit floats: what a code means, and how numbers are scaled to fit.

pub mod formats;
pub mod layout;
pub mod linear;
pub mod reference;

pub use formats::{decode, encode, Format, E4M3, E5M2, E5M6};
pub use linear::{Recipe, ScaledLinear};
pub use reference::{dequantize, fp8_gemm, quantize, Quantized};
