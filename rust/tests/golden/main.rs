//! The vectors in `tests/golden` that Python wrote, reproduced in Rust.

mod attention;
mod cache;
mod common;
mod mla;
mod rope;
