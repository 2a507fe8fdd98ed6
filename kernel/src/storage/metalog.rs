//! The metadata log: numbered files that are created once and never changed.
//!
//! `meta/log/%020d.edit` holds the edits that became one version; `meta/snap/%020d` a
//! checkpoint of everything up to a version. Both are written under a temporary name, synced,
//! linked to their final name and made durable by a sync of the folder. The link fails where
//! the name exists: that is how a second writer of the same version is found out, and the
//! same primitive (create-only put) exists on every object store.
//!
//! Opening reads the newest checkpoint and the edits after it. The checkpoint before it and the
//! edits between the two stay as a spare: from them `kymo repair` makes the newest again. Since
//! each version is durable before the next is begun, a gap or a file that does not verify is
//! damage, never a crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::MetaVersion;
use crate::storage::meta::codec;
use crate::storage::meta::{Edit, FEATURE_LEVEL, Snapshot};

/// Why an append did not happen.
#[derive(Debug)]
pub enum AppendError {
    /// Others were first: what they appended after the expected version.
    Conflict(Vec<(MetaVersion, Vec<Edit>)>),
    /// This owner has been replaced.
    Fenced(Error),
    /// The log could not be written; whether the edit counts is unknown.
    Io(Error),
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

    /// Lets the log forget the edits up to this snapshot's version.
    ///
    /// # Errors
    /// I/O errors; the log is as complete as before.
    fn checkpoint(&self, snapshot: &Snapshot) -> Result<()>;
}

/// The metadata log in the data folder.
pub struct LocalMetaLog {
    env: Env,
    log: PathBuf,
    snap: PathBuf,
}

const EDIT: &str = ".edit";
const TEMPORARY: &str = ".tmp";

impl LocalMetaLog {
    /// Opens or creates the log below `root`, and clears what an interrupted write left.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open(env: Env, root: &Path) -> Result<Self> {
        let (log, snap) = (root.join("log"), root.join("snap"));
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
        Ok(LocalMetaLog { env, log, snap })
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
        let read = || {
            let file = self.env.disk.open(path)?;
            let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
            let count = file.read_at(&mut bytes, 0)?;
            bytes.truncate(count);
            Ok(bytes)
        };
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
        disk.link(&temporary, &path)?;
        disk.sync_dir(dir)?;
        // The name that remains is durable; a temporary one that comes back is cleared at open.
        disk.remove(&temporary)
    }

    fn forget_before(&self, version: MetaVersion) -> Result<()> {
        for (number, path) in self.numbered(&self.log, EDIT)? {
            if number <= version {
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

impl MetaLog for LocalMetaLog {
    fn head(&self) -> Result<Arc<Snapshot>> {
        let mut snapshot = match self.numbered(&self.snap, "")?.pop() {
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

    fn append(&self, expect: MetaVersion, edits: &[Edit]) -> Result<MetaVersion, AppendError> {
        let version = MetaVersion(expect.0 + 1);
        let bytes = codec::encode_edits(version, edits).map_err(AppendError::Io)?;
        let name = format!("{version:020}{EDIT}");
        match self.publish(&self.log, &name, &bytes) {
            Ok(()) => Ok(version),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(AppendError::Conflict(self.tail(expect).map_err(AppendError::Io)?))
            }
            Err(error) => Err(AppendError::Io(Error::io(
                format_args!("write metadata file {}", self.log.join(&name).display()),
                error,
            ))),
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
        let before = self.numbered(&self.snap, "")?.pop();
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
