//! What the server was sent and what it acknowledged, kept outside of its reach.
//!
//! After a crash the ledger decides: an acknowledged batch is there once and whole (W1,
//! W2), one without an answer is there whole or not at all, and nothing else is there.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::Server;
use crate::workload::Batch;

/// How far a batch got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Sent; an answer never came or said that it may or may not be kept.
    Unknown,
    /// Answered with success.
    Acknowledged,
    /// Answered with a refusal: it must not be there.
    Refused,
}

/// Table, writer and number of a batch.
pub type Key = (String, String, i64);

#[derive(Debug, Clone)]
struct Entry {
    rows: i64,
    sum: i64,
    state: State,
}

/// One book for all writers.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<BTreeMap<Key, Entry>>,
    acknowledged: Mutex<u64>,
    changed: Condvar,
}

impl Ledger {
    /// Notes a batch before it is sent.
    pub fn sent(&self, batch: &Batch) {
        let entry =
            Entry { rows: batch.values.len() as i64, sum: batch.sum(), state: State::Unknown };
        let old = self.entries.lock().unwrap().insert(key(batch), entry);
        assert!(old.is_none(), "batch {batch:?} was sent before");
    }

    /// Notes that it was answered with success.
    pub fn acknowledged(&self, batch: &Batch) {
        self.mark(batch, State::Acknowledged);
        *self.acknowledged.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    /// Notes that it was answered with a refusal.
    pub fn refused(&self, batch: &Batch) {
        self.mark(batch, State::Refused);
    }

    fn mark(&self, batch: &Batch, state: State) {
        let mut entries = self.entries.lock().unwrap();
        entries.get_mut(&key(batch)).expect("a batch that was sent").state = state;
    }

    /// How many batches were acknowledged.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.acknowledged.lock().unwrap()
    }

    /// How many rows were acknowledged.
    #[must_use]
    pub fn rows(&self) -> i64 {
        let entries = self.entries.lock().unwrap();
        entries.values().filter(|e| e.state == State::Acknowledged).map(|e| e.rows).sum()
    }

    /// Waits until `count` batches were acknowledged.
    pub fn wait_for(&self, count: u64, deadline: Duration) {
        let end = Instant::now() + deadline;
        let mut acknowledged = self.acknowledged.lock().unwrap();
        while *acknowledged < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} acknowledged in {deadline:?}", *acknowledged);
            acknowledged = self.changed.wait_timeout(acknowledged, left).unwrap().0;
        }
    }

    /// What is known at this moment.
    #[must_use]
    pub fn now(&self) -> Ledger {
        let entries = Mutex::new(self.entries.lock().unwrap().clone());
        Ledger { entries, acknowledged: Mutex::new(self.count()), changed: Condvar::new() }
    }

    /// For a copy that began at a moment: of all batches in this book, those that were
    /// acknowledged before must be in it, the others may.
    #[must_use]
    pub fn as_of(&self, moment: &Ledger) -> Ledger {
        let book = self.now();
        let known = moment.entries.lock().unwrap();
        for (key, entry) in book.entries.lock().unwrap().iter_mut() {
            let before = known.get(key).map(|known| known.state);
            if before != Some(State::Acknowledged) {
                entry.state = State::Unknown;
            }
        }
        drop(known);
        book
    }

    /// Compares with what the server holds; says what differs.
    ///
    /// # Errors
    /// A sentence for each batch that is wrong, at most twenty.
    pub async fn check(&self, server: &Server, tables: &[String]) -> Result<(), String> {
        let (lost, mut wrong) = self.compare(server, tables).await;
        wrong.extend(lost.iter().map(|batch| format!("{batch:?} is lost")));
        wrong.truncate(20);
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// As [`Ledger::check`], but acknowledged batches may be missing. Gives those, and forgets
    /// that they were acknowledged.
    ///
    /// # Errors
    /// A sentence for each batch that is wrong otherwise, at most twenty.
    pub async fn take_lost(&self, server: &Server, tables: &[String]) -> Result<Vec<Key>, String> {
        let (lost, mut wrong) = self.compare(server, tables).await;
        wrong.truncate(20);
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        let mut entries = self.entries.lock().unwrap();
        for batch in &lost {
            entries.get_mut(batch).expect("a batch that was sent").state = State::Unknown;
        }
        Ok(lost)
    }

    /// The number of the last batch of a writer that was acknowledged.
    #[must_use]
    pub fn last_of(&self, writer: &str) -> Option<i64> {
        let entries = self.entries.lock().unwrap();
        let acknowledged = entries.iter().filter(|(_, entry)| entry.state == State::Acknowledged);
        acknowledged.filter(|(key, _)| key.1 == writer).map(|(key, _)| key.2).max()
    }

    /// What was acknowledged and is not there, and sentences for what is wrong otherwise.
    async fn compare(&self, server: &Server, tables: &[String]) -> (Vec<Key>, Vec<String>) {
        let mut found = BTreeMap::new();
        for table in tables {
            for row in stored(server, table).await {
                let batch = (table.clone(), text(&row, "writer"), number(&row, "batch"));
                found.insert(batch, (number(&row, "rows"), number(&row, "sum")));
            }
        }
        let (mut lost, mut wrong) = (Vec::new(), Vec::new());
        for (batch, entry) in self.entries.lock().unwrap().iter() {
            match (found.remove(batch), entry.state) {
                (None, State::Acknowledged) => lost.push(batch.clone()),
                (None, _) => {}
                (Some(_), State::Refused) => {
                    wrong.push(format!("{batch:?} was refused but is there"))
                }
                (Some(is), _) if is != (entry.rows, entry.sum) => wrong.push(format!(
                    "{batch:?} has (rows, sum) {is:?} instead of {:?}",
                    (entry.rows, entry.sum)
                )),
                (Some(_), _) => {}
            }
        }
        wrong.extend(found.keys().map(|batch| format!("{batch:?} was never sent")));
        (lost, wrong)
    }
}

fn key(batch: &Batch) -> Key {
    (batch.table.clone(), format!("w{}", batch.writer), batch.number as i64)
}

async fn stored(server: &Server, table: &str) -> Vec<Value> {
    let answer = server
        .try_sql(&format!(
            "SELECT writer, batch, count(*) AS rows, CAST(sum(value) AS BIGINT) AS sum \
             FROM {table} GROUP BY writer, batch"
        ))
        .await
        .expect("an answer");
    if answer.text().contains("table_not_found") {
        return Vec::new();
    }
    assert!(answer.status.is_success(), "{table}: {}", answer.text());
    answer.json().as_array().expect("an array").clone()
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

fn number(row: &Value, key: &str) -> i64 {
    row[key].as_i64().unwrap_or_else(|| panic!("{key} is no integer in {row}"))
}
