use dsarch::distill::{jsd_loss, kd_loss, reverse_kl_loss};
use dsarch::dpo::{bradley_terry_loss, dpo_loss, Choice, Variant};
use dsarch::grpo::{advantages, kl_estimate, Kl, Scale};
use dsarch::objective::{policy_loss, Objective, Reduction, Samples};
use dsarch::ppo::gae;
use dsarch::sft::{sft_loss, token_logprobs, Loss};
use dsarch::Tensor;

use crate::common::{check_loss, row, Golden};

/// What cannot be said, where a golden file says so.
fn hide(x: &f32, gone: &bool) -> f32 {
    match gone {
        true => f32::NEG_INFINITY,
        false => *x,
    }
}

#[test]
fn fine_tuning() {
    let mut golden = Golden::open("sft");
    let (logits, tokens) =
        (golden.tensor("in.logits"), golden.index("in.tokens"));
    let (mask, t) = (golden.mask("in.mask"), golden.cfg("temperature") as f32);
    golden.check("logprobs", &token_logprobs(&logits, &tokens, t));
    check_loss(&mut golden, "loss", sft_loss(&logits, &tokens, &mask));
    let fewer = logits.zip(&golden.mask("in.forbidden"), hide);
    let hidden = sft_loss(&fewer, &tokens, &mask);
    check_loss(&mut golden, "hidden", hidden);
    let nothing = Tensor::full(&mask.shape, false);
    let loss = sft_loss(&logits, &tokens, &nothing);
    check_loss(&mut golden, "nothing", loss);
}

fn check_pair(golden: &mut Golden, name: &str, found: Loss<[Vec<f32>; 2]>) {
    golden.check(name, &row(vec![found.value]));
    for (number, slope) in found.gradient.into_iter().enumerate() {
        golden.check(&format!("{name}.gradient.{number}"), &row(slope));
    }
}

#[test]
fn preferences() {
    let mut golden = Golden::open("preferences");
    let [chosen, rejected, ref_chosen, ref_rejected, margin] =
        ["chosen", "rejected", "ref_chosen", "ref_rejected", "margin"]
            .map(|name| golden.tensor(&format!("in.{name}")).data);
    let lengths = golden.index("in.lengths");
    let centering = golden.cfg("centering") as f32;
    let found =
        bradley_terry_loss(&chosen, &rejected, Some(&margin), centering);
    check_pair(&mut golden, "bradley_terry", found);
    let variants = [
        ("sigmoid", Variant::Sigmoid),
        ("conservative", Variant::Conservative),
        ("robust", Variant::Robust),
        ("hinge", Variant::Hinge),
        ("ipo", Variant::Ipo),
        ("sigmoid_norm", Variant::SigmoidNorm),
        ("exo_pair", Variant::ExoPair),
        ("nca_pair", Variant::NcaPair),
        ("bco_pair", Variant::BcoPair),
        ("sppo_hard", Variant::SppoHard),
        ("apo_zero", Variant::ApoZero),
        ("apo_down", Variant::ApoDown),
    ];
    let beta = golden.cfg("beta") as f32;
    let smoothing = golden.cfg("smoothing") as f32;
    for (name, variant) in variants {
        let found = dpo_loss(
            [&chosen, &rejected],
            [&ref_chosen, &ref_rejected],
            Choice { variant, beta, smoothing },
            Some([lengths.row(0), lengths.row(1)]),
        );
        check_pair(&mut golden, name, found);
    }
}

#[test]
fn groups_and_divergences() {
    let mut golden = Golden::open("grpo");
    let rewards = golden.tensor("in.rewards");
    let scales = [
        ("group", Scale::Group),
        ("batch", Scale::Batch),
        ("none", Scale::None),
    ];
    for (name, scale) in scales {
        let found = advantages(&rewards, scale);
        assert_eq!(found.row(1), [0.0; 3]);
        golden.check(&format!("advantages.{name}"), &found);
    }
    let equal = golden.tensor("in.equal");
    golden.check("equal", &advantages(&equal, Scale::Group));
    let (logp, known) =
        (golden.tensor("in.logp"), golden.tensor("in.ref_logp"));
    for (name, kind) in [("k1", Kl::K1), ("k2", Kl::K2), ("k3", Kl::K3)] {
        let found =
            logp.zip(&known, |x, y| kl_estimate(*x, *y, kind, 1.0).value);
        golden.check(&format!("kl.{name}"), &found);
    }
}

