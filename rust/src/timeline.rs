//! A simulator that times pipeline programs.
//!
//! It knows nothing of formulas: an item starts when its device is free and
//! its inputs have arrived.

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

    /// The idle share of all devices' time.
    pub fn bubble_share(&self) -> f64 {
        let idle: f64 = (0..self.devices).map(|d| self.idle(d)).sum();
        idle / (self.devices as f64 * self.makespan())
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
