//! One flat configuration for every DeepSeek model from V2-Lite to V3.2.

use std::fs;
use std::path::Path;

use crate::error::{error, Error, Result};
use crate::json::Json;

/// No size of a model comes near this; products of two stay exact.
const LARGEST: usize = 1 << 30;

/// How experts are chosen: the `topk_method` of a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The best of all: V2-Lite.
    Greedy,
    /// The best of the groups with the highest maximum: V2.
    GroupLimitedGreedy,
    /// With a bias and groups scored by their two best: V3.
    NoauxTc,
}

/// How logits become scores: the `scoring_func` of a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// V2.
    Softmax,
    /// V3.
    Sigmoid,
}

/// How a context window is stretched: the `rope_scaling` of a config.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub mscale: f64,
    pub mscale_all_dim: f64,
}

/// Every size of a model, under the names of the released config.json.
///
/// The default is the tiny teaching model.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Config {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub num_attention_heads: usize,
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub rope_theta: f64,
    pub rope_scaling: Option<Yarn>,
    pub index_topk: Option<usize>,
    pub index_n_heads: usize,
    pub index_head_dim: usize,
    pub intermediate_size: usize,
    pub moe_intermediate_size: usize,
    pub first_k_dense_replace: usize,
    pub n_routed_experts: usize,
    pub n_shared_experts: usize,
    pub num_experts_per_tok: usize,
    pub n_group: usize,
    pub topk_group: usize,
    pub topk_method: Selection,
    pub scoring_func: Scoring,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
    pub num_nextn_predict_layers: usize,
}

impl Config {
    /// Width of one query or key: the non-rotary and the rotary part.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// How a query head is cut.
    pub fn qk_widths(&self) -> [usize; 2] {
        [self.qk_nope_head_dim, self.qk_rope_head_dim]
    }

    /// What a layer caches of a token: latent and rotary key.
    pub fn kv_widths(&self) -> [usize; 2] {
        [self.kv_lora_rank, self.qk_rope_head_dim]
    }

    /// Whether a layer has one plain MLP instead of experts.
    pub fn is_dense(&self, layer: usize) -> bool {
        layer < self.first_k_dense_replace
    }

    /// Numbers that all layers cache of one token, index keys included.
    pub fn kv_elements_per_token(&self) -> usize {
        let index = self.index_topk.map_or(0, |_| self.index_head_dim);
        let latent: usize = self.kv_widths().iter().sum();
        self.num_hidden_layers * (latent + index)
    }

    /// Read a config.json, or the one of a folder.
    pub fn open(path: &Path) -> Result<Self> {
        let file = match path.is_dir() {
            true => path.join("config.json"),
            false => path.to_path_buf(),
        };
        let named = |what: String| Error(format!("{}: {what}", file.display()));
        let text = fs::read_to_string(&file).map_err(|x| named(x.to_string()));
        let read = Json::parse(&text?).and_then(|x| Self::from_hf(&x));
        read.map_err(|x| named(x.0))
    }

    /// The fields of a config.json; what a model type implies is filled in.
    ///
    /// # Errors
    /// For other models, and for sizes that contradict each other.
    pub fn from_hf(values: &Json) -> Result<Self> {
        let cfg = crate::released::read(values)?;
        cfg.check()?;
        Ok(cfg)
    }

    /// An error with both numbers where two sizes contradict each other.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        self.check_attention()?;
        if self.first_k_dense_replace < self.num_hidden_layers {
            self.check_experts()?;
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("index_topk", self.index_topk.unwrap_or(1)),
            ("index_n_heads", self.index_n_heads),
            ("index_head_dim", self.index_head_dim),
            ("intermediate_size", self.intermediate_size),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("n_routed_experts", self.n_routed_experts),
            ("num_experts_per_tok", self.num_experts_per_tok),
            ("n_group", self.n_group),
            ("topk_group", self.topk_group),
            // These two may be zero.
            ("n_shared_experts", self.n_shared_experts + 1),
            ("num_nextn_predict_layers", self.num_nextn_predict_layers + 1),
        ];
        for (name, size) in sizes {
            if size == 0 || size > LARGEST {
                return error(format!("{name} {size} is no possible size"));
            }
        }
        Ok(())
    }

    fn check_attention(&self) -> Result<()> {
        let r = self.qk_rope_head_dim;
        if r % 2 == 1 {
            return error(format!(
                "rotation needs pairs: qk_rope_head_dim must be even, found {r}"
            ));
        }
        let topk = match self.index_topk {
            Some(topk) => topk,
            None => return Ok(()),
        };
        if self.q_lora_rank.is_none() {
            return error(format!(
                "index_topk {topk} needs a query latent for the indexer, but \
                 q_lora_rank is None"
            ));
        }
        if self.index_head_dim < r {
            return error(format!(
                "index_head_dim {} cannot hold qk_rope_head_dim {r}",
                self.index_head_dim
            ));
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<()> {
        let (experts, groups) = (self.n_routed_experts, self.n_group);
        let (kept, size) = (self.topk_group, experts / groups);
        if experts % groups != 0 {
            return error(format!(
                "n_group {groups} does not divide n_routed_experts {experts}"
            ));
        }
        if kept > groups {
            return error(format!(
                "topk_group {kept} exceeds n_group {groups}"
            ));
        }
        let pairs = self.topk_method == Selection::NoauxTc && groups > 1;
        if pairs && size < 2 {
            return error(format!(
                "a group is scored by its two best experts, but \
                 n_routed_experts {experts} in n_group {groups} leaves {size}"
            ));
        }
        if self.num_experts_per_tok > size * kept {
            return error(format!(
                "num_experts_per_tok {} exceeds the {} experts of topk_group \
                 {kept} groups",
                self.num_experts_per_tok,
                size * kept
            ));
        }
        Ok(())
    }
}
