//! The only contraction: products of two tensors, named by their letters.

use std::ops::{Add, Mul};

use crate::tensor::Tensor;

/// What an einsum calculates with: `f32`, `f64` or a whole number.
pub trait Number:
    Copy + Default + Add<Output = Self> + Mul<Output = Self>
{
}

impl<T: Copy + Default + Add<Output = T> + Mul<Output = T>> Number for T {}

/// Sum of products over every letter that the result lacks.
///
/// `einsum("bthn,bshn->bhts", [&q, &k])` reads as in Python: a letter names
/// an axis, and equal letters are one axis. Spaces are allowed. More than two
/// tensors are multiplied from left to right.
///
/// # Panics
/// If the letters do not fit the axes, or a letter has two sizes.
pub fn einsum<T: Number, const N: usize>(
    spec: &str,
    tensors: [&Tensor<T>; N],
) -> Tensor<T> {
    let letters = |x: &str| x.chars().filter(|c| *c != ' ').collect();
    let (names, out) = spec
        .split_once("->")
        .unwrap_or_else(|| panic!("{spec:?} is not 'ab,bc->ac'"));
    let names: Vec<Vec<char>> = names.split(',').map(letters).collect();
    let count = names.len();
    assert!(count == N && N > 1, "{spec:?} does not name {N} tensors");
    chain(spec, &names, letters(out), &tensors)
}

/// The product of the first two, times the others.
fn chain<T: Number>(
    spec: &str,
    names: &[Vec<char>],
    out: Vec<char>,
    tensors: &[&Tensor<T>],
) -> Tensor<T> {
    let [a, b] = [0, 1].map(|i| names[i].clone());
    let (whole, rest) = (spec.to_string(), &names[2..]);
    if rest.is_empty() {
        let terms = Terms { spec: whole, a, b, out };
        return pair(&terms, [tensors[0], tensors[1]]);
    }
    let needed = |x: &char| rest.iter().chain([&out]).any(|y| y.contains(x));
    let mut kept: Vec<char> = Vec::new();
    for letter in a.iter().chain(&b).filter(|x| needed(x)) {
        if !kept.contains(letter) {
            kept.push(*letter);
        }
    }
    let terms = Terms { spec: whole, a, b, out: kept.clone() };
    let first = pair(&terms, [tensors[0], tensors[1]]);
    let names = [&[kept][..], rest].concat();
    let tensors = [&[&first][..], &tensors[2..]].concat();
    chain(spec, &names, out, &tensors)
}

/// The product of two tensors.
fn pair<T: Number>(terms: &Terms, [a, b]: [&Tensor<T>; 2]) -> Tensor<T> {
    let size = |letter| terms.size(letter, [&a.shape, &b.shape]);
    let shape: Vec<usize> = terms.out.iter().map(|&x| size(x)).collect();
    let mut out = Tensor::zeros(&shape);
    if out.data.is_empty() {
        return out;
    }
    let (last, outer) = match terms.out.split_last() {
        Some((letter, outer)) => (Some(*letter), outer),
        None => (None, &[][..]),
    };
    let sums = terms.summed();
    let table = |letters: &[char], names: &[char], x: &Tensor<T>| {
        let axes = letters.iter().map(|&l| (size(l), step(l, names, x)));
        offsets(&axes.collect::<Vec<_>>())
    };
    let plan = |names: &[char], x: &Tensor<T>| Plan {
        outer: table(outer, names, x),
        sums: table(&sums, names, x),
        step: last.map_or(0, |letter| step(letter, names, x)),
    };
    let plans = [plan(&terms.a, a), plan(&terms.b, b)];
    contract(&mut out.data, [&a.data, &b.data], plans);
    out
}

struct Terms {
    spec: String,
    a: Vec<char>,
    b: Vec<char>,
    out: Vec<char>,
}

