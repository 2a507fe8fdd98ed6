//! Rate of change of counters that start over at zero when their process does.
//!
//! A value below the one before is a reset: the counter has grown by the new value since.
//! What grew between which rows depends on their order, so the state keeps them.

use kymo_udf::{Samples, Timestamp, aggregate, plugin};

/// Growth over all resets, and the seconds from the first row to the last.
fn growth(samples: &Samples) -> Option<(f64, f64)> {
    let rows = samples.sorted();
    let ((first, _), (last, _)) = (rows.first()?, rows.last()?);
    let seconds = Timestamp(*last).seconds_since(Timestamp(*first));
    let grown = rows.windows(2).map(|two| {
        let (before, after) = (two[0].1, two[1].1);
        if after < before { after } else { after - before }
    });
    (rows.len() > 1).then(|| (grown.sum(), seconds))
}

struct Rate;

/// Growth of a counter per second between its first and its last row; resets are seen through.
/// NULL for fewer than two rows or where all have the same time.
///
/// `counter_rate(value, time)`
#[aggregate(name = "counter_rate")]
impl Aggregate for Rate {
    type State = Samples;

    fn update(state: &mut Samples, value: f64, time: Timestamp) {
        state.push(time.0, value);
    }

    fn merge(state: &mut Samples, other: &Samples) {
        state.append(other);
    }

    fn evaluate(state: &Samples) -> Option<f64> {
        growth(state).filter(|(_, seconds)| *seconds > 0.0).map(|(grown, seconds)| grown / seconds)
    }
}

struct Increase;

/// Growth of a counter between its first and its last row; resets are seen through.
/// NULL for fewer than two rows.
///
/// `counter_increase(value, time)`
#[aggregate(name = "counter_increase")]
impl Aggregate for Increase {
    type State = Samples;

    fn update(state: &mut Samples, value: f64, time: Timestamp) {
        state.push(time.0, value);
    }

    fn merge(state: &mut Samples, other: &Samples) {
        state.append(other);
    }

    fn evaluate(state: &Samples) -> Option<f64> {
        growth(state).map(|(grown, _)| grown)
    }
}

plugin! {
    name: "rate",
    description: "Rates of counters that start over",
    aggregates: [Rate, Increase],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rows: &[(i64, f64)]) -> Samples {
        let mut samples = Samples::default();
        rows.iter().for_each(|(second, value)| samples.push(second * 1_000_000_000, *value));
        samples
    }

    #[test]
    fn a_reset_counts_from_zero() {
        // 10 → 30, restart, 5 → 25: 20 + 5 + 20 in 30 s.
        let state = samples(&[(0, 10.0), (10, 30.0), (20, 5.0), (30, 25.0)]);
        assert_eq!(Increase::evaluate(&state), Some(45.0));
        assert_eq!(Rate::evaluate(&state), Some(1.5));
    }

    #[test]
    fn late_rows_are_no_resets() {
        let mut late = samples(&[(20, 5.0), (30, 25.0)]);
        Rate::merge(&mut late, &samples(&[(10, 30.0), (0, 10.0)]));
        assert_eq!(Rate::evaluate(&late), Some(1.5));
    }

    #[test]
    fn one_row_has_no_rate() {
        assert_eq!(Rate::evaluate(&samples(&[(0, 1.0)])), None);
        assert_eq!(Rate::evaluate(&samples(&[(0, 1.0), (0, 2.0)])), None);
        assert_eq!(Increase::evaluate(&Samples::default()), None);
    }
}
