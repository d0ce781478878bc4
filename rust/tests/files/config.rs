use dsarch::json::Json;
use dsarch::Config;

fn read(fields: &str) -> dsarch::Result<Config> {
    let text = format!("{{\"model_type\":\"deepseek_v3\"{fields}}}");
    Config::from_hf(&Json::parse(&text).expect("JSON"))
}

#[test]
fn what_is_absent_is_that_of_the_teaching_model() {
    // Only a query latent is never implied.
    let plain = Config { q_lora_rank: None, ..Config::default() };
    assert_eq!(read(""), Ok(plain));
    assert_eq!(read(",\"q_lora_rank\":48"), Ok(Config::default()));
}

#[test]
fn released_sizes_agree_with_themselves() {
    for cfg in [Config::v2_lite(), Config::v2(), Config::v3(), Config::v3_2()] {
        assert_eq!(cfg.check(), Ok(()));
    }
    assert_eq!(2 * Config::v3().kv_elements_per_token(), 70_272);
    assert_eq!(2 * Config::v2_lite().kv_elements_per_token(), 31_104);
}

#[test]
fn contradictions_name_both_numbers() {
    let broken = [
        ("\"hidden_size\":0", "hidden_size 0"),
        ("\"hidden_size\":4611686018427387904", "hidden_size"),
        ("\"hidden_size\":1073741825", "hidden_size 1073741825"),
        ("\"hidden_size\":\"9\"", "hidden_size"),
        ("\"qk_rope_head_dim\":7", "even, found 7"),
        ("\"n_group\":3", "n_group 3 does not divide n_routed_experts 16"),
        ("\"topk_group\":5", "topk_group 5 exceeds n_group 4"),
        ("\"n_group\":16,\"topk_group\":8", "leaves 1"),
        ("\"num_experts_per_tok\":9", "9 exceeds the 8 experts"),
        ("\"topk_method\":\"best\"", "topk_method"),
        ("\"scoring_func\":1", "scoring_func"),
        ("\"rope_interleave\":false", "rope_interleave"),
        ("\"rope_scaling\":{\"type\":\"linear\"}", "linear"),
        ("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}", "0.5"),
        (
            "\"rope_scaling\":{\"type\":\"yarn\",\
             \"original_max_position_embeddings\":0}",
            "stretches nothing",
        ),
    ];
    for (fields, part) in broken {
        let cause = read(&format!(",{fields}")).expect_err(fields).to_string();
        assert!(cause.contains(part), "{cause:?} does not say {part:?}");
    }
}

#[test]
fn sparse_attention_needs_what_it_builds_on() {
    let read = |fields: &str| {
        let head = "{\"q_lora_rank\":9,\"model_type\":\"deepseek_v32\"";
        let text = format!("{head},{fields}}}");
        Config::from_hf(&Json::parse(&text).expect("JSON"))
    };
    let sparse = read("\"index_topk\":6").expect("a config");
    assert_eq!(sparse.index_topk, Some(6));
    let none = Config { q_lora_rank: None, ..sparse };
    let cause = none.check().expect_err("no latent").to_string();
    assert!(cause.contains("index_topk 6 needs a query latent"), "{cause}");
    let narrow = "\"index_topk\":6,\"index_head_dim\":4";
    let cause = read(narrow).expect_err("too narrow").to_string();
    assert!(cause.contains("4 cannot hold qk_rope_head_dim 8"), "{cause}");
}

#[test]
fn other_models_are_refused() {
    let other = Json::parse("{\"model_type\":\"llama\"}").expect("JSON");
    let cause = Config::from_hf(&other).expect_err("llama").to_string();
    assert!(cause.contains("llama"), "{cause}");
    assert!(Config::from_hf(&Json::Null).is_err());
}
