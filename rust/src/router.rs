//! Routers: which experts compute a token, and with what weight.
//!
//! What selects an expert and what weighs its answer are two different
//! scores.

use crate::checkpoint::Weights;
use crate::config::{Config, Scoring, Selection};
use crate::error::Result;
use crate::layers::linear;
use crate::special::{ndtr, softplus};
use crate::tensor::{softmax, topk, Tensor};

/// The chosen experts of each token, their weights, and all scores.
///
/// A slot that was dropped names the expert `e`, which does not exist, and
/// weighs nothing. `scores` are those before any selection.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `[z, k]`
    pub weights: Tensor,
    /// `[z, k]`
    pub experts: Tensor<usize>,
    /// `[z, e]`
    pub scores: Tensor,
}

// ANCHOR: affinities
/// How well each expert suits a token.
pub fn affinities(x: &Tensor, weight: &Tensor, scoring: Scoring) -> Tensor {
    let u = linear(x, weight);
    match scoring {
        Scoring::Sigmoid => u.map(|x| 1.0 / (1.0 + (-x).exp())),
        Scoring::Softmax => softmax_rows(u),
    }
}
// ANCHOR_END: affinities

/// Softmax of every vector along the last axis.
pub fn softmax_rows(mut x: Tensor) -> Tensor {
    let width = x.width();
    x.data.chunks_exact_mut(width).for_each(softmax);
    x
}

// ANCHOR: group_scores
/// Sum of the `best` highest selection scores in each group.
///
/// # Panics
/// Unless equal groups of at least `best` experts can be formed.
pub fn group_scores(choice: &[f32], n_group: usize, best: usize) -> Vec<f32> {
    let (e, size) = (choice.len(), choice.len() / n_group);
    let fits = e % n_group == 0 && size >= best;
    assert!(fits, "{e} experts do not form {n_group} groups of {best}");
    let sum = |group: &[f32]| topk(group, best).iter().map(|&i| group[i]).sum();
    choice.chunks_exact(size).map(sum).collect()
}
// ANCHOR_END: group_scores

// ANCHOR: limit_to_groups
/// Give the experts outside the best `topk_group` groups minus infinity.
///
/// Zero would not do: with biases a kept expert may score below zero.
pub fn limit_to_groups(
    choice: &mut [f32],
    n_group: usize,
    topk_group: usize,
    best: usize,
) {
    let scores = group_scores(choice, n_group, best);
    let kept = topk(&scores, topk_group);
    let size = choice.len() / n_group;
    for (group, experts) in choice.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&group) {
            experts.fill(f32::NEG_INFINITY);
        }
    }
}
// ANCHOR_END: limit_to_groups

// ANCHOR: route
/// Choose by biased scores within the best groups, weigh by unbiased ones.
pub fn route(scores: Tensor, bias: Option<&Tensor>, cfg: &Config) -> Routing {
    let k = cfg.num_experts_per_tok;
    let limited = cfg.topk_method != Selection::Greedy;
    let best = if cfg.topk_method == Selection::NoauxTc { 2 } else { 1 };
    let choose = |row: &[f32]| {
        let mut choice = row.to_vec();
        if let Some(bias) = bias {
            choice.iter_mut().zip(&bias.data).for_each(|(s, b)| *s += b);
        }
        if limited && cfg.topk_group < cfg.n_group {
            limit_to_groups(&mut choice, cfg.n_group, cfg.topk_group, best);
        }
        topk(&choice, k)
    };
    let mut routing = chosen(scores, k, choose);
    if cfg.norm_topk_prob {
        normalise(&mut routing.weights, 1e-20);
    }
    let factor = cfg.routed_scaling_factor as f32;
    routing.weights = &routing.weights * factor;
    routing
}
// ANCHOR_END: route

/// A routing of `k` experts that `choose` picks from each token's scores.
fn chosen(
    scores: Tensor,
    k: usize,
    choose: impl Fn(&[f32]) -> Vec<usize>,
) -> Routing {
    let shape = [scores.shape[0], k];
    let experts: Vec<usize> = scores.rows().flat_map(choose).collect();
    let slots = experts.iter().enumerate();
    let weights = slots.map(|(slot, &e)| scores.row(slot / k)[e]).collect();
    let weights = Tensor::new(&shape, weights);
    Routing { weights, experts: Tensor::new(&shape, experts), scores }
}

/// Let the weights of each token sum to one.
///
/// `tiny` keeps a sum of sigmoids that all underflowed from being zero.
fn normalise(weights: &mut Tensor, tiny: f32) {
    let k = weights.width();
    for row in weights.data.chunks_exact_mut(k) {
        let sum: f32 = row.iter().sum::<f32>() + tiny;
        row.iter_mut().for_each(|g| *g /= sum);
    }
}

// ANCHOR: Router
/// The gate of a DeepSeek layer: one centroid for each expert.
#[derive(Clone, Debug)]
pub struct Router {
    cfg: Config,
    weight: Tensor,
    e_score_correction_bias: Option<Tensor>,
}

