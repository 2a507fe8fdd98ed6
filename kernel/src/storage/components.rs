//! The bytes of plugins: objects that are named by their digest, written once, and deleted
//! only when no version of any plugin names them.
//!
//! `plugins/sha256-<hex>.wasm` below the store's root, the same name in a bucket. A component
//! is written under a temporary name, synced, renamed and made durable by a sync of the folder
//! before metadata may name it (M1). Whoever is about to name one holds a [`Held`]: between
//! the rename and the edit nothing but that keeps the collector away. The collector deletes
//! what nobody has named or held for a grace period (M2); files of interrupted uploads go when
//! the store is opened. Calls block: they belong on a background pool.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::digest::{Digest, Digester};
use crate::env::{Disk, DiskFile, Env};
use crate::error::{Code, Error, Result};
use crate::storage::folder::entries;
use crate::storage::meta::Snapshot;
use crate::storage::segment::store::PARTIAL;

/// The folder below the store's root.
const FOLDER: &str = "plugins";
const PREFIX: &str = "sha256-";
const SUFFIX: &str = ".wasm";

/// Keeps the bytes of plugins; see the module.
pub struct Components {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    uploads: AtomicU64,
    watch: Mutex<Watch>,
}

/// What the collector goes by.
#[derive(Default)]
struct Watch {
    /// How many hold an object.
    held: HashMap<Digest, usize>,
    /// Since when an object is named and held by nobody.
    unused: HashMap<Digest, Duration>,
}

/// The object's place below the store's root: also its key in a bucket.
#[must_use]
pub fn object_path(digest: Digest) -> String {
    format!("{FOLDER}/{}", object_name(digest))
}

fn object_name(digest: Digest) -> String {
    format!("{PREFIX}{}{SUFFIX}", digest.hex())
}

fn digest_of(name: &str) -> Option<Digest> {
    Digest::from_hex(name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?)
}

