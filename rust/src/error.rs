//! What went wrong with a file or a request, in one sentence.

use std::fmt;

/// A sentence that names the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

/// A value, or the sentence that says why there is none.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// An error with this sentence.
pub fn error<T>(sentence: impl Into<String>) -> Result<T> {
    Err(Error(sentence.into()))
}
