//! The metadata log: numbered files that are created once and never changed.
//!
//! `meta/log/%020d.edit` holds the edits that became one version; `meta/snap/%020d` a
//! checkpoint of everything up to a version. Both are written under a temporary name, synced,
//! linked to their final name and made durable by a sync of the folder. The link fails where
//! the name exists: that is how a second writer of the same version is found out, and the
//! same primitive (create-only put) exists on every object store.
//!
//! In a bucket an owner that was stopped for long and goes on must still be found out, though
//! the edits since were let go. Its next number is that of the edit with which another owner
//! began, so these edits stay: `meta/fence/%020d` names them.
//!
//! Opening reads the newest checkpoint and the edits after it. The checkpoint before it and the
//! edits between the two stay as a spare: from them `kymo repair` makes the newest again. Since
//! each version is durable before the next is begun, a gap or a file that does not verify is
//! damage, never a crash.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::MetaVersion;
use crate::storage::meta::codec;
use crate::storage::meta::{Edit, FEATURE_LEVEL, Snapshot};

/// Why an append did not happen.
#[derive(Debug)]
pub enum AppendError {
    /// Others were first: what they appended as the version after the expected one.
    Conflict(Vec<Edit>),
    /// This owner has been replaced.
    Fenced(Error),
    /// The log could not be written; whether the edit counts is unknown.
    Io(Error),
    /// The log could not be reached, and whether the edits count is unknown. Appending the very
    /// same ones again finds out: they count once.
    Unreachable(Error),
}

/// An ordered log of metadata edits. Calls block: they belong on the committer's thread.
pub trait MetaLog: Send + Sync {
    /// The newest version and the metadata at it.
    ///
    /// # Errors
    /// `corrupt` naming the file, `unsupported` for a newer format, I/O errors.
    fn head(&self) -> Result<Arc<Snapshot>>;

    /// Appends edits as the version after `expect`, durable when it returns.
    ///
    /// # Errors
    /// See [`AppendError`].
    fn append(&self, expect: MetaVersion, edits: &[Edit]) -> Result<MetaVersion, AppendError>;

    /// Everything after a version, as far back as the log still has it.
    ///
    /// # Errors
    /// `corrupt` naming the file; I/O errors.
    fn tail(&self, from: MetaVersion) -> Result<Vec<(MetaVersion, Vec<Edit>)>>;

    /// What was appended as the version after this one, if anything. Asks the log, cheaply.
    ///
    /// # Errors
    /// `corrupt` naming the file; I/O errors.
    fn after(&self, version: MetaVersion) -> Result<Option<Vec<Edit>>>;

    /// The newest version, without reading it.
    ///
    /// # Errors
    /// I/O errors.
    fn newest(&self) -> Result<MetaVersion>;

    /// Takes an edit back that came to lie in the past, where everybody had forgotten what was
    /// there: nobody reads it.
    ///
    /// # Errors
    /// I/O errors.
    fn withdraw(&self, version: MetaVersion) -> Result<()>;

    /// Lets the log forget the edits up to this snapshot's version.
    ///
    /// # Errors
    /// I/O errors; the log is as complete as before.
    fn checkpoint(&self, snapshot: &Snapshot) -> Result<()>;
}

/// The metadata log in files, below the data folder or in a bucket.
pub struct LocalMetaLog {
    env: Env,
    log: PathBuf,
    snap: PathBuf,
    fence: PathBuf,
    /// Whether this owner has fenced off those before it.
    fenced: AtomicBool,
}

const EDIT: &str = ".edit";
const TEMPORARY: &str = ".tmp";

