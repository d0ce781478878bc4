//! The vectors in `tests/golden` that Python wrote, reproduced in Rust.

mod attention;
mod balance;
mod cache;
mod common;
mod dsa;
mod mla;
mod model;
mod moe;
mod posting;
mod rope;
mod router;
mod sampling;
mod training;
