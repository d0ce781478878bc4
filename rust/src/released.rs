//! The sizes of the teaching model and of the released ones, and how a
//! config.json fills them in.

use crate::config::{Config, Scoring, Selection, Yarn};
use crate::error::{error, Error, Result};
use crate::json::Json;

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: "deepseek_v3".to_string(),
            vocab_size: 264,
            hidden_size: 128,
            num_hidden_layers: 4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            num_attention_heads: 4,
            q_lora_rank: Some(48),
            kv_lora_rank: 32,
            qk_nope_head_dim: 16,
            qk_rope_head_dim: 8,
            v_head_dim: 16,
            rope_theta: 10000.0,
            rope_scaling: None,
            index_topk: None,
            index_n_heads: 8,
            index_head_dim: 16,
            intermediate_size: 256,
            moe_intermediate_size: 32,
            first_k_dense_replace: 1,
            n_routed_experts: 16,
            n_shared_experts: 1,
            num_experts_per_tok: 4,
            n_group: 4,
            topk_group: 2,
            topk_method: Selection::NoauxTc,
            scoring_func: Scoring::Sigmoid,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            num_nextn_predict_layers: 1,
        }
    }
}

impl Config {
    /// DeepSeek-V2-Lite, 15.7B (V2 report, appendix B).
    pub fn v2_lite() -> Self {
        Self {
            model_type: "deepseek_v2".to_string(),
            vocab_size: 102400,
            hidden_size: 2048,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            q_lora_rank: None,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rope_scaling: yarn(0.707),
            intermediate_size: 10944,
            moe_intermediate_size: 1408,
            n_routed_experts: 64,
            n_shared_experts: 2,
            num_experts_per_tok: 6,
            n_group: 1,
            topk_group: 1,
            topk_method: Selection::Greedy,
            scoring_func: Scoring::Softmax,
            norm_topk_prob: false,
            routed_scaling_factor: 1.0,
            num_nextn_predict_layers: 0,
            ..Self::default()
        }
    }

    /// DeepSeek-V2, 236B (V2 report, section 3.1.2).
    pub fn v2() -> Self {
        Self {
            hidden_size: 5120,
            num_hidden_layers: 60,
            num_attention_heads: 128,
            q_lora_rank: Some(1536),
            intermediate_size: 12288,
            moe_intermediate_size: 1536,
            n_routed_experts: 160,
            topk_method: Selection::GroupLimitedGreedy,
            n_group: 8,
            topk_group: 3,
            routed_scaling_factor: 16.0,
            ..Self::v2_lite()
        }
    }

    /// DeepSeek-V3, 671B (V3 report, section 4.2); also R1 and V3.1.
    pub fn v3() -> Self {
        Self {
            vocab_size: 129280,
            hidden_size: 7168,
            num_hidden_layers: 61,
            num_attention_heads: 128,
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rope_scaling: yarn(1.0),
            intermediate_size: 18432,
            moe_intermediate_size: 2048,
            first_k_dense_replace: 3,
            n_routed_experts: 256,
            num_experts_per_tok: 8,
            n_group: 8,
            topk_group: 4,
            ..Self::default()
        }
    }

    /// DeepSeek-V3.2: V3 and an indexer in every layer.
    pub fn v3_2() -> Self {
        Self {
            model_type: "deepseek_v32".to_string(),
            index_topk: Some(2048),
            index_n_heads: 64,
            index_head_dim: 128,
            ..Self::v3()
        }
    }
}

fn yarn(mscale: f64) -> Option<Yarn> {
    Some(Yarn { mscale, mscale_all_dim: mscale, ..YARN })
}

const YARN: Yarn = Yarn {
    factor: 40.0,
    original_max_position_embeddings: 4096,
    beta_fast: 32.0,
    beta_slow: 1.0,
    mscale: 1.0,
    mscale_all_dim: 1.0,
};

/// What a config.json leaves out because its model type implies it.
fn implied(kind: &str) -> Config {
    let v3 = Config { model_type: kind.to_string(), ..Config::default() };
    if kind != "deepseek_v2" {
        return v3;
    }
    Config {
        topk_method: Selection::Greedy,
        scoring_func: Scoring::Softmax,
        norm_topk_prob: false,
        routed_scaling_factor: 1.0,
        n_group: 1,
        topk_group: 1,
        num_nextn_predict_layers: 0,
        ..v3
    }
}

/// The fields of a config.json.
pub(crate) fn read(values: &Json) -> Result<Config> {
    let kind = values.get("model_type").and_then(Json::text);
    let kind = match kind {
        Some(x @ ("deepseek_v2" | "deepseek_v3" | "deepseek_v32")) => x,
        other => return error(format!("model_type {other:?} is unknown")),
    };
    let mut cfg = implied(kind);
    for (name, place) in sizes(&mut cfg) {
        *place = whole(values, name, *place)?;
    }
    cfg.q_lora_rank = match whole(values, "q_lora_rank", 0)? {
        0 => None,
        rank => Some(rank),
    };
    if kind == "deepseek_v32" && values.get("index_topk").is_some() {
        cfg.index_topk = Some(whole(values, "index_topk", 0)?);
    }
    cfg.rms_norm_eps = real(values, "rms_norm_eps", cfg.rms_norm_eps)?;
    let factor = cfg.routed_scaling_factor;
    cfg.routed_scaling_factor = real(values, "routed_scaling_factor", factor)?;
    let tied = cfg.tie_word_embeddings;
    cfg.tie_word_embeddings = flag(values, "tie_word_embeddings", tied)?;
    cfg.norm_topk_prob = flag(values, "norm_topk_prob", cfg.norm_topk_prob)?;
    if !flag(values, "rope_interleave", true)? {
        return error("rope_interleave false is another model");
    }
    rotation(&mut cfg, values)?;
    choices(&mut cfg, values)?;
    Ok(cfg)
}

