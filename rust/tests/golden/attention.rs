use dsarch::attention::{
    grouped, head_map, pool_heads, repeated, GroupedQueryAttention,
};
use dsarch::layers::{causal_mask, positions};
use dsarch::rope::{frequencies, turns};
use dsarch::{Cache, Tensor};

use crate::common::{close, Golden};

/// The layer, its input, and the angles of one position.
fn layer(golden: &mut Golden) -> (GroupedQueryAttention, Tensor, Vec<f32>) {
    let sizes = ["heads", "kv_heads", "head_dim"].map(|x| golden.size(x));
    let theta = frequencies(sizes[2], golden.cfg("rope_theta"), None);
    let x = golden.tensor("in.x");
    let own = std::mem::take(&mut golden.weights);
    let layer = GroupedQueryAttention::load(own, x.width(), sizes);
    (layer.expect("weights"), x, theta)
}

#[test]
fn groups_reproduce_what_repeated_keys_gave() {
    let mut golden = Golden::open("attention");
    let (layer, x, theta) = layer(&mut golden);
    let [b, t, _] = x.dims();
    let position = positions(b, 0, t);
    let (phase, mask) = (turns(&theta, &position), causal_mask(&position, t));
    golden.check("plain", &layer.forward(&x, None, &mask, None));
    golden.check("rotated", &layer.forward(&x, Some(&phase), &mask, None));
}

#[test]
fn chunks_with_a_cache_give_the_whole() {
    let mut golden = Golden::open("attention");
    let (layer, x, theta) = layer(&mut golden);
    let mut cache = Cache::default();
    let mut parts = Vec::new();
    for range in [0..3, 3..4, 4..7] {
        let piece = x.slice(1, range);
        let [b, t, _] = piece.dims();
        let position = positions(b, cache.len(), t);
        let mask = causal_mask(&position, cache.len() + t);
        let phase = turns(&theta, &position);
        let phase = Some(&phase);
        parts.push(layer.forward(&piece, phase, &mask, Some(&mut cache)));
    }
    let whole = parts[0].cat(&parts[1], 1).cat(&parts[2], 1);
    golden.check("rotated", &whole);
}

#[test]
fn copies_and_groups_agree() {
    let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 40.0;
    let make = |shape: &[usize]| {
        let size = shape.iter().product();
        Tensor::new(shape, (0..size).map(number).collect())
    };
    let mask = causal_mask(&positions(2, 2, 3), 5);
    for g in [1, 2, 3, 6] {
        let (q, k) = (make(&[2, 3, 6, 7]), make(&[2, 5, g, 7]));
        let v = make(&[2, 5, g, 4]);
        let naive = repeated(&q, &k, &v, &mask);
        close(&grouped(&q, &k, &v, &mask), &naive, "grouped");
    }
}

#[test]
fn pooled_heads_are_means() {
    assert_eq!(head_map(6, 2), [0, 0, 0, 1, 1, 1]);
    let weight = Tensor::new(&[4, 1], vec![1.0, 2.0, 5.0, 8.0]);
    assert_eq!(pool_heads(&weight, 2, 1).data, [3.0, 5.0]);
    assert_eq!(pool_heads(&weight, 4, 2).data, [1.5, 6.5]);
}

#[test]
#[should_panic(expected = "4 key heads cannot serve 6 heads evenly")]
fn uneven_groups_are_refused() {
    let mut golden = Golden::open("attention");
    let own = std::mem::take(&mut golden.weights);
    let _ = GroupedQueryAttention::load(own, 20, [6, 4, 8]);
}
