use dsarch::fp8::formats::{cast, decode_scale, encode_scale};
use dsarch::fp8::reference::{
    exact, power_of_two, scale_for, tensor_core, BLOCK, TILE,
};
use dsarch::fp8::{
    decode, dequantize, encode, fp8_gemm, quantize, E4M3, E5M2, E5M6,
};
use dsarch::optim::{
    adamw_update, clip_grad_norm, muon_scale, orthogonalise, Settings, State,
    NS_COEFFICIENTS,
};
use dsarch::pipeline::{gpipe, interleaved, one_f_one_b, zero_bubble};
use dsarch::schedule::{
    batch_ramp, constant, cosine, linear, multi_step, v3, v3_tokens, wsd, Plan,
    Shape,
};
use dsarch::timeline::{simulate, Op, Times};
use dsarch::Tensor;

use crate::common::{row, Golden};

const ALL: [(&str, dsarch::fp8::Format); 3] =
    [("e4m3", E4M3), ("e5m2", E5M2), ("e5m6", E5M6)];

const STRANGE: [(f32, f32); 3] =
    [(-1e9, f32::NAN), (1e9, f32::INFINITY), (-2e9, f32::NEG_INFINITY)];

/// As the golden file writes what is not finite.
fn finite(x: &f32) -> f32 {
    let same = |y: f32| *x == y || x.is_nan() && y.is_nan();
    let found = STRANGE.iter().find(|pair| same(pair.1));
    found.map_or(*x, |pair| pair.0)
}

/// What is not finite where the golden file says so.
fn strange(x: &f32) -> f32 {
    let found = STRANGE.iter().find(|(y, _)| x == y);
    found.map_or(*x, |pair| pair.1)
}

#[test]
fn every_code_and_every_tie() {
    let mut golden = Golden::open("fp8_formats");
    let x = golden.tensor("in.x");
    for (name, format) in ALL {
        let values = golden.tensor(&format!("out.{name}.values"));
        let codes = 0..2 * format.sign();
        let found: Vec<f32> =
            codes.map(|code| finite(&decode(code, format))).collect();
        assert_eq!(found, values.data, "{name}");
        let codes = golden.index(&format!("out.{name}.codes"));
        assert_eq!(x.map(|x| usize::from(encode(*x, format))), codes, "{name}");
        let found = x.map(|x| decode(cast(*x, format), format));
        assert_eq!(found, golden.tensor(&format!("out.{name}.cast")));
    }
    let values = golden.tensor("out.ue8m0.values").data;
    let found: Vec<f32> =
        (0..=255).map(|code| finite(&decode_scale(code))).collect();
    assert_eq!(found, values);
    let codes = golden.index("out.ue8m0.codes");
    assert_eq!(x.map(|x| usize::from(encode_scale(x.abs()))), codes);
}

#[test]
fn a_value_is_its_own_nearest() {
    for (_, format) in ALL {
        for code in 0..2 * format.sign() {
            let value = decode(code, format);
            if !value.is_nan() {
                assert_eq!(encode(value, format), code);
            }
        }
        let nan = encode(f32::NAN, format);
        assert!(decode(nan, format).is_nan());
        assert_eq!(decode(cast(f32::INFINITY, format), format), format.max());
    }
    assert_eq!(decode(encode(f32::INFINITY, E5M2), E5M2), f32::INFINITY);
    for x in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(decode_scale(encode_scale(x)).is_nan());
    }
}

