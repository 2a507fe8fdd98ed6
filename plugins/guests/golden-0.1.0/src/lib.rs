//! A plugin of the line 0.1 with something of everything that the line can say: its component
//! was built when the line was published and is never built again. Every later server runs it.

use kymo_udf::{Error, State, Timestamp, aggregate, plugin, scalar};

/// 2 * x; vectors of doubles.
#[scalar]
fn twice(x: f64) -> f64 {
    2.0 * x
}

/// 2 * x; an overload.
#[scalar(name = "twice")]
fn twice_bigint(x: i64) -> i64 {
    x.wrapping_mul(2)
}

/// The first given: nulls.
#[scalar]
fn first_of(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.or(b)
}

/// Letters reversed: texts.
#[scalar]
fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

/// Bytes reversed.
#[scalar]
fn reversed_bytes(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

/// Whether x is above y.
#[scalar]
fn above(x: f64, y: f64) -> bool {
    x > y
}

/// The hour that a time lies in.
#[scalar]
fn hour(time: Timestamp) -> Timestamp {
    const HOUR: i64 = 3_600_000_000_000;
    Timestamp(time.0 - time.0.rem_euclid(HOUR))
}

/// An error for a negative number, which names the row.
#[scalar]
fn root(x: f64) -> Result<f64, Error> {
    if x < 0.0 { Err(Error::invalid(format!("{x} has no root"))) } else { Ok(x.sqrt()) }
}

/// The time of the query plus x seconds.
#[scalar(stable)]
fn from_now(x: i64) -> Timestamp {
    Timestamp(kymo_udf::context().query_time.wrapping_add(x.wrapping_mul(1_000_000_000)))
}

/// A trap, with its reason in the log.
#[scalar(volatile)]
fn panics(x: i64) -> i64 {
    assert!(x < 0, "panics({x}) was called");
    x
}

#[derive(Debug, Clone, Default, State)]
struct Sum {
    sum: f64,
    rows: i64,
}

struct Mean;

/// The mean, which can give rows back.
#[aggregate(name = "golden_mean", state_version = 1)]
impl Aggregate for Mean {
    type State = Sum;

    fn update(state: &mut Sum, x: f64) {
        state.sum += x;
        state.rows += 1;
    }

    fn retract(state: &mut Sum, x: f64) {
        state.sum -= x;
        state.rows -= 1;
    }

    fn merge(state: &mut Sum, other: &Sum) {
        state.sum += other.sum;
        state.rows += other.rows;
    }

    fn evaluate(state: &Sum) -> Option<f64> {
        (state.rows > 0).then(|| state.sum / state.rows as f64)
    }
}

plugin! {
    name: "golden",
    description: "Something of everything in line 0.1",
    scalars: [
        twice, twice_bigint, first_of, reversed, reversed_bytes, above, hour, root, from_now,
        panics,
    ],
    aggregates: [Mean],
}
