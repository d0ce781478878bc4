//! Reading golden files, and what counts as equal.

use std::path::PathBuf;

use dsarch::checkpoint::Weights;
use dsarch::config::Yarn;
use dsarch::sft::Loss;
use dsarch::Tensor;

/// The one tolerance between the languages.
pub const TOL: f32 = 1e-5;

/// The project's folder of golden files.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// One golden file: its weights, and everything else.
pub struct Golden {
    pub weights: Weights,
    values: [(&'static str, Weights); 3],
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let mut weights = Weights::open(&path).expect("a golden file");
        let values = ["cfg", "in", "out"].map(|x| (x, weights.at(x)));
        Self { weights, values }
    }

    /// A value such as `in.x`, once.
    pub fn tensor(&mut self, name: &str) -> Tensor {
        let (kind, rest) = name.split_once('.').expect("a prefix");
        let values = self.values.iter_mut().find(|x| x.0 == kind);
        let found = values.and_then(|x| x.1.find(rest));
        found.unwrap_or_else(|| panic!("the golden file lacks {name}"))
    }

    /// Whole numbers, which the files hold as floats.
    pub fn index(&mut self, name: &str) -> Tensor<usize> {
        self.tensor(name).map(|x| *x as usize)
    }

    /// What holds where the file has a one.
    pub fn mask(&mut self, name: &str) -> Tensor<bool> {
        self.tensor(name).map(|x| *x > 0.0)
    }

    pub fn cfg(&mut self, name: &str) -> f64 {
        let value = self.tensor(&format!("cfg.{name}")).data[0];
        // 0.707 in fp32 is meant as 0.707.
        value.to_string().parse().expect("a number")
    }

    pub fn size(&mut self, name: &str) -> usize {
        self.cfg(name) as usize
    }

    pub fn yarn(&mut self) -> Yarn {
        let window = "original_max_position_embeddings";
        Yarn {
            factor: self.cfg("factor"),
            original_max_position_embeddings: self.size(window),
            beta_fast: self.cfg("beta_fast"),
            beta_slow: self.cfg("beta_slow"),
            mscale: self.cfg("mscale"),
            mscale_all_dim: self.cfg("mscale_all_dim"),
        }
    }

    /// Compare with one output.
    pub fn check(&mut self, name: &str, found: &Tensor) {
        close(found, &self.tensor(&format!("out.{name}")), name);
    }
}

/// Panic unless two tensors agree to the tolerance.
pub fn close(found: &Tensor, expected: &Tensor, name: &str) {
    assert_eq!(found.shape, expected.shape, "{name}");
    let pairs = found.data.iter().zip(&expected.data);
    for (i, (x, y)) in pairs.enumerate() {
        let fits = (x - y).abs() <= TOL + TOL * y.abs();
        assert!(fits, "{name}[{i}] is {x}, expected {y}");
    }
}

/// A list as a tensor of one axis.
pub fn row(x: Vec<f32>) -> Tensor {
    Tensor::new(&[x.len()], x)
}

/// A loss, and what autograd says of its first input.
pub fn check_loss(golden: &mut Golden, name: &str, found: Loss) {
    golden.check(name, &row(vec![found.value]));
    golden.check(&format!("{name}.gradient.0"), &found.gradient);
}
