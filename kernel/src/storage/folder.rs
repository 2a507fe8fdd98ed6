//! Folders of a store: where its paths, whose parts are divided by `/`, lie on this machine, and
//! what lies there.

use std::io;
use std::path::{Path, PathBuf};

use crate::env::{Disk, Entry};
use crate::error::{Error, Result};

/// The place of a path below a root.
pub fn place(root: &Path, path: &str) -> PathBuf {
    path.split('/').fold(root.to_owned(), |folder, part| folder.join(part))
}

/// The path below a root that leads to a place, as [`place`] takes it.
pub fn key(root: &Path, place: &Path) -> String {
    let below = place.strip_prefix(root).unwrap_or(place).iter();
    below.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// What lies in a folder, sorted by name; nothing where there is no such folder.
///
/// # Errors
/// `io_error`, naming the folder.
pub fn entries(disk: &dyn Disk, folder: &Path) -> Result<Vec<Entry>> {
    match disk.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed
            .map_err(|error| Error::io(format_args!("list folder {}", folder.display()), error)),
    }
}
