//! Copying a store while it is written to, and making a store of a copy: the core of
//! `kymo backup` and `kymo restore`.
//!
//! A backup is one moment of the store: the metadata at a version, all segments and components
//! that it names, and the journal as far as it was written at that version. That is what a
//! crash at that moment would have left, so a restored store opens by recovery and has
//! everything that was acknowledged before; nobody waits for a flush, and writing goes on.
//! [`Pinned`] is the side of the store: while one exists, no file that it names goes.
//! [`keep`](mod@keep) writes a backup to a place and [`restore`](mod@restore) reads one;
//! [`beside`] keeps moments in the store's own folder.
//!
//! In a place for backups:
//!
//! | path | what |
//! |---|---|
//! | `data/…`, `cold/…`, `plugins/…` | segments and components, named as in the store, shared by all backups |
//! | `backups/<time>/meta/…`, `backups/<time>/wal/…` | what belongs to one backup |
//! | `backups/<time>/manifest` | all objects with length and SHA-256; written last |
//!
//! Because segments and components never change, a further backup copies only new ones.
//!
//! A place is anything that segments can be kept in ([`SegmentStore`]) and that lists names:
//! a folder, or a bucket by way of [`crate::bucket::place`].

use std::io::{self, Write};
use std::path::Path;

use chrono::DateTime;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Digester};
use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::storage::segment::{LocalSegments, SegmentBytes, SegmentStore};

pub mod beside;
pub mod keep;
mod pin;
pub mod restore;

pub use beside::{Snapshot, Snapshots};
pub use keep::{Copied, Source, keep};
pub use pin::{Hold, Pinned, Reader};
pub use restore::{Restored, list, restore, verify};

/// What a file of a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The metadata, as one checkpoint.
    Metadata,
    /// A file of the journal.
    Journal,
    /// A segment.
    Segment,
    /// The component of a plugin.
    Component,
}

impl Kind {
    /// Whether its name is never used for other bytes, so that backups can share it.
    #[must_use]
    pub fn is_shared(self) -> bool {
        matches!(self, Kind::Segment | Kind::Component)
    }

    /// The folders below the root of a store that it may lie in.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Kind::Metadata => &["meta/"],
            Kind::Journal => &["wal/"],
            Kind::Segment => &["data/", "cold/"],
            Kind::Component => &["plugins/"],
        }
    }
}

/// One file of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its path below the root of the store, parts divided by `/`.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// How many bytes of it count, from its start.
    pub bytes: u64,
}

impl Object {
    /// Refuses paths that lead anywhere but into the folder of their kind: plans and manifests
    /// come from outside.
    ///
    /// # Errors
    /// `corrupt`, naming the path.
    pub fn check(&self) -> Result<()> {
        if self.kind.folders().iter().any(|folder| self.path.starts_with(folder)) {
            return check_path(&self.path);
        }
        Err(Error::new(Code::Corrupt, format!("{:?} is no path of a store", self.path)))
    }
}

/// Refuses a path that could lead out of the folder that it is relative to.
fn check_path(path: &str) -> Result<()> {
    let good = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !path.contains(['\\', '\0']) && path.split('/').all(good) {
        return Ok(());
    }
    Err(Error::new(Code::Corrupt, format!("{path:?} is no path of a backup")))
}

/// What a backup consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of the metadata.
    pub version: u64,
    /// When it was taken, in nanoseconds since 1970-01-01T00:00:00Z.
    pub taken_ns: i64,
    /// Everything; exactly one of them is the metadata.
    pub objects: Vec<Object>,
}

impl Plan {
    /// The name of what is made of it: when it was taken.
    #[must_use]
    pub fn name(&self) -> String {
        let taken = DateTime::from_timestamp_nanos(self.taken_ns);
        taken.format("%Y-%m-%dT%H%M%S%.9fZ").to_string()
    }

    /// Bytes of everything.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }
}

/// How far copying is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there, copied or found.
    pub done: u64,
    /// Bytes of everything.
    pub total: u64,
}

/// A place for backups.
pub trait Vault: SegmentStore {
    /// The names in a folder, sorted; none where there is no such folder.
    ///
    /// # Errors
    /// `io_error`, naming the folder.
    fn names(&self, folder: &str) -> Result<Vec<String>>;
}

impl Vault for LocalSegments {
    fn names(&self, folder: &str) -> Result<Vec<String>> {
        self.list(folder)
    }
}

/// Stands in the folder of a store for as long as not all of it is there.
const UNFINISHED: &str = "RESTORING";

/// Puts the marker into a folder.
fn mark(env: &Env, folder: &Path) -> Result<()> {
    let path = folder.join(UNFINISHED);
    let write = || {
        env.disk.create(&path)?.sync()?;
        env.disk.sync_dir(folder)
    };
    write().map_err(|error| Error::io(format_args!("write {}", path.display()), error))
}

/// Takes it away again.
fn unmark(env: &Env, folder: &Path) -> Result<()> {
    let path = folder.join(UNFINISHED);
    let remove = env.disk.remove(&path).and_then(|()| env.disk.sync_dir(folder));
    remove.map_err(|error| Error::io(format_args!("remove {}", path.display()), error))
}

/// Refuses a folder that a restore did not come to an end in.
///
/// # Errors
/// `corrupt` naming the folder.
pub(super) fn refuse_unfinished(env: &Env, root: &Path) -> Result<()> {
    if env.disk.exists(&root.join(UNFINISHED)).unwrap_or(false) {
        let folder = root.display();
        let what = format!("a restore or snapshot into folder {folder} did not come to its end");
        return Err(Error::new(Code::Corrupt, what)
            .with_hint("remove the folder, and restore or take it again"));
    }
    Ok(())
}

/// Bytes read and written at a time.
const PIECE: usize = 1 << 20;

/// Counts and hashes what passes.
struct Hashing<W> {
    to: W,
    digester: Digester,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Hashing { to, digester: Digester::default(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write_all(bytes)?;
        self.digester.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Copies the first `length` bytes of an object.
fn copy_bytes(from: &dyn SegmentBytes, length: u64, to: &mut dyn Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    let mut at = 0;
    while at < length {
        let want = piece.len().min(usize::try_from(length - at).unwrap_or(PIECE));
        let read = from.read_at(&mut piece[..want], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&piece[..read])?;
        at += read as u64;
    }
    Ok(())
}

/// The digest of an object, and its length.
fn digest_of(bytes: &dyn SegmentBytes) -> io::Result<(Digest, u64)> {
    let mut hashing = Hashing::new(io::sink());
    copy_bytes(bytes, bytes.size()?, &mut hashing)?;
    Ok((hashing.digester.finish(), hashing.bytes))
}
