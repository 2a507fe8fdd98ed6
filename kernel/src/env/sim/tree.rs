//! Names and contents of the disk, each live and durable, as file systems keep them apart.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// A file, which may have several names.
pub(super) type FileRef = Arc<Mutex<Inode>>;

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Node {
    File(FileRef),
    Dir,
}

impl Node {
    /// Whether both are one file, or folders.
    pub fn same(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::File(one), Node::File(two)) => Arc::ptr_eq(one, two),
            (Node::Dir, Node::Dir) => true,
            _ => false,
        }
    }
}

/// The content of a file.
#[derive(Default)]
pub(super) struct Inode {
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
    /// A sync failed: what is not durable yet never will be.
    pub forgotten: bool,
}

/// The names of all files and folders.
#[derive(Default)]
pub(super) struct Tree {
    pub live: BTreeMap<PathBuf, Node>,
    pub durable: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// Bytes of all files, each once.
    pub fn used(&self) -> u64 {
        let mut seen: Vec<*const Mutex<Inode>> = Vec::new();
        let mut bytes = 0;
        for node in self.live.values() {
            if let Node::File(file) = node
                && !seen.contains(&Arc::as_ptr(file))
            {
                seen.push(Arc::as_ptr(file));
                bytes += file.lock().live.len() as u64;
            }
        }
        bytes
    }

    /// The file of a name.
    pub fn file(&self, path: &Path) -> io::Result<FileRef> {
        match self.live.get(path) {
            Some(Node::File(file)) => Ok(file.clone()),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether something can be put here.
    pub fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !is_root(parent) => match self.live.get(parent) {
                Some(Node::Dir) => Ok(()),
                Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
                None => Err(io::ErrorKind::NotFound.into()),
            },
            _ => Ok(()),
        }
    }

    /// Gives a name that must not exist yet.
    pub fn add(&mut self, path: &Path, node: Node) -> io::Result<()> {
        self.parent_exists(path)?;
        if self.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.live.insert(path.to_owned(), node);
        Ok(())
    }

    /// Makes the names in a folder durable.
    pub fn sync_names(&mut self, dir: &Path) {
        let inside = |path: &Path| path.parent() == Some(dir);
        self.durable.retain(|path, _| !inside(path));
        for (path, node) in &self.live {
            if inside(path) {
                self.durable.insert(path.clone(), node.clone());
            }
        }
    }
}

/// Whether a path is where all others begin, which needs no folder.
pub(super) fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/")
}
