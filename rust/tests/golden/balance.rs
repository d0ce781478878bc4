use dsarch::balance::{
    balance, communication_loss, dense, device_loss, expert_loss, gshard_loss,
    loads, sequence_loss, updated_bias, z_loss, Rule,
};
use dsarch::Tensor;

use crate::common::Golden;

fn row(x: Vec<f32>) -> Tensor {
    Tensor::new(&[x.len()], x)
}

#[test]
fn losses() {
    let mut golden = Golden::open("balance");
    let (scores, experts) =
        (golden.tensor("in.scores"), golden.index("in.experts"));
    let (flat, slots) = (scores.clone().flatten(), experts.clone().flatten());
    let (devices, limit) = (golden.size("devices"), golden.size("limit"));
    let k = experts.width();
    let losses = [
        ("expert", expert_loss(&flat, &slots)),
        ("gshard", gshard_loss(&flat, &slots)),
        ("device", device_loss(&flat, &slots, devices)),
        ("communication", communication_loss(&flat, &slots, devices, limit)),
        ("sequence", sequence_loss(&scores, k, None)),
        ("chosen", sequence_loss(&scores, k, Some(&experts))),
        ("z", z_loss(&flat)),
    ];
    for (name, loss) in losses {
        golden.check(&format!("{name}_loss"), &row(vec![loss]));
    }
    let weights = golden.tensor("in.weights");
    golden.check("dense", &dense(&weights, &slots, flat.width()));
}

#[test]
fn loads_and_the_bias_that_follows_them() {
    let mut golden = Golden::open("balance");
    let (experts, bias) =
        (golden.index("in.experts"), golden.tensor("in.bias"));
    let counts = loads(&experts, bias.width());
    assert_eq!(golden.index("out.loads").data, counts);
    let found = balance(&counts);
    let share = found.share.iter().map(|x| *x as f32).collect();
    golden.check("share", &row(share));
    let numbers = [found.max_violation, found.variation, found.entropy];
    golden.check("statistics", &row(numbers.map(|x| x as f32).into()));
    let speed = golden.cfg("speed") as f32;
    let rules = [
        ("sign", Rule::Sign),
        ("centred", Rule::Centred),
        ("proportional", Rule::Proportional),
    ];
    for (name, rule) in rules {
        let moved = updated_bias(&bias.data, &counts, speed, rule);
        golden.check(name, &row(moved));
    }
}

#[test]
fn an_even_load_moves_nothing() {
    for rule in [Rule::Sign, Rule::Centred, Rule::Proportional] {
        assert_eq!(updated_bias(&[0.5, -1.0], &[3, 3], 0.1, rule), [0.5, -1.0]);
    }
    assert_eq!(balance(&[0, 0]), balance(&[4, 4]));
}