#[test]
fn tiles_and_products() {
    let mut golden = Golden::open("fp8_products");
    let (a, b) = (golden.tensor("in.a"), golden.tensor("in.b"));
    let cases = [
        ("tile", TILE, false),
        ("pow2", TILE, true),
        ("block", [2, 48], false),
    ];
    for (name, block, pow2) in cases {
        let q = quantize(&a, block, E4M3, pow2);
        let codes = golden.index(&format!("out.{name}.codes"));
        assert_eq!(q.codes.map(|x| usize::from(*x)), codes, "{name}");
        assert_eq!(q.scale, golden.tensor(&format!("out.{name}.scale")));
        let decoded = golden.tensor(&format!("out.{name}.decoded"));
        assert_eq!(dequantize(&q), decoded);
    }
    let spoilt = golden.tensor("in.spoilt").map(strange);
    for (name, pow2) in [("spoilt", false), ("spoilt_pow2", true)] {
        let q = quantize(&spoilt, TILE, E4M3, pow2);
        let scale = golden.tensor(&format!("out.{name}.scale"));
        assert_eq!(q.scale.map(finite), scale, "{name}");
        let decoded = golden.tensor(&format!("out.{name}.decoded"));
        assert_eq!(dequantize(&q).map(finite), decoded, "{name}");
    }
    let (a, b) =
        (quantize(&a, TILE, E4M3, false), quantize(&b, TILE, E4M3, false));
    golden.check("gemm", &fp8_gemm(&a, &b, 128, exact));
    golden.check("gemm_64", &fp8_gemm(&a, &b, 64, exact));
    // An emulation has no freedom in the order of its sums.
    let cut = golden.tensor("out.gemm_fp22");
    assert_eq!(fp8_gemm(&a, &b, 128, tensor_core), cut);
}

#[test]
fn a_spoilt_block_shows_and_stays_alone() {
    let mut x = Tensor::full(&[2, 256], 1.0);
    x.data[3] = f32::NAN;
    x.data[4] = 7.0;
    x.data[300] = f32::NEG_INFINITY;
    let back = dequantize(&quantize(&x, TILE, E4M3, false));
    let spoilt = |i: usize| i < 128 || (256..384).contains(&i);
    for (i, x) in back.data.iter().enumerate() {
        assert_eq!(x.is_nan(), spoilt(i), "{i}");
    }
    let scale = quantize(&x, BLOCK, E4M3, true).scale;
    assert_eq!(scale.shape, [1, 2]);
    assert_eq!(scale.data[1], power_of_two(1.0 / 448.0));
    assert_eq!(scale_for(0.0, E4M3, false), 1e-4 / 448.0);
}

#[test]
fn optimizers() {
    let mut golden = Golden::open("optim");
    let betas = [golden.cfg("beta1"), golden.cfg("beta2")];
    let now = Settings {
        lr: golden.cfg("lr"),
        betas,
        eps: golden.cfg("eps"),
        weight_decay: golden.cfg("weight_decay"),
    };
    let gradients = golden.tensor("in.gradients");
    let mut weight = golden.tensor("in.weight");
    let mut state = State::new(weight.data.len());
    for gradient in gradients.rows() {
        adamw_update(&mut weight.data, gradient, &mut state, &now);
    }
    golden.check("weight", &weight);
    golden.check("exp_avg", &row(state.exp_avg));
    golden.check("exp_avg_sq", &row(state.exp_avg_sq));
    let mut parts = [gradients.row(0).to_vec(), gradients.row(1)[..7].to_vec()];
    let [first, second] = &mut parts;
    let norm = clip_grad_norm(&mut [first, second], 0.5);
    golden.check("norm", &row(vec![norm]));
    golden.check("clipped", &row(parts.concat()));
    let mut kept = [gradients.row(2).to_vec(), gradients.row(3).to_vec()];
    let [first, second] = &mut kept;
    let above = golden.cfg("above") as f32;
    clip_grad_norm(&mut [first, second], above);
    golden.check("unclipped", &Tensor::new(&[2, 13], kept.concat()));
}

#[test]
fn an_orthogonal_update() {
    let mut golden = Golden::open("optim");
    let x = golden.tensor("in.matrix");
    let steps = [NS_COEFFICIENTS; 5];
    golden.check("orthogonal", &orthogonalise(&x, &steps));
    let columns = (0..6).flat_map(|c| (0..4).map(move |r| (r, c)));
    let tall = columns.map(|(r, c)| x.row(r)[c]).collect();
    let tall = orthogonalise(&Tensor::new(&[6, 4], tall), &steps);
    golden.check("orthogonal_tall", &tall);
    let scales = [false, true].map(|x| muon_scale(9, 4, x) as f32);
    golden.check("muon_scale", &row(scales.to_vec()));
}

