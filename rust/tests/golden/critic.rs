use dsarch::distill::{keep_probability, layer_map, mixed_loss};
use dsarch::grpo::{dynamic_sampling, off_policy_mask, process_advantages};
use dsarch::objective::{policy_loss, Objective, Samples};
use dsarch::ppo::{ppo_loss, shaped_rewards, value_loss, whiten};
use dsarch::Tensor;

use crate::common::{check_loss, row, Golden};

/// The file holds no infinities.
fn unread(x: Tensor) -> Tensor {
    x.map(|&x| if x < -1e8 { f32::NEG_INFINITY } else { x })
}

#[test]
fn actor_and_critic() {
    let mut golden = Golden::open("critic");
    let [logp, old, reference, values, old_values, returns, advantage] = [
        "logp",
        "old_logp",
        "ref_logp",
        "values",
        "old_values",
        "returns",
        "advantage",
    ]
    .map(|name| golden.tensor(&format!("in.{name}")));
    let (logp, mask) = (unread(logp), golden.mask("in.mask"));
    let score = golden.tensor("in.score").data;
    let [beta, eps] = ["beta", "eps"].map(|name| golden.cfg(name) as f32);
    let shaped = shaped_rewards(&score, &logp, &reference, &mask, beta);
    golden.check("shaped", &shaped);
    golden.check("whitened", &whiten(&advantage, &mask));
    let nothing = mask.map(|_| false);
    golden.check("whitened_none", &whiten(&advantage, &nothing));
    let found = ppo_loss(&logp, &old, &advantage, &mask, eps);
    check_loss(&mut golden, "ppo", found);
    let found = value_loss(&values, &old_values, &returns, &mask, eps);
    check_loss(&mut golden, "value", found);
}

#[test]
#[should_panic(expected = "logp: 1 values are not finite")]
fn what_was_never_sampled_has_no_loss() {
    let mut logp = Tensor::full(&[1, 3], -1.0);
    logp.data[1] = f32::NEG_INFINITY;
    let mask = Tensor::full(&[1, 3], true);
    ppo_loss(&logp.clone(), &logp, &logp, &mask, 0.2);
}

#[test]
fn a_critic_inside_its_clip_is_pulled_whatever_rounds() {
    let values: Vec<f32> = (1..200).map(|i| 0.0013 * i as f32).collect();
    let values = Tensor::new(&[1, 199], values);
    let (old, mask) = (values.map(|_| 0.17), values.map(|_| true));
    let returns = &values * 0.75;
    let loss = value_loss(&values, &old, &returns, &mask, 0.2);
    for (slope, value) in loss.gradient.data.iter().zip(&values.data) {
        let told = 0.25 * value / 199.0;
        assert!((slope - told).abs() < 1e-8, "{slope}, not {told}");
    }
}

#[test]
fn supervision_of_steps() {
    let mut golden = Golden::open("process");
    let rewards = golden.tensor("in.rewards");
    let end = |x: &f32| if *x < 0.0 { None } else { Some(*x as usize) };
    let ends = golden.tensor("in.ends").map(end);
    let earned = process_advantages(&rewards, &ends, 8);
    golden.check("earned", &earned);
    let differs = golden.mask("out.differs").data;
    assert_eq!(dynamic_sampling(&rewards.reshape(&[3, 20])), differs);
    let [logp, old_logp, advantage] = ["logp", "old_logp", "advantage"]
        .map(|name| golden.tensor(&format!("in.{name}")));
    let mask = golden.mask("in.mask");
    for delta in ["-0.1", "0.0", "0.1", "0.5"] {
        let kept = golden.mask(&format!("out.keep.{delta}")).data;
        let delta = delta.parse().expect("a number");
        let found =
            off_policy_mask(&logp, &old_logp, &advantage.data, &mask, delta);
        assert_eq!(found, kept, "{delta}");
    }
    let samples = Samples {
        logp: &logp,
        old_logp: &old_logp,
        ref_logp: None,
        advantage: &earned.data,
        mask: &mask,
        keep: None,
    };
    let found = policy_loss(&samples, &Objective::default());
    check_loss(&mut golden, "loss", found);
}

#[test]
#[should_panic(expected = "a step ends at 8 of 8")]
fn a_step_beyond_its_answer_is_refused() {
    let ends = Tensor::full(&[1, 1, 1], Some(8));
    process_advantages(&Tensor::zeros(&[1, 1, 1]), &ends, 8);
}

#[test]
fn labels_and_a_teacher() {
    let mut golden = Golden::open("mixture");
    let both =
        ["student", "teacher"].map(|x| golden.tensor(&format!("in.{x}")));
    let (tokens, mask) = (golden.index("in.tokens"), golden.mask("in.mask"));
    let soft = golden.cfg("temperature") as f32;
    for weight in ["0.0", "0.3", "1.0"] {
        let share = weight.parse().expect("a number");
        let both = [&both[0], &both[1]];
        let found = mixed_loss(both, &tokens, &mask, soft, share);
        check_loss(&mut golden, &format!("mixed_{weight}"), found);
    }
    assert_eq!(layer_map(7, 61), golden.index("out.layers").data);
    let steps = (0..5000).step_by(500);
    let rates = steps.map(|x| keep_probability(x, 0.5, 1e-3) as f32).collect();
    assert_eq!(row(rates), golden.tensor("out.rates"));
}
