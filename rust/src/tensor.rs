//! A row-major array and the few operations that the book needs.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Mul, Range};
use std::slice::ChunksExact;

/// Values in row-major order; `f32` unless another type is named.
///
/// A mask is a `Tensor<bool>`, a choice of keys a `Tensor<usize>`.
#[derive(Clone, Default, PartialEq)]
pub struct Tensor<T = f32> {
    /// The size of each axis.
    pub shape: Vec<usize>,
    /// All values, the last axis running fastest.
    pub data: Vec<T>,
}

impl<T: fmt::Debug> fmt::Debug for Tensor<T> {
    /// The shape and the first values; a model has too many for a screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.data[..self.data.len().min(16)];
        write!(f, "{:?} of {first:?}..", self.shape)
    }
}

impl<T: Clone> Tensor<T> {
    /// # Panics
    /// Unless there are as many values as the shape says.
    pub fn new(shape: &[usize], data: Vec<T>) -> Self {
        let (size, found) = (shape.iter().product::<usize>(), data.len());
        assert!(size == found, "{found} values do not fill {shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    /// The same value everywhere.
    pub fn full(shape: &[usize], value: T) -> Self {
        Self::new(shape, vec![value; shape.iter().product()])
    }

    /// The sizes of exactly `N` axes: `let [b, t, d] = x.dims();`.
    ///
    /// # Panics
    /// If there are more axes or fewer.
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        <[usize; N]>::try_from(&self.shape[..])
            .unwrap_or_else(|_| panic!("{:?} has not {N} axes", self.shape))
    }

    /// The size of the last axis.
    pub fn width(&self) -> usize {
        *self.shape.last().expect("a tensor with an axis")
    }

    /// The same values under another shape.
    pub fn reshape(self, shape: &[usize]) -> Self {
        Self::new(shape, self.data)
    }

    /// The last axis cut into two: `[.., a * b]` becomes `[.., a, b]`.
    pub fn unflatten(mut self, parts: [usize; 2]) -> Self {
        self.shape.pop();
        self.shape.extend(parts);
        Self::new(&self.shape.clone(), self.data)
    }

    /// The last two axes made one: `[.., a, b]` becomes `[.., a * b]`.
    pub fn merge(mut self) -> Self {
        let last = self.shape.pop().expect("two axes");
        *self.shape.last_mut().expect("two axes") *= last;
        self
    }

    /// The transposed matrix.
    pub fn t(&self) -> Self {
        let [rows, columns] = self.dims();
        let along = |j| (0..rows).map(move |i| i * columns + j);
        let places = (0..columns).flat_map(along);
        let data = places.map(|i| self.data[i].clone()).collect();
        Self::new(&[columns, rows], data)
    }

    /// All axes but the last made one: `[.., d]` becomes `[z, d]`.
    pub fn flatten(self) -> Self {
        let width = self.width();
        let rows = self.shape[..self.shape.len() - 1].iter().product();
        self.reshape(&[rows, width])
    }

    /// The vectors along the last axis.
    pub fn rows(&self) -> ChunksExact<'_, T> {
        self.data.chunks_exact(self.width().max(1))
    }

