//! A disk of which some folders lie in a bucket.
//!
//! A file of such a folder is made on this machine, in a scratch folder that nobody else looks
//! at, and becomes an object when it is given its name: [`Disk::link`] is a create-only put,
//! [`Disk::rename`] one that replaces the same bytes. Nothing half-written is ever in the bucket.
//!
//! A put whose outcome is unknown (a lost connection, a 5xx after the body went, a 409 while
//! somebody else puts) is settled by reading the object back: the same bytes mean that it was
//! ours, since every file holds an id that is used once; other bytes mean that the name is
//! taken; no object means that nobody won, and it is tried again.
//!
//! Objects above the size of a part are uploaded in parts, which the service completes whether
//! the name exists or not. These are segments, whose names are unique by construction; the name
//! is looked at before.

use std::any::Any;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::bucket::cache::{Cache, PIECE};
use crate::bucket::client::Client;
use crate::bucket::{COLD, FOLDERS};
use crate::env::{Disk, DiskFile, Elsewhere, Entry, Env, Random, Shared};
use crate::observe::metrics;

/// The folder of files on their way, below the root of a store.
pub const SCRATCH: &str = "uploads";

/// Puts of one file whose outcome is unknown, after which the caller has to decide.
const ATTEMPTS: usize = 3;

/// Bytes at the end of a large object by which it is known again.
const MARK: u64 = 64 << 10;

/// Which paths lie in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covers {
    /// The folders of a store that are in [`FOLDERS`].
    Store,
    /// The folder of a store that is [`COLD`].
    Cold,
    /// Everything below the root.
    All,
}

/// See the module.
pub struct BucketDisk {
    local: Arc<dyn Disk>,
    random: Arc<dyn Random>,
    root: PathBuf,
    covers: Covers,
    client: Arc<Client>,
    cache: Arc<Cache>,
    part_bytes: u64,
    scratch: PathBuf,
    /// Files that have no name in the bucket yet, and where they lie.
    staged: Mutex<HashMap<PathBuf, PathBuf>>,
}

impl BucketDisk {
    pub(super) fn new(
        env: &Env,
        root: &Path,
        scratch: PathBuf,
        covers: Covers,
        client: Client,
        cache: &Arc<Cache>,
        part_bytes: u64,
    ) -> BucketDisk {
        BucketDisk {
            local: env.disk.clone(),
            random: env.random.clone(),
            root: root.to_owned(),
            covers,
            client: Arc::new(client),
            cache: cache.clone(),
            part_bytes,
            scratch,
            staged: Mutex::default(),
        }
    }

    /// The key of a path that lies in the bucket; the empty one is that of the root.
    fn key(&self, path: &Path) -> Option<String> {
        let below = path.strip_prefix(&self.root).ok()?;
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        let covered = match (self.covers, parts.first()) {
            (Covers::All, _) => true,
            (Covers::Store, Some(first)) => FOLDERS.contains(&first.as_ref()),
            (Covers::Cold, Some(first)) => first == COLD,
            (Covers::Store | Covers::Cold, None) => false,
        };
        covered.then(|| parts.join("/"))
    }

    fn staged(&self, path: &Path) -> Option<PathBuf> {
        self.staged.lock().get(path).cloned()
    }

    /// Gives a staged file its name in the bucket.
    fn publish(&self, from: &Path, key: &str, create: bool) -> io::Result<()> {
        let staged = self.staged(from).ok_or(ErrorKind::NotFound)?;
        let file = self.local.open_to_read(&staged)?;
        let length = file.len()?;
        let mut outcome = Ok(());
        for _ in 0..ATTEMPTS {
            outcome = self.put(&*file, length, key, create);
            let Err(error) = &outcome else { return Ok(()) };
            let unknown = matches!(error.kind(), ErrorKind::HostUnreachable)
                || (create && error.kind() == ErrorKind::AlreadyExists);
            if !unknown {
                return outcome;
            }
            match self.is_same(&*file, length, key) {
                Ok(true) => {
                    metrics().objects.settled.inc();
                    tracing::info!(key, %error, "a put that seemed to fail had succeeded");
                    return Ok(());
                }
                Ok(false) if create => return Err(ErrorKind::AlreadyExists.into()),
                Ok(false) => {}
                // Nobody won.
                Err(lost) if lost.kind() == ErrorKind::NotFound => {}
                Err(_) => return Err(as_unknown(outcome)),
            }
        }
        Err(as_unknown(outcome))
    }

