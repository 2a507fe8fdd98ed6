//! Whose the second place for segments is.
//!
//! A place that holds the segments of one store must not be taken by another, which would remove
//! them as files that nothing names. And a store must not take an empty folder for the place of
//! its segments, as where a file system is not mounted. So the place has a mark ([`MARKER`]) with
//! the identity of its store, and the data folder a note ([`FILE`]) of that identity, of the
//! address, and of whether the mark was set. A store in a bucket is known by the address of that:
//! it has one data folder after another.
//!
//! A place without a mark is taken if it holds nothing but the cold segments of the store: all of
//! them or, of a new one, none. That is how somebody moves them from one place to the next.

use std::collections::HashSet;
use std::path::Path;

use crate::bucket::COLD;
use crate::env::{Elsewhere, Env};
use crate::error::{Code, Error, Result};
use crate::storage::folder;
use crate::storage::meta::Snapshot;
use crate::storage::owner::{clear_scratch, read_file, write_file};
use crate::storage::segment::store::PARTIAL;
use crate::storage::tier::Tier;

/// The note in the data folder.
pub const FILE: &str = "COLD";
/// The mark in the place, below the data folder as the store sees it.
pub const MARKER: &str = "cold/OWNER";

/// The first line of both, with the number of their format.
const MAGIC: &str = "kymo-cold-1";
const BEGUN: &str = "begun";
const HELD: &str = "held";

/// The note of a data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    identity: String,
    address: String,
    /// Whether the mark was set.
    held: bool,
}

/// What was found of a place.
struct Found<'a> {
    place: &'a dyn Elsewhere,
    before: Option<Note>,
    /// What the mark has to say.
    identity: String,
    marked: bool,
}

/// Takes the second place for a store, or refuses; does nothing where there is none.
///
/// # Errors
/// `invalid_settings` where the place is that of another store, lacks the segments of this one,
/// or is missing while there are some; `storage_unreachable` and I/O errors.
pub fn claim(env: &Env, root: &Path, head: &Snapshot) -> Result<()> {
    let Some(found) = examine(env, root, head)? else { return Ok(()) };
    if !found.place.has_folders() {
        clear_scratch(env, root)?;
    }
    let address = found.place.address().to_owned();
    let note = |held| Note { identity: found.identity.clone(), address: address.clone(), held };
    if found.marked && found.before.as_ref() == Some(&note(true)) {
        return Ok(());
    }
    if !found.marked {
        write(env, root, &note(false))?;
        mark(env, root, &found.identity)?;
    }
    // A mark that was found may be one that a power cut takes back.
    let folder = root.join(COLD);
    let synced = env.disk.sync_dir(&folder);
    synced.map_err(|error| Error::io(format_args!("sync folder {}", folder.display()), error))?;
    write(env, root, &note(true))
}

/// Refuses what [`claim`] refuses, and changes nothing. A store without cold segments has nothing
/// to be refused for.
///
/// # Errors
/// As [`claim`].
pub fn refuse_astray(env: &Env, root: &Path, head: &Snapshot) -> Result<()> {
    if cold_paths(head).is_empty() {
        return Ok(());
    }
    examine(env, root, head).map(drop)
}

/// Makes sure that the place is still there, before anything is put into it.
///
/// # Errors
/// `storage_unreachable` where its mark is gone, I/O errors.
pub fn confirm(env: &Env, root: &Path) -> Result<()> {
    let Some(place) = env.disk.cold() else { return Ok(()) };
    let there = env.disk.exists(&root.join(MARKER));
    if there.map_err(|error| Error::io(format_args!("look for {}", place.address()), error))? {
        return Ok(());
    }
    let what = format!("{} has lost its mark {MARKER}", place.address());
    Err(Error::new(Code::Unreachable, what).with_hint("is its file system mounted?"))
}

fn examine<'a>(env: &'a Env, root: &Path, head: &Snapshot) -> Result<Option<Found<'a>>> {
    let before = read_file(env, &root.join(FILE), decode)?;
    let Some(place) = env.disk.cold() else {
        return refuse_unnamed(env, root, head, before.as_ref()).map(|()| None);
    };
    let identity = match (env.disk.shared(), &before) {
        (Some(shared), _) => format!("bucket {}", shared.address()),
        (None, Some(note)) => note.identity.clone(),
        (None, None) => format!("folder {}", env.random.uuid()),
    };
    let mark = read_file(env, &root.join(MARKER), |text| {
        text.strip_prefix(MAGIC)?.trim().lines().next().map(str::to_owned)
    })?;
    match &mark {
        Some(mark) if *mark == identity => {}
        Some(_) => {
            let what = format!("{} holds segments of another store", place.address());
            return Err(Error::new(Code::Settings, what).with_hint(
                "name a place of its own in storage.cold_url; docs/tiering.md says how to move one",
            ));
        }
        None => refuse_unfit(root, place, head, before.as_ref())?,
    }
    Ok(Some(Found { place, before, identity, marked: mark.is_some() }))
}

