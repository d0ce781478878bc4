//! Pipeline schedules as programs: what each device does, in order.

use std::collections::VecDeque;

use crate::timeline::{Item, Kind, Op, Program, Times};

/// `lead` forwards ahead, then one forward and one backward in turn.
fn turns(lead: usize, count: usize) -> Vec<(Kind, usize)> {
    let lead = lead.min(count);
    let ahead = (0..lead).map(|k| (Kind::F, k));
    let both = |k| [(Kind::F, k + lead), (Kind::B, k)];
    let steady = (0..count - lead).flat_map(both);
    let drain = (count - lead..count).map(|k| (Kind::B, k));
    ahead.chain(steady).chain(drain).collect()
}

fn alone(stage: usize, turns: Vec<(Kind, usize)>) -> Vec<Item> {
    let op = |(kind, micro)| vec![Op { kind, stage, micro }];
    turns.into_iter().map(op).collect()
}

// ANCHOR: gpipe
/// All forwards, then all backwards.
pub fn gpipe(stages: usize, micros: usize) -> Program {
    (0..stages).map(|stage| alone(stage, turns(micros, micros))).collect()
}
// ANCHOR_END: gpipe

// ANCHOR: one_f_one_b
/// Forward and backward in turn: GPipe's bubble, fewer activations.
pub fn one_f_one_b(stages: usize, micros: usize) -> Program {
    let lead = |stage| stages - 1 - stage;
    (0..stages).map(|s| alone(s, turns(lead(s), micros))).collect()
}
// ANCHOR_END: one_f_one_b

// ANCHOR: interleaved
/// 1F1B on `chunks` thin stages per device; simulate with their share.
///
/// # Panics
/// If the stages do not divide the micro-batches.
pub fn interleaved(stages: usize, micros: usize, chunks: usize) -> Program {
    assert!(micros % stages == 0, "{stages} do not divide {micros} micros");
    let op = |device: usize, (kind, k): (Kind, usize)| {
        let chunk = match kind {
            Kind::F => k / stages % chunks,
            _ => chunks - 1 - k / stages % chunks,
        };
        let micro = k / (stages * chunks) * stages + k % stages;
        vec![Op { kind, stage: chunk * stages + device, micro }]
    };
    let row = |device: usize| {
        let lead = 2 * (stages - 1 - device) + (chunks - 1) * stages;
        let turns = turns(lead, micros * chunks).into_iter();
        turns.map(|turn| op(device, turn)).collect()
    };
    (0..stages).map(row).collect()
}
// ANCHOR_END: interleaved

// ANCHOR: zero_bubble
/// ZB-H1: 1F1B whose weight gradients wait for idle time.
pub fn zero_bubble(stages: usize, micros: usize) -> Program {
    let row = |stage: usize| {
        let op = |kind, micro| vec![Op { kind, stage, micro }];
        let mut row: Vec<Item> = Vec::new();
        for (kind, m) in turns(stages - 1 - stage, micros) {
            if kind == Kind::F {
                row.push(op(Kind::F, m));
                continue;
            }
            row.push(op(Kind::I, m));
            if m >= stage {
                row.push(op(Kind::W, m - stage));
            }
        }
        let late = micros.saturating_sub(stage)..micros;
        row.extend(late.map(|m| op(Kind::W, m)));
        row
    };
    (0..stages).map(row).collect()
}
// ANCHOR_END: zero_bubble

// ANCHOR: dualpipe
/// DualPipe: micro-batches enter from both ends, every device has two
/// stages, and a forward of one direction runs with a backward of the other.
///
/// # Panics
/// Unless stages and micro-batches are even, at least two for each stage.
pub fn dualpipe(stages: usize, micros: usize) -> Program {
    check_dual(stages, micros, 2 * stages);
    let half = micros / 2;
    let row = |device: usize| {
        let far = stages - 1 - device;
        let near = device.min(far);
        let first = if device == near { 0 } else { half };
        let steps = dual_steps(stages / 2, near, half);
        dual_row(&steps, [near, stages - 1 - near], [first, half - first])
    };
    (0..stages).map(row).collect()
}
// ANCHOR_END: dualpipe

