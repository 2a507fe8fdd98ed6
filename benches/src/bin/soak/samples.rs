//! What was seen each second: memory, files, bytes, rows and the times of queries.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kymo_benches::server::{mib, resident};

use crate::load::Shared;
use crate::process::End;

/// The figures of one second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Seconds since the beginning.
    pub at: f64,
    /// Bytes of resident memory.
    pub resident: u64,
    /// Files in the data folder.
    pub files: u64,
    /// Their bytes.
    pub stored: u64,
    /// Rows acknowledged in this second.
    pub rows: u64,
    /// The slowest query that ended in this second, in milliseconds.
    pub slowest_ms: f64,
}

/// All seconds.
#[derive(Debug, Default)]
pub struct Samples {
    /// One after the other.
    pub seconds: Vec<Sample>,
    /// When the server was ended, and how.
    pub restarts: Vec<(f64, End)>,
}

impl Samples {
    /// One line a second, with a line of names before.
    pub fn csv(&self) -> String {
        let mut out = "seconds,resident_mib,files,stored_mib,rows,slowest_query_ms\n".to_owned();
        for it in &self.seconds {
            let (resident, stored) = (mib(it.resident), mib(it.stored));
            let (at, files, rows, slowest) = (it.at, it.files, it.rows, it.slowest_ms);
            let _ = writeln!(out, "{at:.0},{resident:.1},{files},{stored:.1},{rows},{slowest:.1}");
        }
        out
    }

    /// The medians of one of six equal parts of the time, counted from 0.
    pub fn medians_of_sixth(&self, part: usize) -> Sample {
        let len = self.seconds.len();
        let part = &self.seconds[len * part / 6..len * (part + 1) / 6];
        let median = |of: fn(&Sample) -> u64| {
            let mut all: Vec<u64> = part.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        Sample {
            resident: median(|it| it.resident),
            files: median(|it| it.files),
            stored: median(|it| it.stored),
            rows: median(|it| it.rows),
            ..Sample::default()
        }
    }
}

/// Looks once a second.
pub struct Sampler {
    folder: PathBuf,
    rows: u64,
    /// What was seen so far.
    pub samples: Samples,
}

impl Sampler {
    /// For the server of this folder.
    pub fn new(folder: PathBuf) -> Sampler {
        Sampler { folder, rows: 0, samples: Samples::default() }
    }

    /// Notes that the server was ended and runs again.
    pub fn restarted(&mut self, at: Duration, end: End) {
        self.samples.restarts.push((at.as_secs_f64(), end));
    }

    /// Notes what is seen now; tells people twice a minute.
    pub fn look(&mut self, at: Duration, process: u32, shared: &Shared) {
        let (files, stored) = walk(&self.folder);
        let rows = shared.rows.load(Ordering::Relaxed);
        let slowest = shared.slowest_us.swap(0, Ordering::Relaxed);
        let sample = Sample {
            at: at.as_secs_f64(),
            resident: resident(process).unwrap_or_default().now,
            files,
            stored,
            rows: rows - self.rows,
            slowest_ms: slowest as f64 / 1e3,
        };
        self.rows = rows;
        self.samples.seconds.push(sample);
        if self.samples.seconds.len().is_multiple_of(30) {
            println!(
                "{:>5.0} s: {:>5.0} MiB resident, {files:>4} files, {:>5.0} MiB stored, {rows} rows, \
                 {} looks of the checker",
                sample.at,
                mib(sample.resident),
                mib(stored),
                shared.checks.load(Ordering::Relaxed),
            );
        }
    }
}

/// Files below a folder and their bytes. What vanishes meanwhile does not count.
fn walk(folder: &Path) -> (u64, u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return (0, 0) };
    entries.flatten().fold((0, 0), |(files, bytes), entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => {
            let (inner, size) = walk(&entry.path());
            (files + inner, bytes + size)
        }
        Ok(meta) => (files + 1, bytes + meta.len()),
        Err(_) => (files, bytes),
    })
}
