//! The vectors in `tests/golden` that Python wrote, reproduced in Rust.

mod attention;
mod balance;
mod cache;
mod common;
mod critic;
mod dsa;
mod eights;
mod mla;
mod model;
mod moe;
mod posting;
mod programs;
mod rope;
mod router;
mod sampling;
mod training;