    /// Vector `i` along the last axis.
    pub fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.width()..(i + 1) * self.width()]
    }

    /// The positions `range` of one axis.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Self {
        let (size, inner) = self.block(axis);
        assert!(range.end <= size, "{range:?} leaves an axis of {size}");
        let mut shape = self.shape.clone();
        shape[axis] = range.len();
        let cut = range.start * inner..range.end * inner;
        let blocks = self.data.chunks_exact((size * inner).max(1));
        let data = blocks.flat_map(|x| x[cut.clone()].to_vec()).collect();
        Self::new(&shape, data)
    }

    /// One axis cut into `N` pieces of these sizes.
    ///
    /// # Panics
    /// Unless the sizes add up to the axis.
    pub fn split<const N: usize>(
        &self,
        axis: usize,
        sizes: [usize; N],
    ) -> [Self; N] {
        let (size, total) = (self.shape[axis], sizes.iter().sum::<usize>());
        assert!(size == total, "{sizes:?} do not cut an axis of {size}");
        let mut end = 0;
        sizes.map(|size| {
            end += size;
            self.slice(axis, end - size..end)
        })
    }

    /// Two tensors joined along one axis.
    ///
    /// # Panics
    /// If any other axis differs.
    pub fn cat(&self, other: &Self, axis: usize) -> Self {
        let (n, m) = (self.shape[axis], other.shape[axis]);
        let mut shape = self.shape.clone();
        shape[axis] = m;
        assert!(shape == other.shape, "{shape:?} and {:?}", other.shape);
        shape[axis] = n + m;
        let inner = self.block(axis).1;
        let outer = shape[..axis].iter().product::<usize>();
        let mut data = Vec::with_capacity(shape.iter().product());
        for i in 0..outer {
            data.extend_from_slice(&self.data[i * n * inner..][..n * inner]);
            data.extend_from_slice(&other.data[i * m * inner..][..m * inner]);
        }
        Self::new(&shape, data)
    }

    /// The entries of the first axis that `index` names, in its order.
    pub fn index_select(&self, index: &[usize]) -> Self {
        let inner = self.block(0).1;
        let entry = |&i: &usize| &self.data[i * inner..(i + 1) * inner];
        let data = index.iter().flat_map(entry).cloned().collect();
        let mut shape = self.shape.clone();
        shape[0] = index.len();
        Self::new(&shape, data)
    }

    /// Every value passed through a function.
    pub fn map<U: Clone>(&self, f: impl Fn(&T) -> U) -> Tensor<U> {
        Tensor::new(&self.shape, self.data.iter().map(f).collect())
    }

    /// Values at the same place passed through a function of two.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn zip<U: Clone, V: Clone>(
        &self,
        other: &Tensor<U>,
        f: impl Fn(&T, &U) -> V,
    ) -> Tensor<V> {
        let (a, b) = (&self.shape, &other.shape);
        assert!(a == b, "{a:?} and {b:?} are different shapes");
        let pairs = self.data.iter().zip(&other.data);
        Tensor::new(a, pairs.map(|(x, y)| f(x, y)).collect())
    }

    /// The size of an axis, and how many values one step along it passes.
    fn block(&self, axis: usize) -> (usize, usize) {
        (self.shape[axis], self.shape[axis + 1..].iter().product())
    }
}

impl<T: Copy + Default> Tensor<T> {
    /// Zeros everywhere.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::full(shape, T::default())
    }
}

impl<T: Copy + Add<Output = T>> Add for &Tensor<T> {
    type Output = Tensor<T>;

    fn add(self, other: Self) -> Tensor<T> {
        self.zip(other, |&x, &y| x + y)
    }
}

impl<T: Copy + Mul<Output = T>> Mul<T> for &Tensor<T> {
    type Output = Tensor<T>;

    fn mul(self, factor: T) -> Tensor<T> {
        self.map(|&x| x * factor)
    }
}

/// Softmax of one vector, in place; minus infinity becomes zero.
pub fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - top).exp();
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
}

/// The places of the `k` greatest values, greatest first.
///
/// Of equal values the first comes first; NaN counts as the greatest.
///
/// # Panics
/// If there are fewer than `k`.
pub fn topk(row: &[f32], k: usize) -> Vec<usize> {
    assert!(k <= row.len(), "cannot choose {k} of {}", row.len());
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&i, &j| descending(row[i], row[j]));
    order.truncate(k);
    order
}

/// The place of the greatest value.
pub fn argmax(row: &[f32]) -> usize {
    topk(row, 1)[0]
}

fn descending(x: f32, y: f32) -> Ordering {
    let nan_first = y.is_nan().cmp(&x.is_nan());
    y.partial_cmp(&x).unwrap_or(nan_first)
}
