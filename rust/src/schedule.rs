//! Schedules as pure functions: the step goes in, the value comes out.

use std::f64::consts::PI;

/// What most schedules have in common.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Plan {
    pub total: f64,
    pub peak: f64,
    pub warmup_steps: f64,
    pub floor: f64,
    /// What the count of warm-up steps begins with: 0 or 1.
    pub first: f64,
}

impl Plan {
    /// A run of this many steps: peak one, no warm-up, down to zero.
    pub fn new(total: f64) -> Self {
        let [warmup_steps, floor, first] = [0.0; 3];
        Self { total, peak: 1.0, warmup_steps, floor, first }
    }

    /// The peak during and after warm-up.
    fn rise(&self, step: f64) -> f64 {
        self.peak * warmup(step, self.warmup_steps, self.first)
    }

    /// # Panics
    /// If warm-up and decay do not fit into the run.
    fn check(&self, decay_steps: f64) {
        let parts = self.warmup_steps + decay_steps;
        let fits = self.total > 0.0 && parts <= self.total;
        let total = self.total;
        assert!(fits, "{parts} steps do not fit a run of {total}");
    }

    /// How much of the time after warm-up is over.
    fn progress(&self, step: f64) -> f64 {
        let rest = (self.total - self.warmup_steps).max(1.0);
        (step - self.warmup_steps) / rest
    }
}

/// How a rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shape {
    Linear,
    Cosine,
    Sqrt,
    Square,
    Exponential,
}

// ANCHOR: warmup
/// The share of the peak, rising for so many steps.
pub fn warmup(step: f64, steps: f64, first: f64) -> f64 {
    let fits = step >= 0.0 && steps >= 0.0;
    assert!(fits, "step {step} and warm-up {steps} start at zero");
    if steps == 0.0 {
        return 1.0;
    }
    ((step + first) / steps).min(1.0)
}
// ANCHOR_END: warmup

// ANCHOR: decay
/// From one to `floor` while `progress` runs from zero to one.
///
/// Outside the ends are held. An exponential needs a positive floor.
pub fn decay(progress: f64, shape: Shape, floor: f64) -> f64 {
    let p = progress.clamp(0.0, 1.0);
    let falls = match shape {
        Shape::Exponential => {
            assert!(floor > 0.0, "an exponential never reaches {floor}");
            return floor.powf(p);
        }
        Shape::Linear => 1.0 - p,
        Shape::Cosine => (1.0 + (PI * p).cos()) / 2.0,
        Shape::Sqrt => 1.0 - p.sqrt(),
        Shape::Square => 1.0 - p * p,
    };
    floor + (1.0 - floor) * falls
}
// ANCHOR_END: decay

// ANCHOR: constant
/// Warm-up, then the peak for ever.
pub fn constant(step: f64, plan: &Plan) -> f64 {
    plan.rise(step)
}
// ANCHOR_END: constant

// ANCHOR: linear
/// Warm-up, then a straight line to `floor` times the peak.
pub fn linear(step: f64, plan: &Plan) -> f64 {
    plan.check(0.0);
    plan.rise(step) * decay(plan.progress(step), Shape::Linear, plan.floor)
}
// ANCHOR_END: linear

// ANCHOR: cosine
/// Warm-up, then half a cosine to `floor` times the peak.
pub fn cosine(step: f64, plan: &Plan) -> f64 {
    plan.check(0.0);
    plan.rise(step) * decay(plan.progress(step), Shape::Cosine, plan.floor)
}
// ANCHOR_END: cosine

// ANCHOR: wsd
/// Warm-up, stable, decay over the last `decay_steps` (MiniCPM).
pub fn wsd(step: f64, plan: &Plan, decay_steps: f64, shape: Shape) -> f64 {
    plan.check(decay_steps);
    let start = plan.total - decay_steps;
    let progress = match decay_steps > 0.0 {
        true => (step - start) / decay_steps,
        false => 0.0,
    };
    plan.rise(step) * decay(progress, shape, plan.floor)
}
// ANCHOR_END: wsd

// ANCHOR: multi_step
/// DeepSeek LLM's staircase: pairs of a milestone and a share of the peak.
pub fn multi_step(step: f64, plan: &Plan, stairs: &[(f64, f64)]) -> f64 {
    plan.check(0.0);
    let below = |x: &&(f64, f64)| step >= x.0 * plan.total;
    let last = stairs.iter().rev().find(below);
    plan.rise(step) * last.map_or(1.0, |x| x.1)
}
// ANCHOR_END: multi_step

// ANCHOR: batch_ramp
/// Sequences per batch after `tokens`: V3 grows linearly, then holds.
pub fn batch_ramp(tokens: f64) -> f64 {
    3072.0 + (15360.0 - 3072.0) * (tokens / 469e9).min(1.0)
}
// ANCHOR_END: batch_ramp

// ANCHOR: v3_tokens
/// How many tokens V3 has seen before optimizer step `step`.
pub fn v3_tokens(step: f64) -> f64 {
    let (length, b0, b1, ramp) = (4096.0, 3072.0f64, 15360.0f64, 469e9);
    let rate = length * (b1 - b0) / ramp;
    let ramp_steps = (b1 / b0).ln() / rate;
    if step < ramp_steps {
        return ramp * b0 / (b1 - b0) * (rate * step).exp_m1();
    }
    ramp + (step - ramp_steps) * length * b1
}
// ANCHOR_END: v3_tokens

// ANCHOR: v3_by_tokens
/// V3's learning rate after warm-up, as a function of tokens seen.
pub fn v3_by_tokens(tokens: f64) -> f64 {
    if tokens >= 14.3e12 + 333e9 {
        return 7.3e-6;
    }
    2.2e-4 * decay((tokens - 10e12) / 4.3e12, Shape::Cosine, 0.1)
}
// ANCHOR_END: v3_by_tokens

// ANCHOR: v3
/// V3's learning rate at an optimizer step: warm-up, then by tokens.
pub fn v3(step: f64) -> f64 {
    warmup(step, 2000.0, 0.0) * v3_by_tokens(v3_tokens(step))
}
// ANCHOR_END: v3
