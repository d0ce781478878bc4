//! Bytes of a quantised cache: the latent of MLA and the indexer's key.

use super::formats::{cast, decode, E4M3};
use super::reference::{power_of_two, quantize, top, TILE};
use crate::tensor::Tensor;

const TILE_WIDTH: usize = 128;
const SCALE_BYTES: usize = 4;
const SMALLEST_SCALE: f32 = 1e-4;

// ANCHOR: latent_scale
/// The next power of two up; the floor is under the *scale*, not under the
/// magnitude.
pub fn latent_scale(amax: f32) -> f32 {
    let s = amax / E4M3.max();
    // A comparison with NaN is false: NaN stays.
    power_of_two(if s < SMALLEST_SCALE { SMALLEST_SCALE } else { s })
}
// ANCHOR_END: latent_scale

// ANCHOR: pack_latent
/// One cached token per row: values, scales, rotary key in bf16.
///
/// # Panics
/// Unless the latent is a multiple of 128 wide and the rotary key even.
pub fn pack_latent(c: &Tensor, k_rope: &Tensor) -> Tensor<u8> {
    let ([s, width], [_, r]) = (c.dims(), k_rope.dims());
    let bytes = row_bytes([width, r]).iter().sum();
    let mut packed = Vec::with_capacity(s * bytes);
    for (c, k_rope) in c.rows().zip(k_rope.rows()) {
        let tiles = c.chunks_exact(TILE_WIDTH);
        let scales: Vec<f32> = tiles.map(|x| latent_scale(top(x))).collect();
        for (i, x) in c.iter().enumerate() {
            packed.push(cast(x / scales[i / TILE_WIDTH], E4M3) as u8);
        }
        packed.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
        packed.extend(k_rope.iter().flat_map(|&x| to_bf16(x)));
    }
    Tensor::new(&[s, bytes], packed)
}
// ANCHOR_END: pack_latent

// ANCHOR: unpack_latent
/// Latent and rotary key, of these widths.
///
/// # Panics
/// Unless the bytes add up.
pub fn unpack_latent(packed: &Tensor<u8>, widths: [usize; 2]) -> [Tensor; 2] {
    let [values, s, k_rope] = packed.split(1, row_bytes(widths));
    let scales = floats(&s);
    let mut latent = values.map(|&x| decode(u16::from(x), E4M3));
    for (i, x) in latent.data.iter_mut().enumerate() {
        *x *= scales[i / TILE_WIDTH];
    }
    let pairs = k_rope.data.chunks_exact(2);
    let wide = pairs.map(|x| f32::from_le_bytes([0, 0, x[0], x[1]]));
    [latent, Tensor::new(&[packed.shape[0], widths[1]], wide.collect())]
}
// ANCHOR_END: unpack_latent

// ANCHOR: pack_index
/// Indexer keys, 132 bytes each: values, then the four bytes of one scale.
///
/// A page has the values of all its keys first and their scales behind them;
/// its rows are then no longer one key each.
///
/// # Panics
/// Unless a key is 128 wide.
pub fn pack_index(k: &Tensor, pow2: bool, paged: bool) -> Tensor<u8> {
    let [s, m] = k.dims();
    assert!(m == TILE_WIDTH, "an indexer key is {TILE_WIDTH} wide, not {m}");
    let q = quantize(k, TILE, E4M3, pow2);
    let values = q.codes.map(|&code| code as u8);
    let scales = q.scale.data.iter().flat_map(|s| s.to_le_bytes());
    let scales = Tensor::new(&[s, SCALE_BYTES], scales.collect());
    if !paged {
        return values.cat(&scales, 1);
    }
    let page = [values.data, scales.data].concat();
    Tensor::new(&[s, TILE_WIDTH + SCALE_BYTES], page)
}
// ANCHOR_END: pack_index

// ANCHOR: unpack_index
/// Indexer keys; `paged` as they were packed.
///
/// # Panics
/// Unless a row is 132 bytes.
pub fn unpack_index(packed: &Tensor<u8>, paged: bool) -> Tensor {
    let parts = [TILE_WIDTH, SCALE_BYTES];
    let count = packed.shape[0];
    let [values, s] = match paged {
        true => {
            let all = packed.clone().reshape(&[packed.data.len()]);
            all.split(0, parts.map(|x| x * count))
        }
        false => packed.split(1, parts),
    };
    let scales = floats(&s);
    let wide = values.data.iter().map(|&x| decode(u16::from(x), E4M3));
    let wide = wide.enumerate().map(|(i, x)| x * scales[i / TILE_WIDTH]);
    Tensor::new(&[count, TILE_WIDTH], wide.collect())
}
// ANCHOR_END: unpack_index

/// What a row of these widths is made of, in bytes.
fn row_bytes([c, r]: [usize; 2]) -> [usize; 3] {
    let fits = c % TILE_WIDTH == 0 && r % 2 == 0;
    assert!(fits, "widths {c} and {r}: multiples of {TILE_WIDTH} and 2");
    [c, SCALE_BYTES * c / TILE_WIDTH, 2 * r]
}

/// The nearest bf16, ties to the even one; NaN stays NaN.
fn to_bf16(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let half = match x.is_nan() {
        true => (bits >> 16) | 0x40,
        false => (bits + 0x7FFF + (bits >> 16 & 1)) >> 16,
    };
    (half as u16).to_le_bytes()
}

fn floats(bytes: &Tensor<u8>) -> Vec<f32> {
    let four = bytes.data.chunks_exact(SCALE_BYTES);
    four.map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()
}
