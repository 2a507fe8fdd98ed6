//! Snapshots: moments of a store that are kept beside it, each a data folder of its own below
//! [`FOLDER`].
//!
//! Segments and components never change, so a snapshot has their files under a second name: it
//! takes as long as copying the journal and the metadata, and room only for what the store would
//! have deleted since. It protects from mistakes, not from the loss of the disk; what lies on
//! another file system is copied.
//!
//! Until everything is there, and from the first file on that goes again, the marker of a restore
//! stands in the folder: no server opens it, it is not listed, and the next snapshot removes it.

use std::collections::BTreeSet;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::env::{Disk, Env};
use crate::error::{Code, Error, Result};
use crate::observe::metrics;
use crate::storage::Store;
use crate::storage::backup::{Object, PIECE, Pinned, Source, UNFINISHED, mark, unmark};
use crate::storage::folder::{self, entries, place};
use crate::storage::segment::{LocalSegments, SegmentStore};

/// The folder of all snapshots, below the root of the store.
pub const FOLDER: &str = "snapshots";

/// What a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name: when it was taken.
    pub name: String,
    /// Its data folder.
    pub folder: PathBuf,
}

/// The snapshots of a store.
pub struct Snapshots {
    env: Env,
    root: PathBuf,
    folder: PathBuf,
    most: usize,
    /// One is made or removed at a time.
    turn: Mutex<()>,
}

impl Snapshots {
    /// Those of the store in the folder `root`, of which there may be `most`.
    #[must_use]
    pub fn new(env: Env, root: PathBuf, most: usize) -> Snapshots {
        let folder = root.join(FOLDER);
        Snapshots { env, root, folder, most, turn: Mutex::new(()) }
    }

    /// Those that are whole, oldest first. Blocks.
    ///
    /// # Errors
    /// `io_error`, naming the folder.
    pub fn list(&self) -> Result<Vec<Snapshot>> {
        let (whole, _) = self.look()?;
        Ok(whole)
    }

    /// Keeps this moment of the store. Blocks.
    ///
    /// # Errors
    /// `limit_reached` where there are enough, `unsupported` where the store lies in a bucket,
    /// `corrupt` where a file is missing, `disk_full` and I/O errors, and those of [`Store::pin`].
    pub fn take(&self, store: &Arc<Store>) -> Result<Snapshot> {
        if let Some(shared) = self.env.disk.shared() {
            let what = format!("the files of this store lie in {}", shared.address());
            return Err(Error::new(Code::Unsupported, what)
                .with_hint("`kymo backup` copies them to another place, or to another prefix"));
        }
        let _turn = self.turn.lock();
        let (whole, unfinished) = self.look()?;
        for folder in unfinished {
            self.clear(&folder)?;
        }
        if whole.len() >= self.most {
            let what = format!("there are {} snapshots", whole.len());
            return Err(Error::new(Code::LimitReached, what).with_hint(
                "remove one with `kymo snapshot --drop NAME`, or raise backup.max_snapshots",
            ));
        }
        let moment = store.pin()?;
        let name = moment.plan().name();
        let folder = self.folder.join(&name);
        let made = self.fill(&moment, &folder);
        made.inspect_err(|_| {
            // Its marker says what it is where even this fails.
            if let Err(error) = self.clear(&folder) {
                tracing::warn!(%error, "what there is of a snapshot stays until the next one");
            }
        })?;
        metrics().store.snapshots.inc();
        Ok(Snapshot { name, folder })
    }

