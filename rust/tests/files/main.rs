//! Files that lie: an error names the cause, nothing panics.

mod config;
mod fuzz;
mod hostile;
mod json;
mod make;