    fn put(&self, file: &dyn DiskFile, length: u64, key: &str, create: bool) -> io::Result<()> {
        if length <= self.part_bytes {
            return self.client.put(key, read(file, 0..length)?, create);
        }
        if create {
            match self.client.size(key) {
                Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let mut at = 0;
        self.client.upload(key, &mut || {
            let end = length.min(at + self.part_bytes);
            let part = (at < end).then(|| read(file, at..end)).transpose();
            at = end;
            part
        })
    }

    /// Whether the object is this file: by all of its bytes, or by the end of a large one, where
    /// the checksums of a segment are.
    fn is_same(&self, file: &dyn DiskFile, length: u64, key: &str) -> io::Result<bool> {
        if self.client.size(key)? != length {
            return Ok(false);
        }
        let from = if length <= self.part_bytes { 0 } else { length - MARK.min(length) };
        Ok(self.client.read(key, from..length)? == read(file, from..length)?)
    }

    fn forget(&self, path: &Path) -> io::Result<()> {
        let staged = self.staged.lock().remove(path);
        staged.map_or(Ok(()), |place| self.local.remove(&place))
    }

    /// Copies an object to a file of this machine.
    fn fetch(&self, key: &str, to: &Path) -> io::Result<()> {
        let length = self.client.size(key)?;
        let mut file = self.local.create(to)?;
        let mut at = 0;
        while at < length {
            let end = length.min(at + PIECE);
            file.append(&self.client.read(key, at..end)?)?;
            at = end;
        }
        file.sync()
    }

    fn entries(&self, key: &str) -> io::Result<Vec<Entry>> {
        let found = self.client.list(key)?;
        let entry = |is_dir| move |name| Entry { name, is_dir };
        let folders = found.folders.into_iter().map(entry(true));
        let mut entries: Vec<Entry> =
            folders.chain(found.objects.into_iter().map(entry(false))).collect();
        entries.sort();
        Ok(entries)
    }
}

/// An outcome that is still open: whoever asked may try again.
fn as_unknown(outcome: io::Result<()>) -> io::Error {
    match outcome {
        Err(error) => io::Error::new(ErrorKind::HostUnreachable, error),
        Ok(()) => ErrorKind::HostUnreachable.into(),
    }
}

fn read(file: &dyn DiskFile, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = BytesMut::zeroed(length);
    match file.read_at(&mut bytes, range.start)? {
        count if count == length => Ok(bytes.freeze()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

impl Disk for BucketDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        if self.key(path).is_none() {
            return self.local.create(path);
        }
        let place = self.scratch.join(format!("{:016x}", self.random.next_u64()));
        let mut staged = self.staged.lock();
        if staged.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.local.create_dir_all(&self.scratch)?;
        let file = self.local.create(&place)?;
        staged.insert(path.to_owned(), place);
        Ok(Box::new(Staged(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let Some(key) = self.key(path) else { return self.local.open(path) };
        if let Some(place) = self.staged(path) {
            return Ok(Box::new(Staged(self.local.open(&place)?)));
        }
        let size = self.client.size(&key)?;
        // Metadata is read once, and again only where it did not verify.
        let cache = (!key.starts_with("meta/")).then(|| self.cache.clone());
        Ok(Box::new(Object { client: self.client.clone(), cache, key: key.into(), size }))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        match self.key(path) {
            Some(_) => self.open(path),
            None => self.local.open_to_read(path),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match (self.key(from), self.key(to)) {
            (None, None) => self.local.rename(from, to),
            (Some(_), Some(key)) if self.staged(from).is_some() => {
                self.publish(from, &key, false)?;
                self.forget(from)
            }
            (Some(key), None) => {
                self.fetch(&key, to)?;
                self.client.delete(&key)
            }
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match (self.key(from), self.key(to)) {
            (_, Some(key)) => self.publish(from, &key, true),
            (Some(_), None) => Err(ErrorKind::CrossesDevices.into()),
            (None, None) => self.local.link(from, to),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.key(path) {
            None => self.local.remove(path),
            Some(_) if self.staged(path).is_some() => self.forget(path),
            Some(key) => self.client.delete(&key),
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match self.key(path) {
            None => self.local.remove_dir(path),
            Some(_) => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        match self.key(dir) {
            None => self.local.list(dir),
            Some(key) => self.entries(&key),
        }
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        match self.key(dir) {
            None => self.local.create_dir_all(dir),
            Some(_) => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.key(dir) {
            None => self.local.sync_dir(dir),
            Some(_) => Ok(()),
        }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let Some(key) = self.key(path) else { return self.local.exists(path) };
        if self.staged(path).is_some() {
            return Ok(true);
        }
        match self.client.size(&key) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(!self.entries(&key)?.is_empty())
            }
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.local.lock(path)
    }

    fn shared(&self) -> Option<&dyn Shared> {
        match self.covers {
            Covers::Cold => self.local.shared(),
            Covers::Store | Covers::All => Some(self),
        }
    }

    fn cold(&self) -> Option<&dyn Elsewhere> {
        match self.covers {
            Covers::Cold => Some(self),
            Covers::Store | Covers::All => self.local.cold(),
        }
    }
}

impl Elsewhere for BucketDisk {
    fn address(&self) -> &str {
        self.client.address()
    }

    fn files_below(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let key = self.key(folder).ok_or(ErrorKind::InvalidInput)?;
        let place = |key: String| key.split('/').fold(self.root.clone(), |at, part| at.join(part));
        Ok(self.client.walk(&key)?.into_iter().map(place).collect())
    }

    fn has_folders(&self) -> bool {
        false
    }
}

impl Shared for BucketDisk {
    fn is_exclusive(&self, attempt: u64) -> io::Result<bool> {
        let key = format!("meta/probe-{attempt:016x}");
        let mut outcome = Ok(true);
        for _ in 0..ATTEMPTS {
            outcome =
                self.client.put(&key, Bytes::from_static(b"first"), false).and_then(
                    |()| match self.client.put(&key, Bytes::from_static(b"second"), true) {
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
                        second => second.map(|()| false),
                    },
                );
            if outcome.is_ok() {
                break;
            }
        }
        self.client.delete(&key)?;
        outcome
    }
}

/// A file on its way to the bucket. It need not survive a crash: nothing names it yet.
struct Staged(Box<dyn DiskFile>);

impl DiskFile for Staged {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }

    fn append_all(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.0.append_all(parts)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

/// An object, which is read in pieces that are kept.
struct Object {
    client: Arc<Client>,
    cache: Option<Arc<Cache>>,
    key: Arc<str>,
    size: u64,
}

impl Object {
    /// Copies one piece after the other into the buffer, and asks for those that are not kept
    /// and stand side by side with one request.
    fn read_kept(&self, cache: &Cache, buffer: &mut [u8], start: u64) -> io::Result<()> {
        let end = start + buffer.len() as u64;
        let last = (end - 1) / PIECE;
        let mut number = start / PIECE;
        while number <= last {
            if let Some(piece) = cache.get(&self.key, number) {
                overlay(buffer, start, number * PIECE, &piece);
                number += 1;
                continue;
            }
            let first = number;
            while number <= last && (number == first || cache.get(&self.key, number).is_none()) {
                number += 1;
            }
            let run = first * PIECE..self.size.min(number * PIECE);
            let bytes = self.client.read(&self.key, run.clone())?;
            overlay(buffer, start, run.start, &bytes);
            for (piece, each) in (first..number).enumerate() {
                let from = piece * PIECE as usize;
                let to = bytes.len().min(from + PIECE as usize);
                // A copy: a slice would keep the whole answer.
                cache.put(&self.key, each, Bytes::copy_from_slice(&bytes[from..to]));
            }
        }
        Ok(())
    }
}

/// Copies the part of `bytes`, which begin at `at`, that belongs into a buffer that begins at
/// `start`.
fn overlay(buffer: &mut [u8], start: u64, at: u64, bytes: &[u8]) {
    let from = start.max(at);
    let to = (start + buffer.len() as u64).min(at + bytes.len() as u64);
    if from < to {
        let source = &bytes[(from - at) as usize..(to - at) as usize];
        buffer[(from - start) as usize..(to - start) as usize].copy_from_slice(source);
    }
}

impl DiskFile for Object {
    fn append(&mut self, _: &[u8]) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.size.saturating_sub(offset);
        let count = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        if count == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..count];
        match &self.cache {
            Some(cache) => self.read_kept(cache, buffer, offset)?,
            None => {
                let bytes = self.client.read(&self.key, offset..offset + count as u64)?;
                buffer.copy_from_slice(&bytes);
            }
        }
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, _: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}