impl Router {
    /// Take the centroids and, where V3's selection needs it, the bias.
    pub fn load(cfg: &Config, mut w: Weights) -> Result<Self> {
        let (e, d) = (cfg.n_routed_experts, cfg.hidden_size);
        let weight = w.take("weight", &[e, d])?;
        let bias = match cfg.topk_method {
            Selection::NoauxTc => {
                Some(w.take("e_score_correction_bias", &[e])?)
            }
            _ => None,
        };
        w.done()?;
        Ok(Self { cfg: cfg.clone(), weight, e_score_correction_bias: bias })
    }

    /// Where each token goes.
    pub fn forward(&self, x: &Tensor) -> Routing {
        let scores = affinities(x, &self.weight, self.cfg.scoring_func);
        route(scores, self.e_score_correction_bias.as_ref(), &self.cfg)
    }
}
// ANCHOR_END: Router

// ANCHOR: top_k
/// The classic: the `k` best, weights renormalised to sum to one.
pub fn top_k(scores: Tensor, k: usize) -> Routing {
    let mut routing = chosen(scores, k, |row| topk(row, k));
    normalise(&mut routing.weights, 0.0);
    routing
}
// ANCHOR_END: top_k

// ANCHOR: noisy_top_k
/// Choose by logits with noise, so that close losers get a chance.
///
/// `noise` is drawn from a normal distribution; without it this is a choice
/// by `clean` alone. Returned beside the routing is how likely each expert
/// was to be chosen.
pub fn noisy_top_k(
    clean: &Tensor,
    spread: &Tensor,
    k: usize,
    noise: Option<&Tensor>,
) -> (Routing, Tensor) {
    let (e, scale) = (clean.width(), spread.map(|x| softplus(*x)));
    let noisy = match noise {
        None => clean.clone(),
        Some(drawn) => clean + &drawn.zip(&scale, |x, y| x * y),
    };
    let mut routing = chosen(noisy.clone(), k, |row| topk(row, k));
    routing.weights = softmax_rows(routing.weights);
    routing.scores = softmax_rows(noisy.clone());
    if k == e {
        return (routing, Tensor::full(&clean.shape, 1.0));
    }
    let mut bar = Tensor::zeros(&clean.shape);
    for (z, row) in noisy.rows().enumerate() {
        let best = topk(row, k + 1);
        for i in 0..e {
            // A chosen expert must beat the best of the others.
            let rival = if best[..k].contains(&i) { k } else { k - 1 };
            bar.data[z * e + i] = row[best[rival]];
        }
    }
    let margin = clean.zip(&bar, |x, bar| x - bar);
    (routing, margin.zip(&scale, |x, scale| ndtr(x / scale)))
}
// ANCHOR_END: noisy_top_k

// ANCHOR: switch_top1
/// One expert each, weighed by its probability, not renormalised.
pub fn switch_top1(scores: Tensor) -> Routing {
    chosen(scores, 1, |row| topk(row, 1))
}
// ANCHOR_END: switch_top1

// ANCHOR: gshard_top2
/// Two experts; the second is kept with probability `2 g_2`.
///
/// `u` holds one uniform number a token; without it both are kept.
pub fn gshard_top2(scores: Tensor, u: Option<&[f32]>) -> Routing {
    let mut routing = top_k(scores, 2);
    if let Some(u) = u {
        let weights = routing.weights.clone();
        let kept = |slot: usize| {
            slot % 2 == 0 || 2.0 * weights.data[slot] > u[slot / 2]
        };
        drop_slots(&mut routing, kept);
    }
    routing
}
// ANCHOR_END: gshard_top2

// ANCHOR: capacity
/// How many slots an expert has.
pub fn capacity(tokens: usize, k: usize, e: usize, factor: f64) -> usize {
    ((tokens * k) as f64 / e as f64 * factor).ceil() as usize
}
// ANCHOR_END: capacity

// ANCHOR: drop_overflow
/// Keep the first `limit` slots of every expert and drop the others.
///
/// All first choices come before any second choice, and tokens in order.
pub fn drop_overflow(routing: &mut Routing, limit: usize) {
    let [z, k] = routing.experts.dims();
    let mut taken = vec![0; routing.scores.width() + 1];
    let mut kept = vec![false; z * k];
    for choice in 0..k {
        for token in 0..z {
            let slot = token * k + choice;
            let rank = &mut taken[routing.experts.data[slot]];
            *rank += 1;
            kept[slot] = *rank <= limit;
        }
    }
    drop_slots(routing, |slot| kept[slot]);
}
// ANCHOR_END: drop_overflow

/// Take the slots that are not kept from their experts.
fn drop_slots(routing: &mut Routing, kept: impl Fn(usize) -> bool) {
    let nobody = routing.scores.width();
    for slot in (0..routing.experts.data.len()).filter(|x| !kept(*x)) {
        routing.weights.data[slot] = 0.0;
        routing.experts.data[slot] = nobody;
    }
}
