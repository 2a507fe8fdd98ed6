//! Batches over several connections, each tried again while the server is away or busy.
//!
//! Batches carry their own timestamps and keys, so sending one twice stores it once: a
//! connection that breaks off before its answer is safe to repeat.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar};
use kymo_kernel::{Code, Error, Result};
use serde_json::Value;

use super::super::client::{Client, refusal, text};
use super::super::stopwatch::{Stopwatch, pause};

/// How many reasons for rows that were not taken are kept to be shown.
const REASONS: usize = 10;

/// The first wait before a batch is tried again; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait that is not asked for by the server.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The longest wait that is followed when a server asks for one.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Rows of one request, as line protocol.
#[derive(Debug, Default)]
pub struct Batch {
    /// The body.
    pub body: Vec<u8>,
    /// Rows in it.
    pub rows: u64,
    /// The line of the file that each line of the body came from.
    pub places: Places,
}

/// Batches as `next` makes them, until there are no more or one cannot be made.
pub fn until_error(
    mut next: impl FnMut() -> Result<Option<Batch>>,
) -> impl Iterator<Item = Result<Batch>> {
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let batch = next().transpose();
        done = !matches!(batch, Some(Ok(_)));
        batch
    })
}

/// Where the lines of a body stood in the file.
#[derive(Debug)]
pub enum Places {
    /// One after the other, from this line on.
    From(u64),
    /// As listed.
    Listed(Vec<u64>),
}

impl Default for Places {
    fn default() -> Self {
        Places::From(1)
    }
}

impl Places {
    /// The line of the file for a line of the body, counted from 1.
    fn of(&self, line: u64) -> u64 {
        let index = line.saturating_sub(1);
        match self {
            Places::From(first) => first + index,
            Places::Listed(lines) => {
                usize::try_from(index).ok().and_then(|i| lines.get(i).copied()).unwrap_or(line)
            }
        }
    }
}

/// What came of all batches.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Rows that are stored.
    pub rows: u64,
    /// Rows that were not taken.
    pub rejected: u64,
    /// The first reasons.
    pub reasons: Vec<String>,
}

/// Sends batches.
pub struct Sender {
    client: Client,
    connections: usize,
    retry_for: Duration,
    precision: &'static str,
}

struct Shared {
    outcome: Outcome,
    failure: Option<Error>,
}

impl Sender {
    /// A sender with so many requests under way at a time.
    pub fn new(
        client: Client,
        connections: usize,
        retry_for: Duration,
        precision: &'static str,
    ) -> Self {
        Sender { client, connections, retry_for, precision }
    }

    /// Sends all batches; the bar's message tells rows and rate.
    ///
    /// # Errors
    /// The first failure that trying again did not mend, or that of the batches themselves.
    /// Other batches may have been stored by then.
    pub fn send(
        &self,
        batches: impl Iterator<Item = Result<Batch>>,
        bar: &ProgressBar,
    ) -> Result<Outcome> {
        let watch = Stopwatch::start();
        let shared = Mutex::new(Shared { outcome: Outcome::default(), failure: None });
        let (queue, waiting) = sync_channel::<Batch>(self.connections);
        let waiting = Arc::new(Mutex::new(waiting));
        let read = thread::scope(|scope| {
            for _ in 0..self.connections {
                let waiting = Arc::clone(&waiting);
                scope.spawn(|| self.work(waiting, &shared, bar, watch));
            }
            drop(waiting);
            for batch in batches {
                // A closed queue means that every worker has met a failure.
                if queue.send(batch?).is_err() {
                    break;
                }
            }
            drop(queue);
            Ok(())
        });
        bar.finish_and_clear();
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shared.failure {
            Some(failure) => Err(failure),
            None => read.map(|()| shared.outcome),
        }
    }

