//! Making a store of a backup, in a folder that is empty, and in a bucket and a second place for
//! segments that are, where the settings name them.
//!
//! Every object is hashed on its way and gets its name only if it is what the manifest says.
//! Until everything is there a marker stands in the folder, and no server opens it.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::bucket;
use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::storage::backup::keep::{FOLDER, Kept, Manifest, manifest};
use crate::storage::backup::{
    Hashing, PIECE, Progress, Vault, check_path, copy_bytes, mark, unmark,
};
use crate::storage::metalog::{LocalMetaLog, MetaLog};
use crate::storage::owner;
use crate::storage::recover::lock;
use crate::storage::segment::{LocalSegments, SegmentStore};

/// What a restore came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The name of the backup.
    pub name: String,
    /// When it was taken, in nanoseconds since 1970-01-01T00:00:00Z.
    pub taken_ns: i64,
    /// Files.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The complete backups of a place, oldest first.
///
/// # Errors
/// `corrupt` naming a manifest that does not verify, I/O errors.
pub fn list(vault: &dyn Vault) -> Result<Vec<Manifest>> {
    let names = vault.names(FOLDER)?;
    let found = names.iter().map(|name| manifest(vault, name));
    found.filter_map(Result::transpose).collect()
}

/// Copies a backup, the newest where none is named, into an empty folder. Blocks.
///
/// # Errors
/// `invalid_input` where there is no such backup or the folder is not empty; `corrupt` naming
/// an object that is not what was backed up; `disk_full` and I/O errors. The folder cannot be
/// used then, and says so.
pub fn restore(
    vault: &dyn Vault,
    name: Option<&str>,
    env: &Env,
    root: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored> {
    let manifest = choose(vault, name)?;
    refuse_used(env, root)?;
    let _lock = lock(env, root)?;
    mark(env, root)?;
    let store = LocalSegments::new(env.disk.clone(), root.to_owned());
    let total = manifest.objects.iter().map(|kept| kept.object.bytes).sum();
    let mut at = Progress { done: 0, total };
    progress(at);
    for kept in &manifest.objects {
        copy(vault, &store, kept).map_err(|error| error.context("restore"))?;
        at.done += kept.object.bytes;
        progress(at);
    }
    if env.disk.shared().is_some() {
        let head = LocalMetaLog::open(env.clone(), &root.join("meta"))?.head()?;
        owner::adopt(env, root, &head)?;
    }
    unmark(env, root)?;
    let (objects, bytes) = (manifest.objects.len(), total);
    Ok(Restored { name: manifest.name, taken_ns: manifest.taken_ns, objects, bytes })
}

/// Reads a backup, the newest where none is named, and verifies every byte of it. Blocks.
///
/// # Errors
/// `invalid_input` where there is no such backup; `corrupt` naming an object that is not what
/// was backed up; I/O errors.
pub fn verify(
    vault: &dyn Vault,
    name: Option<&str>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored> {
    let manifest = choose(vault, name)?;
    let total = manifest.objects.iter().map(|kept| kept.object.bytes).sum();
    let mut at = Progress { done: 0, total };
    progress(at);
    for kept in &manifest.objects {
        copied(vault, kept, io::sink()).map_err(|error| error.context("verify"))?;
        at.done += kept.object.bytes;
        progress(at);
    }
    let (objects, bytes) = (manifest.objects.len(), total);
    Ok(Restored { name: manifest.name, taken_ns: manifest.taken_ns, objects, bytes })
}

fn choose(vault: &dyn Vault, name: Option<&str>) -> Result<Manifest> {
    let hint = "`kymo restore SRC --list` shows the backups of a place";
    if let Some(name) = name {
        let known = vault.names(FOLDER)?.iter().any(|known| known == name);
        let found = if known { manifest(vault, name)? } else { None };
        return found.ok_or_else(|| {
            let what = format!("there is no complete backup {name:?}");
            Error::new(Code::InvalidInput, what).with_hint(hint)
        });
    }
    for name in vault.names(FOLDER)?.iter().rev() {
        if let Some(manifest) = manifest(vault, name)? {
            return Ok(manifest);
        }
    }
    Err(Error::new(Code::InvalidInput, "there is no complete backup in this place").with_hint(hint))
}

fn refuse_used(env: &Env, root: &Path) -> Result<()> {
    if let Some(cold) = env.disk.cold() {
        let there = cold.files_below(&root.join(bucket::COLD));
        let there =
            there.map_err(|error| Error::io(format_args!("list {}", cold.address()), error))?;
        if !there.is_empty() {
            let what = format!("{} holds segments", cold.address());
            return Err(Error::new(Code::InvalidInput, what)
                .with_hint("name an empty folder or a new prefix in storage.cold_url"));
        }
    }
    if let Some(shared) = env.disk.shared() {
        for folder in bucket::FOLDERS {
            let there = shared.files_below(&root.join(folder));
            let there = there
                .map_err(|error| Error::io(format_args!("list {}", shared.address()), error))?;
            if !there.is_empty() {
                let what = format!("{} is not empty", shared.address());
                return Err(Error::new(Code::InvalidInput, what)
                    .with_hint("name a new prefix in storage.url"));
            }
        }
    }
    let failed = |error| Error::io(format_args!("list folder {}", root.display()), error);
    if !env.disk.exists(root).map_err(failed)? || env.disk.list(root).map_err(failed)?.is_empty() {
        return Ok(());
    }
    let what = format!("folder {} is not empty", root.display());
    Err(Error::new(Code::InvalidInput, what)
        .with_hint("name a new folder; start the server on it, or move it, when it is whole"))
}

fn copy(vault: &dyn Vault, store: &LocalSegments, kept: &Kept) -> Result<()> {
    kept.object.check()?;
    let upload = BufWriter::with_capacity(PIECE, store.create(&kept.object.path)?);
    let upload = copied(vault, kept, upload)?.into_inner().map_err(|error| {
        Error::io(format_args!("write {}", kept.object.path), error.into_error())
    })?;
    upload.publish()
}

/// Writes the bytes of an object, if they are what was backed up.
fn copied<W: Write>(vault: &dyn Vault, kept: &Kept, to: W) -> Result<W> {
    check_path(&kept.at)?;
    let failed = |error| Error::io(format_args!("copy {}", kept.at), error);
    let from = vault.open(&kept.at)?;
    let length = from.size().map_err(failed)?;
    let mut hashing = Hashing::new(to);
    copy_bytes(&*from, length, &mut hashing).map_err(failed)?;
    if hashing.bytes != kept.object.bytes || hashing.digester.finish() != kept.digest {
        let what = format!("{} is not what was backed up", kept.at);
        return Err(Error::new(Code::Corrupt, what)
            .with_hint("choose another backup with --backup; --list shows them"));
    }
    Ok(hashing.to)
}