impl Components {
    /// The components below the root of a store.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, root: &Path) -> Arc<Self> {
        Arc::new(Components {
            disk,
            folder: root.join(FOLDER),
            uploads: AtomicU64::new(0),
            watch: Mutex::default(),
        })
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// `disk_full` or `io_error`, naming the file.
    pub fn begin(self: &Arc<Self>) -> Result<Staged> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("upload-{number}{PARTIAL}"));
        let failed = |error| Error::io(format_args!("create {}", path.display()), error);
        self.disk.create_dir_all(&self.folder).map_err(failed)?;
        let file = self.disk.create(&path).map_err(failed)?;
        Ok(Staged {
            components: self.clone(),
            file,
            path,
            digester: Digester::default(),
            bytes: 0,
            published: false,
        })
    }

    /// Holds an object that is there already.
    ///
    /// # Errors
    /// `plugin_not_found` where there is none; `io_error`.
    pub fn hold(self: &Arc<Self>, digest: Digest) -> Result<Held> {
        let mut held = self.pin(digest, 0);
        let path = self.place(digest);
        let file = match self.disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(
                    Code::PluginNotFound,
                    format!("no component {digest} was uploaded"),
                )
                .with_hint("upload it with PUT /api/v1/plugins/{name}?activate=false"));
            }
            Err(error) => return Err(read_error(&path, error)),
        };
        held.bytes = file.len().map_err(|error| read_error(&path, error))?;
        Ok(held)
    }

    /// The bytes of a component, verified.
    ///
    /// # Errors
    /// `corrupt` where the object is missing or holds something else; `io_error`.
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.place(digest);
        let damaged = |what: &str| {
            Error::new(Code::Corrupt, format!("component {} {what}", path.display()))
                .with_hint("install the plugin again, or restore the file from a backup")
        };
        let file = match self.disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("is missing"));
            }
            Err(error) => return Err(read_error(&path, error)),
        };
        let bytes = file.read_all().map_err(|error| read_error(&path, error))?;
        if Digest::of(&bytes) != digest {
            return Err(damaged("does not hold what its name says"));
        }
        Ok(bytes)
    }

    /// Deletes objects that nobody has named or held for `grace`; returns how many went.
    ///
    /// # Errors
    /// I/O errors; what is left is tried again with the next call.
    pub fn collect(
        &self,
        env: &Env,
        grace: Duration,
        head: impl Fn() -> Arc<Snapshot>,
    ) -> Result<usize> {
        let present: Vec<Digest> =
            self.names()?.iter().filter_map(|name| digest_of(name)).collect();
        let now = env.clock.monotonic();
        // Held while deleting: nobody can begin to hold what is about to go.
        let mut watch = self.watch.lock();
        let named = named(&head());
        let Watch { held, unused } = &mut *watch;
        let free = |digest: &Digest| !named.contains(digest) && !held.contains_key(digest);
        let seen = std::mem::take(unused);
        let mut deleted = 0;
        let mut failed = None;
        for digest in present.into_iter().filter(free) {
            let since = seen.get(&digest).copied().unwrap_or(now);
            if now.saturating_sub(since) < grace {
                unused.insert(digest, since);
                continue;
            }
            match remove(&*self.disk, &self.place(digest)) {
                Ok(()) => deleted += 1,
                Err(error) => {
                    unused.insert(digest, since);
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(deleted), Err)
    }

    /// Removes what interrupted uploads left and objects that nothing names. Only for a store
    /// that nobody uses yet.
    ///
    /// # Errors
    /// I/O errors of listing; a file that cannot be removed is left and logged.
    pub fn sweep(&self, head: &Snapshot) -> Result<usize> {
        let named = named(head);
        let mut removed = 0;
        for name in self.names()? {
            let ours = digest_of(&name);
            let stale = match ours {
                Some(digest) => !named.contains(&digest),
                None => name.ends_with(PARTIAL),
            };
            if !stale {
                continue;
            }
            match remove(&*self.disk, &self.folder.join(&name)) {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(%error, "component could not be removed"),
            }
        }
        Ok(removed)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = entries(&*self.disk, &self.folder)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn place(&self, digest: Digest) -> PathBuf {
        self.folder.join(object_name(digest))
    }

    fn pin(self: &Arc<Self>, digest: Digest, bytes: u64) -> Held {
        *self.watch.lock().held.entry(digest).or_default() += 1;
        Held { components: self.clone(), digest, bytes }
    }
}

/// Every component that the metadata names.
fn named(head: &Snapshot) -> HashSet<Digest> {
    let versions = head.plugins.values().flat_map(|plugin| &plugin.versions);
    versions.map(|version| version.digest).collect()
}

fn read_error(path: &Path, error: io::Error) -> Error {
    Error::io(format_args!("read component {}", path.display()), error)
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(format_args!("remove {}", path.display()), error)),
    }
}

/// A component on its way in. Dropping it removes what has arrived.
pub struct Staged {
    components: Arc<Components>,
    file: Box<dyn DiskFile>,
    path: PathBuf,
    digester: Digester,
    bytes: u64,
    published: bool,
}

impl Staged {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `disk_full` or `io_error`, naming the file.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .append(bytes)
            .map_err(|error| Error::io(format_args!("write {}", self.path.display()), error))?;
        self.digester.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes have arrived.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the component durable under the name of its digest, which is compared with the
    /// one that was announced, if any. One that is there already is replaced by the same bytes.
    ///
    /// # Errors
    /// `invalid_input` where another digest was announced; `disk_full` or `io_error`.
    pub fn publish(mut self, announced: Option<Digest>) -> Result<Held> {
        let digest = std::mem::take(&mut self.digester).finish();
        if let Some(announced) = announced.filter(|announced| *announced != digest) {
            return Err(Error::new(
                Code::InvalidInput,
                format!("the component is {digest}, announced was {announced}"),
            )
            .with_hint("it was changed on its way, or the digest is of another file: try again"));
        }
        let held = self.components.pin(digest, self.bytes);
        let place = self.components.place(digest);
        let mut publish = || {
            self.file.sync()?;
            self.components.disk.rename(&self.path, &place)?;
            self.published = true;
            self.components.disk.sync_dir(&self.components.folder)
        };
        publish().map_err(|error| {
            Error::io(format_args!("write component {}", place.display()), error)
        })?;
        Ok(held)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = remove(&*self.components.disk, &self.path)
        {
            tracing::warn!(%error, "an unfinished upload stays until the next start");
        }
    }
}

