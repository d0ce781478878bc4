use dsarch::{Cache, Tensor};

use crate::common::Golden;

#[test]
fn chunks_a_crop_and_one_more_chunk() {
    let mut golden = Golden::open("cache");
    let chunks = golden.index("cfg.chunks").data;
    let (latent, k_rope) =
        (golden.tensor("in.latent"), golden.tensor("in.k_rope"));
    let (mut cache, mut at) = (Cache::default(), 0);
    for (number, count) in chunks.iter().enumerate() {
        if number + 1 == chunks.len() {
            cache.crop(golden.size("crop"));
        }
        let piece = |x: &Tensor| x.slice(1, at..at + count);
        let new = [("latent", piece(&latent)), ("k_rope", piece(&k_rope))];
        let [held, _] = cache.extend(new);
        assert_eq!(held.shape[2], latent.width());
        at += count;
    }
    golden.check("latent", cache.get("latent").expect("a stream"));
    golden.check("k_rope", cache.get("k_rope").expect("a stream"));
    let nbytes = golden.index("out.nbytes").data[0];
    assert_eq!(cache.nbytes(), nbytes);
    assert!(cache.get("k_index").is_none());
}

#[test]
fn one_sequence_grows_as_several_do() {
    let mut golden = Golden::open("cache");
    let both = golden.tensor("in.latent");
    let (mut pair, mut single) = (Cache::default(), Cache::default());
    for range in [0..3, 3..4, 4..9] {
        let piece = both.slice(1, range);
        single.extend([("latent", piece.slice(0, 1..2))]);
        pair.extend([("latent", piece)]);
    }
    let second = pair.get("latent").expect("a stream").slice(0, 1..2);
    assert_eq!(single.get("latent"), Some(&second));
}

#[test]
#[should_panic(expected = "cannot hold")]
fn a_stream_of_another_width_is_refused() {
    let mut cache = Cache::default();
    cache.extend([("latent", Tensor::zeros(&[1, 2, 4]))]);
    cache.extend([("latent", Tensor::zeros(&[1, 2, 5]))]);
}

#[test]
#[should_panic(expected = "differ in batch or length")]
fn streams_of_two_lengths_are_refused() {
    let mut cache = Cache::default();
    let (one, two) = (Tensor::zeros(&[1, 1, 4]), Tensor::zeros(&[1, 2, 4]));
    cache.extend([("latent", one), ("k_rope", two)]);
}