// ANCHOR: dualpipe_v
/// DualPipe folded: stages `r` and `p - 1 - r` share one of `p / 2` devices.
///
/// # Panics
/// Unless stages and micro-batches are even, at least one for each stage.
pub fn dualpipe_v(stages: usize, micros: usize) -> Program {
    check_dual(stages, micros, stages);
    let row = |device: usize| {
        let steps = dual_steps(stages / 2, device, micros);
        dual_row(&steps, [device, stages - 1 - device], [0, 0])
    };
    (0..stages / 2).map(row).collect()
}
// ANCHOR_END: dualpipe_v

fn check_dual(stages: usize, micros: usize, least: usize) {
    let fits = stages % 2 == 0 && micros % 2 == 0 && micros >= least;
    let rule = "both even, at least";
    assert!(fits, "{stages} stages, {micros} micros: {rule} {least} micros");
}

/// What a device does in one step; the digit is the direction, and 0 comes
/// from the near end.
#[derive(Clone, Copy)]
enum Step {
    One(Kind, usize),
    Both(usize, usize),
    Late,
}

// ANCHOR: dual_steps
/// What the device `near` steps from an end does, in eight phases.
///
/// `I` leaves its weight gradient to a later `W`, which is `Late` here.
fn dual_steps(pairs: usize, near: usize, micros: usize) -> Vec<Step> {
    use Kind::{B, F, I};
    use Step::{Both, Late, One};
    let inner = pairs - near - 1;
    let mut steps = vec![One(F, 0); 2 * inner];
    steps.extend([One(F, 0), One(F, 1)].repeat(near + 1));
    steps.extend([One(I, 1), Late, One(F, 1)].repeat(inner));
    let times = micros + near + 1 - 2 * pairs;
    let mut main = [Both(0, 1), Both(1, 0)].repeat(times);
    if inner == 0 {
        main.splice(..1, [One(F, 0), One(B, 1)]);
    }
    steps.extend(main);
    steps.extend([One(B, 1), Both(1, 0)].repeat(inner));
    for step in 0..2 * (near + 1) {
        let kind = if step <= near { B } else { I };
        steps.push(One(kind, (step + 1) % 2));
    }
    steps.extend([Late, One(I, 0)].repeat(inner));
    steps.extend(vec![Late; near + 1]);
    steps
}
// ANCHOR_END: dual_steps

// ANCHOR: dual_row
/// Number the micro-batches: each kind and direction counts on its own.
fn dual_row(
    steps: &[Step],
    stages: [usize; 2],
    first: [usize; 2],
) -> Vec<Item> {
    let (mut forward, mut backward) = (first, first);
    let mut op = |kind: Kind, d: usize| {
        let count = match kind {
            Kind::F => &mut forward,
            _ => &mut backward,
        };
        count[d] += 1;
        Op { kind, stage: stages[d], micro: count[d] - 1 }
    };
    let mut delayed = VecDeque::new();
    let mut row = Vec::new();
    for step in steps {
        let item = match *step {
            Step::One(kind, d) => vec![op(kind, d)],
            Step::Both(f, b) => vec![op(Kind::F, f), op(Kind::B, b)],
            Step::Late => vec![delayed.pop_front().expect("an earlier I")],
        };
        let late = item.iter().filter(|op| op.kind == Kind::I);
        delayed.extend(late.map(|&op| Op { kind: Kind::W, ..op }));
        row.push(item);
    }
    row
}
// ANCHOR_END: dual_row

/// A schedule that has a closed formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Schedule {
    GPipe,
    OneFOneB,
    Interleaved(usize),
    ZeroBubble,
    DualPipe,
}

// ANCHOR: bubble
/// The closed formula for the idle time of a device.
pub fn bubble(schedule: Schedule, stages: usize, times: &Times) -> f64 {
    let &Times { forward: f, backward: b, weight: w, pair } = times;
    let (others, half) = (stages as f64 - 1.0, stages as f64 / 2.0 - 1.0);
    match schedule {
        Schedule::GPipe | Schedule::OneFOneB => others * (f + b),
        Schedule::Interleaved(chunks) => others * (f + b) / chunks as f64,
        Schedule::ZeroBubble => others * (f + b - 2.0 * w),
        Schedule::DualPipe => half * (pair + b - 3.0 * w),
    }
}
// ANCHOR_END: bubble
