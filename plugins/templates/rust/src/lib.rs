//! What this plugin is for.

use kymo_udf::{Error, State, aggregate, plugin, scalar};

/// Degrees Celsius to degrees Fahrenheit.
#[scalar]
fn c2f(x: f64) -> f64 {
    x * 1.8 + 32.0
}

/// A reading as a number; an SQL error that names the row where it is none.
#[scalar]
fn reading(text: &str) -> Result<f64, Error> {
    text.trim().parse().map_err(|_| Error::invalid(format!("{text:?} is not a number")))
}

#[derive(Debug, Clone, Default, State)]
struct Range {
    rows: i64,
    low: f64,
    high: f64,
}

struct Spread;

/// The largest value minus the smallest.
#[aggregate]
impl Aggregate for Spread {
    type State = Range;

    fn update(state: &mut Range, x: f64) {
        Self::merge(state, &Range { rows: 1, low: x, high: x });
    }

    fn merge(state: &mut Range, other: &Range) {
        if other.rows == 0 {
            return;
        }
        if state.rows == 0 {
            *state = other.clone();
            return;
        }
        state.rows += other.rows;
        state.low = state.low.min(other.low);
        state.high = state.high.max(other.high);
    }

    fn evaluate(state: &Range) -> Option<f64> {
        (state.rows > 0).then(|| state.high - state.low)
    }
}

plugin! {
    name: "my_plugin",
    description: "What this plugin is for",
    scalars: [c2f, reading],
    aggregates: [Spread],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_functions() {
        assert_eq!(c2f(100.0), 212.0);
        assert_eq!(reading(" 1.5 "), Ok(1.5));
        let mut state = Range::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|x| Spread::update(&mut state, x));
        assert_eq!(Spread::evaluate(&state), Some(2.0));
    }
}
