//! Which log files of a partition exist and whose rows they hold: what trimming decides by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::ids::{Epoch, Position, Seq, TableId};
use crate::observe::metrics;
use crate::storage::journal::kept::{Keep, Kept};

/// A log file and the last position of each table in it.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// Its number.
    pub number: u64,
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The position of its last record; that of the record before where it holds none.
    pub last: Position,
    /// When its newest record was written, in milliseconds since 1970; 0 where not known.
    pub newest_ms: u64,
    /// The position of the last record of each table.
    pub tables: BTreeMap<TableId, Position>,
}

impl FileInfo {
    /// A file without records.
    #[must_use]
    pub fn new(number: u64, path: PathBuf, bytes: u64, last: Position) -> Self {
        FileInfo { number, path, bytes, last, newest_ms: 0, tables: BTreeMap::new() }
    }

    /// Counts a record in.
    pub fn note(&mut self, table: TableId, position: Position, written_ms: u64) {
        self.last = position;
        self.newest_ms = self.newest_ms.max(written_ms);
        self.tables.insert(table, position);
    }
}

/// Where a file of the log lies that nobody writes to any more, and how much of it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub number: u64,
    /// Its path.
    pub path: PathBuf,
    /// How many of its bytes count; `None` where nothing says so but the bytes themselves.
    pub bytes: Option<u64>,
}

/// The files of a partition that are complete, oldest first.
#[derive(Default)]
pub struct Files {
    known: Mutex<Known>,
    holds: Holds,
}

#[derive(Default)]
struct Known {
    sealed: Vec<FileInfo>,
    /// Those that recovery does not need any more.
    kept: Kept,
    /// The last record of the owner before.
    before: (Epoch, Seq),
}

/// How many ask that no file goes; locked while files are removed.
type Holds = Mutex<usize>;

impl Files {
    /// What an owner begins with: files, the last record before it, and history.
    pub fn begin(&self, files: Vec<FileInfo>, before: (Epoch, Seq), kept: Kept) {
        report(files.len());
        *self.known.lock() = Known { sealed: files, kept, before };
    }

    /// Adds a file that nobody writes to any more.
    pub fn seal(&self, info: FileInfo) {
        let mut known = self.known.lock();
        known.sealed.push(info);
        report(known.sealed.len());
    }

    /// All that recovery needs, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<FileInfo> {
        self.known.lock().sealed.clone()
    }

    /// Bytes of those.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.known.lock().sealed.iter().map(|info| info.bytes).sum()
    }

    /// All there are to read, history included, oldest first.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let known = self.known.lock();
        let mut places = known.kept.places();
        let next = places.last().map_or(0, |last| last.number + 1);
        let sealed = known.sealed.iter().filter(|info| info.number >= next);
        places.extend(sealed.map(|info| Place {
            number: info.number,
            path: info.path.clone(),
            bytes: Some(info.bytes),
        }));
        places
    }

    /// Whether a file that is complete can still be read.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        let known = self.known.lock();
        let oldest = known.kept.oldest();
        oldest.or(known.sealed.first().map(|info| info.number)).is_some_and(|at| at <= number)
    }

    /// The number of the file to begin next, and the length of the one before it.
    #[must_use]
    pub fn next_number(&self) -> (u64, u64) {
        let known = self.known.lock();
        let sealed = known.sealed.last().map(|info| (info.number + 1, info.bytes));
        sealed.or(known.kept.next_number()).unwrap_or((1, 0))
    }

    /// The last record of the owner before; epoch 0 where it is not known.
    #[must_use]
    pub fn before(&self) -> (Epoch, Seq) {
        self.known.lock().before
    }

    /// Keeps all files until [`Files::release`]; waits for a removal that is under way.
    pub fn hold(&self) {
        *self.holds.lock() += 1;
    }

    /// Takes a [`Files::hold`] back.
    pub fn release(&self) {
        *self.holds.lock() -= 1;
    }

    /// Lets the oldest files go as long as all of their records are at or before `upto`: into
    /// history where something is kept of it, else for good.
    ///
    /// The folder is synced after each removal, so that a crash never leaves a gap between
    /// the numbers of the files that remain. Nothing goes while somebody holds the files.
    ///
    /// # Errors
    /// I/O errors; the files removed before one stay removed.
    pub fn trim(&self, env: &Env, upto: Position, keep: Keep) -> Result<usize> {
        let holds = self.holds.lock();
        if *holds > 0 {
            return Ok(0);
        }
        let mut removed = 0;
        loop {
            let oldest = self.known.lock().sealed.first().filter(|info| info.last <= upto).cloned();
            let Some(oldest) = oldest else { return Ok(removed) };
            if !keep.is_nothing() {
                let kept = Kept::link(env, &oldest)?;
                self.known.lock().kept.push(kept);
            }
            remove(env, &oldest).map_err(|error| {
                Error::io(format_args!("remove log file {}", oldest.path.display()), error)
            })?;
            let mut known = self.known.lock();
            known.sealed.retain(|info| info.number != oldest.number);
            report(known.sealed.len());
            drop(known);
            tracing::debug!(file = %oldest.path.display(), "log file removed");
            removed += 1;
        }
    }

    /// Removes the history that is older or larger than what is kept.
    ///
    /// # Errors
    /// I/O errors; the next call tries again.
    pub fn expire(&self, env: &Env, keep: Keep) -> Result<usize> {
        let _one_at_a_time = self.holds.lock();
        let mut removed = 0;
        loop {
            let oldest = self.known.lock().kept.expired(keep, env.clock.now_ns());
            let Some(oldest) = oldest else { return Ok(removed) };
            // Readers are told first: what they have not read is gone for them from now on.
            self.known.lock().kept.forget(oldest.number);
            if let Err(error) = oldest.remove(env) {
                self.known.lock().kept.put_back(oldest);
                return Err(error);
            }
            removed += 1;
        }
    }
}

/// Files on disk that recovery needs, the one being written included.
fn report(sealed: usize) {
    let files = i64::try_from(sealed).unwrap_or(i64::MAX);
    metrics().journal.files.set(files.saturating_add(1));
}

fn remove(env: &Env, info: &FileInfo) -> std::io::Result<()> {
    match env.disk.remove(&info.path) {
        // An earlier try removed it and could not sync the folder.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        outcome => outcome?,
    }
    match info.path.parent() {
        Some(dir) => env.disk.sync_dir(dir),
        None => Ok(()),
    }
}
