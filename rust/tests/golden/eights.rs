use dsarch::fp8::layout::{
    latent_scale, pack_index, pack_latent, unpack_index, unpack_latent,
};
use dsarch::fp8::reference::{difference, rounded, tensor_core, BLOCK, TILE};
use dsarch::fp8::{dequantize, quantize, Recipe, ScaledLinear, E5M2, E5M6};
use dsarch::Tensor;

use crate::common::{close, Golden};

/// Recipes by name, and whether nothing in them depends on an order of sums.
fn recipes() -> [(&'static str, Recipe, bool); 4] {
    let unit = Recipe { product: tensor_core, ..Recipe::default() };
    [
        ("v3", Recipe::default(), false),
        ("fp22", Recipe { pow2: true, ..unit }, true),
        ("e5m2", Recipe { gradient_format: E5M2, ..unit }, true),
        ("e5m6", Recipe { cache: E5M6, ..unit }, true),
    ]
}

#[test]
fn three_products_of_a_layer() {
    let mut golden = Golden::open("fp8_linear");
    for axis in ["channels", "outputs", "tokens"] {
        let [x, weight, dy] = ["x", "weight", "dy"]
            .map(|name| golden.tensor(&format!("in.{axis}.{name}")));
        for (name, recipe, exact) in recipes() {
            if name.starts_with("e5") && axis != "tokens" {
                continue;
            }
            let (y, kept) = ScaledLinear::forward(&x, &weight, recipe);
            let [dx, dw] = kept.backward(&dy);
            for (kind, found) in [("y", y), ("dx", dx), ("dw", dw)] {
                let name = format!("out.{axis}.{name}.{kind}");
                let told = golden.tensor(&name);
                if exact {
                    assert_eq!(found.data, told.data, "{name}");
                }
                close(&found, &told, &name);
            }
        }
    }
}

#[test]
fn what_is_left_after_rounding() {
    let mut golden = Golden::open("fp8_linear");
    let weight = golden.tensor("in.channels.weight");
    let [f, d] = weight.dims();
    let left = rounded(&weight.reshape(&[1, f, d]), BLOCK, E5M2, false);
    assert_eq!(left, golden.tensor("out.rounded"));
    let weight = Golden::open("fp8_linear").tensor("in.channels.weight");
    let apart = golden.tensor("out.difference").data[0];
    assert_eq!(difference(&weight, &left) as f32, apart);
    assert_eq!(difference(&left, &left), 0.0);
    let nothing = Tensor::zeros(&[2, 2]);
    assert_eq!(difference(&nothing, &nothing), 0.0);
}

#[test]
fn a_transposed_matrix_takes_its_blocks_along() {
    let x = Golden::open("fp8_linear").tensor("in.channels.x");
    let q = quantize(&x, TILE, E5M6, true);
    assert_eq!(q.t().block, [128, 1]);
    assert_eq!(dequantize(&q.t()), dequantize(&q).t());
    assert_eq!(q.t().t().codes, q.codes);
}

fn bytes(golden: &mut Golden, name: &str) -> Tensor<u8> {
    golden.tensor(name).map(|x| *x as u8)
}

#[test]
fn a_cache_byte_by_byte() {
    let mut golden = Golden::open("fp8_layout");
    let [c, k_rope, keys, amax] = ["c", "k_rope", "keys", "amax"]
        .map(|name| golden.tensor(&format!("in.{name}")));
    let scales = amax.map(|&x| latent_scale(x));
    assert_eq!(scales, golden.tensor("out.scales"));
    let packed = pack_latent(&c, &k_rope);
    assert_eq!(packed, bytes(&mut golden, "out.latent.bytes"));
    let [latent, k_rope] = unpack_latent(&packed, [256, 6]);
    assert_eq!(latent, golden.tensor("out.latent"));
    assert_eq!(k_rope, golden.tensor("out.k_rope"));
    let cases =
        [("row", true, false), ("page", true, true), ("free", false, false)];
    for (name, pow2, paged) in cases {
        let packed = pack_index(&keys, pow2, paged);
        let told = bytes(&mut golden, &format!("out.{name}.bytes"));
        assert_eq!(packed, told, "{name}");
        let wide = golden.tensor(&format!("out.{name}"));
        assert_eq!(unpack_index(&packed, paged), wide, "{name}");
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_tile() {
    let mut c = Tensor::full(&[1, 256], 0.5);
    c.data[7] = f32::NAN;
    let k_rope = Tensor::new(&[1, 2], vec![f32::NAN, -f32::INFINITY]);
    let packed = pack_latent(&c, &k_rope);
    assert_eq!(packed.shape, [1, 256 + 8 + 4]);
    let [c, k_rope] = unpack_latent(&packed, [256, 2]);
    let spoilt: Vec<bool> = c.data.iter().map(|x| x.is_nan()).collect();
    assert_eq!(spoilt, (0..256).map(|i| i < 128).collect::<Vec<_>>());
    assert!(k_rope.data[0].is_nan());
    assert_eq!(k_rope.data[1], f32::NEG_INFINITY);
}

#[test]
#[should_panic(expected = "widths 130 and 2: multiples of 128 and 2")]
fn a_latent_is_cut_into_whole_tiles() {
    pack_latent(&Tensor::zeros(&[1, 130]), &Tensor::zeros(&[1, 2]));
}
