//! The outside world as three traits: time, disk and randomness.
//!
//! Everything that keeps data or takes decisions receives an [`Env`] instead of asking the
//! operating system, so that the same code runs on a real machine ([`real`]) and under a
//! seed, with a disk that forgets, tears and fills up ([`sim`]). [`failpoint`] makes either disk fail at
//! a chosen step; [`crate::bucket`] and [`mounted`] put some of the files elsewhere.

use std::any::Any;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

pub mod failpoint;
pub mod mounted;
pub mod real;
pub mod sim;

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since 1970-01-01T00:00:00Z. May step; never used to measure.
    fn now_ns(&self) -> i64;
    /// Time since an arbitrary start; never goes back.
    fn monotonic(&self) -> Duration;
    /// Completes once `duration` has passed.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Gives random bits.
pub trait Random: Send + Sync + 'static {
    /// Fills the buffer; on a real machine from the operating system's secure source.
    fn fill(&self, bytes: &mut [u8]);
    /// The next 64 bits.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
    /// An identity that nobody else has.
    fn uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The last part of its path.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// A file system with explicit durability. Calls block: they belong on the journal thread
/// or on a background pool, never on an actor's turn.
///
/// Content becomes durable with [`DiskFile::sync`]; creating, renaming and removing become
/// durable with [`Disk::sync_dir`] of the folder concerned.
pub trait Disk: Send + Sync + 'static {
    /// Creates a file that must not exist yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for reading and appending.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for reading only, as files of others may have to be.
    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }
    /// Renames a file, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name that must not exist yet: the create-only publication of
    /// a file that was written and synced under another name.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder that is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// The entries of a folder, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Creates a folder and its parents where missing, and syncs each parent it changed.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether a file or folder of this path exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Takes the exclusive lock of a file, creating it; released when the guard is dropped
    /// or the process ends. `WouldBlock` if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// The place that other machines reach too, where some of the files lie in one.
    fn shared(&self) -> Option<&dyn Shared> {
        None
    }
    /// The second place for segments, where there is one.
    fn cold(&self) -> Option<&dyn Elsewhere> {
        None
    }
}

/// A place beside the folder of a store, in which some of its files lie.
pub trait Elsewhere {
    /// Its address, for people and to tell two places apart.
    fn address(&self) -> &str;
    /// All files below a folder; none where there is no such folder.
    fn files_below(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
    /// Whether its folders are made and removed, as those of a file system.
    fn has_folders(&self) -> bool;
}

/// A place that other machines reach too: a bucket.
///
/// Its files get their content before their name and never change it: one is created and
/// appended to under a temporary name, which nobody else sees, and published with
/// [`Disk::link`], which fails where the name exists. Its folders are there without being made.
pub trait Shared: Elsewhere {
    /// Whether a name that exists is refused to whoever comes second, found out by trying.
    fn is_exclusive(&self, attempt: u64) -> io::Result<bool>;
}

/// An open file of a [`Disk`]. Reading takes `&self`, so that one handle serves many readers.
pub trait DiskFile: Send + Sync {
    /// Writes all of the bytes at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Writes all parts at the end, one after the other, as one write where the system can.
    fn append_all(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        parts.iter().try_for_each(|part| self.append(part))
    }
    /// Reads from an offset until the buffer is full or the file ends; returns the count.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// All of it.
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len()?).unwrap_or(usize::MAX)];
        let count = self.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(bytes)
    }
    /// Makes the content and the length durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to a length.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// The three together, cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}