impl Terms {
    /// The letters that are summed over, in order of appearance.
    fn summed(&self) -> Vec<char> {
        let mut found: Vec<char> = Vec::new();
        for &letter in self.a.iter().chain(&self.b) {
            if !self.out.contains(&letter) && !found.contains(&letter) {
                found.push(letter);
            }
        }
        found
    }

    /// The one size of a letter in all its places.
    fn size(&self, letter: char, shapes: [&[usize]; 2]) -> usize {
        let mut sizes = Vec::new();
        for (names, shape) in [&self.a, &self.b].into_iter().zip(shapes) {
            let fits = names.len() == shape.len();
            assert!(fits, "{:?} does not fit {shape:?}", self.spec);
            let places = names.iter().zip(shape).filter(|x| *x.0 == letter);
            sizes.extend(places.map(|(_, size)| *size));
        }
        let one = !sizes.is_empty() && sizes.iter().all(|x| *x == sizes[0]);
        assert!(one, "in {:?} letter {letter} has sizes {sizes:?}", self.spec);
        sizes[0]
    }
}

/// Where one operand's values lie for each outer index and each summand.
struct Plan {
    outer: Vec<usize>,
    sums: Vec<usize>,
    /// How far apart two neighbours of the result's last axis lie.
    step: usize,
}

/// How far one step along a letter moves in memory; zero without the letter.
fn step<T>(letter: char, names: &[char], x: &Tensor<T>) -> usize {
    let along = |axis: usize| x.shape[axis + 1..].iter().product::<usize>();
    let places = names.iter().enumerate().filter(|(_, name)| **name == letter);
    places.map(|(axis, _)| along(axis)).sum()
}

/// The offsets of all combinations of axes given as size and step.
fn offsets(axes: &[(usize, usize)]) -> Vec<usize> {
    axes.iter().fold(vec![0], |start, &(size, step)| {
        let along = |from| (0..size).map(move |i| from + i * step);
        start.into_iter().flat_map(along).collect()
    })
}

/// Fill the result row by row, in the order that suits the memory.
fn contract<T: Number>(out: &mut [T], [a, b]: [&[T]; 2], plans: [Plan; 2]) {
    let [pa, pb] = plans;
    let width = out.len() / pa.outer.len();
    let starts = pa.outer.iter().zip(&pb.outer);
    let length = pa.sums.len();
    let dense = consecutive(&pa.sums) && consecutive(&pb.sums);
    for (row, (&at_a, &at_b)) in out.chunks_exact_mut(width).zip(starts) {
        if dense {
            for (i, x) in row.iter_mut().enumerate() {
                let a = &a[at_a + i * pa.step..][..length];
                *x = dot(a, &b[at_b + i * pb.step..][..length]);
            }
            continue;
        }
        for (&sum_a, &sum_b) in pa.sums.iter().zip(&pb.sums) {
            let (a, b) = (&a[at_a + sum_a..], &b[at_b + sum_b..]);
            match (pa.step, pb.step) {
                (0, 1) => add(row, a[0], b),
                (1, 0) => add(row, b[0], a),
                (n, m) => row.iter_mut().enumerate().for_each(|(i, x)| {
                    *x = *x + a[i * n] * b[i * m];
                }),
            }
        }
    }
}

fn consecutive(offsets: &[usize]) -> bool {
    offsets.iter().enumerate().all(|(i, x)| i == *x)
}

/// Add `factor` times a vector to a row.
fn add<T: Number>(row: &mut [T], factor: T, x: &[T]) {
    row.iter_mut().zip(x).for_each(|(y, &x)| *y = *y + factor * x);
}

/// The product of two vectors, in sixteen sums that a processor can make
/// side by side.
fn dot<T: Number>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::default(); 16];
    let (head_a, head_b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest = head_a.remainder().iter().zip(head_b.remainder());
    for (x, y) in head_a.zip(head_b) {
        for i in 0..16 {
            lanes[i] = lanes[i] + x[i] * y[i];
        }
    }
    let tail = rest.fold(T::default(), |sum, (&x, &y)| sum + x * y);
    lanes.into_iter().fold(tail, |sum, x| sum + x)
}