/// A durable component that the collector leaves alone for as long as this lives.
pub struct Held {
    components: Arc<Components>,
    digest: Digest,
    bytes: u64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Held({})", self.digest)
    }
}

impl Held {
    /// Its name.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut watch = self.components.watch.lock();
        if let Some(count) = watch.held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                watch.held.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::Sim;
    use crate::kit::plugin::plugin;

    fn components(sim: &Sim) -> Arc<Components> {
        Components::new(sim.disk.clone(), Path::new("/store"))
    }

    fn put(components: &Arc<Components>, bytes: &[u8]) -> Held {
        let mut staged = components.begin().unwrap();
        bytes.chunks(3).for_each(|chunk| staged.append(chunk).unwrap());
        assert_eq!(staged.bytes(), bytes.len() as u64);
        staged.publish(Some(Digest::of(bytes))).unwrap()
    }

    fn naming(digests: &[Digest]) -> Arc<Snapshot> {
        let components: Vec<_> = digests.iter().map(|digest| (*digest, 0)).collect();
        let plugin = plugin("p", &components);
        let plugins = [("p".to_owned(), Arc::new(plugin))].into_iter().collect();
        Arc::new(Snapshot { plugins: Arc::new(plugins), ..Snapshot::default() })
    }

    #[test]
    fn a_published_component_survives_a_crash() {
        let sim = Sim::new(1);
        let digest = put(&components(&sim), b"component").digest();
        sim.disk.crash(7);
        assert_eq!(components(&sim).read(digest).unwrap(), b"component");
    }

    #[test]
    fn other_bytes_than_announced_are_refused_and_removed() {
        let sim = Sim::new(1);
        let components = components(&sim);
        let mut staged = components.begin().unwrap();
        staged.append(b"other").unwrap();
        let error = staged.publish(Some(Digest::of(b"component"))).unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput);
        assert!(components.names().unwrap().is_empty());
        drop(components.begin().unwrap());
        assert!(components.names().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_or_missing_component_is_named() {
        let sim = Sim::new(1);
        let components = components(&sim);
        let digest = put(&components, b"component").digest();
        sim.disk.open(&components.place(digest)).unwrap().append(b"!").unwrap();
        assert_eq!(components.read(digest).unwrap_err().code(), Code::Corrupt);
        put(&components, b"component");
        assert_eq!(components.read(digest).unwrap(), b"component", "the same upload heals it");
        let missing = Digest::of(b"missing");
        assert_eq!(components.read(missing).unwrap_err().code(), Code::Corrupt);
        assert_eq!(components.hold(missing).unwrap_err().code(), Code::PluginNotFound);
        assert!(components.watch.lock().held.is_empty());
    }

    #[test]
    fn only_what_nobody_names_or_holds_is_collected_and_only_after_the_grace() {
        let sim = Sim::new(1);
        let components = components(&sim);
        let grace = Duration::from_secs(60);
        let (named, free) = (put(&components, b"named").digest(), put(&components, b"free"));
        let head = naming(&[named]);
        let collect = |advance: u64| {
            sim.clock.advance(Duration::from_secs(advance));
            components.collect(&sim.env(), grace, || head.clone()).unwrap()
        };
        assert_eq!((collect(0), collect(100)), (0, 0), "held");
        let digest = free.digest();
        drop(free);
        assert_eq!((collect(0), collect(59)), (0, 0), "within the grace");
        let again = components.hold(digest).unwrap();
        assert_eq!(again.bytes(), 4);
        assert_eq!(collect(100), 0, "held again");
        drop(again);
        assert_eq!((collect(1), collect(60)), (0, 1));
        assert_eq!(components.hold(digest).unwrap_err().code(), Code::PluginNotFound);
        assert_eq!(components.read(named).unwrap(), b"named");
    }

    #[test]
    fn opening_sweeps_what_nothing_names() {
        let sim = Sim::new(1);
        let components = components(&sim);
        let named = put(&components, b"named").digest();
        put(&components, b"orphan");
        let unfinished = components.begin().unwrap();
        assert_eq!(components.sweep(&naming(&[named])).unwrap(), 2);
        assert_eq!(components.names().unwrap(), [object_name(named)]);
        drop(unfinished);
        assert_eq!(object_path(named), format!("plugins/sha256-{}.wasm", named.hex()));
    }
}
