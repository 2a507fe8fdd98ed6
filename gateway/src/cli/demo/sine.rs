//! The table `demo`: a sine with a period of two hours, one row a second for seven days,
//! 604,801 rows with both ends.

use std::fmt::Write;

use kymo_kernel::Result;

use crate::cli::ingest::{Batch, Places};

/// Its name.
pub const TABLE: &str = "demo";

/// Rows: seven days of seconds, with both ends.
pub const ROWS: u64 = 7 * 86_400 + 1;

const SECOND_NS: i64 = 1_000_000_000;
const PERIOD_S: f64 = 7200.0;

/// The rows, the last one at the second of `now_ns`.
pub fn batches(now_ns: i64, batch_rows: u64) -> impl Iterator<Item = Result<Batch>> {
    let last = now_ns - now_ns.rem_euclid(SECOND_NS);
    let first = last - (ROWS as i64 - 1) * SECOND_NS;
    (0..ROWS.div_ceil(batch_rows)).map(move |index| {
        let from = index * batch_rows;
        let to = (from + batch_rows).min(ROWS);
        let mut text = String::with_capacity((to - from) as usize * 64);
        for row in from..to {
            let time = first + row as i64 * SECOND_NS;
            let angle = row as f64 / PERIOD_S * std::f64::consts::TAU;
            let _ = writeln!(text, "{TABLE},signal=sine value={:.6} {time}", angle.sin());
        }
        Ok(Batch { body: text.into_bytes(), rows: to - from, places: Places::From(from + 1) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_days_of_seconds_with_both_ends() {
        let mut rows = 0;
        let (mut first, mut last) = (String::new(), String::new());
        for batch in batches(1_700_000_000_123_456_789, 100_000).map(Result::unwrap) {
            rows += batch.rows;
            let text = String::from_utf8(batch.body).unwrap();
            if first.is_empty() {
                text.lines().next().unwrap().clone_into(&mut first);
            }
            text.lines().last().unwrap().clone_into(&mut last);
        }
        assert_eq!(rows, 604_801);
        assert_eq!(first, "demo,signal=sine value=0.000000 1699395200000000000");
        assert!(last.ends_with(" 1700000000000000000"), "{last}");
    }
}