impl LocalMetaLog {
    /// Opens or creates the log below `root`, and clears what an interrupted write left.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open(env: Env, root: &Path) -> Result<Self> {
        let [log, snap, fence] = ["log", "snap", "fence"].map(|name| root.join(name));
        // On a disk of this machine the lock of the folder is the fence.
        let fenced = AtomicBool::new(env.disk.shared().is_none());
        for dir in [&log, &snap] {
            env.disk.create_dir_all(dir).map_err(|error| {
                Error::io(format_args!("create folder {}", dir.display()), error)
            })?;
            for entry in list(&env, dir)? {
                if entry.ends_with(TEMPORARY) {
                    remove(&env, &dir.join(entry))?;
                }
            }
        }
        Ok(LocalMetaLog { env, log, snap, fence, fenced })
    }

    /// Marks the edit with which an owner begins as one that stays.
    fn put_fence(&self, version: MetaVersion) -> std::io::Result<()> {
        if self.fenced.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.publish(&self.fence, &format!("{version:020}"), b"") {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            // An attempt whose answer was lost.
            _ => self.fenced.store(true, Ordering::Relaxed),
        }
        Ok(())
    }

    /// The edits that must not go.
    fn fences(&self) -> Result<BTreeSet<MetaVersion>> {
        if self.env.disk.shared().is_none() {
            return Ok(BTreeSet::new());
        }
        let fences = self.numbered(&self.fence, "")?;
        Ok(fences.into_iter().map(|(version, _)| version).collect())
    }

    fn numbered(&self, dir: &Path, suffix: &str) -> Result<Vec<(MetaVersion, PathBuf)>> {
        let mut found = Vec::new();
        for name in list(&self.env, dir)? {
            if let Some(number) = name.strip_suffix(suffix).and_then(|stem| stem.parse().ok()) {
                found.push((MetaVersion(number), dir.join(&name)));
            }
        }
        found.sort();
        Ok(found)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let read = || self.env.disk.open(path)?.read_all();
        read().map_err(|error| {
            Error::io(format_args!("read metadata file {}", path.display()), error)
        })
    }

    /// Reads a file and decodes it, once more where the first read did not verify.
    fn read_as<T>(&self, path: &Path, decode: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
        match decode(&self.read(path)?) {
            Err(error) if error.code() == Code::Corrupt => decode(&self.read(path)?),
            other => other,
        }
    }

    /// Publishes bytes under a name that must be new.
    fn publish(&self, dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let (temporary, path) = (dir.join(format!("{name}{TEMPORARY}")), dir.join(name));
        let disk = &self.env.disk;
        let mut file = disk.create(&temporary)?;
        file.append(bytes)?;
        file.sync()?;
        let named = disk.link(&temporary, &path);
        if named.is_err() && disk.shared().is_some() {
            // It may be published once more; the file is on this machine and means nothing.
            disk.remove(&temporary)?;
        }
        named?;
        disk.sync_dir(dir)?;
        // The name that remains is durable; a temporary one that comes back is cleared at open.
        disk.remove(&temporary)
    }

    fn forget_before(&self, version: MetaVersion) -> Result<()> {
        let fences = self.fences()?;
        for (number, path) in self.numbered(&self.log, EDIT)? {
            if number <= version && !fences.contains(&number) {
                remove(&self.env, &path)?;
            }
        }
        for (number, path) in self.numbered(&self.snap, "")? {
            if number < version {
                remove(&self.env, &path)?;
            }
        }
        Ok(())
    }
}

impl LocalMetaLog {
    /// The newest checkpoint, and what came after it.
    fn head_from(&self, checkpoint: Option<(MetaVersion, PathBuf)>) -> Result<Arc<Snapshot>> {
        let mut snapshot = match checkpoint {
            Some((version, path)) => {
                self.read_as(&path, |bytes| codec::decode_snapshot(&path, version, bytes))?
            }
            None => Snapshot::default(),
        };
        for (version, edits) in self.tail(snapshot.version)? {
            for edit in &edits {
                snapshot = snapshot
                    .replay(edit)
                    .map_err(|error| error.context(format_args!("replay metadata {version}")))?;
            }
            snapshot.version = version;
        }
        if snapshot.min_reader > FEATURE_LEVEL {
            return Err(Error::new(
                Code::Unsupported,
                format!(
                    "the store asks for a reader of level {}, this build has {FEATURE_LEVEL}",
                    snapshot.min_reader
                ),
            )
            .with_hint("open the store with the version of kymo that wrote it, or a newer one"));
        }
        Ok(Arc::new(snapshot))
    }

    fn newest_checkpoint(&self) -> Result<Option<(MetaVersion, PathBuf)>> {
        Ok(self.numbered(&self.snap, "")?.pop())
    }
}