fn sizes(cfg: &mut Config) -> [(&'static str, &mut usize); 19] {
    [
        ("vocab_size", &mut cfg.vocab_size),
        ("hidden_size", &mut cfg.hidden_size),
        ("num_hidden_layers", &mut cfg.num_hidden_layers),
        ("num_attention_heads", &mut cfg.num_attention_heads),
        ("kv_lora_rank", &mut cfg.kv_lora_rank),
        ("qk_nope_head_dim", &mut cfg.qk_nope_head_dim),
        ("qk_rope_head_dim", &mut cfg.qk_rope_head_dim),
        ("v_head_dim", &mut cfg.v_head_dim),
        ("index_n_heads", &mut cfg.index_n_heads),
        ("index_head_dim", &mut cfg.index_head_dim),
        ("intermediate_size", &mut cfg.intermediate_size),
        ("moe_intermediate_size", &mut cfg.moe_intermediate_size),
        ("first_k_dense_replace", &mut cfg.first_k_dense_replace),
        ("n_routed_experts", &mut cfg.n_routed_experts),
        ("n_shared_experts", &mut cfg.n_shared_experts),
        ("num_experts_per_tok", &mut cfg.num_experts_per_tok),
        ("n_group", &mut cfg.n_group),
        ("topk_group", &mut cfg.topk_group),
        ("num_nextn_predict_layers", &mut cfg.num_nextn_predict_layers),
    ]
}

fn rotation(cfg: &mut Config, values: &Json) -> Result<()> {
    let nothing = Json::Object(Vec::new());
    let rope = ["rope_scaling", "rope_parameters"];
    let rope = rope.iter().find_map(|x| values.get(x)).unwrap_or(&nothing);
    let theta = real(rope, "rope_theta", cfg.rope_theta)?;
    cfg.rope_theta = real(values, "rope_theta", theta)?;
    let kind = rope.get("rope_type").or_else(|| rope.get("type"));
    match kind.map_or(Some("default"), Json::text) {
        Some("default") => return Ok(()),
        Some("yarn") => {}
        other => return error(format!("rope scaling {other:?} is unknown")),
    }
    let window = YARN.original_max_position_embeddings;
    let window = whole(rope, "original_max_position_embeddings", window)?;
    let yarn = Yarn {
        factor: real(rope, "factor", YARN.factor)?,
        original_max_position_embeddings: window,
        beta_fast: real(rope, "beta_fast", YARN.beta_fast)?,
        beta_slow: real(rope, "beta_slow", YARN.beta_slow)?,
        mscale: real(rope, "mscale", YARN.mscale)?,
        // Missing, it means no softmax factor, as in transformers.
        mscale_all_dim: real(rope, "mscale_all_dim", 0.0)?,
    };
    let ramp = yarn.beta_fast > yarn.beta_slow && yarn.beta_slow > 0.0;
    if yarn.factor < 1.0 || !ramp || window == 0 {
        return error(format!("{yarn:?} stretches nothing"));
    }
    cfg.rope_scaling = Some(yarn);
    Ok(())
}

fn choices(cfg: &mut Config, values: &Json) -> Result<()> {
    cfg.topk_method = match text(values, "topk_method")? {
        None => cfg.topk_method,
        Some("greedy") => Selection::Greedy,
        Some("group_limited_greedy") => Selection::GroupLimitedGreedy,
        Some("noaux_tc") => Selection::NoauxTc,
        Some(other) => return error(format!("topk_method {other:?}")),
    };
    cfg.scoring_func = match text(values, "scoring_func")? {
        None => cfg.scoring_func,
        Some("softmax") => Scoring::Softmax,
        Some("sigmoid") => Scoring::Sigmoid,
        Some(other) => return error(format!("scoring_func {other:?}")),
    };
    Ok(())
}

fn wrong<T>(name: &str, found: &Json) -> Result<T> {
    Err(Error(format!("{name} has an impossible value: {found:?}")))
}

fn whole(values: &Json, name: &str, absent: usize) -> Result<usize> {
    match values.get(name) {
        None => Ok(absent),
        Some(x) => x.whole().map_or_else(|| wrong(name, x), Ok),
    }
}

fn real(values: &Json, name: &str, absent: f64) -> Result<f64> {
    match values.get(name) {
        None => Ok(absent),
        Some(Json::Number(x)) if *x >= 0.0 => Ok(*x),
        Some(x) => wrong(name, x),
    }
}

fn flag(values: &Json, name: &str, absent: bool) -> Result<bool> {
    match values.get(name) {
        None => Ok(absent),
        Some(Json::Bool(x)) => Ok(*x),
        Some(x) => wrong(name, x),
    }
}

fn text<'a>(values: &'a Json, name: &str) -> Result<Option<&'a str>> {
    match values.get(name) {
        None => Ok(None),
        Some(Json::Text(x)) => Ok(Some(x)),
        Some(x) => wrong(name, x),
    }
}
