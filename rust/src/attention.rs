//! Grouped-query attention; multi-head and multi-query are its two ends.

use crate::cache::{length, Cache};
use crate::checkpoint::Weights;
use crate::einsum::einsum;
use crate::error::Result;
use crate::layers::{expect_chunk, masked_softmax, Linear};
use crate::rope::{rotate, Layout, Phase};
use crate::tensor::Tensor;

// ANCHOR: GroupedQueryAttention
/// Attention whose query heads share keys and values in groups.
///
/// With as many key heads as query heads this is multi-head attention, with
/// one it is multi-query attention.
#[derive(Clone, Debug)]
pub struct GroupedQueryAttention {
    heads: usize,
    kv_heads: usize,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
}

impl GroupedQueryAttention {
    /// Take the four projections of a layer of these sizes.
    ///
    /// # Panics
    /// If the groups are uneven.
    pub fn load(
        mut w: Weights,
        dim: usize,
        [heads, kv_heads, head_dim]: [usize; 3],
    ) -> Result<Self> {
        check_groups(heads, kv_heads);
        let (all, few) = (heads * head_dim, kv_heads * head_dim);
        let q_proj = Linear::load(&mut w, "q_proj", [all, dim])?;
        let k_proj = Linear::load(&mut w, "k_proj", [few, dim])?;
        let v_proj = Linear::load(&mut w, "v_proj", [few, dim])?;
        let o_proj = Linear::load(&mut w, "o_proj", [dim, all])?;
        w.done()?;
        Ok(Self { heads, kv_heads, q_proj, k_proj, v_proj, o_proj })
    }

    /// Attend from `x`, `[b, t, d]`, to what is cached and to itself.
    pub fn forward(
        &self,
        x: &Tensor,
        phase: Option<&Phase>,
        mask: &Tensor<bool>,
        cache: Option<&mut Cache>,
    ) -> Tensor {
        expect_chunk(x, mask, length(cache.as_deref()));
        let cut = |x: Tensor, n: usize| {
            let width = x.width();
            x.unflatten([n, width / n])
        };
        let mut q = cut(self.q_proj.forward(x), self.heads);
        let mut k = cut(self.k_proj.forward(x), self.kv_heads);
        let v = cut(self.v_proj.forward(x), self.kv_heads);
        if let Some(phase) = phase {
            q = rotate(q, phase, Layout::HalfSplit);
            k = rotate(k, phase, Layout::HalfSplit);
        }
        let mut own = Cache::default();
        let cache = cache.unwrap_or(&mut own);
        let [k, v] = cache.extend([("k", k), ("v", v)]);
        let o = grouped(&q, k, v, mask);
        self.o_proj.forward(&o.merge())
    }
}
// ANCHOR_END: GroupedQueryAttention

// ANCHOR: repeated
/// Copy each key head to its query heads, then plain attention: naive.
pub fn repeated(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor<bool>,
) -> Tensor {
    let copies = q.shape[2] / k.shape[2];
    let (k, v) = (repeat(k, copies), repeat(v, copies));
    let scale = (q.width() as f32).powf(-0.5);
    let score = &einsum("bthn,bshn->bhts", [q, &k]) * scale;
    einsum("bhts,bshv->bthv", [&masked_softmax(score, mask), &v])
}
// ANCHOR_END: repeated

/// Every head of `[b, s, g, n]` so many times in a row.
fn repeat(x: &Tensor, copies: usize) -> Tensor {
    let [b, s, g, n] = x.dims();
    let heads = x.rows().flat_map(|head| head.repeat(copies)).collect();
    Tensor::new(&[b, s, g * copies, n], heads)
}

// ANCHOR: grouped
/// Attention in groups; no key is copied.
///
/// In the strings `q` counts the query heads inside a group.
pub fn grouped(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor<bool>,
) -> Tensor {
    let ([b, t, h, n], g) = (q.dims(), k.shape[2]);
    let q = q.clone().reshape(&[b, t, g, h / g, n]);
    let scale = (n as f32).powf(-0.5);
    let score = &einsum("btgqn,bsgn->bgqts", [&q, k]) * scale;
    let o = einsum("bgqts,bsgv->btgqv", [&masked_softmax(score, mask), v]);
    o.reshape(&[b, t, h, v.width()])
}
// ANCHOR_END: grouped

/// # Panics
/// Unless `kv_heads` divides `heads`.
pub fn check_groups(heads: usize, kv_heads: usize) {
    let even = kv_heads > 0 && heads % kv_heads == 0;
    assert!(even, "{kv_heads} key heads cannot serve {heads} heads evenly");
}

// ANCHOR: head_map
/// The key head of each query head.
pub fn head_map(heads: usize, kv_heads: usize) -> Vec<usize> {
    check_groups(heads, kv_heads);
    (0..heads).map(|h| h * kv_heads / heads).collect()
}
// ANCHOR_END: head_map

// ANCHOR: pool_heads
/// Average the key (or value) heads of each group: MHA into GQA.
///
/// # Panics
/// Unless `weight` has rows for `heads` equal heads.
pub fn pool_heads(weight: &Tensor, heads: usize, kv_heads: usize) -> Tensor {
    check_groups(heads, kv_heads);
    let ([rows, d], q) = (weight.dims(), heads / kv_heads);
    assert!(rows % heads == 0, "{rows} rows are not {heads} equal heads");
    let size = rows / heads * d;
    let mut pooled = Tensor::zeros(&[rows / q, d]);
    for (head, values) in weight.data.chunks_exact(size).enumerate() {
        let group = &mut pooled.data[head / q * size..][..size];
        let pairs = group.iter_mut().zip(values);
        pairs.for_each(|(mean, x)| *mean += x / q as f32);
    }
    pooled
}
// ANCHOR_END: pool_heads
