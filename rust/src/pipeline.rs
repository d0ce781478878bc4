//! Pipeline schedules as programs, and a simulator that times them.

use std::collections::HashMap;

use crate::error::{error, Result};

/// What a piece of work is: `I` and `W` are the two parts of `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    F,
    B,
    I,
    W,
}

// ANCHOR: Op
/// One piece of work; `stage` counts along the path of the micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Op {
    pub kind: Kind,
    pub stage: usize,
    pub micro: usize,
}
// ANCHOR_END: Op

/// Work of one device at one time: one piece, or two that run interleaved.
pub type Item = Vec<Op>;
/// For every device what it does, in order.
pub type Program = Vec<Vec<Item>>;

// ANCHOR: Times
/// Durations of a stage: `F`, the whole `B`, its part `W`, the pair `F&B`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Times {
    pub forward: f64,
    pub backward: f64,
    pub weight: f64,
    pub pair: f64,
}

impl Times {
    /// How long an item takes on a stage that is `share` as deep.
    pub fn of(&self, item: &[Op], share: f64) -> f64 {
        let alone = |kind| match kind {
            Kind::F => self.forward,
            Kind::B => self.backward,
            Kind::I => self.backward - self.weight,
            Kind::W => self.weight,
        };
        share * if item.len() == 2 { self.pair } else { alone(item[0].kind) }
    }
}
// ANCHOR_END: Times

/// An item with the time and the device it ran on.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Slot {
    pub device: usize,
    pub start: f64,
    pub end: f64,
    pub item: Item,
}

/// All slots of a simulated schedule.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Timeline {
    pub slots: Vec<Slot>,
    pub devices: usize,
}

impl Timeline {
    /// From the first start to the last end.
    pub fn makespan(&self) -> f64 {
        self.slots.iter().map(|slot| slot.end).fold(0.0, f64::max)
    }

    /// The bubble of a device: time of the whole in which it waits.
    pub fn idle(&self, device: usize) -> f64 {
        let own = self.slots.iter().filter(|slot| slot.device == device);
        self.makespan() - own.map(|slot| slot.end - slot.start).sum::<f64>()
    }

    /// The idle time of the device that waits longest.
    pub fn bubble(&self) -> f64 {
        (0..self.devices).map(|d| self.idle(d)).fold(0.0, f64::max)
    }

    /// How many micro-batches a device holds at worst.
    pub fn peak_activations(&self, device: usize) -> usize {
        let own = self.slots.iter().filter(|slot| slot.device == device);
        let (mut held, mut most) = (0, 0);
        for slot in own {
            let count = |kind| slot.item.iter().filter(move |x| x.kind == kind);
            held += count(Kind::F).count();
            most = most.max(held);
            held -= count(Kind::B).count() + count(Kind::I).count();
        }
        most
    }
}

// ANCHOR: simulate
/// Run a program: each item as early as its device and its inputs allow.
///
/// # Errors
/// For a program that waits for itself.
pub fn simulate(
    program: &[Vec<Item>],
    times: &Times,
    share: f64,
) -> Result<Timeline> {
    let every = program.iter().flatten().flatten();
    let depth = every.map(|op| op.stage + 1).max().unwrap_or(0);
    let mut done: HashMap<Op, f64> = HashMap::new();
    let mut slots: Vec<Slot> = Vec::new();
    let mut waiting: Vec<_> = program.iter().map(|row| &row[..]).collect();
    let mut free = vec![0.0; program.len()];
    while waiting.iter().any(|row| !row.is_empty()) {
        let before = slots.len();
        for (device, row) in waiting.iter_mut().enumerate() {
            while let Some((item, rest)) = row.split_first() {
                let start: f64 = match ready(item, depth, &done) {
                    Some(ready) => ready.max(free[device]),
                    None => break,
                };
                let end = start + times.of(item, share);
                free[device] = end;
                done.extend(item.iter().map(|&op| (op, end)));
                slots.push(Slot { device, start, end, item: item.clone() });
                *row = rest;
            }
        }
        if slots.len() == before {
            return error(format!("deadlock after {before} items"));
        }
    }
    Ok(Timeline { slots, devices: program.len() })
}
// ANCHOR_END: simulate

/// What must be finished before `op`; one of I and B may stand in.
fn inputs(op: Op, depth: usize) -> Vec<Op> {
    let Op { kind, stage, micro } = op;
    let of = |kind, stage| Op { kind, stage, micro };
    match kind {
        Kind::F if stage == 0 => vec![],
        Kind::F => vec![of(Kind::F, stage - 1)],
        Kind::W => vec![of(Kind::I, stage)],
        _ if stage + 1 == depth => vec![of(Kind::F, stage)],
        _ => vec![of(Kind::F, stage), of(Kind::B, stage + 1)],
    }
}

/// When all inputs of an item are there, or none while one is missing.
fn ready(item: &[Op], depth: usize, done: &HashMap<Op, f64>) -> Option<f64> {
    let needs = item.iter().flat_map(|&op| inputs(op, depth));
    let end = |op: Op| {
        let split = match op.kind {
            Kind::B => Op { kind: Kind::I, ..op },
            _ => op,
        };
        done.get(&op).or_else(|| done.get(&split)).copied()
    };
    needs.map(end).try_fold(0.0, |top: f64, end| Some(top.max(end?)))
}

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