#[test]
fn schedules_to_the_last_bit() {
    let mut golden = Golden::open("schedule");
    let steps = golden.tensor("in.step");
    let plan = |floor: f64| Plan {
        peak: 3e-4,
        warmup_steps: 100.0,
        first: 1.0,
        floor,
        ..Plan::new(1000.0)
    };
    let stairs = [(0.8, 0.316), (0.9, 0.1)];
    let mut check = |name: &str, at: &dyn Fn(f64) -> f64| {
        let found = steps.map(|&step| at(f64::from(step)) as f32);
        assert_eq!(found, golden.tensor(&format!("out.{name}")), "{name}");
    };
    check("constant", &|s| constant(s, &plan(0.0)));
    check("linear", &|s| linear(s, &plan(0.1)));
    check("cosine", &|s| cosine(s, &plan(0.1)));
    check("multi_step", &|s| multi_step(s, &plan(0.0), &stairs));
    check("v3", &|s| v3(1000.0 * s));
    check("v3_tokens", &|s| v3_tokens(1000.0 * s));
    check("batch_ramp", &|s| batch_ramp(v3_tokens(1000.0 * s)));
    let shapes = [
        ("linear", Shape::Linear),
        ("cosine", Shape::Cosine),
        ("sqrt", Shape::Sqrt),
        ("square", Shape::Square),
        ("exponential", Shape::Exponential),
    ];
    for (name, shape) in shapes {
        let at = |s| wsd(s, &plan(0.01), 200.0, shape);
        check(&format!("wsd_{name}"), &at);
    }
}

#[test]
fn pipelines_to_the_last_bit() {
    let mut golden = Golden::open("pipeline");
    let times = Times {
        forward: golden.cfg("forward"),
        backward: golden.cfg("backward"),
        weight: golden.cfg("weight"),
        pair: golden.cfg("pair"),
    };
    let (p, m, v) =
        (golden.size("stages"), golden.size("micros"), golden.size("chunks"));
    let programs = [
        ("gpipe", gpipe(p, m), 1.0),
        ("one_f_one_b", one_f_one_b(p, m), 1.0),
        ("interleaved", interleaved(p, m, v), 1.0 / v as f64),
        ("zero_bubble", zero_bubble(p, m), 1.0),
    ];
    let Times { forward: f, backward: b, weight: w, .. } = times;
    let stages = (p - 1) as f64;
    let bubbles = [f + b, f + b, (f + b) / v as f64, f + b - 2.0 * w];
    for ((name, program, share), bubble) in programs.into_iter().zip(bubbles) {
        let line = simulate(&program, &times, share).expect("no deadlock");
        let slots = line.slots.iter();
        let slots: Vec<f32> = slots
            .flat_map(|x| [x.device as f32, x.start as f32, x.end as f32])
            .collect();
        assert_eq!(slots, golden.tensor(&format!("out.{name}.slots")).data);
        let each = |d| [line.idle(d) as f32, line.peak_activations(d) as f32];
        let devices: Vec<f32> = (0..line.devices).flat_map(each).collect();
        assert_eq!(devices, golden.tensor(&format!("out.{name}.devices")).data);
        assert_eq!(line.bubble(), stages * bubble, "{name}");
    }
}

#[test]
fn a_program_that_waits_for_itself_is_refused() {
    let mut program = one_f_one_b(2, 2);
    program[1].reverse();
    let times = Times { forward: 1.0, backward: 2.0, weight: 1.0, pair: 3.0 };
    let cause = simulate(&program, &times, 1.0).expect_err("a deadlock");
    assert!(cause.to_string().contains("deadlock"), "{cause}");
    let mut early = zero_bubble(1, 1);
    early[0].swap(1, 2);
    assert!(simulate(&early, &times, 1.0).is_err(), "W before its I");
    let pair: Vec<Op> = program[0][..2].concat();
    assert_eq!(times.of(&pair, 0.5), 1.5);
}
