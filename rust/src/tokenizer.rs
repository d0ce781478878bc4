//! One token per byte, and eight that text cannot contain.

use crate::error::{error, Result};

/// The names of the tokens behind the bytes.
pub const SPECIALS: [&str; 8] = [
    "bos",
    "eos",
    "pad",
    "user",
    "assistant",
    "fim_begin",
    "fim_hole",
    "fim_end",
];

/// The bytes of a text; it can never spell a special token.
pub fn encode(text: &str) -> Vec<usize> {
    text.bytes().map(usize::from).collect()
}

/// Text with special tokens as `<bos>`; broken bytes become U+FFFD.
///
/// # Errors
/// For a token outside the vocabulary.
pub fn decode(tokens: &[usize]) -> Result<String> {
    let mut bytes = Vec::new();
    for &token in tokens {
        match (u8::try_from(token), token.checked_sub(256)) {
            (Ok(byte), _) => bytes.push(byte),
            (_, Some(i)) if i < SPECIALS.len() => {
                bytes.extend(format!("<{}>", SPECIALS[i]).bytes());
            }
            _ => return error(format!("token {token} is not below 264")),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
