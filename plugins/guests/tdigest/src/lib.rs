//! Quantiles by a t-digest (Dunning): a few hundred weighted means, fine at the ends of the
//! distribution and coarse in its middle, which can be merged in any order.

use kymo_udf::{BytesState, Error, aggregate, plugin};

/// How many centroids a digest comes to at most, give or take. A quantile `q` is off by at
/// most `π * sqrt(q * (1 - q)) / COMPRESSION` of all rows: half a centroid.
const COMPRESSION: f64 = 200.0;

/// How many values wait unsorted before they are merged in.
const BUFFER: usize = 512;

/// A mean and how many values it stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Centroid {
    mean: f64,
    weight: f64,
}

/// The sketch, and the quantile asked for.
#[derive(Debug, Clone, PartialEq)]
struct Digest {
    /// In order of mean.
    centroids: Vec<Centroid>,
    waiting: Vec<Centroid>,
    min: f64,
    max: f64,
    quantile: f64,
}

impl Default for Digest {
    fn default() -> Self {
        Digest {
            centroids: Vec::new(),
            waiting: Vec::new(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            quantile: f64::NAN,
        }
    }
}

impl Digest {
    fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.put(Centroid { mean: value, weight: 1.0 });
    }

    fn put(&mut self, centroid: Centroid) {
        self.waiting.push(centroid);
        if self.waiting.len() >= BUFFER {
            self.compress();
        }
    }

    /// Merges what waits into the centroids: neighbours join as long as they span no more than
    /// one step of the scale function.
    fn compress(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.waiting);
        all.append(&mut self.centroids);
        all.sort_unstable_by(|a, b| a.mean.total_cmp(&b.mean));
        let total: f64 = all.iter().map(|each| each.weight).sum();
        let mut done = 0.0;
        let mut current: Option<Centroid> = None;
        let mut limit = next_limit(0.0);
        for each in all {
            let Some(open) = &mut current else {
                current = Some(each);
                continue;
            };
            if (done + open.weight + each.weight) / total <= limit {
                open.weight += each.weight;
                open.mean += (each.mean - open.mean) * each.weight / open.weight;
            } else {
                done += open.weight;
                limit = next_limit(done / total);
                self.centroids.push(*open);
                current = Some(each);
            }
        }
        self.centroids.extend(current);
    }

    /// The value below which this share of all values lies, between the centroids around it.
    fn quantile(&self, share: f64) -> Option<f64> {
        let mut whole = self.clone();
        whole.compress();
        let total: f64 = whole.centroids.iter().map(|each| each.weight).sum();
        let wanted = share * total;
        let (mut at, mut value, mut before) = (0.0, whole.min, 0.0);
        whole.centroids.first()?;
        for each in &whole.centroids {
            // A centroid of one value lies where it lies; of more, at their middle.
            let middle = before + each.weight / 2.0;
            if wanted < middle {
                return Some(between(at, value, middle, each.mean, wanted));
            }
            (at, value, before) = (middle, each.mean, before + each.weight);
        }
        Some(between(at, value, total, whole.max, wanted))
    }
}

/// Where the next centroid has to end: the scale function k1, one step on.
fn next_limit(share: f64) -> f64 {
    use std::f64::consts::PI;
    let scale = COMPRESSION / (2.0 * PI) * (2.0 * share - 1.0).clamp(-1.0, 1.0).asin() + 1.0;
    let angle = scale * 2.0 * PI / COMPRESSION;
    if angle >= PI / 2.0 { 1.0 } else { (angle.sin() + 1.0) / 2.0 }
}

/// On the line from (x0, y0) to (x1, y1).
fn between(x0: f64, y0: f64, x1: f64, y1: f64, x: f64) -> f64 {
    if x1 <= x0 { y1 } else { y0 + (y1 - y0) * ((x - x0) / (x1 - x0)).clamp(0.0, 1.0) }
}

impl BytesState for Digest {
    fn write(&self, to: &mut Vec<u8>) {
        let mut whole = self.clone();
        whole.compress();
        for number in [whole.min, whole.max, whole.quantile] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        for each in &whole.centroids {
            to.extend_from_slice(&each.mean.to_le_bytes());
            to.extend_from_slice(&each.weight.to_le_bytes());
        }
    }

