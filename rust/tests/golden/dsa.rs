use dsarch::dsa::{chosen, gathered, gathers, top_k, SparseMLA};
use dsarch::indexing::indexer_loss;
use dsarch::layers::{causal_mask, positions};
use dsarch::rope::phases;
use dsarch::{Cache, Config, Tensor};

use crate::common::Golden;

fn layer(golden: &mut Golden, width: usize) -> (Config, SparseMLA) {
    let cfg = Config {
        model_type: "deepseek_v32".to_string(),
        hidden_size: width,
        num_attention_heads: golden.size("num_attention_heads"),
        q_lora_rank: Some(golden.size("q_lora_rank")),
        kv_lora_rank: golden.size("kv_lora_rank"),
        qk_nope_head_dim: golden.size("qk_nope_head_dim"),
        qk_rope_head_dim: golden.size("qk_rope_head_dim"),
        v_head_dim: golden.size("v_head_dim"),
        rope_theta: golden.cfg("rope_theta"),
        rope_scaling: Some(golden.yarn()),
        index_topk: Some(golden.size("index_topk")),
        index_n_heads: golden.size("index_n_heads"),
        index_head_dim: golden.size("index_head_dim"),
        ..Config::default()
    };
    let topk = cfg.index_topk.expect("a sparse layer");
    let layer = SparseMLA::load(&cfg, topk, &mut golden.weights);
    let layer = layer.expect("weights");
    assert!(golden.weights.is_empty());
    (cfg, layer)
}

#[test]
fn the_indexer_scores_and_chooses_as_in_python() {
    let mut golden = Golden::open("dsa");
    let x = golden.tensor("in.x");
    let (cfg, layer) = layer(&mut golden, x.width());
    let ([b, t, _], start) = (x.dims(), golden.size("start"));
    let phase = phases(&cfg, &positions(b, start, t));
    let mask = causal_mask(&positions(b, 0, t), t);
    let (_, _, latent) = layer.mla.queries(&x, &phase);
    let k = layer.indexer.keys(&x, &phase);
    let latent = latent.expect("a query latent");
    let score = layer.indexer.forward(&x, &latent, &phase, &k);
    golden.check("k_index", &k);
    golden.check("scores", &score);
    let index = top_k(&score, &mask, layer.topk);
    let read = chosen(&index, &mask).map(|x| f32::from(u8::from(*x)));
    assert_eq!(read, golden.tensor("out.chosen"));
    // Early queries name hidden keys as well, which must weigh nothing.
    let mla = &layer.mla;
    let (q, q_rope, _) = mla.queries(&x, &phase);
    let (c, k_rope) = mla.memories(&x, &phase);
    let pieces = [&q, &q_rope, &c, &k_rope];
    let o = gathered(pieces, mla.up(), &mask, &index, mla.scale());
    golden.check("heads", &o);
    let loss = indexer_loss(&layer, &x, &phase, &mask);
    golden.check("indexer_loss", &Tensor::new(&[1], vec![loss]));
}

#[test]
fn masked_and_gathered_forms_give_the_layer() {
    for chunk in [9, 4, 1] {
        let mut golden = Golden::open("dsa");
        let x = golden.tensor("in.x");
        let (cfg, layer) = layer(&mut golden, x.width());
        let ([b, t, d], start) = (x.dims(), golden.size("start"));
        let (mut cache, mut y) = (Cache::default(), Tensor::zeros(&[b, 0, d]));
        for at in (0..t).step_by(chunk) {
            let end = (at + chunk).min(t);
            let phase = phases(&cfg, &positions(b, start + at, end - at));
            let mask = causal_mask(&positions(b, at, end - at), end);
            let piece = x.slice(1, at..end);
            let memory = Some(&mut cache);
            y = y.cat(&layer.forward(&piece, &phase, &mask, memory), 1);
        }
        golden.check("layer", &y);
        let [c, r] = cfg.kv_widths();
        let width = c + r + cfg.index_head_dim;
        assert_eq!(cache.nbytes(), 4 * b * t * width);
    }
    let four = Tensor::full(&[2, 1, 4], 0);
    assert!(gathers(&four, 9) && !gathers(&Tensor::full(&[2, 9, 4], 0), 9));
}

#[test]
fn hidden_keys_displace_nobody() {
    let score = Tensor::new(&[1, 2, 4], [-5.0, -7.0, 9.0, 8.0].repeat(2));
    let mask = causal_mask(&positions(1, 1, 2), 4);
    let index = top_k(&score, &mask, 2);
    assert_eq!(index.data, [0, 1, 2, 0]);
    let three = top_k(&score, &mask, 3);
    let seen = [true, true, false, false, true, true, true, false];
    assert_eq!(chosen(&three, &mask).data, seen);
}
