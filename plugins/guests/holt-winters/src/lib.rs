//! Forecast of a series with a trend and a season: additive triple exponential smoothing
//! (Holt, Winters), started from the first two seasons.

use kymo_udf::{BytesState, Error, Samples, Timestamp, aggregate, plugin};

/// How much the newest value counts for level, trend and season.
const SMOOTHING: Smoothing = Smoothing { level: 0.3, trend: 0.05, season: 0.2 };

/// The share of the newest observation, each from 0 to 1.
struct Smoothing {
    level: f64,
    trend: f64,
    season: f64,
}

/// The rows, the length of a season and how far to look ahead.
#[derive(Debug, Clone, Default, PartialEq)]
struct Series {
    samples: Samples,
    season: u32,
    ahead: u32,
}

impl BytesState for Series {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.season.to_le_bytes());
        to.extend_from_slice(&self.ahead.to_le_bytes());
        self.samples.write(to);
    }

    fn read(from: &[u8]) -> Result<Self, Error> {
        let [s0, s1, s2, s3, a0, a1, a2, a3, samples @ ..] = from else {
            return Err(Error::internal("a state of a forecast that breaks off"));
        };
        Ok(Series {
            season: u32::from_le_bytes([*s0, *s1, *s2, *s3]),
            ahead: u32::from_le_bytes([*a0, *a1, *a2, *a3]),
            samples: Samples::read(samples)?,
        })
    }

    fn heap_bytes(&self) -> usize {
        BytesState::heap_bytes(&self.samples)
    }
}

/// The value `ahead` steps after the last; none for fewer than two seasons.
fn forecast(values: &[f64], season: usize, ahead: usize, by: &Smoothing) -> Option<f64> {
    if season == 0 || values.len() < 2 * season {
        return None;
    }
    let mean = |part: &[f64]| part.iter().sum::<f64>() / season as f64;
    let (first, second) = (mean(&values[..season]), mean(&values[season..2 * season]));
    let mut trend = (second - first) / season as f64;
    // The mean of a season belongs to its middle.
    let middle = (season as f64 - 1.0) / 2.0;
    let mut level = first + trend * middle;
    let mut seasons: Vec<f64> =
        (0..season).map(|step| values[step] - (first + trend * (step as f64 - middle))).collect();
    for (step, value) in values.iter().enumerate().skip(season) {
        let slot = step % season;
        let before = level;
        level = by.level * (value - seasons[slot]) + (1.0 - by.level) * (level + trend);
        trend = by.trend * (level - before) + (1.0 - by.trend) * trend;
        seasons[slot] = by.season * (value - level) + (1.0 - by.season) * seasons[slot];
    }
    Some(level + trend * ahead as f64 + seasons[(values.len() - 1 + ahead) % season])
}

struct HoltWinters;

/// Forecast by additive Holt-Winters smoothing: the value `ahead` rows after the last, for a
/// season of `season` rows. Rows are taken at equal distances in order of time; NULL for fewer
/// than two seasons of them.
///
/// `holt_winters(value, time, season, ahead)`
#[aggregate]
impl Aggregate for HoltWinters {
    type State = Series;

    fn update(
        state: &mut Series,
        value: f64,
        time: Timestamp,
        season: i64,
        ahead: i64,
    ) -> Result<(), Error> {
        if state.season == 0 {
            let rows = |number: i64, name: &str| match u32::try_from(number) {
                Ok(rows) if rows > 0 => Ok(rows),
                _ => Err(Error::invalid(format!("{name} is a positive number of rows"))),
            };
            (state.season, state.ahead) = (rows(season, "season")?, rows(ahead, "ahead")?);
        }
        state.samples.push(time.0, value);
        Ok(())
    }

    fn merge(state: &mut Series, other: &Series) {
        state.samples.append(&other.samples);
        state.season = state.season.max(other.season);
        state.ahead = state.ahead.max(other.ahead);
    }

    fn evaluate(state: &Series) -> Option<f64> {
        let values: Vec<f64> = state.samples.sorted().into_iter().map(|(_, value)| value).collect();
        forecast(&values, state.season as usize, state.ahead as usize, &SMOOTHING)
    }
}

plugin! {
    name: "holt_winters",
    description: "Forecast with trend and season",
    aggregates: [HoltWinters],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rows: usize) -> impl Iterator<Item = f64> {
        (0..rows).map(|step| 10.0 + 0.5 * step as f64 + [0.0, 4.0, -4.0, 0.0][step % 4])
    }

    #[test]
    fn a_clean_series_goes_on_as_it_was() {
        let values: Vec<f64> = series(40).collect();
        let truth: Vec<f64> = series(46).collect();
        for ahead in 1..=6 {
            let seen = forecast(&values, 4, ahead, &SMOOTHING).unwrap();
            assert!((seen - truth[39 + ahead]).abs() < 1e-6, "{ahead}: {seen}");
        }
    }

    #[test]
    fn partitions_do_not_matter() {
        let (mut whole, mut odd, mut even) = <(Series, Series, Series)>::default();
        for (step, value) in series(24).enumerate() {
            let part = if step % 2 == 0 { &mut even } else { &mut odd };
            for state in [&mut whole, part] {
                HoltWinters::update(state, value, Timestamp(step as i64), 4, 2).unwrap();
            }
        }
        let mut bytes = Vec::new();
        odd.write(&mut bytes);
        HoltWinters::merge(&mut even, &Series::read(&bytes).unwrap());
        assert_eq!(HoltWinters::evaluate(&even), HoltWinters::evaluate(&whole));
    }

    #[test]
    fn too_little_or_nonsense_gives_nothing() {
        assert_eq!(forecast(&[1.0; 7], 4, 1, &SMOOTHING), None);
        assert_eq!(HoltWinters::evaluate(&Series::default()), None);
        let mut state = Series::default();
        assert!(HoltWinters::update(&mut state, 1.0, Timestamp(0), 0, 1).is_err());
        assert!(HoltWinters::update(&mut state, 1.0, Timestamp(0), 4, -1).is_err());
    }
}
