//! The shape of a distribution in one pass: mean, standard deviation, skewness and kurtosis by
//! central moments that are moved along with their mean, which stays exact where sums of powers
//! cancel out.
//!
//! Formulas: T. B. Terriberry, "Computing Higher-Order Moments Online" (2007), after
//! B. P. Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products",
//! Technometrics 4 (1962).

use kymo_udf::{State, aggregate, plugin};

/// Count, mean, and the sum of squared distances from it.
#[derive(Debug, Clone, Default, State)]
struct Two {
    count: f64,
    mean: f64,
    m2: f64,
}

impl Two {
    fn push(&mut self, x: f64) {
        self.count += 1.0;
        let delta = x - self.mean;
        self.mean += delta / self.count;
        self.m2 += delta * (x - self.mean);
    }

    fn append(&mut self, other: &Two) {
        let count = self.count + other.count;
        if count == 0.0 {
            return;
        }
        let delta = other.mean - self.mean;
        self.mean += delta * other.count / count;
        self.m2 += other.m2 + delta * delta * self.count * other.count / count;
        self.count = count;
    }
}

/// As [`Two`], with the sums of third and fourth powers.
#[derive(Debug, Clone, Default, State)]
struct Four {
    count: f64,
    mean: f64,
    m2: f64,
    m3: f64,
    m4: f64,
}

impl Four {
    /// One value is the distribution of that value.
    fn push(&mut self, x: f64) {
        self.append(&Four { count: 1.0, mean: x, ..Four::default() });
    }

    fn append(&mut self, other: &Four) {
        let (a, b) = (self.count, other.count);
        let count = a + b;
        if count == 0.0 {
            return;
        }
        let delta = other.mean - self.mean;
        let step = delta / count;
        self.m4 += other.m4
            + delta * step * step * step * a * b * (a * a - a * b + b * b)
            + 6.0 * step * step * (a * a * other.m2 + b * b * self.m2)
            + 4.0 * step * (a * other.m3 - b * self.m3);
        self.m3 += other.m3
            + delta * step * step * a * b * (a - b)
            + 3.0 * step * (a * other.m2 - b * self.m2);
        self.m2 += other.m2 + delta * step * a * b;
        self.mean += step * b;
        self.count = count;
    }
}

#[derive(Debug, Clone, Default, State)]
struct Sum {
    sum: f64,
    count: f64,
}

struct Mean;

/// The mean of the values.
#[aggregate(name = "moments_mean")]
impl Aggregate for Mean {
    type State = Sum;

    fn update(state: &mut Sum, x: f64) {
        state.sum += x;
        state.count += 1.0;
    }

    fn merge(state: &mut Sum, other: &Sum) {
        state.sum += other.sum;
        state.count += other.count;
    }

    fn evaluate(state: &Sum) -> Option<f64> {
        (state.count > 0.0).then(|| state.sum / state.count)
    }
}

struct Deviation;

/// Standard deviation of a sample; NULL for fewer than two values.
#[aggregate(name = "moments_stddev")]
impl Aggregate for Deviation {
    type State = Two;

    fn update(state: &mut Two, x: f64) {
        state.push(x);
    }

    fn merge(state: &mut Two, other: &Two) {
        state.append(other);
    }

    fn evaluate(state: &Two) -> Option<f64> {
        (state.count > 1.0).then(|| (state.m2 / (state.count - 1.0)).sqrt())
    }
}

struct Skewness;

/// Skewness of the population: 0 where both sides are alike, positive where the larger values
/// reach further. NULL where all values are the same.
#[aggregate(name = "skewness")]
impl Aggregate for Skewness {
    type State = Four;

    fn update(state: &mut Four, x: f64) {
        state.push(x);
    }

    fn merge(state: &mut Four, other: &Four) {
        state.append(other);
    }

    fn evaluate(state: &Four) -> Option<f64> {
        (state.m2 > 0.0).then(|| state.count.sqrt() * state.m3 / state.m2.powf(1.5))
    }
}

struct Kurtosis;

/// Excess kurtosis of the population: 0 for a normal distribution, larger where outliers weigh
/// more. NULL where all values are the same.
#[aggregate(name = "kurtosis")]
impl Aggregate for Kurtosis {
    type State = Four;

    fn update(state: &mut Four, x: f64) {
        state.push(x);
    }

    fn merge(state: &mut Four, other: &Four) {
        state.append(other);
    }

    fn evaluate(state: &Four) -> Option<f64> {
        (state.m2 > 0.0).then(|| state.count * state.m4 / (state.m2 * state.m2) - 3.0)
    }
}

plugin! {
    name: "moments",
    description: "Mean, standard deviation, skewness and kurtosis in one pass",
    aggregates: [Mean, Deviation, Skewness, Kurtosis],
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 6] = [1.0, 2.0, 2.0, 3.0, 9.0, -4.0];

    /// The moments as they are defined, in two passes.
    fn defined(power: i32) -> f64 {
        let mean = VALUES.iter().sum::<f64>() / VALUES.len() as f64;
        VALUES.iter().map(|x| (x - mean).powi(power)).sum::<f64>()
    }

    fn close(found: Option<f64>, wanted: f64) {
        let found = found.unwrap();
        assert!((found - wanted).abs() < 1e-12 * wanted.abs().max(1.0), "{found} {wanted}");
    }

    #[test]
    fn parts_come_to_the_same_as_the_definition() {
        for cut in 0..=VALUES.len() {
            let (mut two, mut four) = (Two::default(), Four::default());
            let (mut more, mut even_more) = (Two::default(), Four::default());
            for x in &VALUES[..cut] {
                two.push(*x);
                four.push(*x);
            }
            for x in &VALUES[cut..] {
                more.push(*x);
                even_more.push(*x);
            }
            two.append(&more);
            four.append(&even_more);
            let count = VALUES.len() as f64;
            close(Deviation::evaluate(&two), (defined(2) / (count - 1.0)).sqrt());
            close(Skewness::evaluate(&four), count.sqrt() * defined(3) / defined(2).powf(1.5));
            close(Kurtosis::evaluate(&four), count * defined(4) / defined(2).powi(2) - 3.0);
        }
    }

    #[test]
    fn too_few_values_have_no_shape() {
        assert_eq!(Mean::evaluate(&Sum::default()), None);
        assert_eq!(Kurtosis::evaluate(&Four::default()), None);
        let (mut two, mut four) = (Two::default(), Four::default());
        for x in [5.0; 3] {
            two.push(x);
            four.push(x);
        }
        assert_eq!(Deviation::evaluate(&two), Some(0.0));
        assert_eq!(Skewness::evaluate(&four), None);
    }
}
