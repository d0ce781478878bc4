//! The DeepSeek architecture in Rust: the twin of the Python package.
//!
//! Modules and functions carry the names that they have in Python, formulas
//! the same einsum strings. There are no dependencies, so everything that a
//! formula stands on can be read here. Shapes that do not fit are a mistake
//! of the caller and panic with both sizes; files are not to be trusted and
//! give an [`Error`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod attention;
pub mod balance;
pub mod block;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod dispatch;
pub mod distill;
pub mod dpo;
pub mod dsa;
pub mod einsum;
pub mod error;
pub mod fp8;
pub mod generate;
pub mod grpo;
pub mod indexing;
pub mod json;
pub mod layers;
pub mod mla;
pub mod model;
pub mod moe;
pub mod mtp;
pub mod objective;
pub mod optim;
pub mod pipeline;
pub mod ppo;
pub mod released;
pub mod rope;
pub mod router;
pub mod safetensors;
pub mod sampling;
pub mod schedule;
pub mod sft;
pub mod special;
pub mod tensor;
pub mod timeline;
pub mod tokenizer;

pub use cache::Cache;
pub use config::Config;
pub use einsum::einsum;
pub use error::{Error, Result};
pub use model::DeepSeek;
pub use tensor::Tensor;
