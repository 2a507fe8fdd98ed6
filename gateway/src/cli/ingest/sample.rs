//! Rows that are made up at a steady rate, for trying a server out: four sensors whose
//! values swing with the time of day.

use std::fmt::Write;
use std::time::Duration;

use kymo_kernel::Result;

use super::super::stopwatch::{Stopwatch, now_ns, pause};
use super::sender::{Batch, Places};

/// How many sensors report.
const SENSORS: u64 = 4;

/// How often rows are sent.
const TICK: Duration = Duration::from_millis(100);

/// How many rows there will be.
pub fn rows(rate: u64, duration: Duration) -> u64 {
    u64::try_from(u128::from(rate) * duration.as_millis() / 1000).unwrap_or(u64::MAX)
}

/// The rows, ten times a second, each when its time has come.
pub fn batches(rate: u64, duration: Duration) -> impl Iterator<Item = Result<Batch>> {
    let total = rows(rate, duration);
    let start_ns = now_ns();
    let watch = Stopwatch::start();
    let mut sent = 0;
    std::iter::from_fn(move || {
        if sent == total {
            return None;
        }
        let mut due = sent;
        while due == sent {
            let elapsed = watch.elapsed().min(duration);
            due = rows(rate, elapsed).min(total);
            if due == sent {
                pause(TICK.min(duration.saturating_sub(elapsed)).max(Duration::from_millis(1)));
            }
        }
        let batch = batch(start_ns, rate, sent, due);
        sent = due;
        Some(Ok(batch))
    })
}

fn batch(start_ns: i64, rate: u64, from: u64, to: u64) -> Batch {
    let mut text = String::new();
    for row in from..to {
        let offset = i64::try_from(u128::from(row) * 1_000_000_000 / u128::from(rate));
        let time = start_ns.saturating_add(offset.unwrap_or(i64::MAX));
        let sensor = row % SENSORS;
        let angle = time as f64 / 86_400e9 * std::f64::consts::TAU + sensor as f64;
        let _ = writeln!(
            text,
            "sample,sensor=s{sensor} temperature={:.2},humidity={:.1},counter={row}i {time}",
            20.0 + 5.0 * angle.sin(),
            50.0 + 20.0 * angle.cos()
        );
    }
    Batch { body: text.into_bytes(), rows: to - from, places: Places::From(from + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_made_once_with_a_time_of_its_own() {
        let made: Vec<Batch> =
            batches(50_000, Duration::from_millis(20)).map(Result::unwrap).collect();
        assert_eq!(made.iter().map(|batch| batch.rows).sum::<u64>(), 1000);
        let text: Vec<u8> = made.into_iter().flat_map(|batch| batch.body).collect();
        let text = String::from_utf8(text).unwrap();
        let mut times: Vec<&str> =
            text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(_, time)| time).collect();
        times.dedup();
        assert_eq!(times.len(), 1000);
    }
}
