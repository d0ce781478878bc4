//! Text from a model: token by token, or several with a draft to verify.

use crate::cache::Cache;
use crate::error::{error, Result};
use crate::model::DeepSeek;
use crate::mtp::{advance, MTP};
use crate::sampling::{verify, Sampling};
use crate::tensor::Tensor;

// ANCHOR: generate
/// Continue prompts of equal length, `[b, t]`; the prompt comes first.
///
/// With `drafts` the MTP layer guesses so many tokens at a time, which
/// changes nothing but the number of passes.
///
/// # Errors
/// For tokens outside the vocabulary, an empty prompt, or drafts without an
/// MTP layer.
pub fn generate(
    model: &DeepSeek,
    tokens: &Tensor<usize>,
    max_new_tokens: usize,
    sampling: Sampling,
    drafts: Option<usize>,
) -> Result<Tensor<usize>> {
    check_prompt(tokens, model.cfg.vocab_size)?;
    let wanted = tokens.shape[1] + max_new_tokens;
    let mut step: Box<dyn FnMut() -> Result<Tensor<usize>>> = match drafts {
        None => {
            let mut run = decode(model, tokens, sampling);
            Box::new(move || run.step())
        }
        Some(drafts) => {
            let mut run = speculate(model, tokens, sampling, drafts)?;
            Box::new(move || run.step())
        }
    };
    let mut text = tokens.clone();
    while text.shape[1] < wanted {
        text = text.cat(&step()?, 1);
    }
    Ok(text.slice(1, 0..wanted))
}
// ANCHOR_END: generate

// ANCHOR: decode
/// One token after the other, without end.
#[derive(Debug)]
pub struct Decode<'a> {
    model: &'a DeepSeek,
    caches: Vec<Cache>,
    tokens: Tensor<usize>,
    sampling: Sampling,
}

/// Begin to decode; the caches belong to the run, not to the model.
pub fn decode<'a>(
    model: &'a DeepSeek,
    tokens: &Tensor<usize>,
    sampling: Sampling,
) -> Decode<'a> {
    let (caches, tokens) = (model.caches(), tokens.clone());
    Decode { model, caches, tokens, sampling }
}

impl Decode<'_> {
    /// The next token of every sequence, `[b, 1]`.
    pub fn step(&mut self) -> Result<Tensor<usize>> {
        let hidden = self.model.hidden(&self.tokens, Some(&mut self.caches));
        let logits = self.model.lm_head.forward(&last(&hidden));
        let p = self.sampling.probabilities(&logits)?;
        self.tokens = self.sampling.draw(&p);
        Ok(self.tokens.clone())
    }
}
// ANCHOR_END: decode

/// The last position of `[b, t, ..]`.
fn last<T: Clone>(x: &Tensor<T>) -> Tensor<T> {
    let t = x.shape[1];
    x.slice(1, t - 1..t)
}

// ANCHOR: speculate
/// One to `drafts + 1` tokens for each pass of the model, without end.
#[derive(Debug)]
pub struct Speculate<'a> {
    model: &'a DeepSeek,
    caches: Vec<Cache>,
    memory: Cache,
    sampling: Sampling,
    drafts: usize,
    hidden: Tensor,
    known: Tensor<usize>,
    first: Option<Tensor<usize>>,
}

/// Pass the prompt; the first piece is the token that it yields.
///
/// # Errors
/// Without an MTP layer, or without drafts.
pub fn speculate<'a>(
    model: &'a DeepSeek,
    tokens: &Tensor<usize>,
    mut sampling: Sampling,
    drafts: usize,
) -> Result<Speculate<'a>> {
    if model.mtp.is_empty() || drafts == 0 {
        return error(format!(
            "{drafts} drafts from {} MTP layers: speculation needs at least \
             one of each",
            model.mtp.len()
        ));
    }
    let (mut caches, memory) = (model.caches(), Cache::default());
    let hidden = model.hidden(tokens, Some(&mut caches));
    let logits = model.lm_head.forward(&last(&hidden));
    let new = sampling.draw(&sampling.probabilities(&logits)?);
    let known = tokens.slice(1, 1..tokens.shape[1]).cat(&new, 1);
    let first = Some(new);
    Ok(Speculate {
        model,
        caches,
        memory,
        sampling,
        drafts,
        hidden,
        known,
        first,
    })
}

impl Speculate<'_> {
    /// The next tokens of every sequence, `[b, n]`.
    ///
    /// Every piece but the first took one pass, which verified all drafts at
    /// once; what was refused is forgotten by every cache.
    pub fn step(&mut self) -> Result<Tensor<usize>> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let known = (&self.hidden, &self.known);
        let (module, sampling) = (&self.model.mtp[0], &mut self.sampling);
        let memory = &mut self.memory;
        let (guess, q) = draft(module, known, memory, sampling, self.drafts)?;
        let tokens = last(&self.known).cat(&guess, 1);
        let hidden = self.model.hidden(&tokens, Some(&mut self.caches));
        let logits = self.model.lm_head.forward(&hidden);
        let p = self.sampling.probabilities(&logits)?;
        let sampling = &mut self.sampling;
        let u = guess.data.iter().map(|_| sampling.uniform()).collect();
        let u = Tensor::new(&guess.shape, u);
        let mut pick = |p: &[f32]| sampling.pick(p);
        let new = verify(&guess, [&q, &p], &u, &mut pick);
        self.hidden = hidden.slice(1, 0..new.shape[1]);
        let refused = 1 + self.drafts - new.shape[1];
        for cache in &mut self.caches {
            cache.crop(cache.len() - refused);
        }
        self.known = new.clone();
        Ok(new)
    }
}
// ANCHOR_END: speculate

// ANCHOR: draft
/// Draft tokens, and the distributions that they were drawn from.
///
/// `hidden` are true states and `known` the tokens that follow them. Beyond
/// the first draft the module reads its own last state in place of the
/// model's; `memory` keeps what came from true states only.
pub fn draft(
    module: &MTP,
    (hidden, known): (&Tensor, &Tensor<usize>),
    memory: &mut Cache,
    sampling: &mut Sampling,
    count: usize,
) -> Result<(Tensor<usize>, Tensor)> {
    let keep = memory.len() + hidden.shape[1];
    let (mut hidden, mut known) = (hidden.clone(), known.clone());
    let (b, w) = (known.shape[0], module.vocabulary());
    let mut tokens = Tensor::zeros(&[b, 0]);
    let mut chances = Tensor::zeros(&[b, 0, w]);
    for _ in 0..count {
        hidden = last(&advance(module, &hidden, &known, Some(memory)));
        let q = sampling.probabilities(&module.head(&hidden))?;
        known = sampling.draw(&q);
        tokens = tokens.cat(&known, 1);
        chances = chances.cat(&q, 1);
    }
    memory.crop(keep);
    Ok((tokens, chances))
}
// ANCHOR_END: draft

// ANCHOR: check_prompt
/// An error unless these are sequences of known tokens.
pub fn check_prompt(tokens: &Tensor<usize>, vocabulary: usize) -> Result<()> {
    let [b, t] = tokens.dims();
    let high = match tokens.data.iter().max() {
        None => return error(format!("a prompt of {b} times {t} tokens")),
        Some(high) => high,
    };
    match *high < vocabulary {
        true => Ok(()),
        false => {
            error(format!("token {high} leaves the vocabulary of {vocabulary}"))
        }
    }
}
// ANCHOR_END: check_prompt
