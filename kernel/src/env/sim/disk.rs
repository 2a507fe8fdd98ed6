//! The disk itself: a file system in memory that fails as it is told and forgets in a crash.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::faults::{Fault, Faults, Operation};
use super::file::SimFile;
use super::random::Dice;
use super::tree::{FileRef, Node, Tree, is_root};
use crate::env::{Disk, DiskFile, Entry};

/// A file system in memory with live and durable state.
pub struct SimDisk(Arc<Mutex<State>>);

/// All of it, which whoever touches it locks as a whole.
pub(super) struct State {
    pub tree: Tree,
    /// Who has a lock, by the count of crashes then.
    locks: BTreeMap<PathBuf, u64>,
    /// Counts crashes: what was opened before the last one is dead.
    pub generation: u64,
    pub dice: Dice,
    faults: Faults,
    pub capacity: Option<u64>,
    pub flips_per_million_reads: u32,
    pub broken_sync: bool,
    /// How many were asked for.
    pub syncs: u64,
}

impl State {
    /// Fails where that was asked for.
    pub fn fault(&mut self, operation: Operation) -> io::Result<()> {
        self.faults.hit(operation, &mut self.dice)
    }
}

impl SimDisk {
    /// An empty disk; the seed chooses what a crash keeps and which calls fail.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SimDisk(Arc::new(Mutex::new(State {
            tree: Tree::default(),
            locks: BTreeMap::new(),
            generation: 0,
            dice: Dice::new(seed),
            faults: Faults::default(),
            capacity: None,
            flips_per_million_reads: 0,
            broken_sync: false,
            syncs: 0,
        })))
    }

    /// Cuts the power: what was not synced is kept, lost or torn by the seed. Faults that
    /// were asked for are forgotten; a broken sync stays broken.
    pub fn crash(&self, seed: u64) {
        let mut state = self.0.lock();
        state.generation += 1;
        state.locks.clear();
        state.faults.clear();
        state.tree.crash(&mut Dice::new(seed));
    }

    /// Makes the operation fail once, after `after` more that succeed.
    pub fn fail_after(&self, operation: Operation, after: u32, fault: Fault) {
        self.0.lock().faults.once(operation, after, fault);
    }

    /// Makes that many of a million operations fail; zero switches it off.
    pub fn set_error_rate(&self, operation: Operation, per_million: u32, fault: Fault) {
        self.0.lock().faults.at_rate(operation, per_million, fault);
    }

    /// Limits the bytes of all files; what does not fit is written in part and then refused.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Forgets the faults that were asked for and did not happen yet.
    pub fn heal(&self) {
        self.0.lock().faults.clear();
    }

    /// Flips one bit in that many of a million reads.
    pub fn set_read_flips(&self, per_million: u32) {
        self.0.lock().flips_per_million_reads = per_million;
    }

    /// A disk that says it has synced and has not.
    pub fn break_sync(&self, broken: bool) {
        self.0.lock().broken_sync = broken;
    }

    /// Flips a bit of a stored byte, in the live and the durable content.
    ///
    /// # Errors
    /// `NotFound` where there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let state = self.0.lock();
        let file = state.tree.file(path)?;
        let mut inode = file.lock();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(byte) = inode.live.get_mut(at) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        *byte ^= 1 << (bit & 7);
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= 1 << (bit & 7);
        }
        Ok(())
    }

    /// How many syncs of files were asked for.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.lock().tree.used()
    }

    /// The paths of all files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.0.lock();
        let files = state.tree.live.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.fault(Operation::Create)?;
        let file = FileRef::default();
        state.tree.add(path, Node::File(file.clone()))?;
        Ok(Box::new(SimFile { disk: self.0.clone(), generation: state.generation, file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.0.lock();
        let file = state.tree.file(path)?;
        Ok(Box::new(SimFile { disk: self.0.clone(), generation: state.generation, file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::Link)?;
        let file = state.tree.file(from)?;
        state.tree.parent_exists(to)?;
        state.tree.live.remove(from);
        state.tree.live.insert(to.to_owned(), Node::File(file));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::Link)?;
        let file = state.tree.file(from)?;
        state.tree.add(to, Node::File(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::Remove)?;
        state.tree.file(path)?;
        state.tree.live.remove(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        match state.tree.live.get(path) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        if state.tree.live.keys().any(|other| other.parent() == Some(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.tree.live.remove(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let state = self.0.lock();
        if !is_root(dir) && !matches!(state.tree.live.get(dir), Some(Node::Dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.tree.live.iter().filter(|(path, _)| path.parent() == Some(dir));
        let mut entries: Vec<Entry> = inside
            .map(|(path, node)| Entry {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                is_dir: matches!(node, Node::Dir),
            })
            .collect();
        entries.sort();
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let mut missing: Vec<PathBuf> = Vec::new();
        for ancestor in dir.ancestors().take_while(|path| !is_root(path)) {
            match state.tree.live.get(ancestor) {
                Some(Node::Dir) => break,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => missing.push(ancestor.to_owned()),
            }
        }
        for folder in missing.into_iter().rev() {
            state.tree.live.insert(folder.clone(), Node::Dir);
            // As in the real one, each parent is synced, which settles its other names too.
            state.tree.sync_names(folder.parent().unwrap_or(Path::new("")));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::SyncDir)?;
        state.tree.sync_names(dir);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.lock().tree.live.contains_key(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut state = self.0.lock();
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !state.tree.live.contains_key(path) {
            state.tree.add(path, Node::File(FileRef::default()))?;
        }
        let generation = state.generation;
        state.locks.insert(path.to_owned(), generation);
        Ok(Box::new(SimLock { disk: Arc::downgrade(&self.0), path: path.to_owned(), generation }))
    }
}

struct SimLock {
    disk: Weak<Mutex<State>>,
    path: PathBuf,
    generation: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Some(disk) = self.disk.upgrade() {
            let mut state = disk.lock();
            if state.locks.get(&self.path) == Some(&self.generation) {
                state.locks.remove(&self.path);
            }
        }
    }
}