    /// Removes one. Blocks.
    ///
    /// # Errors
    /// `invalid_input` where there is none of this name, I/O errors.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _turn = self.turn.lock();
        let (whole, _) = self.look()?;
        let Some(found) = whole.iter().find(|snapshot| snapshot.name == name) else {
            return Err(Error::new(Code::InvalidInput, format!("there is no snapshot {name:?}"))
                .with_hint("`kymo snapshot --list` shows them"));
        };
        mark(&self.env, &found.folder)?;
        metrics().store.snapshots.dec();
        self.clear(&found.folder)
    }

    /// Those that are whole, and the folders of those that are not.
    fn look(&self) -> Result<(Vec<Snapshot>, Vec<PathBuf>)> {
        let disk = &*self.env.disk;
        let (mut whole, mut unfinished) = (Vec::new(), Vec::new());
        let found = entries(disk, &self.folder)?;
        for entry in found.into_iter().filter(|entry| entry.is_dir) {
            let folder = self.folder.join(&entry.name);
            let entries = entries(disk, &folder)?;
            // An empty one is what a power cut left before its marker.
            match entries.is_empty() || entries.iter().any(|entry| entry.name == UNFINISHED) {
                true => unfinished.push(folder),
                false => whole.push(Snapshot { name: entry.name, folder }),
            }
        }
        metrics().store.snapshots.set(i64::try_from(whole.len()).unwrap_or(i64::MAX));
        Ok((whole, unfinished))
    }

    fn fill(&self, moment: &Pinned, folder: &Path) -> Result<()> {
        let failed = |error| Error::io(format_args!("make folder {}", folder.display()), error);
        self.env.disk.create_dir_all(folder).map_err(failed)?;
        mark(&self.env, folder)?;
        let copies = LocalSegments::new(self.env.disk.clone(), folder.to_owned());
        let mut linked = BTreeSet::new();
        for object in &moment.plan().objects {
            object.check()?;
            let place = place(folder, &object.path);
            if object.kind.is_shared() && self.link(object, &place)? {
                linked.extend(place.parent().map(Path::to_owned));
            } else {
                copy(moment, object, &copies)?;
            }
        }
        for each in &linked {
            let failed = |error| Error::io(format_args!("sync folder {}", each.display()), error);
            self.env.disk.sync_dir(each).map_err(failed)?;
        }
        unmark(&self.env, folder)
    }

    /// Gives a file a second name; false where its file system does not reach that far, or knows
    /// no such thing.
    fn link(&self, object: &Object, place: &Path) -> Result<bool> {
        let from = folder::place(&self.root, &object.path);
        let link = || {
            let above = place.parent().ok_or(io::ErrorKind::InvalidInput)?;
            self.env.disk.create_dir_all(above)?;
            self.env.disk.link(&from, place)
        };
        match link() {
            Ok(()) => Ok(true),
            Err(error) if apart(&error) => Ok(false),
            Err(error) => Err(Error::io(format_args!("link {}", from.display()), error)),
        }
    }

    /// Removes a folder whose marker stands, the marker last.
    fn clear(&self, folder: &Path) -> Result<()> {
        let disk = &*self.env.disk;
        let clear = || {
            for entry in disk.list(folder)? {
                let path = folder.join(&entry.name);
                match entry.is_dir {
                    true => remove_below(disk, &path)?,
                    false if entry.name == UNFINISHED => {}
                    false => disk.remove(&path)?,
                }
            }
            disk.sync_dir(folder)?;
            match disk.remove(&folder.join(UNFINISHED)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => disk.remove_dir(folder)?,
            }
            disk.sync_dir(&self.folder)
        };
        clear().map_err(|error| Error::io(format_args!("remove {}", folder.display()), error))
    }
}

/// Whether two places have no file system in common that can link.
fn apart(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::Unsupported)
}

fn remove_below(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    for entry in disk.list(folder)? {
        let path = folder.join(&entry.name);
        match entry.is_dir {
            true => remove_below(disk, &path)?,
            false => disk.remove(&path)?,
        }
    }
    disk.remove_dir(folder)
}

fn copy(moment: &Pinned, object: &Object, to: &LocalSegments) -> Result<()> {
    let mut upload = BufWriter::with_capacity(PIECE, to.create(&object.path)?);
    moment.read(object, &mut upload)?;
    let failed = |error| Error::io(format_args!("copy {}", object.path), error);
    upload.into_inner().map_err(|error| failed(error.into_error()))?.publish()
}
