//! A calibration curve: a polynomial of degree 7, a square root and a division for each row.
//! What the benches call a realistic kernel.

use kymo_udf::{plugin, scalar};

/// The coefficients from the constant up.
const CURVE: [f64; 8] = [0.5, -1.25, 0.75, 2.0, -0.125, 0.0625, -0.03125, 0.015625];

/// A sensor's reading, linearised: `sqrt(|p(x)|) / (1 + x²)` with a polynomial `p` of degree 7.
#[scalar]
fn calibrated(x: f64) -> f64 {
    let curve = CURVE.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient);
    curve.abs().sqrt() / (1.0 + x * x)
}

plugin! {
    name: "kernel",
    description: "A realistic amount of arithmetic for each row",
    scalars: [calibrated],
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_curve_at_some_points() {
        assert_eq!(super::calibrated(0.0), 0.5f64.sqrt());
        let sum: f64 = super::CURVE.iter().sum();
        assert_eq!(super::calibrated(1.0), sum.abs().sqrt() / 2.0);
    }
}
