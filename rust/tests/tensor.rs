//! The tensor and its contraction, against sums written out.

use dsarch::layers::{causal_mask, masked_softmax, positions};
use dsarch::tensor::{argmax, softmax, topk};
use dsarch::{einsum, Tensor};

fn counting(shape: &[usize]) -> Tensor<i64> {
    let size: usize = shape.iter().product();
    let value = |i: usize| (i * 7 % 23) as i64 - 11;
    Tensor::new(shape, (0..size).map(value).collect())
}

#[test]
fn a_product_of_matrices_with_any_layout() {
    let (z, d, e) = (3, 35, 4);
    let (x, w) = (counting(&[z, d]), counting(&[e, d]));
    let mut expected = Tensor::zeros(&[z, e]);
    let mut turned = Tensor::zeros(&[d, e]);
    for i in 0..z {
        for j in 0..e {
            for k in 0..d {
                let product = x.data[i * d + k] * w.data[j * d + k];
                expected.data[i * e + j] += product;
                turned.data[k * e + j] = w.data[j * d + k];
            }
        }
    }
    assert_eq!(einsum("zd,ed->ze", [&x, &w]), expected);
    assert_eq!(einsum("z d, d e -> z e", [&x, &turned]), expected);
    assert_eq!(einsum("de,zd->ze", [&turned, &x]), expected);
}

#[test]
fn batches_and_two_summed_letters() {
    let (p, v) = (counting(&[2, 3, 4, 5]), counting(&[2, 5, 3, 6]));
    let found = einsum("bhts,bshv->btv", [&p, &v]);
    assert_eq!(found.shape, [2, 4, 6]);
    let at = |b: usize, t: usize, w: usize| -> i64 {
        let over = (0..3).flat_map(|h| (0..5).map(move |s| (h, s)));
        over.map(|(h, s)| {
            p.data[((b * 3 + h) * 4 + t) * 5 + s]
                * v.data[((b * 5 + s) * 3 + h) * 6 + w]
        })
        .sum()
    };
    for b in 0..2 {
        for t in 0..4 {
            for w in 0..6 {
                assert_eq!(found.data[(b * 4 + t) * 6 + w], at(b, t, w));
            }
        }
    }
}

#[test]
fn a_full_sum_and_an_outer_product() {
    let x = counting(&[19]);
    let squares: i64 = x.data.iter().map(|x| x * x).sum();
    assert_eq!(einsum("i,i->", [&x, &x]).data, [squares]);
    let outer = einsum("i,j->ij", [&x, &x]);
    assert_eq!(outer.data[2 * 19 + 5], x.data[2] * x.data[5]);
    assert_eq!(einsum("i,j->", [&x, &counting(&[0])]).data, [0]);
}

#[test]
fn three_tensors_are_multiplied_from_the_left() {
    let (q, w, c) =
        (counting(&[2, 3, 4]), counting(&[3, 4, 5]), counting(&[7, 5]));
    let step = einsum("thn,hnc->thc", [&q, &w]);
    let expected = einsum("thc,sc->hts", [&step, &c]);
    assert_eq!(einsum("thn,hnc,sc->hts", [&q, &w, &c]), expected);
}

#[test]
#[should_panic(expected = "does not name 2 tensors")]
fn every_tensor_is_named() {
    einsum("ts,sv,vw->tw", [&counting(&[2, 3]), &counting(&[3, 5])]);
}

#[test]
#[should_panic(expected = "letter s has sizes [3, 4]")]
fn one_letter_has_one_size() {
    einsum("ts,sv->tv", [&counting(&[2, 3]), &counting(&[4, 5])]);
}

#[test]
#[should_panic(expected = "does not fit")]
fn letters_fit_the_axes() {
    einsum("ts,sv->tv", [&counting(&[2]), &counting(&[2, 5])]);
}

#[test]
fn slices_and_joins_are_inverse() {
    let x = counting(&[2, 7, 3]);
    let [a, b, c] = x.split(1, [2, 0, 5]);
    assert_eq!((&a.shape, &b.shape), (&vec![2, 2, 3], &vec![2, 0, 3]));
    assert_eq!(a.cat(&b, 1).cat(&c, 1), x);
    assert_eq!(c.data[0], x.data[6]);
    assert_eq!(x.index_select(&[1, 1]).slice(0, 1..2), x.slice(0, 1..2));
}

#[test]
fn the_greatest_values_come_first() {
    let row = [0.5, -1.0, f32::NEG_INFINITY, 0.5, 2.0];
    assert_eq!(topk(&row, 4), [4, 0, 3, 1]);
    assert_eq!(argmax(&row), 4);
    assert_eq!(topk(&[1.0, f32::NAN, 3.0], 2), [1, 2]);
}

#[test]
fn softmax_is_stable_and_blind_to_hidden_keys() {
    let mut row = [1000.0, 1000.0, f32::NEG_INFINITY];
    softmax(&mut row);
    assert_eq!(row, [0.5, 0.5, 0.0]);
    let mask = causal_mask(&positions(2, 1, 2), 3);
    let p = masked_softmax(Tensor::zeros(&[2, 5, 2, 3]), &mask);
    assert_eq!(p.row(8), [0.5, 0.5, 0.0]);
    assert_eq!(p.row(9), [1.0 / 3.0; 3]);
}

#[test]
#[should_panic(expected = "has not 2 axes")]
fn ranks_are_stated() {
    let [_, _] = counting(&[2, 3, 4]).dims();
}
