//! The side of the store: one moment of it, whose files stay for as long as somebody reads
//! them.

use std::io::{self, Write};
use std::sync::Arc;

use crate::env::DiskFile;
use crate::error::{Code, Error, Result};
use crate::observe::metrics;
use crate::storage::Store;
use crate::storage::backup::{Kind, Object, Plan, Source, copy_bytes};
use crate::storage::components::object_path;
use crate::storage::folder::{key, place};
use crate::storage::frame::{End, FileReader};
use crate::storage::journal::files::FileInfo;
use crate::storage::meta::{Snapshot, codec};
use crate::storage::segment::SegmentBytes;

/// How often the metadata is looked at again where it changed meanwhile.
const ATTEMPTS: usize = 1000;

/// Keeps all files of a store: nothing is deleted and the journal is not trimmed while one
/// exists.
pub struct Hold(Arc<Store>);

impl Hold {
    fn take(store: &Arc<Store>) -> Hold {
        *store.holds.lock() += 1;
        store.log_files.hold();
        metrics().store.backups.inc();
        Hold(store.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.holds.lock() -= 1;
        self.0.log_files.release();
        metrics().store.backups.dec();
    }
}

/// A moment of a store, readable for as long as this exists.
pub struct Pinned {
    hold: Hold,
    plan: Plan,
    metadata: Arc<[u8]>,
}

impl Pinned {
    /// What there is to copy.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// An object of the plan; `None` for any other path.
    #[must_use]
    pub fn object(&self, path: &str) -> Option<&Object> {
        self.plan.objects.iter().find(|object| object.path == path)
    }

    /// Opens an object of the plan. Blocks.
    ///
    /// # Errors
    /// `corrupt` where it is missing, `io_error`.
    pub fn open(&self, object: &Object) -> Result<Reader> {
        if object.kind == Kind::Metadata {
            return Ok(Reader::Memory(self.metadata.clone()));
        }
        let store = &self.hold.0;
        let path = place(&store.root, &object.path);
        match store.env.disk.open(&path) {
            Ok(file) => Ok(Reader::File(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(Code::Corrupt, format!("{} is missing", path.display()))
                    .with_hint("stop the server and run `kymo check`"))
            }
            Err(error) => Err(Error::io(format_args!("open {}", path.display()), error)),
        }
    }
}

/// For whoever is in the same process: snapshots, and tests.
impl Source for Pinned {
    fn read(&self, object: &Object, to: &mut dyn Write) -> Result<()> {
        copy_bytes(&self.open(object)?, object.bytes, to)
            .map_err(|error| Error::io(format_args!("copy {}", object.path), error))
    }
}

/// An object being read. Its file stays for as long as the [`Pinned`] exists.
pub enum Reader {
    /// The metadata of the moment, which is no file of the store.
    Memory(Arc<[u8]>),
    /// A file.
    File(Box<dyn DiskFile>),
}

impl SegmentBytes for Reader {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Reader::Memory(bytes) => {
                let rest = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..);
                let rest = rest.unwrap_or_default();
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
            Reader::File(file) => file.read_at(buffer, offset),
        }
    }

    fn size(&self) -> io::Result<u64> {
        match self {
            Reader::Memory(bytes) => Ok(bytes.len() as u64),
            Reader::File(file) => file.len(),
        }
    }
}

impl Store {
    /// Pins the store as it is now, for a backup. Blocks: reads the journal's files once, to
    /// be sure that no damage is copied.
    ///
    /// # Errors
    /// `poisoned`; `busy` where the metadata changes without a pause; `corrupt` where the
    /// journal does not verify; I/O errors.
    pub fn pin(self: &Arc<Self>) -> Result<Pinned> {
        self.poison.check()?;
        let hold = Hold::take(self);
        let (snapshot, journal) = self.moment()?;
        for file in &journal {
            self.verify_log(file)?;
        }
        let metadata = codec::encode_snapshot(&snapshot)?;
        let objects = self.objects(&snapshot, &journal, metadata.len() as u64);
        let taken_ns = self.env.clock.now_ns();
        let plan = Plan { version: snapshot.version.0, taken_ns, objects };
        Ok(Pinned { hold, plan, metadata: metadata.into() })
    }

    /// Metadata and journal of one moment: the metadata was the same before and after the
    /// journal was looked at, so that no record is newer than what it needs to be read.
    fn moment(&self) -> Result<(Arc<Snapshot>, Vec<FileInfo>)> {
        for _ in 0..ATTEMPTS {
            let before = self.catalog();
            let current = self.journal.extent();
            self.poison.check()?;
            let mut files = self.log_files.all();
            files.retain(|file| file.number < current.number);
            files.push(current);
            if self.catalog().version == before.version {
                return Ok((before, files));
            }
        }
        Err(Error::new(Code::Busy, "the metadata changes all the time, no moment to back up")
            .with_hint("try again when fewer tables are created and changed"))
    }

    fn verify_log(&self, info: &FileInfo) -> Result<()> {
        let opened = self.env.disk.open(&info.path);
        let file = opened.map_err(|error| {
            Error::io(format_args!("open log file {}", info.path.display()), error)
        })?;
        let mut reader = FileReader::open(info.path.clone(), file, Some(info.bytes))?;
        while reader.next_group()?.is_some() {}
        if reader.end() == Some(End::Clean) {
            return Ok(());
        }
        let path = info.path.display();
        Err(Error::new(Code::Corrupt, format!("log file {path} ends in the middle of a record"))
            .with_hint("stop the server and run `kymo check`"))
    }

    fn objects(&self, snapshot: &Snapshot, journal: &[FileInfo], metadata: u64) -> Vec<Object> {
        let path = format!("meta/snap/{:020}", snapshot.version);
        let mut objects = vec![Object { path, kind: Kind::Metadata, bytes: metadata }];
        objects.extend(journal.iter().map(|file| {
            let path = key(&self.root, &file.path);
            Object { path, kind: Kind::Journal, bytes: file.bytes }
        }));
        let segments = snapshot.tables.values().flat_map(|table| table.segments.values());
        objects.extend(segments.map(|segment| Object {
            path: segment.path.clone(),
            kind: Kind::Segment,
            bytes: segment.bytes,
        }));
        let versions = snapshot.plugins.values().flat_map(|plugin| &plugin.versions);
        let mut components: Vec<Object> = versions
            .map(|version| Object {
                path: object_path(version.digest),
                kind: Kind::Component,
                bytes: version.bytes,
            })
            .collect();
        // Two plugins may have one component.
        components.sort_by(|one, other| one.path.cmp(&other.path));
        components.dedup_by(|one, other| one.path == other.path);
        objects.extend(components);
        objects
    }
}
