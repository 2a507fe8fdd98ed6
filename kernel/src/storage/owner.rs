//! Who a store in a bucket belongs to: the folder whose journal holds the rows that are in no
//! segment yet.
//!
//! Many folders may name one bucket, and each has a journal of its own. So a folder has an
//! identity, kept in its file [`FILE`] beside the address of the bucket, and whoever takes the
//! partition writes that identity into the metadata. A start compares the two. The same, and the
//! journal is the one that belongs to the metadata. Another one, and rows that were acknowledged
//! may lie where this process does not see them: it refuses, unless the other owner let go of
//! the bucket by a clean stop, or the settings say to go on without them (`storage.take_over`).
//! A folder that was taken over from is refused for the same reason: what its journal holds was
//! acknowledged and is not part of the store any more.

use std::fmt::Display;
use std::path::Path;

use uuid::Uuid;

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::PartitionId;
use crate::storage::frame::FILE_HEADER;
use crate::storage::journal::local;
use crate::storage::meta::{NodeMeta, Snapshot};

/// The file in the data folder of a store whose files lie in a bucket.
pub const FILE: &str = "OWNER";

/// The first line of that file, with the number of its format.
const MAGIC: &str = "kymo-owner-1";
const HELD: &str = "held";
const RELEASED: &str = "released";

/// A folder with a journal, and the bucket that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The identity of the folder.
    pub id: Uuid,
    address: String,
    /// All rows of the journal are in segments, and the metadata says so.
    released: bool,
}

#[cfg(test)]
impl Owner {
    /// One whose journal may have rows that no segment has.
    pub(super) fn unreleased() -> Owner {
        Owner { id: Uuid::from_u128(1), address: String::new(), released: false }
    }
}

/// Takes a store in a bucket for this folder, or refuses; `None` where all files are local.
///
/// # Errors
/// `fenced` where the journal of another folder may hold rows of the store, or this one does and
/// the store went on without it; `invalid_settings` where folder and bucket do not belong
/// together; `unsupported` for a bucket without create-only puts; I/O errors.
pub fn claim(env: &Env, root: &Path, head: &Snapshot, take_over: bool) -> Result<Option<Owner>> {
    let Some(shared) = env.disk.shared() else { return Ok(None) };
    let before = read(env, root)?;
    clear_scratch(env, root)?;
    let address = shared.address();
    let rows = has_records(env, root)?;
    if before.as_ref().is_some_and(|owner| owner.address != address) || (before.is_none() && rows) {
        let place = before.map_or_else(|| "no bucket".to_owned(), |owner| owner.address);
        return Err(astray(root, &format!("belongs to {place}, not to {address}"))
            .with_hint("name a new folder with server.data_dir; docs/object-storage.md says how to move a store"));
    }
    refuse_lost(root, address, head, before.as_ref(), rows)?;
    let id = before.as_ref().map_or_else(|| env.random.uuid(), |owner| owner.id);
    if let Some(other) = holder(head).filter(|node| node.instance != id) {
        let keeps = rows && before.as_ref().is_some_and(|owner| !owner.released);
        refuse_other(root, address, other, keeps, take_over)?;
    }
    probe(env)?;
    let owner = Owner { id, address: address.to_owned(), released: false };
    write(env, root, &owner)?;
    Ok(Some(owner))
}

/// Makes a folder the one that a store in a bucket belongs to, which a restore has just put
/// there; does nothing where all files are local.
///
/// # Errors
/// I/O errors.
pub fn adopt(env: &Env, root: &Path, head: &Snapshot) -> Result<()> {
    let Some(shared) = env.disk.shared() else { return Ok(()) };
    let id = holder(head).map_or_else(|| env.random.uuid(), |node| node.instance);
    write(env, root, &Owner { id, address: shared.address().to_owned(), released: false })
}

/// Refuses a folder whose segments and metadata lie in a bucket that nobody named.
///
/// # Errors
/// `invalid_settings` naming the bucket, I/O errors.
pub fn refuse_astray(env: &Env, root: &Path) -> Result<()> {
    if env.disk.shared().is_some() {
        return Ok(());
    }
    match read(env, root)? {
        None => Ok(()),
        Some(owner) => Err(astray(root, &format!("belongs to {}", owner.address))
            .with_hint("set storage.url to that address, or name the settings with --config")),
    }
}

/// Notes that nothing in the journal is missing in the store: any folder may take it now.
///
/// # Errors
/// I/O errors.
pub fn release(env: &Env, root: &Path, owner: &Owner) -> Result<()> {
    write(env, root, &Owner { released: true, ..owner.clone() })
}

/// What the metadata says of a node that lets go of the store.
#[must_use]
pub fn released(node: &NodeMeta) -> NodeMeta {
    NodeMeta { instance: Uuid::nil(), ..node.clone() }
}

/// The node that holds the partition, unless it let go.
#[must_use]
pub fn holder(head: &Snapshot) -> Option<&NodeMeta> {
    let owner = head.assignments.get(&PartitionId::ONLY)?;
    head.nodes.get(&owner.node).filter(|node| !node.instance.is_nil())
}

fn refuse_lost(
    root: &Path,
    address: &str,
    head: &Snapshot,
    before: Option<&Owner>,
    rows: bool,
) -> Result<()> {
    if head.version.0 > 0 || !rows || before.is_none() {
        return Ok(());
    }
    let what = format!(
        "{address} holds no store, but the journal in folder {} has rows of one",
        root.display()
    );
    Err(Error::new(Code::Corrupt, what)
        .with_hint("was the bucket emptied? Name the right one, or restore a backup"))
}

