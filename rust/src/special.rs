//! Functions that the standard library lacks.

/// `ln(1 + e^x)`, a smooth hinge.
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The chance that a normal number is below `x`.
pub fn ndtr(x: f32) -> f32 {
    (0.5 * erfc(-f64::from(x) / std::f64::consts::SQRT_2)) as f32
}

/// The complementary error function.
///
/// Up to 3 by the power series of `erf`, beyond by the continued fraction of
/// `erfc`; both are carried on until nothing changes.
pub fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x > 3.0 {
        // x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …))) from the inside.
        let root = std::f64::consts::PI.sqrt();
        let fraction = |tail: f64, n: i32| x + 0.5 * f64::from(n) / tail;
        return (-x * x).exp() / root / (1..=80).rev().fold(x, fraction);
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
}
