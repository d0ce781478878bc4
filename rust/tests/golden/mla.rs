use dsarch::layers::{causal_mask, positions};
use dsarch::mla::{absorbed, absorbs, expanded, MLA};
use dsarch::rope::{phases, Phase};
use dsarch::{Cache, Config, Tensor};

use crate::common::{close, Golden};

struct Case {
    golden: Golden,
    cfg: Config,
    layer: MLA,
    x: Tensor,
    start: usize,
}

fn case(name: &str) -> Case {
    let mut golden = Golden::open(name);
    let x = golden.tensor("in.x");
    let low_rank = (name == "mla").then(|| golden.size("q_lora_rank"));
    let cfg = Config {
        hidden_size: x.width(),
        num_attention_heads: golden.size("num_attention_heads"),
        q_lora_rank: low_rank,
        kv_lora_rank: golden.size("kv_lora_rank"),
        qk_nope_head_dim: golden.size("qk_nope_head_dim"),
        qk_rope_head_dim: golden.size("qk_rope_head_dim"),
        v_head_dim: golden.size("v_head_dim"),
        rope_theta: golden.cfg("rope_theta"),
        rope_scaling: Some(golden.yarn()),
        ..Config::default()
    };
    let layer = MLA::load(&cfg, &mut golden.weights).expect("weights");
    let start = golden.size("start");
    Case { golden, cfg, layer, x, start }
}

fn angles(case: &Case) -> (Phase, Tensor<bool>) {
    let [b, t, _] = case.x.dims();
    let mask = causal_mask(&positions(b, 0, t), t);
    (phases(&case.cfg, &positions(b, case.start, t)), mask)
}

#[test]
fn the_absorbed_form_gives_what_the_expanded_gave_in_python() {
    for name in ["mla", "mla_lite"] {
        let mut case = case(name);
        let (phase, mask) = angles(&case);
        let (q, q_rope, _) = case.layer.queries(&case.x, &phase);
        let (c, k_rope) = case.layer.memories(&case.x, &phase);
        case.golden.check("latent", &c);
        case.golden.check("k_rope", &k_rope);
        let (up, scale) = (case.layer.up(), case.layer.scale());
        let pieces = [&q, &q_rope, &c, &k_rope];
        let o = absorbed(pieces, up, &mask, scale);
        close(&o, &expanded(pieces, up, &mask, scale), "expanded");
        case.golden.check("heads", &o);
        let y = case.layer.forward(&case.x, &phase, &mask, None);
        case.golden.check("layer", &y);
    }
}

#[test]
fn one_token_at_a_time_gives_the_whole() {
    for name in ["mla", "mla_lite"] {
        let mut case = case(name);
        let [b, t, d] = case.x.dims();
        let (mut cache, mut y) = (Cache::default(), Tensor::zeros(&[b, 0, d]));
        for i in 0..t {
            let phase = phases(&case.cfg, &positions(b, case.start + i, 1));
            let mask = causal_mask(&positions(b, i, 1), i + 1);
            let x = case.x.slice(1, i..i + 1);
            let new = case.layer.forward(&x, &phase, &mask, Some(&mut cache));
            y = y.cat(&new, 1);
        }
        case.golden.check("layer", &y);
        let [c, r] = case.cfg.kv_widths();
        assert_eq!(cache.nbytes(), 4 * b * t * (c + r));
    }
}

#[test]
fn one_token_absorbs_and_a_prompt_expands() {
    let cfg = Config::v3();
    assert!(absorbs(&cfg, 1, 4096));
    assert!(!absorbs(&cfg, 4096, 4096));
}
