use dsarch::sampling::{verify, Sampling};
use dsarch::tensor::argmax;

use crate::common::Golden;

#[test]
fn temperature_and_nucleus() {
    let mut golden = Golden::open("sampling");
    let (t, p) = (golden.cfg("temperature"), golden.cfg("top_p"));
    let sampling = Sampling::new(t as f32, p as f32, 0).expect("valid");
    let logits = golden.tensor("in.logits");
    let found = sampling.probabilities(&logits).expect("finite logits");
    assert!(found.data.contains(&0.0), "the nucleus cut nothing");
    golden.check("probabilities", &found);
}

#[test]
fn drafts_are_kept_refused_and_replaced_as_in_python() {
    let mut golden = Golden::open("sampling");
    let mut lengths = Vec::new();
    for case in 0..golden.size("cases") {
        let [p, q, u] =
            ["p", "q", "u"].map(|x| golden.tensor(&format!("in.{case}.{x}")));
        let drafts = golden.index(&format!("in.{case}.drafts"));
        let found = verify(&drafts, [&q, &p], &u, &mut |p| argmax(p));
        assert_eq!(found, golden.index(&format!("out.{case}")), "{case}");
        lengths.push(found.shape[1]);
    }
    for length in 1..=4 {
        assert!(lengths.contains(&length), "no case of {length}");
    }
}

#[test]
fn greedy_is_sampling_from_certainty() {
    let mut golden = Golden::open("sampling");
    let logits = golden.tensor("in.logits");
    let mut greedy = Sampling::greedy();
    let p = greedy.probabilities(&logits).expect("finite logits");
    let best: Vec<usize> = logits.rows().map(argmax).collect();
    assert_eq!(greedy.draw(&p).data, best);
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let mut sampling = Sampling::new(1.0, 1.0, 1).expect("valid");
    let (p, mut counts) = ([0.1, 0.0, 0.6, 0.3], [0usize; 4]);
    for _ in 0..100_000 {
        counts[sampling.pick(&p)] += 1;
    }
    for (count, p) in counts.into_iter().zip(p) {
        let share = count as f32 / 100_000.0;
        assert!((share - p).abs() < 0.006, "{counts:?}");
    }
}

#[test]
fn impossible_requests_are_refused() {
    for (t, p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.1)] {
        assert!(Sampling::new(t, p, 0).is_err());
    }
    let mut logits = Golden::open("sampling").tensor("in.logits");
    logits.data[3] = f32::INFINITY;
    assert!(Sampling::greedy().probabilities(&logits).is_err());
}