impl MetaLog for LocalMetaLog {
    fn head(&self) -> Result<Arc<Snapshot>> {
        let mut from = self.newest_checkpoint()?;
        loop {
            let read = self.head_from(from.clone());
            // Of a bucket whose owner goes on, files may go while they are read: those that a
            // checkpoint that came meanwhile stands for.
            let newer = read.is_err().then(|| self.newest_checkpoint()).transpose()?.flatten();
            match newer {
                Some(newer) if Some(&newer) != from.as_ref() => from = Some(newer),
                _ => return read,
            }
        }
    }

    fn newest(&self) -> Result<MetaVersion> {
        let edit = self.numbered(&self.log, EDIT)?.pop();
        let newest = edit.into_iter().chain(self.newest_checkpoint()?).map(|(version, _)| version);
        Ok(newest.max().unwrap_or(MetaVersion(0)))
    }

    fn withdraw(&self, version: MetaVersion) -> Result<()> {
        remove(&self.env, &self.fence.join(format!("{version:020}")))?;
        self.fenced.store(self.env.disk.shared().is_none(), Ordering::Relaxed);
        remove(&self.env, &self.log.join(format!("{version:020}{EDIT}")))
    }

    fn append(&self, expect: MetaVersion, edits: &[Edit]) -> Result<MetaVersion, AppendError> {
        let version = MetaVersion(expect.0 + 1);
        let bytes = codec::encode_edits(version, edits).map_err(AppendError::Io)?;
        let name = format!("{version:020}{EDIT}");
        let put = self.publish(&self.log, &name, &bytes);
        // Appending the same again finds the edit there, and marks it then.
        match put.and_then(|()| self.put_fence(version)) {
            Ok(()) => Ok(version),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // That it is taken is certain, also where by whom cannot be read.
                Err(AppendError::Conflict(self.after(expect).ok().flatten().unwrap_or_default()))
            }
            Err(error) => {
                let open = error.kind() == ErrorKind::HostUnreachable;
                let place = self.log.join(&name);
                let error =
                    Error::io(format_args!("write metadata file {}", place.display()), error);
                Err(if open { AppendError::Unreachable(error) } else { AppendError::Io(error) })
            }
        }
    }

    fn after(&self, version: MetaVersion) -> Result<Option<Vec<Edit>>> {
        let next = MetaVersion(version.0 + 1);
        let path = self.log.join(format!("{next:020}{EDIT}"));
        match self.env.disk.open_to_read(&path) {
            Ok(_) => self.read_as(&path, |bytes| codec::decode_edits(&path, next, bytes)).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format_args!("look for {}", path.display()), error)),
        }
    }

    fn tail(&self, from: MetaVersion) -> Result<Vec<(MetaVersion, Vec<Edit>)>> {
        let mut edits = Vec::new();
        let mut expected = from.0 + 1;
        for (version, path) in self.numbered(&self.log, EDIT)? {
            if version <= from {
                continue;
            }
            if version.0 != expected {
                return Err(Error::new(
                    Code::Corrupt,
                    format!(
                        "metadata file {expected:020}{EDIT} is missing before {}",
                        path.display()
                    ),
                )
                .with_hint("restore the file from a backup, or run `kymo repair`; the store does not open without it"));
            }
            expected += 1;
            let decoded =
                self.read_as(&path, |bytes| codec::decode_edits(&path, version, bytes))?;
            edits.push((version, decoded));
        }
        Ok(edits)
    }

    fn checkpoint(&self, snapshot: &Snapshot) -> Result<()> {
        // The one before stays, with the edits since: should this one be damaged some day,
        // they give the same metadata.
        let before = self.newest_checkpoint()?;
        let name = format!("{:020}", snapshot.version);
        let bytes = codec::encode_snapshot(snapshot)?;
        self.publish(&self.snap, &name, &bytes).map_err(|error| {
            Error::io(
                format_args!("write metadata file {}", self.snap.join(&name).display()),
                error,
            )
        })?;
        self.forget_before(before.map_or(MetaVersion(0), |(version, _)| version))
    }
}

fn list(env: &Env, dir: &Path) -> Result<Vec<String>> {
    let entries = env
        .disk
        .list(dir)
        .map_err(|error| Error::io(format_args!("list folder {}", dir.display()), error))?;
    Ok(entries.into_iter().filter(|entry| !entry.is_dir).map(|entry| entry.name).collect())
}

fn remove(env: &Env, path: &Path) -> Result<()> {
    env.disk
        .remove(path)
        .map_err(|error| Error::io(format_args!("remove metadata file {}", path.display()), error))
}
