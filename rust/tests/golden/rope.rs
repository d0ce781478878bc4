use dsarch::config::{Config, Yarn};
use dsarch::rope::{
    correction_range, frequencies, phases, rotate, softmax_factor,
    to_half_split, to_interleaved, Layout,
};
use dsarch::Tensor;

use crate::common::Golden;

#[test]
fn frequencies_and_ramp_of_yarn() {
    let mut golden = Golden::open("rope");
    let (theta, yarn) = (golden.cfg("rope_theta"), golden.yarn());
    let width = golden.tensor("in.x").width();
    let row = |x: Vec<f32>| Tensor::new(&[x.len()], x);
    golden.check("frequencies", &row(frequencies(width, theta, None)));
    let stretched = frequencies(width, theta, Some(&yarn));
    golden.check("yarn_frequencies", &row(stretched));
    let (low, high) = correction_range(width, theta, &yarn);
    golden.check("correction_range", &row(vec![low as f32, high as f32]));
    let window = golden.size("wide_window");
    let wide = Yarn { original_max_position_embeddings: window, ..yarn };
    let stretched = frequencies(width, theta, Some(&wide));
    golden.check("wide_frequencies", &row(stretched));
    let (low, high) = correction_range(width, theta, &wide);
    golden.check("wide_range", &row(vec![low as f32, high as f32]));
    let factor = softmax_factor(Some(&yarn)) as f32;
    golden.check("softmax_factor", &row(vec![factor]));
}

#[test]
fn both_layouts_turn_as_in_python() {
    let mut golden = Golden::open("rope");
    let x = golden.tensor("in.x");
    let position = golden.index("in.position");
    let cfg = Config {
        qk_rope_head_dim: x.width(),
        rope_theta: golden.cfg("rope_theta"),
        rope_scaling: Some(golden.yarn()),
        ..Config::default()
    };
    let phase = phases(&cfg, &position);
    let turned = rotate(x.clone(), &phase, Layout::Interleaved);
    golden.check("interleaved", &turned);
    let half = rotate(x.clone(), &phase, Layout::HalfSplit);
    golden.check("half_split", &half);
    golden.check("permuted", &to_half_split(&x));
}

#[test]
fn one_layout_is_the_other_after_a_permutation() {
    let mut golden = Golden::open("rope");
    let x = golden.tensor("in.x");
    let cfg = Config { qk_rope_head_dim: x.width(), ..Config::default() };
    let phase = phases(&cfg, &golden.index("in.position"));
    let turned = rotate(x.clone(), &phase, Layout::Interleaved);
    let other = rotate(to_half_split(&x), &phase, Layout::HalfSplit);
    assert_eq!(to_interleaved(&other), turned);
}

#[test]
fn the_ramp_of_v3_rises_from_pair_10_to_23() {
    let cfg = Config::v3();
    let yarn = cfg.rope_scaling.expect("a stretched window");
    let range = correction_range(64, cfg.rope_theta, &yarn);
    assert_eq!(range, (10.0, 23.0));
    let factor = softmax_factor(Some(&yarn));
    assert!((factor - 1.8738542).abs() < 1e-6, "{factor}");
}
