//! What a layer remembers of the tokens that it has seen.

use crate::tensor::Tensor;

// ANCHOR: Cache
/// One layer's memory: named streams that grow along the time axis.
///
/// A stream has shape `[b, s, ..]`; all streams have the same length. The
/// layer borrows them to read; nothing is copied out.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    streams: Vec<(&'static str, Tensor)>,
}
// ANCHOR_END: Cache

impl Cache {
    // ANCHOR: extend
    /// Append positions to every stream; return the streams in full.
    ///
    /// # Panics
    /// Before anything changes, if names, batch, widths or lengths differ
    /// from each other or from what is stored.
    pub fn extend<const N: usize>(
        &mut self,
        new: [(&'static str, Tensor); N],
    ) -> [&Tensor; N] {
        check_fits(&self.streams, &new);
        if self.streams.is_empty() {
            self.streams = new.into();
        } else {
            let pairs = self.streams.iter_mut().zip(new);
            pairs.for_each(|((_, held), (_, x))| append(held, x));
        }
        let mut streams = self.streams.iter().map(|(_, held)| held);
        [(); N].map(|_| streams.next().expect("a stream for each name"))
    }
    // ANCHOR_END: extend

    // ANCHOR: crop
    /// Forget the positions from `length` on, as a rejected draft must.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn crop(&mut self, length: usize) {
        let held = self.len();
        assert!(length <= held, "crop to {length}: the cache holds {held}");
        for (_, x) in &mut self.streams {
            *x = x.slice(1, 0..length);
        }
    }
    // ANCHOR_END: crop

    /// One stream in full.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.streams.iter().find(|x| x.0 == name).map(|x| &x.1)
    }

    /// How many positions are held.
    pub fn len(&self) -> usize {
        self.streams.first().map_or(0, |(_, x)| x.shape[1])
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the positions held.
    pub fn nbytes(&self) -> usize {
        self.streams.iter().map(|(_, x)| 4 * x.data.len()).sum()
    }
}

/// How many positions are behind: none without a cache.
pub fn length(cache: Option<&Cache>) -> usize {
    cache.map_or(0, Cache::len)
}

/// Join along the time axis; one sequence only grows its vector.
fn append(held: &mut Tensor, x: Tensor) {
    if held.shape[0] == 1 {
        held.shape[1] += x.shape[1];
        held.data.extend(x.data);
    } else {
        *held = held.cat(&x, 1);
    }
}

fn check_fits(held: &[(&str, Tensor)], new: &[(&str, Tensor)]) {
    let lengths = |x: &(&str, Tensor)| x.1.shape[..2].to_vec();
    let alike = new.iter().all(|x| lengths(x) == lengths(&new[0]));
    assert!(alike, "streams differ in batch or length");
    let kind = |x: &(&str, Tensor)| {
        let (name, shape) = (x.0.to_string(), &x.1.shape);
        (name, shape[0], shape[2..].to_vec())
    };
    let kinds = |x: &[(&str, Tensor)]| x.iter().map(kind).collect::<Vec<_>>();
    let fits = held.is_empty() || kinds(held) == kinds(new);
    assert!(fits, "{:?} cannot hold {:?}", kinds(held), kinds(new));
}
