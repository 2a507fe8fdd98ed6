//! Which log files of a partition exist and whose rows they hold: what trimming decides by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::ids::{Position, TableId};
use crate::observe::metrics;

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
    /// The position of the last record of each table.
    pub tables: BTreeMap<TableId, Position>,
}

impl FileInfo {
    /// A file without records.
    #[must_use]
    pub fn new(number: u64, path: PathBuf, bytes: u64, last: Position) -> Self {
        FileInfo { number, path, bytes, last, tables: BTreeMap::new() }
    }

    /// Counts a record in.
    pub fn note(&mut self, table: TableId, position: Position) {
        self.last = position;
        self.tables.insert(table, position);
    }
}

/// The files of a partition that are complete, oldest first.
#[derive(Default)]
pub struct Files(Mutex<Vec<FileInfo>>, Holds);

/// How many ask that no file goes; locked while files are removed.
type Holds = Mutex<usize>;

impl Files {
    /// Adds a file that nobody writes to any more.
    pub fn seal(&self, info: FileInfo) {
        let mut files = self.0.lock();
        files.push(info);
        report(files.len());
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<FileInfo> {
        self.0.lock().clone()
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.lock().iter().map(|info| info.bytes).sum()
    }

    /// The number of the file to begin next, and the length of the one before it.
    #[must_use]
    pub fn next_number(&self) -> (u64, u64) {
        self.0.lock().last().map_or((1, 0), |info| (info.number + 1, info.bytes))
    }

    /// Keeps all files until [`Files::release`]; waits for a removal that is under way.
    pub fn hold(&self) {
        *self.1.lock() += 1;
    }

    /// Takes a [`Files::hold`] back.
    pub fn release(&self) {
        *self.1.lock() -= 1;
    }

    /// Removes the oldest files as long as all of their records are at or before `upto`.
    ///
    /// The folder is synced after each removal, so that a crash never leaves a gap between
    /// the numbers of the files that remain. Nothing is removed while somebody holds the files.
    ///
    /// # Errors
    /// I/O errors; the files removed before one stay removed.
    pub fn trim(&self, env: &Env, upto: Position) -> Result<usize> {
        let holds = self.1.lock();
        if *holds > 0 {
            return Ok(0);
        }
        let mut removed = 0;
        loop {
            let oldest = self.0.lock().first().filter(|info| info.last <= upto).cloned();
            let Some(oldest) = oldest else { return Ok(removed) };
            remove(env, &oldest).map_err(|error| {
                Error::io(format_args!("remove log file {}", oldest.path.display()), error)
            })?;
            let mut files = self.0.lock();
            files.retain(|info| info.number != oldest.number);
            report(files.len());
            drop(files);
            tracing::debug!(file = %oldest.path.display(), "log file removed");
            removed += 1;
        }
    }
}

/// Files on disk, the one being written included.
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
