//! Where the bytes of segments lie: objects that are written once under a name that was
//! never used, read at random, and deleted.
//!
//! A path is relative to the root of the store, its parts divided by `/`, the same on a
//! local disk and in a bucket.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::{Disk, DiskFile};
use crate::error::{Code, Error, Result};
use crate::storage::folder::{entries, place};

/// The bytes of one segment, readable at random by many at once.
pub trait SegmentBytes: Send + Sync {
    /// Reads from an offset until the buffer is full or the bytes end; returns the count.
    ///
    /// # Errors
    /// What the operating system reports.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// How many bytes there are.
    ///
    /// # Errors
    /// What the operating system reports.
    fn size(&self) -> io::Result<u64>;
}

/// A segment that is being written; nobody sees it before [`Upload::publish`]. Dropping it
/// takes back what was written; a process that ends before leaves a file whose name ends in
/// [`PARTIAL`].
pub trait Upload: Write + Send {
    /// Makes the bytes durable and gives them their name, which must not exist.
    ///
    /// # Errors
    /// `disk_full` or `io_error`, naming the file.
    fn publish(self: Box<Self>) -> Result<()>;
}

/// Keeps segments. Calls block: they belong on a background pool.
pub trait SegmentStore: Send + Sync + 'static {
    /// Begins a segment.
    ///
    /// # Errors
    /// `disk_full` or `io_error`, naming the file.
    fn create(&self, path: &str) -> Result<Box<dyn Upload>>;

    /// Opens a segment.
    ///
    /// # Errors
    /// `corrupt` where there is none, which the metadata says there is; `io_error`.
    fn open(&self, path: &str) -> Result<Arc<dyn SegmentBytes>>;

    /// Deletes a segment; one that does not exist counts as deleted.
    ///
    /// # Errors
    /// `io_error`, naming the file.
    fn delete(&self, path: &str) -> Result<()>;
}

/// What the names of unfinished files end in. Garbage collection removes them.
pub const PARTIAL: &str = ".partial";

/// Segments as files below a folder.
#[derive(Clone)]
pub struct LocalSegments {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

impl LocalSegments {
    /// Segments below `root`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, root: PathBuf) -> Self {
        LocalSegments { disk, root }
    }

    /// The names in a folder, sorted; none where there is no such folder.
    ///
    /// # Errors
    /// `io_error`, naming the folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let entries = entries(&*self.disk, &self.place(folder))?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn place(&self, path: &str) -> PathBuf {
        place(&self.root, path)
    }
}

impl SegmentStore for LocalSegments {
    fn create(&self, path: &str) -> Result<Box<dyn Upload>> {
        let place = self.place(path);
        let partial = with_suffix(&place, PARTIAL);
        let failed = |error| Error::io(format_args!("create segment {}", partial.display()), error);
        if let Some(folder) = place.parent() {
            self.disk.create_dir_all(folder).map_err(failed)?;
        }
        let file = self.disk.create(&partial).map_err(failed)?;
        Ok(Box::new(LocalUpload { disk: self.disk.clone(), file, partial, place, renamed: false }))
    }

    fn open(&self, path: &str) -> Result<Arc<dyn SegmentBytes>> {
        let place = self.place(path);
        match self.disk.open(&place) {
            Ok(file) => Ok(Arc::new(LocalBytes(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(Code::Corrupt, format!("segment {} is missing", place.display()))
                    .with_hint("restore the file from a backup, or run `kymo repair`"))
            }
            Err(error) => Err(Error::io(format_args!("open segment {}", place.display()), error)),
        }
    }

    fn delete(&self, path: &str) -> Result<()> {
        let place = self.place(path);
        match self.disk.remove(&place) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(format_args!("delete segment {}", place.display()), error)),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

struct LocalBytes(Box<dyn DiskFile>);

impl SegmentBytes for LocalBytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.len()
    }
}

struct LocalUpload {
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    partial: PathBuf,
    place: PathBuf,
    /// Whether the temporary name is gone.
    renamed: bool,
}

impl Write for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for LocalUpload {
    fn publish(mut self: Box<Self>) -> Result<()> {
        let failed =
            |error| Error::io(format_args!("write segment {}", self.place.display()), error);
        self.file.sync().map_err(failed)?;
        // A link fails where the name exists, which a rename would not.
        self.disk.link(&self.partial, &self.place).map_err(failed)?;
        self.disk.remove(&self.partial).map_err(failed)?;
        self.renamed = true;
        match self.place.parent() {
            Some(folder) => self.disk.sync_dir(folder).map_err(failed),
            None => Ok(()),
        }
    }
}

/// What a flush or merge could not finish must not keep the room that the next try needs.
impl Drop for LocalUpload {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = self.disk.remove(&self.partial)
        {
            let file = self.partial.display();
            tracing::warn!(%file, %error, "an unfinished segment stays until the next start");
        }
    }
}
