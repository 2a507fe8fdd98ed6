//! Rows that a seed repeats, so that a failure can be run again.

use std::fmt::Write;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The seed of this run: `KYMO_TEST_SEED`, or a new one. Print it where a test fails.
#[must_use]
pub fn seed() -> u64 {
    match std::env::var("KYMO_TEST_SEED") {
        Ok(text) => text.parse().expect("KYMO_TEST_SEED is a number"),
        Err(_) => rand::random(),
    }
}

/// Rows of one table that were sent in one request, told apart by `writer` and `batch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The table.
    pub table: String,
    /// Who sends it.
    pub writer: usize,
    /// Its number, counted by the writer.
    pub number: u64,
    /// The values of its rows.
    pub values: Vec<i64>,
}

impl Batch {
    /// The body of the request. Every row has its own key: nothing overwrites another row.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut text = String::with_capacity(self.values.len() * 64);
        for (row, value) in self.values.iter().enumerate() {
            let time = 1_700_000_000_000_000_000 + self.number * 1_000_000 + row as u64;
            let _ = writeln!(
                text,
                "{},writer=w{} batch={}i,row={row}i,value={value}i {time}",
                self.table, self.writer, self.number
            );
        }
        text
    }

    /// The sum of its values, which tells a complete batch from a mixed-up one.
    #[must_use]
    pub fn sum(&self) -> i64 {
        self.values.iter().sum()
    }
}

/// The batches of one writer.
#[derive(Debug)]
pub struct Workload {
    random: StdRng,
    writer: usize,
    tables: usize,
    next: u64,
}

impl Workload {
    /// The batches of `writer`, spread over so many tables.
    #[must_use]
    pub fn new(seed: u64, writer: usize, tables: usize) -> Self {
        let random =
            StdRng::seed_from_u64(seed ^ (writer as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Workload { random, writer, tables, next: 0 }
    }

    /// The next batch, of 1 to 40 rows.
    pub fn batch(&mut self) -> Batch {
        let rows = self.random.random_range(1..=40);
        self.next += 1;
        Batch {
            table: table(self.random.random_range(0..self.tables)),
            writer: self.writer,
            number: self.next,
            values: (0..rows).map(|_| self.random.random_range(-1_000_000..1_000_000)).collect(),
        }
    }
}

/// The name of the n-th table of a workload.
#[must_use]
pub fn table(index: usize) -> String {
    format!("load_{index}")
}
