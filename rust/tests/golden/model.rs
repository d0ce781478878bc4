use std::path::PathBuf;

use dsarch::checkpoint::Weights;
use dsarch::generate::{check_prompt, generate, speculate};
use dsarch::mtp::{advance, mtp_losses};
use dsarch::sampling::Sampling;
use dsarch::{Config, DeepSeek, Tensor};

use crate::common::{close, folder, Golden};

fn whole() -> DeepSeek {
    DeepSeek::open(&folder().join("model")).expect("a checkpoint")
}

fn greedy(
    model: &DeepSeek,
    prompt: &Tensor<usize>,
    count: usize,
    drafts: Option<usize>,
) -> Tensor<usize> {
    let found = generate(model, prompt, count, Sampling::greedy(), drafts);
    found.expect("a prompt")
}

#[test]
fn logits_drafts_and_losses_of_a_whole_model() {
    let (mut golden, model) = (Golden::open("model"), whole());
    let tokens = golden.index("in.tokens");
    let count = tokens.shape[1] - 1;
    let hidden = model.hidden(&tokens.slice(1, 0..count), None);
    golden.check("hidden", &hidden);
    golden.check("logits", &model.lm_head.forward(&hidden));
    let next = tokens.slice(1, 1..count + 1);
    let ahead = advance(&model.mtp[0], &hidden, &next, None);
    golden.check("advance", &ahead);
    let losses = mtp_losses(&model.mtp, &hidden, &tokens);
    golden.check("mtp_losses", &Tensor::new(&[1], losses));
    let depths = [&model.mtp[..], &model.mtp[..]].concat();
    let losses = mtp_losses(&depths, &hidden, &tokens);
    golden.check("chained", &Tensor::new(&[2], losses));
}

#[test]
fn chunks_with_caches_give_the_whole() {
    let (mut golden, model) = (Golden::open("model"), whole());
    let tokens = golden.index("in.tokens");
    let expected = golden.tensor("out.logits");
    let mut caches = model.caches();
    for range in [0..7, 7..8, 8..12] {
        let piece = tokens.slice(1, range.clone());
        let found = model.forward(&piece, Some(&mut caches));
        close(&found, &expected.slice(1, range), "logits");
    }
}

#[test]
fn drafts_change_nothing_but_the_number_of_passes() {
    let (mut golden, model) = (Golden::open("model"), whole());
    let prompt = golden.index("in.prompt");
    let text = golden.index("out.text");
    let count = text.shape[1] - prompt.shape[1];
    for drafts in [None, Some(1), Some(3)] {
        assert_eq!(greedy(&model, &prompt, count, drafts), text);
    }
    let both = golden.index("in.tokens");
    let plain = greedy(&model, &both, 9, None);
    assert_eq!(greedy(&model, &both, 9, Some(2)), plain);
}

fn tiny() -> DeepSeek {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let weights = root.join("../weights/tiny-pretrained");
    DeepSeek::open(&weights).expect("the trained model")
}

#[test]
fn the_trained_model_writes_the_same_text_in_both_languages() {
    let (mut golden, model) = (Golden::open("text"), tiny());
    for number in 0..golden.size("prompts") {
        let prompt = golden.index(&format!("in.{number}"));
        let text = golden.index(&format!("out.{number}"));
        let count = text.shape[1] - prompt.shape[1];
        for drafts in [None, Some(1)] {
            assert_eq!(greedy(&model, &prompt, count, drafts), text);
        }
    }
}

#[test]
fn drafts_hold_as_often_as_in_python() {
    let (mut golden, model) = (Golden::open("text"), tiny());
    for number in 0..golden.size("prompts") {
        let prompt = golden.index(&format!("in.{number}"));
        let pieces = golden.index(&format!("out.{number}.pieces"));
        let run = speculate(&model, &prompt, Sampling::greedy(), 3);
        let mut run = run.expect("an MTP layer");
        for expected in pieces.data {
            assert_eq!(run.step().expect("tokens").shape[1], expected);
        }
    }
}

#[test]
fn prompts_are_checked() {
    assert!(check_prompt(&Tensor::new(&[1, 1], vec![28]), 29).is_ok());
    let beyond = check_prompt(&Tensor::new(&[1, 1], vec![29]), 29);
    let cause = beyond.expect_err("a token").to_string();
    assert!(cause.contains("token 29 leaves the vocabulary of 29"));
    assert!(check_prompt(&Tensor::new(&[1, 0], Vec::new()), 29).is_err());
}

/// The weights of the whole model, for damage.
fn weights() -> (Config, Weights) {
    let path = folder().join("model");
    let cfg = Config::open(&path).expect("a config");
    (cfg, Weights::open_folder(&path).expect("weights"))
}

#[test]
fn a_folder_without_the_last_layer_gives_a_model_without_drafts() {
    let (cfg, mut w) = weights();
    w.at("model.layers.3");
    let model = DeepSeek::load(cfg, w).expect("a smaller model");
    assert!(model.mtp.is_empty());
    let prompt = Tensor::new(&[1, 1], vec![0]);
    let refused = speculate(&model, &prompt, Sampling::greedy(), 1);
    let cause = refused.expect_err("no drafts").to_string();
    assert!(cause.contains("1 drafts from 0 MTP layers"), "{cause}");
}

#[test]
fn the_cause_of_a_broken_checkpoint_is_named() {
    let cause = |change: &dyn Fn(&mut Config, &mut Weights)| {
        let (mut cfg, mut w) = weights();
        change(&mut cfg, &mut w);
        DeepSeek::load(cfg, w).expect_err("damage").to_string()
    };
    let deep = "model.layers.2.mlp.experts.5.up_proj.weight";
    let found = cause(&|_, w| drop(w.find(deep)));
    assert_eq!(found, format!("missing {deep}"));
    let found = cause(&|cfg, _| cfg.kv_lora_rank = 17);
    assert!(found.contains("layers.0.self_attn.kv_b_proj.weight has shape"));
    let found = cause(&|cfg, _| cfg.num_hidden_layers = 2);
    assert!(found.contains("unexpected"), "{found}");
    let found = cause(&|cfg, _| cfg.num_hidden_layers = 1 << 29);
    assert!(found.contains("unexpected model.layers.3."), "{found}");
    let found = cause(&|cfg, _| cfg.tie_word_embeddings = true);
    assert!(found.contains("copies of model.embed_tokens.weight differ"));
    let found = cause(&|_, w| {
        w.find("lm_head.weight");
        w.find("model.layers.3.shared_head.head.weight");
    });
    assert_eq!(found, "missing lm_head.weight");
}

#[test]
fn one_copy_of_a_shared_weight_is_enough() {
    let (cfg, mut w) = weights();
    w.find("model.embed_tokens.weight").expect("an embedding");
    assert!(DeepSeek::load(cfg, w).is_ok());
}
