//! Exponential moving average over time, for rows at any distance and in any order.
//!
//! Each value weighs `0.5 ^ (age / half-life)`. The state is the weighted sum and the weights
//! as of its latest row; two states are brought to the later of their times and added, so the
//! result does not depend on who saw which rows.

use kymo_udf::{Error, State, Timestamp, aggregate, plugin};

/// Sum and weights as of `latest`.
#[derive(Debug, Clone, Default, PartialEq, State)]
struct Average {
    sum: f64,
    weights: f64,
    latest: i64,
    half_life: f64,
}

impl Average {
    /// Lets it age until a later time.
    fn until(&mut self, time: i64) {
        let decay = decay(Timestamp(time).seconds_since(Timestamp(self.latest)), self.half_life);
        self.sum *= decay;
        self.weights *= decay;
        self.latest = time;
    }

    /// What one value counts as of `latest`; the state ages where the value is newer.
    fn weight(&mut self, time: i64) -> f64 {
        if time > self.latest {
            self.until(time);
            return 1.0;
        }
        decay(Timestamp(self.latest).seconds_since(Timestamp(time)), self.half_life)
    }
}

fn decay(seconds: f64, half_life: f64) -> f64 {
    (-seconds / half_life).exp2()
}

struct Ema;

/// Exponential moving average: a value's weight halves every `half_life` seconds.
///
/// `ema(value, time, half_life)`
#[aggregate(name = "ema")]
impl Aggregate for Ema {
    type State = Average;

    fn update(
        state: &mut Average,
        value: f64,
        time: Timestamp,
        half_life: f64,
    ) -> Result<(), Error> {
        if state.half_life == 0.0 {
            if !(half_life.is_finite() && half_life > 0.0) {
                return Err(Error::invalid("the half-life is a positive number of seconds"));
            }
            (state.half_life, state.latest) = (half_life, time.0);
        }
        let weight = state.weight(time.0);
        state.sum += weight * value;
        state.weights += weight;
        Ok(())
    }

    fn retract(state: &mut Average, value: f64, time: Timestamp, _half_life: f64) {
        let weight = state.weight(time.0);
        state.sum -= weight * value;
        state.weights -= weight;
    }

    fn merge(state: &mut Average, other: &Average) {
        if other.half_life == 0.0 {
            return;
        }
        if state.half_life == 0.0 {
            *state = other.clone();
            return;
        }
        let mut other = other.clone();
        let latest = state.latest.max(other.latest);
        state.until(latest);
        other.until(latest);
        state.sum += other.sum;
        state.weights += other.weights;
    }

    fn evaluate(state: &Average) -> Option<f64> {
        (state.weights > 0.0).then(|| state.sum / state.weights)
    }
}

plugin! {
    name: "ema",
    description: "Exponential moving average over time",
    aggregates: [Ema],
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn add(state: &mut Average, second: i64, value: f64) {
        Ema::update(state, value, Timestamp(second * SECOND), 10.0).unwrap();
    }

    #[test]
    fn a_value_as_old_as_the_half_life_weighs_half() {
        let mut state = Average::default();
        add(&mut state, 0, 3.0);
        add(&mut state, 10, 6.0);
        assert!((Ema::evaluate(&state).unwrap() - (3.0 * 0.5 + 6.0) / 1.5).abs() < 1e-12);
    }

    #[test]
    fn order_and_partition_do_not_matter() {
        let rows = [(0, 1.0), (7, 4.0), (3, 2.0), (20, 8.0), (11, 5.0)];
        let (mut whole, mut left, mut right) = <(Average, Average, Average)>::default();
        for (second, value) in rows {
            add(&mut whole, second, value);
            add(if second % 2 == 0 { &mut left } else { &mut right }, second, value);
        }
        Ema::merge(&mut right, &left);
        let (one, two) = (Ema::evaluate(&whole).unwrap(), Ema::evaluate(&right).unwrap());
        assert!((one - two).abs() < 1e-12, "{one} {two}");
    }

    #[test]
    fn what_is_taken_out_was_never_there() {
        let (mut with, mut without) = <(Average, Average)>::default();
        add(&mut with, 0, 100.0);
        for (second, value) in [(5, 1.0), (9, 2.0)] {
            add(&mut with, second, value);
            add(&mut without, second, value);
        }
        Ema::retract(&mut with, 100.0, Timestamp(0), 10.0);
        let (one, two) = (Ema::evaluate(&with).unwrap(), Ema::evaluate(&without).unwrap());
        assert!((one - two).abs() < 1e-12, "{one} {two}");
        assert_eq!(Ema::evaluate(&Average::default()), None);
    }

    #[test]
    fn a_half_life_that_is_none_is_refused() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Ema::update(&mut Average::default(), 1.0, Timestamp(0), bad).is_err());
        }
    }
}
