//! Mixtures of experts: many MLPs, of which a token uses few.

use crate::checkpoint::Weights;
use crate::config::Config;
use crate::dispatch::dispatch_grouped;
use crate::error::Result;
use crate::layers::{Linear, SwiGLU};
use crate::router::{
    capacity, drop_overflow, gshard_top2, noisy_top_k, softmax_rows,
    switch_top1, top_k, Router, Routing,
};
use crate::tensor::Tensor;

// ANCHOR: DeepSeekMoE
/// Shared experts for every token, a few of many small ones for each.
///
/// The shared experts are one MLP as wide as all of them together; their
/// answer is neither weighed nor scaled. No token is dropped.
#[derive(Clone, Debug)]
pub struct DeepSeekMoE {
    /// Chooses and weighs.
    pub gate: Router,
    /// All routed experts.
    pub experts: Vec<SwiGLU>,
    shared_experts: Option<SwiGLU>,
}

impl DeepSeekMoE {
    /// Take the gate and all experts of a layer.
    pub fn load(cfg: &Config, mut w: Weights) -> Result<Self> {
        let (dim, hidden) = (cfg.hidden_size, cfg.moe_intermediate_size);
        let shared = match cfg.n_shared_experts * hidden {
            0 => None,
            width => Some(SwiGLU::load(w.at("shared_experts"), dim, width)?),
        };
        let made = Self {
            gate: Router::load(cfg, w.at("gate"))?,
            experts: experts(&mut w, cfg.n_routed_experts, dim, hidden)?,
            shared_experts: shared,
        };
        w.done()?;
        Ok(made)
    }

    /// The answers for `[b, t, d]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let flat = x.clone().flatten();
        self.combine(&flat, &self.gate.forward(&flat)).reshape(&x.shape)
    }

    /// The answers of the chosen experts and of the shared ones.
    pub fn combine(&self, x: &Tensor, routing: &Routing) -> Tensor {
        let y = dispatch_grouped(x, routing, &self.experts);
        match &self.shared_experts {
            Some(shared) => &y + &shared.forward(x),
            None => y,
        }
    }
}
// ANCHOR_END: DeepSeekMoE

/// Take `experts.0` and so on; the first that is missing ends the list.
pub fn experts(
    w: &mut Weights,
    count: usize,
    dim: usize,
    hidden: usize,
) -> Result<Vec<SwiGLU>> {
    let mut all = w.at("experts");
    let load = |i: usize| SwiGLU::load(all.at(&i.to_string()), dim, hidden);
    let made = (0..count).map(load).collect::<Result<_>>()?;
    all.done()?;
    Ok(made)
}

/// The classic routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    TopK,
    Noisy,
    Gshard,
    Switch,
}

// ANCHOR: SparseMoE
/// The classic layer: equal experts, one to `k` of them for a token.
///
/// With a capacity factor an expert serves a limited number of tokens of a
/// call; those beyond get zero. Nothing is random.
#[derive(Clone, Debug)]
pub struct SparseMoE {
    k: usize,
    kind: Kind,
    capacity_factor: Option<f64>,
    gate: Linear,
    noise: Option<Linear>,
    /// All experts.
    pub experts: Vec<SwiGLU>,
}
// ANCHOR_END: SparseMoE

impl SparseMoE {
    /// Take the gate and all experts; a noisy router has a second gate.
    pub fn load(
        mut w: Weights,
        [dim, hidden, e]: [usize; 3],
        k: usize,
        kind: Kind,
        capacity_factor: Option<f64>,
    ) -> Result<Self> {
        let gate = Linear::load(&mut w, "gate", [e, dim])?;
        let noise = match kind {
            Kind::Noisy => Some(Linear::load(&mut w, "noise", [e, dim])?),
            _ => None,
        };
        let experts = experts(&mut w, e, dim, hidden)?;
        w.done()?;
        Ok(Self { k, kind, capacity_factor, gate, noise, experts })
    }

    /// The answers for `[b, t, d]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let flat = x.clone().flatten();
        let routing = self.route(&flat);
        dispatch_grouped(&flat, &routing, &self.experts).reshape(&x.shape)
    }

    // ANCHOR: SparseMoE.route
    /// Where each token goes, after dropping what exceeds the capacity.
    pub fn route(&self, x: &Tensor) -> Routing {
        let logits = self.gate.forward(x);
        let spread = self.noise.as_ref().map(|noise| noise.forward(x));
        let [z, e] = logits.dims();
        let mut routing = choose(self.kind, logits, spread.as_ref(), self.k);
        if let Some(factor) = self.capacity_factor {
            let limit = capacity(z, self.k, e, factor);
            drop_overflow(&mut routing, limit);
        }
        routing
    }
    // ANCHOR_END: SparseMoE.route
}

// ANCHOR: choose
/// Where each token would go if every expert had room.
pub fn choose(
    kind: Kind,
    logits: Tensor,
    spread: Option<&Tensor>,
    k: usize,
) -> Routing {
    if let Some(spread) = spread {
        return noisy_top_k(&logits, spread, k, None).0;
    }
    let scores = softmax_rows(logits);
    match kind {
        Kind::Switch => switch_top1(scores),
        Kind::Gshard => gshard_top2(scores, None),
        Kind::TopK | Kind::Noisy => top_k(scores, k),
    }
}
// ANCHOR_END: choose