/// Refuses a store of which segments lie where nobody said.
fn refuse_unnamed(env: &Env, root: &Path, head: &Snapshot, note: Option<&Note>) -> Result<()> {
    let named = cold_paths(head);
    for path in &named {
        let there = env.disk.exists(&folder::place(root, path));
        if there.map_err(|error| Error::io(format_args!("look for {path}"), error))? {
            // They lie in the data folder. Others that are missing are damage.
            return Ok(());
        }
    }
    if named.is_empty() {
        return Ok(());
    }
    let place = note.map_or("a second place", |note| note.address.as_str());
    let what = format!(
        "{} segments of the store in folder {} lie in {place}, but storage.cold_url is not set",
        named.len(),
        root.display()
    );
    Err(Error::new(Code::Settings, what)
        .with_hint("set storage.cold_url to that place, or name the settings with --config"))
}

/// Refuses a place without a mark that cannot be that of this store.
fn refuse_unfit(
    root: &Path,
    place: &dyn Elsewhere,
    head: &Snapshot,
    note: Option<&Note>,
) -> Result<()> {
    let address = place.address();
    let files = place
        .files_below(&root.join(COLD))
        .map_err(|error| Error::io(format_args!("list {address}"), error))?;
    let keys: HashSet<String> = files
        .iter()
        .map(|path| folder::key(root, path))
        .filter(|key| *key != format!("{MARKER}{PARTIAL}"))
        .collect();
    let named = cold_paths(head);
    let missing = named.iter().filter(|path| !keys.contains(**path)).count();
    if missing > 0 {
        let what = format!("{address} lacks {missing} of {} cold segments", named.len());
        return Err(Error::new(Code::Settings, what).with_hint(
            "name in storage.cold_url the place that has them; is its file system mounted?",
        ));
    }
    if keys.len() > named.len() {
        let what = format!("{address} holds files of somebody else below {COLD}");
        return Err(Error::new(Code::Settings, what)
            .with_hint("name an empty folder or a new prefix in storage.cold_url"));
    }
    if named.is_empty() && note.is_some_and(|note| note.held && note.address == address) {
        let what = format!("{address} has lost its mark {MARKER}");
        return Err(Error::new(Code::Settings, what).with_hint(format!(
            "is its file system mounted? If it was emptied on purpose, remove {}",
            root.join(FILE).display()
        )));
    }
    Ok(())
}

fn cold_paths(head: &Snapshot) -> Vec<&str> {
    let segments = head.tables.values().flat_map(|table| table.segments.values());
    let cold = segments.filter(|segment| Tier::of(segment) == Tier::Cold);
    cold.map(|segment| segment.path.as_str()).collect()
}

/// Sets the mark, which must not be there.
fn mark(env: &Env, root: &Path, identity: &str) -> Result<()> {
    let (folder, marker) = (root.join(COLD), root.join(MARKER));
    let partial = root.join(format!("{MARKER}{PARTIAL}"));
    let disk = &env.disk;
    let mark = || {
        disk.create_dir_all(&folder)?;
        if disk.exists(&partial)? {
            disk.remove(&partial)?;
        }
        let mut file = disk.create(&partial)?;
        file.append(format!("{MAGIC}\n{identity}\n").as_bytes())?;
        file.sync()?;
        disk.link(&partial, &marker)?;
        disk.remove(&partial)
    };
    mark().map_err(|error| Error::io(format_args!("write {}", marker.display()), error))
}

fn write(env: &Env, root: &Path, note: &Note) -> Result<()> {
    let state = if note.held { HELD } else { BEGUN };
    let text = format!("{MAGIC}\n{}\n{}\n{state}\n", note.identity, note.address);
    write_file(env, root, FILE, &text)
}

fn decode(text: &str) -> Option<Note> {
    let mut lines = text.lines();
    if lines.next()? != MAGIC {
        return None;
    }
    let (identity, address) = (lines.next()?.to_owned(), lines.next()?.to_owned());
    let held = match lines.next()? {
        HELD => true,
        BEGUN => false,
        _ => return None,
    };
    Some(Note { identity, address, held })
}