fn members() -> Vec<(&'static str, Objective)> {
    let plain = Objective::default();
    let grpo = Objective { beta: 0.3, ..plain };
    let unbiased = Objective { kl: Kl::Unbiased, ..grpo };
    let token = Objective { reduction: Reduction::Token, ..plain };
    let one = |choice| Objective { sequence_level: true, ..choice };
    let gspo = Objective { eps_low: 0.05, eps_high: 0.05, ..one(grpo) };
    let constant = Reduction::Constant(9);
    vec![
        ("grpo", grpo),
        ("v3.2", unbiased),
        ("k1", Objective { kl: Kl::K1, ..grpo }),
        ("k2", Objective { kl: Kl::K2, ..grpo }),
        ("dr_grpo", Objective { reduction: constant, ..plain }),
        ("dapo", Objective { eps_high: 0.28, ..token }),
        ("gspo", gspo),
        ("gspo_v3.2", one(unbiased)),
        ("cispo", Objective { detached: true, ..token }),
        ("two_sided", Objective { delta: Some(1.1), ..plain }),
    ]
}

#[test]
fn policies_and_what_autograd_says_of_them() {
    let mut golden = Golden::open("grpo");
    let [logp, old_logp, ref_logp, advantage, keep] =
        ["logp", "old_logp", "ref_logp", "advantage", "keep"]
            .map(|name| golden.tensor(&format!("in.{name}")));
    let (keep, mask) = (keep.map(|x| *x > 0.0).data, golden.mask("in.mask"));
    let samples = Samples {
        logp: &logp,
        old_logp: &old_logp,
        ref_logp: Some(&ref_logp),
        advantage: &advantage.data,
        mask: &mask,
        keep: Some(&keep),
    };
    for (name, choice) in members() {
        check_loss(&mut golden, name, policy_loss(&samples, &choice));
    }
    // Just drawn: the sampler gave what the policy gives.
    let fresh = Samples { old_logp: &logp, ref_logp: None, ..samples };
    let fresh = Samples { keep: None, ..fresh };
    let found = policy_loss(&fresh, &Objective::default());
    check_loss(&mut golden, "fresh", found);
    let unused = mask.map(|used| !used);
    let [logp, old_logp, ref_logp] =
        [&logp, &old_logp, &ref_logp].map(|x| x.zip(&unused, hide));
    let masked = Samples {
        logp: &logp,
        old_logp: &old_logp,
        ref_logp: Some(&ref_logp),
        keep: None,
        ..samples
    };
    for (name, choice) in members() {
        if ["grpo", "gspo_v3.2"].contains(&name) {
            let found = policy_loss(&masked, &choice);
            check_loss(&mut golden, &format!("masked.{name}"), found);
        }
    }
}

#[test]
fn advantages_of_a_critic() {
    let mut golden = Golden::open("grpo");
    let (values, scores) =
        (golden.tensor("in.values"), golden.tensor("in.scores"));
    let mask = golden.mask("in.mask");
    let (mut found, mut returns) = (Vec::new(), Vec::new());
    for i in 0..mask.shape[0] {
        let both = [scores.row(i), values.row(i)];
        let [advantage, target] = gae(both, mask.row(i), 0.97, 0.9);
        found.extend(advantage);
        returns.extend(target);
    }
    golden.check("gae", &Tensor::new(&mask.shape, found));
    golden.check("returns", &Tensor::new(&mask.shape, returns));
}

#[test]
fn students() {
    let mut golden = Golden::open("distillation");
    let (s, t) = (golden.tensor("in.student"), golden.tensor("in.teacher"));
    let some = golden.mask("in.mask").data;
    let never = golden.mask("in.forbidden");
    let fewer = [s.zip(&never, hide), t.zip(&never, hide)];
    let cases = [
        ("", [&s, &t], None),
        ("_masked", [&s, &t], Some(&some[..])),
        ("_forbidden", [&fewer[0], &fewer[1]], None),
    ];
    for (suffix, [s, t], mask) in cases {
        let found = kd_loss(s, t, 2.5, mask);
        check_loss(&mut golden, &format!("kd{suffix}"), found);
        let found = reverse_kl_loss(s, t, 0.8, mask);
        check_loss(&mut golden, &format!("reverse{suffix}"), found);
        for (name, beta) in [("0.0", 0.0), ("0.3", 0.3), ("1.0", 1.0)] {
            let found = jsd_loss(s, t, beta, 1.3, mask);
            check_loss(&mut golden, &format!("jsd_{name}{suffix}"), found);
        }
    }
}
