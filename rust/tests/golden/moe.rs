use dsarch::balance::loads;
use dsarch::dispatch::{dispatch_grouped, dispatch_loop};
use dsarch::moe::{DeepSeekMoE, Kind, SparseMoE};
use dsarch::Config;

use crate::common::Golden;
use crate::router::check;

fn config(golden: &mut Golden) -> Config {
    Config {
        hidden_size: golden.size("hidden_size"),
        moe_intermediate_size: golden.size("moe_intermediate_size"),
        n_shared_experts: golden.size("n_shared_experts"),
        n_routed_experts: golden.size("n_routed_experts"),
        num_experts_per_tok: golden.size("num_experts_per_tok"),
        n_group: golden.size("n_group"),
        topk_group: golden.size("topk_group"),
        routed_scaling_factor: golden.cfg("routed_scaling_factor"),
        ..Config::default()
    }
}

#[test]
fn the_loop_gives_what_groups_gave_in_python() {
    let mut golden = Golden::open("moe");
    let cfg = config(&mut golden);
    let own = std::mem::take(&mut golden.weights);
    let layer = DeepSeekMoE::load(&cfg, own).expect("weights");
    let x = golden.tensor("in.x");
    let flat = x.clone().flatten();
    let routing = layer.gate.forward(&flat);
    check(&mut golden, "routing", &routing);
    let counts = loads(&routing.experts, cfg.n_routed_experts);
    assert!(counts.contains(&0), "no expert is idle");
    let looped = dispatch_loop(&flat, &routing, &layer.experts);
    golden.check("routed", &looped);
    golden.check("layer", &layer.forward(&x));
    // Equal to the last bit: both add in the same order.
    assert_eq!(dispatch_grouped(&flat, &routing, &layer.experts), looped);
}

#[test]
fn classic_layers_that_drop_tokens() {
    let kinds = [
        ("noisy", Kind::Noisy, 2),
        ("top_k", Kind::TopK, 2),
        ("gshard", Kind::Gshard, 2),
        ("switch", Kind::Switch, 1),
    ];
    for (name, kind, k) in kinds {
        let mut golden = Golden::open("sparse_moe");
        let x = golden.tensor("in.x");
        let (hidden, e) = (golden.size("hidden"), golden.size("n_experts"));
        let factor = Some(golden.cfg("capacity_factor"));
        let mut own = std::mem::take(&mut golden.weights);
        if kind != Kind::Noisy {
            own.at("noise");
        }
        let sizes = [x.width(), hidden, e];
        let layer = SparseMoE::load(own, sizes, k, kind, factor);
        let layer = layer.expect("weights");
        let flat = x.clone().flatten();
        let routing = layer.route(&flat);
        assert!(routing.experts.data.contains(&e), "nothing was dropped");
        let looped = dispatch_loop(&flat, &routing, &layer.experts);
        assert_eq!(dispatch_grouped(&flat, &routing, &layer.experts), looped);
        let looped = looped.reshape(&x.shape);
        assert_eq!(layer.forward(&x), looped);
        golden.check(name, &looped);
    }
}
