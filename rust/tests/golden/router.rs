use dsarch::config::{Config, Scoring, Selection};
use dsarch::router::{
    affinities, capacity, drop_overflow, gshard_top2, noisy_top_k, route,
    softmax_rows, switch_top1, top_k, Routing,
};
use dsarch::special::erfc;
use dsarch::Tensor;

use crate::common::Golden;

/// Weights and scores within the tolerance, experts exactly.
pub fn check(golden: &mut Golden, name: &str, found: &Routing) {
    let experts = golden.index(&format!("out.{name}.experts"));
    assert_eq!(found.experts, experts, "{name}");
    golden.check(&format!("{name}.weights"), &found.weights);
    golden.check(&format!("{name}.scores"), &found.scores);
}

fn v3() -> Config {
    Config {
        n_routed_experts: 12,
        num_experts_per_tok: 4,
        n_group: 4,
        topk_group: 2,
        ..Config::default()
    }
}

fn v2() -> Config {
    Config {
        topk_method: Selection::GroupLimitedGreedy,
        scoring_func: Scoring::Softmax,
        norm_topk_prob: false,
        routed_scaling_factor: 16.0,
        ..v3()
    }
}

#[test]
fn deepseeks_routers() {
    let mut golden = Golden::open("router");
    let x = golden.tensor("in.x");
    let mut take = |name: &str| golden.weights.find(name).expect("a weight");
    let (weight, bias) = (take("weight"), take("e_score_correction_bias"));
    let greedy = Config { topk_method: Selection::Greedy, ..v2() };
    let cases = [
        ("v3", v3(), Some(&bias)),
        ("v2", v2(), None),
        ("greedy", greedy, None),
    ];
    for (name, cfg, bias) in cases {
        let scores = affinities(&x, &weight, cfg.scoring_func);
        check(&mut golden, name, &route(scores, bias, &cfg));
    }
    let faint = golden.tensor("in.faint");
    check(&mut golden, "faint", &route(faint, Some(&bias), &v3()));
    let coarse =
        ["x", "weight"].map(|x| golden.tensor(&format!("in.coarse.{x}")));
    let scores = affinities(&coarse[0], &coarse[1], Scoring::Sigmoid);
    golden.check("coarse", &scores);
}

#[test]
fn classic_routers() {
    let mut golden = Golden::open("router");
    let (logits, u) = (golden.tensor("in.logits"), golden.tensor("in.u"));
    let (spread, noise) =
        (golden.tensor("in.spread"), golden.tensor("in.noise"));
    let (k, factor) = (golden.size("k"), golden.cfg("capacity_factor"));
    let scores = softmax_rows(logits.clone());
    check(&mut golden, "top_k", &top_k(scores.clone(), k));
    check(&mut golden, "switch", &switch_top1(scores.clone()));
    check(&mut golden, "gshard", &gshard_top2(scores.clone(), None));
    let drawn = gshard_top2(scores.clone(), Some(&u.data));
    check(&mut golden, "gshard_drawn", &drawn);
    let (noisy, chance) = noisy_top_k(&logits, &spread, k, Some(&noise));
    check(&mut golden, "noisy", &noisy);
    golden.check("noisy.probability", &chance);
    let mut dropped = top_k(scores, k);
    let [z, e] = logits.dims();
    drop_overflow(&mut dropped, capacity(z, k, e, factor));
    assert!(dropped.experts.data.contains(&e), "nothing was dropped");
    check(&mut golden, "dropped", &dropped);
}

#[test]
fn a_closed_group_stays_closed_though_open_scores_are_negative() {
    let scores = Tensor::new(&[1, 12], vec![0.1; 12]);
    let mut bias = vec![-3.0; 12];
    bias[..3].fill(-1.0);
    bias[3..6].fill(-2.0);
    let bias = Tensor::new(&[12], bias);
    let routing = route(scores, Some(&bias), &v3());
    assert_eq!(routing.experts.data, [0, 1, 2, 3]);
}

#[test]
fn the_normal_distribution_is_exact() {
    // erfc at 0, 1/2, 2, 3.5 and -1, to 16 digits.
    let known = [
        (0.0, 1.0),
        (0.5, 0.479_500_122_186_953_5),
        (2.0, 0.004_677_734_981_047_266),
        (3.5, 7.430_983_723_414_128e-7),
        (-1.0, 1.842_700_792_949_715),
    ];
    for (x, y) in known {
        assert!((erfc(x) / y - 1.0).abs() < 1e-12, "{x}: {}", erfc(x));
    }
}
