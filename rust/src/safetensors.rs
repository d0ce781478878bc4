//! Weights from safetensors files that nobody vouches for.
//!
//! A file is eight bytes that tell the length of a JSON header, the header,
//! and the data. Every statement of the header is checked against the file
//! before anything is allocated for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{error, Error, Result};
use crate::json::Json;
use crate::tensor::Tensor;

/// The longest header that is read; that of a real file is far shorter.
pub const HEADER_LIMIT: usize = 10_000_000;

/// Where a tensor lies in the data, what type it has, and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The type as safetensors spells it, such as `BF16`.
    pub dtype: String,
    /// The size of each axis.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the data.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

/// A file in memory, its header checked.
#[derive(Clone, Debug)]
pub struct SafeTensors {
    /// Every tensor by its name.
    pub entries: BTreeMap<String, Entry>,
    bytes: Vec<u8>,
    data: usize,
}

impl SafeTensors {
    /// Read a file; the error names it.
    pub fn open(path: &Path) -> Result<Self> {
        let named = |what| Error(format!("{}: {what}", path.display()));
        let bytes = fs::read(path).map_err(|x| named(x.to_string()))?;
        Self::parse(bytes).map_err(|x| named(x.to_string()))
    }

    /// Check the bytes of a file.
    ///
    /// # Errors
    /// If the header is longer than the file, not UTF-8 or not JSON; if a
    /// name appears twice; if a type is unknown or a shape needs another
    /// number of bytes; if spans overlap, leave gaps or leave the file.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let (size, data) = (bytes.len(), data_start(&bytes)?);
        let text = std::str::from_utf8(&bytes[8..data])
            .map_err(|x| Error(format!("the header is no UTF-8: {x}")))?;
        let pairs = match Json::parse(text)? {
            Json::Object(pairs) => pairs,
            _ => return error("the header is no JSON object"),
        };
        let mut entries = BTreeMap::new();
        for (name, value) in pairs {
            if name != "__metadata__" {
                let made = entry(&name, &value)?;
                entries.insert(name, made);
            }
        }
        check_spans(&entries, size - data)?;
        Ok(Self { entries, bytes, data })
    }

    /// One tensor as `f32`.
    ///
    /// # Errors
    /// If it is missing, or holds other than `F32` or `BF16`.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| Error(format!("missing {name}")))?;
        let bytes = self.raw(entry);
        let data = match entry.dtype.as_str() {
            "F32" => bytes.chunks_exact(4).map(from_f32).collect(),
            "BF16" => bytes.chunks_exact(2).map(from_bf16).collect(),
            other => {
                return error(format!(
                    "{name} has type {other}, expected F32 or BF16"
                ))
            }
        };
        Ok(Tensor::new(&entry.shape, data))
    }

    /// The bytes of one tensor as they stand in the file.
    pub fn raw(&self, entry: &Entry) -> &[u8] {
        &self.bytes[self.data + entry.start..self.data + entry.end]
    }
}

fn from_f32(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A bf16 number is the upper half of an f32.
fn from_bf16(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([0, 0, bytes[0], bytes[1]])
}

/// Bytes of one element.
fn width(dtype: &str) -> Option<usize> {
    match dtype {
        "F64" | "I64" => Some(8),
        "F32" | "I32" => Some(4),
        "BF16" | "F16" => Some(2),
        "F8_E4M3" | "U8" | "BOOL" => Some(1),
        _ => None,
    }
}

/// Where the data begin, from the first eight bytes.
fn data_start(bytes: &[u8]) -> Result<usize> {
    let size = bytes.len();
    if size < 8 {
        return error(format!("{size} bytes are too few for a header"));
    }
    let first = <[u8; 8]>::try_from(&bytes[..8]).expect("eight bytes");
    let length = u64::from_le_bytes(first);
    if length < 2 || length > HEADER_LIMIT.min(size - 8) as u64 {
        return error(format!("a header of {length} bytes in {size}"));
    }
    Ok(8 + length as usize)
}

fn entry(name: &str, value: &Json) -> Result<Entry> {
    let lacks = |what: &str| Error(format!("{name:?} has no valid {what}"));
    let whole = |what: &str| match value.get(what) {
        Some(Json::List(items)) => items
            .iter()
            .map(Json::whole)
            .collect::<Option<Vec<usize>>>()
            .ok_or_else(|| lacks(what)),
        _ => Err(lacks(what)),
    };
    let dtype = value.get("dtype").and_then(Json::text);
    let dtype = dtype.ok_or_else(|| lacks("dtype"))?.to_string();
    let shape = whole("shape")?;
    let [start, end] = <[usize; 2]>::try_from(whole("data_offsets")?)
        .map_err(|_| lacks("data_offsets"))?;
    let unit = width(&dtype)
        .ok_or_else(|| Error(format!("{name:?} has unknown type {dtype}")))?;
    let times = |size: usize, n: &usize| size.checked_mul(*n);
    let needed = shape.iter().try_fold(unit, times);
    let found = end.checked_sub(start);
    if needed.is_none() || needed != found {
        return error(format!(
            "{name:?} spans {start} to {end}, which {shape:?} in {dtype} \
             does not fill"
        ));
    }
    Ok(Entry { dtype, shape, start, end })
}

/// Spans must follow each other without a gap and fill the file.
fn check_spans(entries: &BTreeMap<String, Entry>, size: usize) -> Result<()> {
    let spans = entries.iter().map(|(name, x)| (x.start, x.end, name));
    let mut spans: Vec<_> = spans.collect();
    spans.sort_unstable();
    let mut at = 0;
    for (start, end, name) in spans {
        if start != at {
            return error(format!(
                "data of {name:?} begin at {start}, expected {at}"
            ));
        }
        at = end;
    }
    if at != size {
        return error(format!("{size} bytes of data, the header names {at}"));
    }
    Ok(())
}