fn refuse_other(
    root: &Path,
    address: &str,
    other: &NodeMeta,
    keeps: bool,
    take_over: bool,
) -> Result<()> {
    let (folder, name) = (root.display(), &other.id);
    if keeps {
        let what = format!(
            "node {name:?} took over {address}; the journal in folder {folder} has rows that may \
             not be in it"
        );
        return Err(Error::new(Code::Fenced, what).with_hint(
            "keep that folder, its rows were acknowledged; start with a new server.data_dir",
        ));
    }
    if !take_over {
        let what = format!(
            "{address} belongs to node {name:?} with another data folder, whose journal may hold \
             rows that are in no segment yet"
        );
        return Err(Error::new(Code::Fenced, what).with_hint(
            "start the server on that folder; if it is lost, set storage.take_over = true to go \
             on without those rows",
        ));
    }
    tracing::warn!(
        bucket = address,
        node = %name,
        "taking over from another server: rows that are only in its journal are not part of the \
         store any more"
    );
    Ok(())
}

/// Makes sure that of two who put the same new name, one is refused.
fn probe(env: &Env) -> Result<()> {
    let Some(shared) = env.disk.shared() else { return Ok(()) };
    let exclusive = shared
        .is_exclusive(env.random.next_u64())
        .map_err(|error| Error::io(format_args!("write to {}", shared.address()), error))?;
    if exclusive {
        return Ok(());
    }
    let what = format!("{} lets two writers create the same object", shared.address());
    Err(Error::new(Code::Unsupported, what)
        .with_hint("use a service that honours If-None-Match: * for PutObject"))
}

fn astray(root: &Path, what: &str) -> Error {
    Error::new(Code::Settings, format!("the journal in folder {} {what}", root.display()))
}

/// Removes files that never came to have a name in the bucket.
pub(super) fn clear_scratch(env: &Env, root: &Path) -> Result<()> {
    let folder = root.join(crate::bucket::SCRATCH);
    let failed = |error| Error::io(format_args!("clear folder {}", folder.display()), error);
    if !env.disk.exists(&folder).map_err(failed)? {
        return Ok(());
    }
    for entry in env.disk.list(&folder).map_err(failed)? {
        env.disk.remove(&folder.join(entry.name)).map_err(failed)?;
    }
    Ok(())
}

/// Whether the journal of a folder holds anything but the headers of its files.
fn has_records(env: &Env, root: &Path) -> Result<bool> {
    let folder = root.join("wal").join(PartitionId::ONLY.to_string());
    for (_, path) in local::list(env, &folder)? {
        let length = env.disk.open_to_read(&path).and_then(|file| file.len());
        let length =
            length.map_err(|error| Error::io(format_args!("read {}", path.display()), error))?;
        if length > FILE_HEADER as u64 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(env: &Env, root: &Path) -> Result<Option<Owner>> {
    read_file(env, &root.join(FILE), decode)
}

/// Reads a small file of text that was written whole; `None` where there is no such file.
///
/// # Errors
/// `corrupt` naming the file where `decode` does not take it, I/O errors.
pub(super) fn read_file<T>(
    env: &Env,
    path: &Path,
    decode: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    let failed = |error| Error::io(format_args!("read {}", path.display()), error);
    if !env.disk.exists(path).map_err(failed)? {
        return Ok(None);
    }
    let read = || {
        let file = env.disk.open_to_read(path)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
        let count = file.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(bytes)
    };
    let bytes = read().map_err(failed)?;
    let read = std::str::from_utf8(&bytes).ok().and_then(decode);
    read.map(Some).ok_or_else(|| {
        Error::new(Code::Corrupt, format!("{} does not verify", path.display()))
            .with_hint("restore the file from a copy of the folder")
    })
}

fn decode(text: &str) -> Option<Owner> {
    let mut lines = text.lines();
    if lines.next()? != MAGIC {
        return None;
    }
    let id = lines.next()?.parse().ok()?;
    let address = lines.next()?.to_owned();
    let released = match lines.next()? {
        HELD => false,
        RELEASED => true,
        _ => return None,
    };
    Some(Owner { id, address, released })
}

fn encode(owner: &Owner) -> String {
    let state: &dyn Display = if owner.released { &RELEASED } else { &HELD };
    format!("{MAGIC}\n{}\n{}\n{state}\n", owner.id, owner.address)
}

fn write(env: &Env, root: &Path, owner: &Owner) -> Result<()> {
    write_file(env, root, FILE, &encode(owner))
}

/// Writes a small file anew, whole or not at all.
///
/// # Errors
/// I/O errors.
pub(super) fn write_file(env: &Env, root: &Path, name: &str, text: &str) -> Result<()> {
    let (path, new) = (root.join(name), root.join(format!("{name}.new")));
    let disk = &env.disk;
    let write = || {
        if disk.exists(&new)? {
            disk.remove(&new)?;
        }
        let mut file = disk.create(&new)?;
        file.append(text.as_bytes())?;
        file.sync()?;
        disk.rename(&new, &path)?;
        disk.sync_dir(root)
    };
    write().map_err(|error| Error::io(format_args!("write {}", path.display()), error))
}
