//! Deleting segment files: only what neither the metadata nor a living version names (M2).
//!
//! A segment that was merged away or dropped arrives here when its last reader is gone. It
//! waits for the grace period and is deleted after one more look at the head of the metadata.
//! Files that never came to be named (a flush or merge that was interrupted) are removed when
//! the store is opened, when no reader and no writer exists yet.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::bucket::COLD;
use crate::env::{Elsewhere, Env};
use crate::error::{Error, Result};
use crate::storage::folder;
use crate::storage::meta::{SegmentMeta, Snapshot};
use crate::storage::tier::place::MARKER;
use crate::storage::version::SegmentFiles;

/// The folder below the store's root that holds segments.
const DATA: &str = "data";

/// Segments on their way out.
pub struct Garbage {
    grace: Duration,
    waiting: Mutex<Vec<(Duration, Arc<SegmentMeta>)>>,
}

impl Garbage {
    /// A collector that deletes after a grace period.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Garbage { grace, waiting: Mutex::default() }
    }

    /// How long a file stays that nothing names.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// How many files wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Deletes what has waited long enough; returns how many files went.
    ///
    /// # Errors
    /// I/O errors; what is left is tried again with the next call.
    pub fn collect(
        &self,
        env: &Env,
        files: &SegmentFiles,
        head: impl Fn() -> Arc<Snapshot>,
    ) -> Result<usize> {
        let now = env.clock.monotonic();
        let mut waiting = self.waiting.lock();
        waiting.extend(files.graveyard.take().into_iter().map(|segment| (now, segment)));
        let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut *waiting)
            .into_iter()
            .partition(|(since, _)| now.saturating_sub(*since) >= self.grace);
        *waiting = kept;
        let head = head();
        let mut deleted = 0;
        let mut failed = None;
        for (since, segment) in due {
            if is_named(&head, &segment) {
                continue;
            }
            match files.store.delete(&segment.path) {
                Ok(()) => deleted += 1,
                Err(error) => {
                    waiting.push((since, segment));
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(deleted), Err)
    }
}

fn is_named(head: &Snapshot, segment: &SegmentMeta) -> bool {
    head.table_by_id(segment.table).is_some_and(|table| table.segments.contains_key(&segment.id))
}

/// Removes every segment file that the metadata does not name, whole or unfinished, and folders
/// that become empty. Only for a store that nobody uses yet.
///
/// # Errors
/// I/O errors of listing; a file that cannot be removed is left and logged.
pub fn sweep(env: &Env, root: &Path, head: &Snapshot) -> Result<usize> {
    let segments = head.tables.values().flat_map(|table| table.segments.values());
    let named = segments.map(|segment| segment.path.as_str()).collect();
    let mut sweep = Sweep { env, named, removed: 0 };
    let hot = env.disk.shared().map(|shared| shared as &dyn Elsewhere);
    sweep.all(root, DATA, hot)?;
    sweep.all(root, COLD, env.disk.cold())?;
    if sweep.removed > 0 {
        let files = sweep.removed;
        tracing::info!(files, "files of interrupted flushes and merges removed");
    }
    Ok(sweep.removed)
}

/// A removal of files under way.
struct Sweep<'a> {
    env: &'a Env,
    named: HashSet<&'a str>,
    removed: usize,
}

impl Sweep<'_> {
    /// Removes what nothing names below a folder of the store, which may lie elsewhere.
    fn all(&mut self, root: &Path, key: &str, place: Option<&dyn Elsewhere>) -> Result<()> {
        let folder = root.join(key);
        if !self.env.disk.exists(&folder).map_err(|error| list_error(&folder, error))? {
            return Ok(());
        }
        match place.filter(|place| !place.has_folders()) {
            Some(place) => self.listed(place, root, &folder),
            None => self.folder(&folder, key).map(drop),
        }
    }

    /// One listing of a bucket has everything, and there are no folders to remove.
    fn listed(&mut self, place: &dyn Elsewhere, root: &Path, folder: &Path) -> Result<()> {
        for path in place.files_below(folder).map_err(|error| list_error(folder, error))? {
            self.file(&path, &folder::key(root, &path));
        }
        Ok(())
    }

    /// Returns whether the folder is empty now.
    fn folder(&mut self, folder: &Path, key: &str) -> Result<bool> {
        let mut left = 0;
        for entry in self.env.disk.list(folder).map_err(|error| list_error(folder, error))? {
            let (path, key) = (folder.join(&entry.name), format!("{key}/{}", entry.name));
            let gone = if entry.is_dir {
                self.folder(&path, &key)? && self.env.disk.remove_dir(&path).is_ok()
            } else {
                self.file(&path, &key)
            };
            left += usize::from(!gone);
        }
        Ok(left == 0)
    }

    /// Removes a file unless it is named or says whose place it is; whether it is gone.
    fn file(&mut self, path: &Path, key: &str) -> bool {
        if self.named.contains(key) || key == MARKER {
            return false;
        }
        let outcome = self.env.disk.remove(path);
        match &outcome {
            Ok(()) => self.removed += 1,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "file could not be removed");
            }
        }
        outcome.is_ok()
    }
}

fn list_error(folder: &Path, error: std::io::Error) -> Error {
    Error::io(format_args!("list folder {}", folder.display()), error)
}