    fn read(from: &[u8]) -> Result<Self, Error> {
        let (numbers, rest) = from.as_chunks::<8>();
        let numbers: Vec<f64> = numbers.iter().map(|each| f64::from_le_bytes(*each)).collect();
        let [min, max, quantile, centroids @ ..] = &numbers[..] else {
            return Err(Error::internal("a digest that breaks off"));
        };
        let (pairs, odd) = centroids.as_chunks::<2>();
        if !rest.is_empty() || !odd.is_empty() {
            return Err(Error::internal("a digest that breaks off"));
        }
        let centroid = |pair: &[f64; 2]| Centroid { mean: pair[0], weight: pair[1] };
        Ok(Digest {
            centroids: pairs.iter().map(centroid).collect(),
            waiting: Vec::new(),
            min: *min,
            max: *max,
            quantile: *quantile,
        })
    }

    fn heap_bytes(&self) -> usize {
        (self.centroids.capacity() + self.waiting.capacity()) * size_of::<Centroid>()
    }
}

struct TdigestQuantile;

/// The value below which a share of all values lies, from 0 (the smallest) to 1 (the largest),
/// by a sketch of a few KiB; NaN is left out.
///
/// `tdigest_quantile(value, share)`
#[aggregate(state_version = 1)]
impl Aggregate for TdigestQuantile {
    type State = Digest;

    fn update(state: &mut Digest, value: f64, share: f64) -> Result<(), Error> {
        if state.quantile.is_nan() {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::invalid("a quantile is asked by a share from 0 to 1"));
            }
            state.quantile = share;
        }
        if !value.is_nan() {
            state.add(value);
        }
        Ok(())
    }

    fn merge(state: &mut Digest, other: &Digest) {
        state.min = state.min.min(other.min);
        state.max = state.max.max(other.max);
        if state.quantile.is_nan() {
            state.quantile = other.quantile;
        }
        other.centroids.iter().chain(&other.waiting).for_each(|each| state.put(*each));
    }

    fn evaluate(state: &Digest) -> Option<f64> {
        state.quantile(state.quantile)
    }
}

plugin! {
    name: "tdigest",
    description: "Quantiles by a sketch that can be merged",
    aggregates: [TdigestQuantile],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(values: impl Iterator<Item = f64>, share: f64) -> Digest {
        let mut digest = Digest::default();
        values.for_each(|value| TdigestQuantile::update(&mut digest, value, share).unwrap());
        digest
    }

    /// 0, 1, … 99,999 in an order that is none.
    fn shuffled() -> impl Iterator<Item = f64> {
        (0..100_000u64).map(|row| (row * 62_017 % 100_000) as f64)
    }

    #[test]
    fn quantiles_are_close_and_the_ends_exact() {
        for share in [0.0f64, 0.001, 0.01, 0.5, 0.99, 0.999] {
            let tolerance =
                std::f64::consts::PI * (share * (1.0 - share)).sqrt() / COMPRESSION * 100_000.0;
            let seen = TdigestQuantile::evaluate(&digest(shuffled(), share)).unwrap();
            assert!((seen - share * 100_000.0).abs() <= tolerance, "{share}: {seen}");
        }
        assert_eq!(TdigestQuantile::evaluate(&digest(shuffled(), 1.0)), Some(99_999.0));
    }

    #[test]
    fn a_hundred_merged_digests_are_as_good_as_one_and_stay_small() {
        let all: Vec<f64> = shuffled().collect();
        let mut merged = Digest::default();
        for part in all.chunks(1_000) {
            let mut bytes = Vec::new();
            digest(part.iter().copied(), 0.99).write(&mut bytes);
            TdigestQuantile::merge(&mut merged, &Digest::read(&bytes).unwrap());
        }
        let seen = TdigestQuantile::evaluate(&merged).unwrap();
        assert!((seen - 99_000.0).abs() < 200.0, "{seen}");
        merged.compress();
        assert!(merged.centroids.len() < 300, "{}", merged.centroids.len());
        let total: f64 = merged.centroids.iter().map(|each| each.weight).sum();
        assert_eq!(total, 100_000.0);
    }

    #[test]
    fn few_and_no_values() {
        let median =
            |values: &[f64]| TdigestQuantile::evaluate(&digest(values.iter().copied(), 0.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[1.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(median(&[f64::NAN]), None);
        assert!(TdigestQuantile::update(&mut Digest::default(), 1.0, 1.5).is_err());
        assert!(Digest::read(&[0; 23]).is_err());
    }
}
