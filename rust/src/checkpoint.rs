//! Named weights, handed out once each and checked as they go.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{error, Result};
use crate::json::Json;
use crate::safetensors::SafeTensors;
use crate::tensor::Tensor;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Weights by name; whoever takes one owns it.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    /// What stands before the names, for errors.
    path: String,
}

impl Weights {
    /// All tensors of one file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(&[SafeTensors::open(path)?])
    }

    /// All tensors of a folder, which may be cut into several files.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        if !index.is_file() {
            return Self::open(&folder.join(SINGLE));
        }
        let open = |file: &String| SafeTensors::open(&folder.join(file));
        let files: Result<Vec<_>> = shards(&index)?.iter().map(open).collect();
        Self::read(&files?)
    }

    /// All tensors of several files.
    ///
    /// # Errors
    /// If a name appears twice, or a value is not finite.
    pub fn read(files: &[SafeTensors]) -> Result<Self> {
        let mut made = Self::default();
        for file in files {
            for name in file.entries.keys() {
                let tensor = file.tensor(name)?;
                if !tensor.data.iter().all(|x| x.is_finite()) {
                    return error(format!("{name} holds values not finite"));
                }
                if made.tensors.insert(name.clone(), tensor).is_some() {
                    return error(format!("{name} is in two files"));
                }
            }
        }
        Ok(made)
    }

    /// The weights under `name.`, which are taken out of these.
    pub fn at(&mut self, name: &str) -> Weights {
        let prefix = format!("{name}.");
        let taken = self.tensors.keys().filter(|x| x.starts_with(&prefix));
        let taken: Vec<String> = taken.cloned().collect();
        let path = format!("{}{prefix}", self.path);
        let mut made = Self { path, ..Self::default() };
        for full in taken {
            let tensor = self.tensors.remove(&full).expect("a listed name");
            made.tensors.insert(full[prefix.len()..].to_string(), tensor);
        }
        made
    }

    /// Take one weight.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let path = &self.path;
        match self.tensors.remove(name) {
            None => error(format!("missing {path}{name}")),
            Some(x) if x.shape != shape => error(format!(
                "{path}{name} has shape {:?}, expected {shape:?}",
                x.shape
            )),
            Some(x) => Ok(x),
        }
    }

    /// Take one weight of any shape, if it is there.
    pub fn find(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// An error if a weight was left that nobody expected.
    pub fn done(self) -> Result<()> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => error(format!("unexpected {}{name}", self.path)),
        }
    }
}

/// The files that an index names; plain names, so that they stay inside.
fn shards(index: &Path) -> Result<Vec<String>> {
    let failed = |x: String| error(format!("{}: {x}", index.display()));
    let value = match std::fs::read_to_string(index) {
        Ok(text) => Json::parse(&text),
        Err(x) => return failed(x.to_string()),
    };
    let pairs = match value.as_ref().map(|x| x.get("weight_map")) {
        Ok(Some(Json::Object(pairs))) => pairs,
        Ok(_) => return failed("has no weight_map".to_string()),
        Err(x) => return failed(x.to_string()),
    };
    let mut files = Vec::new();
    for (name, file) in pairs {
        let file = file.text().unwrap_or("");
        let plain = !file.contains(|c| "/\\\0".contains(c));
        if !plain || !file.ends_with(".safetensors") {
            return failed(format!("places {name} in {file:?}"));
        }
        files.push(file.to_string());
    }
    files.sort_unstable();
    files.dedup();
    Ok(files)
}