    fn work(
        &self,
        waiting: Arc<Mutex<Receiver<Batch>>>,
        shared: &Mutex<Shared>,
        bar: &ProgressBar,
        watch: Stopwatch,
    ) {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = next else { return };
            let result = self.deliver(&batch);
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(reasons) => shared.outcome.add(&batch, reasons),
                Err(error) => {
                    shared.failure.get_or_insert(error);
                }
            }
            if shared.failure.is_some() {
                return;
            }
            let rows = shared.outcome.rows;
            let rate = (rows as f64 / watch.elapsed().as_secs_f64().max(1e-3)) as u64;
            bar.set_message(format!("{} rows, {}/s", HumanCount(rows), HumanCount(rate)));
        }
    }

    /// Sends one batch until it is taken or cannot be; what was left out of it.
    fn deliver(&self, batch: &Batch) -> Result<LeftOut> {
        let watch = Stopwatch::start();
        let mut wait = FIRST_WAIT;
        loop {
            let (error, asked) = match self.attempt(batch) {
                Attempt::Done(left_out) => return Ok(left_out),
                Attempt::Never(error) => return Err(error),
                Attempt::Later(error, asked) => (error, asked),
            };
            let next = asked.map_or(wait, |asked| asked.min(LONGEST_ASKED));
            if watch.elapsed() + next > self.retry_for {
                return Err(error.context(format_args!("gave up after {:?}", self.retry_for)));
            }
            pause(next);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn attempt(&self, batch: &Batch) -> Attempt {
        let answer = match self.client.write(&batch.body, self.precision) {
            Ok(answer) => answer,
            Err(error) if error.code() == Code::Down => return Attempt::Later(error, None),
            Err(error) => return Attempt::Never(error),
        };
        let status = answer.status();
        if status.is_success() {
            return Attempt::Done(LeftOut::default());
        }
        let asked = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = match text(answer) {
            Ok(body) => body,
            Err(error) => return Attempt::Later(error, asked),
        };
        if status.is_server_error() || status.as_u16() == 429 {
            return Attempt::Later(refusal(status, &body), asked);
        }
        match LeftOut::of(&body, &batch.places) {
            Some(left_out) => Attempt::Done(left_out),
            None => Attempt::Never(refusal(status, &body)),
        }
    }
}

enum Attempt {
    Done(LeftOut),
    Later(Error, Option<Duration>),
    Never(Error),
}

/// Rows of a batch that the server did not take.
#[derive(Debug, Default, PartialEq, Eq)]
struct LeftOut {
    count: u64,
    reasons: Vec<String>,
}

impl LeftOut {
    /// Reads `{"error", "data": [{"error_message", "line_number", …}]}`; `None` where the
    /// answer does not list lines, because then nothing was taken.
    fn of(body: &str, places: &Places) -> Option<LeftOut> {
        let json: Value = serde_json::from_str(body).ok()?;
        let lines = json["data"].as_array().filter(|lines| !lines.is_empty())?;
        let count = ["rejected", "dropped", "rejected_count"]
            .iter()
            .find_map(|key| json[*key].as_u64())
            .unwrap_or(0)
            .max(lines.len() as u64);
        let reasons = lines.iter().take(REASONS).map(|line| {
            let reason = line["error_message"].as_str().unwrap_or("not taken");
            match line["line_number"].as_u64() {
                Some(number) => format!("line {}: {reason}", places.of(number)),
                None => reason.to_owned(),
            }
        });
        Some(LeftOut { count, reasons: reasons.collect() })
    }
}

impl Outcome {
    fn add(&mut self, batch: &Batch, left_out: LeftOut) {
        self.rows += batch.rows.saturating_sub(left_out.count);
        self.rejected += left_out.count;
        let room = REASONS.saturating_sub(self.reasons.len());
        self.reasons.extend(left_out.reasons.into_iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_were_left_out_are_named_by_their_place_in_the_file() {
        let body = r#"{"error":"partial write of line protocol occurred",
            "data":[{"error_message":"no field","line_number":2,"original_line":"x"}]}"#;
        let left_out = LeftOut::of(body, &Places::From(100)).unwrap();
        assert_eq!(left_out, LeftOut { count: 1, reasons: vec!["line 101: no field".into()] });
        let left_out = LeftOut::of(body, &Places::Listed(vec![5, 9])).unwrap();
        assert_eq!(left_out.reasons, ["line 9: no field"]);
        assert_eq!(LeftOut::of(r#"{"error":"no such database"}"#, &Places::From(1)), None);
    }
}
