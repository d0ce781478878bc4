//! The complete model: V2-Lite, V2, V3 and V3.2 are four configs of it.

use std::path::Path;
use std::rc::Rc;

use crate::block::Block;
use crate::cache::Cache;
use crate::checkpoint::Weights;
use crate::config::Config;
use crate::error::{error, Error, Result};
use crate::layers::{causal_mask, positions, Linear, RMSNorm};
use crate::mtp::MTP;
use crate::rope::phases;
use crate::tensor::Tensor;

const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "shared_head.head.weight";

// ANCHOR: DeepSeek
/// Tokens in, logits of the next token out.
///
/// With caches, one call is a prefill, a later chunk of a prompt, a decoded
/// token or a draft to verify: where the tokens stand follows from how many
/// are cached.
#[derive(Clone, Debug)]
pub struct DeepSeek {
    /// The sizes of the model.
    pub cfg: Config,
    /// From states to logits; the MTP layers use it too.
    pub lm_head: Rc<Linear>,
    /// The layers behind the last, which look further ahead.
    pub mtp: Vec<MTP>,
    embed_tokens: Rc<Tensor>,
    layers: Vec<Block>,
    norm: RMSNorm,
}
// ANCHOR_END: DeepSeek

impl DeepSeek {
    /// Read a Hugging Face folder: `config.json` and safetensors.
    ///
    /// # Errors
    /// With the name of what is missing, unexpected, mis-shaped, of another
    /// type, not finite, or a copy that differs.
    pub fn open(folder: &Path) -> Result<Self> {
        let cfg = Config::open(folder)?;
        let weights = Weights::open_folder(folder)?;
        let named = |x| Error(format!("{}: {x}", folder.display()));
        Self::load(cfg, weights).map_err(named)
    }

    /// Take all weights; a folder without MTP layers gives a model without.
    pub fn load(cfg: Config, mut w: Weights) -> Result<Self> {
        let depth = cfg.num_hidden_layers;
        let mut extra = Vec::new();
        for i in depth..depth + cfg.num_nextn_predict_layers {
            let own = w.at(&format!("model.layers.{i}"));
            if own.is_empty() {
                break;
            }
            extra.push(own);
        }
        let (embed_tokens, lm_head) = shared(&cfg, &mut w, &mut extra)?;
        let mut trunk = w.at("model");
        let layers: Result<Vec<Block>> = (0..depth)
            .map(|i| {
                let mut own = trunk.at(&format!("layers.{i}"));
                let block = Block::load(&cfg, &mut own, i)?;
                own.done().map(|_| block)
            })
            .collect();
        let (dim, eps) = (cfg.hidden_size, cfg.rms_norm_eps);
        let (layers, norm) =
            (layers?, RMSNorm::load(&mut trunk, "norm", dim, eps)?);
        trunk.done()?;
        w.done()?;
        let mtp: Result<Vec<MTP>> = (depth..)
            .zip(extra)
            .map(|(i, own)| {
                let shared = (Rc::clone(&embed_tokens), Rc::clone(&lm_head));
                MTP::load(&cfg, own, i, shared.0, shared.1)
            })
            .collect();
        Ok(Self { cfg, lm_head, mtp: mtp?, embed_tokens, layers, norm })
    }

    /// Logits of the token after each of `[b, t]`.
    pub fn forward(
        &self,
        tokens: &Tensor<usize>,
        caches: Option<&mut [Cache]>,
    ) -> Tensor {
        self.lm_head.forward(&self.hidden(tokens, caches))
    }

    // ANCHOR: hidden
    /// The normed states from which the head and the MTP layer read.
    ///
    /// # Panics
    /// For a token outside the vocabulary, and unless there are as many
    /// caches as layers, of one length.
    pub fn hidden(
        &self,
        tokens: &Tensor<usize>,
        mut caches: Option<&mut [Cache]>,
    ) -> Tensor {
        let [b, count] = tokens.dims();
        let start = behind(caches.as_deref(), self.layers.len());
        let position = positions(b, start, count);
        let phase = phases(&self.cfg, &position);
        let mask = causal_mask(&position, start + count);
        let mut x = embed(&self.embed_tokens, tokens);
        for (i, layer) in self.layers.iter().enumerate() {
            let cache = caches.as_deref_mut().map(|caches| &mut caches[i]);
            x = layer.forward(&x, &phase, &mask, cache);
        }
        self.norm.forward(&x)
    }
    // ANCHOR_END: hidden

    /// An empty cache for each layer.
    pub fn caches(&self) -> Vec<Cache> {
        vec![Cache::default(); self.layers.len()]
    }
}

/// Embedding and head, of which MTP layers and tied models bring copies.
fn shared(
    cfg: &Config,
    w: &mut Weights,
    extra: &mut [Weights],
) -> Result<(Rc<Tensor>, Rc<Linear>)> {
    let shape = [cfg.vocab_size, cfg.hidden_size];
    let mut embeddings = vec![w.find(&format!("model.{EMBEDDING}"))];
    let mut heads = vec![w.find("lm_head.weight")];
    for own in extra {
        embeddings.push(own.find(EMBEDDING));
        heads.push(own.find(HEAD));
    }
    if cfg.tie_word_embeddings {
        heads.extend(embeddings.clone());
        embeddings = heads.clone();
    }
    let embedding = agreed(&format!("model.{EMBEDDING}"), embeddings, &shape)?;
    let weight = agreed("lm_head.weight", heads, &shape)?;
    Ok((Rc::new(embedding), Rc::new(Linear { weight })))
}

/// The one tensor of all copies that were found.
fn agreed(
    name: &str,
    copies: Vec<Option<Tensor>>,
    shape: &[usize],
) -> Result<Tensor> {
    let mut found = copies.into_iter().flatten();
    let first = match found.next() {
        None => return error(format!("missing {name}")),
        Some(first) => first,
    };
    if first.shape != shape {
        let found = first.shape;
        return error(format!(
            "{name} has shape {found:?}, expected {shape:?}"
        ));
    }
    match found.all(|x| x == first) {
        true => Ok(first),
        false => error(format!("copies of {name} differ")),
    }
}

/// The rows of a table that tokens `[b, t]` name.
pub fn embed(table: &Tensor, tokens: &Tensor<usize>) -> Tensor {
    let [b, t] = tokens.dims();
    table.index_select(&tokens.data).reshape(&[b, t, table.width()])
}

/// How many tokens all caches hold.
fn behind(caches: Option<&[Cache]>, layers: usize) -> usize {
    let caches = match caches {
        None => return 0,
        Some(caches) => caches,
    };
    let lengths: Vec<usize> = caches.iter().map(Cache::len).collect();
    let one =
        lengths.len() == layers && lengths.iter().all(|x| *x == lengths[0]);
    assert!(one, "{layers} layers and caches of lengths {lengths:?}");
    lengths[0]
}
