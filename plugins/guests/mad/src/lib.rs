//! How unusual the latest value of a group is: its distance from the median in units of the
//! median absolute deviation. Outliers move neither, unlike mean and standard deviation.

use kymo_udf::{Samples, Timestamp, aggregate, plugin};

/// Makes the deviation of normally distributed values their standard deviation.
const NORMAL: f64 = 1.4826;

/// The middle value; the mean of the two middle ones. The slice is not empty.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    let (_, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let upper = *upper;
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = values[..middle].iter().copied().max_by(f64::total_cmp).unwrap_or(upper);
    lower + (upper - lower) / 2.0
}

struct MadScore;

/// Anomaly score of the latest value of a group: `|value - median| / (1.4826 * MAD)`; above
/// about 3.5 it is worth a look. 0 where all values are the same, infinite where only the
/// latest differs.
///
/// `mad_score(value, time)`
#[aggregate]
impl Aggregate for MadScore {
    type State = Samples;

    fn update(state: &mut Samples, value: f64, time: Timestamp) {
        state.push(time.0, value);
    }

    fn merge(state: &mut Samples, other: &Samples) {
        state.append(other);
    }

    fn evaluate(state: &Samples) -> Option<f64> {
        let mut values: Vec<f64> = state.sorted().into_iter().map(|(_, value)| value).collect();
        let latest = *values.last()?;
        let center = median(&mut values);
        values.iter_mut().for_each(|value| *value = (*value - center).abs());
        let distance = (latest - center).abs();
        let deviation = NORMAL * median(&mut values);
        Some(if distance == 0.0 { 0.0 } else { distance / deviation })
    }
}

plugin! {
    name: "mad",
    description: "Anomaly score by the median absolute deviation",
    aggregates: [MadScore],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(values: &[f64]) -> Option<f64> {
        let mut state = Samples::default();
        for (time, value) in values.iter().enumerate() {
            MadScore::update(&mut state, *value, Timestamp(time as i64));
        }
        MadScore::evaluate(&state)
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn the_latest_value_is_judged() {
        // median 3, deviations 2 1 0 1 97 -> MAD 1
        assert_eq!(score(&[1.0, 2.0, 3.0, 4.0, 100.0]), Some(97.0 / NORMAL));
        assert_eq!(score(&[100.0, 1.0, 2.0, 4.0, 3.0]), Some(0.0));
    }

    #[test]
    fn series_that_never_move() {
        assert_eq!(score(&[5.0; 4]), Some(0.0));
        assert_eq!(score(&[5.0, 5.0, 5.0, 6.0]), Some(f64::INFINITY));
        assert_eq!(score(&[]), None);
    }
}
