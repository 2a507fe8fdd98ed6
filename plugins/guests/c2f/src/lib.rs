//! Units of temperature: the smallest useful plugin.

use kymo_udf::{plugin, scalar};

/// Degrees Celsius to degrees Fahrenheit.
#[scalar]
fn c2f(x: f64) -> f64 {
    x * 1.8 + 32.0
}

/// Degrees Fahrenheit to degrees Celsius.
#[scalar]
fn f2c(x: f64) -> f64 {
    (x - 32.0) / 1.8
}

plugin! {
    name: "temperature",
    description: "Units of temperature",
    scalars: [c2f, f2c],
}

#[cfg(test)]
mod tests {
    #[test]
    fn boiling_and_freezing() {
        assert_eq!((super::c2f(100.0), super::c2f(0.0)), (212.0, 32.0));
        assert_eq!(super::f2c(212.0), 100.0);
    }
}
