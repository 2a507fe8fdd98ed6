//! A world under one seed: a clock that is turned by hand, seeded random bits, and a disk
//! that forgets.
//!
//! [`SimDisk`] keeps live and durable state apart. Content becomes durable with a sync of the
//! file; a name (created, renamed, linked or removed) with a sync of its folder.
//! [`SimDisk::crash`] throws the live state away: each 512-byte sector and each name that was
//! not synced survives or not, by the seed, independently of its neighbours. That is harsher
//! than file systems are, on purpose. Handles and locks from before a crash are dead: using
//! one fails, as the process that held them would be.
//!
//! Faults are injected by script ([`SimDisk::fail_after`]), at a rate ([`SimDisk::set_error_rate`]),
//! by a capacity ([`SimDisk::set_capacity`], with short writes), by flipping bits at rest or on
//! reads, and by [`SimDisk::break_sync`], a disk that lies about fsync. After a failed sync the
//! content is never made durable by a later one: the kernel has dropped the dirty pages.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::env::{Clock, Disk, DiskFile, Entry, Env, Random};

/// The unit in which unsynced content is lost.
const SECTOR: usize = 512;

/// The parts of a simulated world, for the test that steers it.
#[derive(Clone)]
pub struct Sim {
    /// The clock.
    pub clock: Arc<SimClock>,
    /// The disk.
    pub disk: Arc<SimDisk>,
    /// The random source.
    pub random: Arc<SimRandom>,
}

impl Sim {
    /// A world with an empty disk, at the start of 2026.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Sim {
            clock: Arc::new(SimClock::new(1_767_225_600_000_000_000)),
            disk: Arc::new(SimDisk::new(seed ^ 0x5eed_d15c)),
            random: Arc::new(SimRandom::new(seed)),
        }
    }

    /// The same world as code under test receives it.
    #[must_use]
    pub fn env(&self) -> Env {
        Env { clock: self.clock.clone(), disk: self.disk.clone(), random: self.random.clone() }
    }
}

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014):
/// small, seedable, and good enough to choose faults and work with.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall by a seed.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "they do not end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// Random bits that depend on nothing but the seed.
#[derive(Debug)]
pub struct SimRandom(Mutex<Dice>);

impl SimRandom {
    /// A source for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SimRandom(Mutex::new(Dice(seed)))
    }
}

impl Random for SimRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut dice = self.0.lock();
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&dice.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct SimClock {
    start_ns: i64,
    state: Arc<Mutex<ClockState>>,
}

#[derive(Debug, Default)]
struct ClockState {
    elapsed: Duration,
    next: u64,
    /// Who waits, by time and then by order of asking.
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

impl SimClock {
    /// A clock that shows this time.
    #[must_use]
    pub fn new(start_ns: i64) -> Self {
        SimClock { start_ns, state: Arc::default() }
    }

    /// Moves time forward and wakes those whose time has come.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock();
        state.elapsed += by;
        let now = (state.elapsed, u64::MAX);
        let later = state.sleepers.split_off(&now);
        let due = std::mem::replace(&mut state.sleepers, later);
        drop(state);
        due.into_values().for_each(Waker::wake);
    }

    /// Moves time to the next moment that somebody waits for, if anybody does.
    pub fn jump(&self) {
        let wait = {
            let state = self.state.lock();
            let next = state.sleepers.first_key_value();
            next.map(|((until, _), _)| until.saturating_sub(state.elapsed))
        };
        if let Some(wait) = wait {
            self.advance(wait);
        }
    }
}

impl Clock for SimClock {
    fn now_ns(&self) -> i64 {
        let elapsed = i64::try_from(self.state.lock().elapsed.as_nanos()).unwrap_or(i64::MAX);
        self.start_ns.saturating_add(elapsed)
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut state = self.state.lock();
        state.next += 1;
        let key = (state.elapsed.saturating_add(duration), state.next);
        Box::pin(Sleep { state: self.state.clone(), key })
    }
}

struct Sleep {
    state: Arc<Mutex<ClockState>>,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.elapsed >= self.key.0 {
            return Poll::Ready(());
        }
        state.sleepers.insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.state.lock().sleepers.remove(&self.key);
    }
}

/// What a fault can be injected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Creating a file.
    Create,
    /// Appending to a file.
    Append,
    /// Reading from a file.
    Read,
    /// Syncing a file.
    Sync,
    /// Syncing a folder.
    SyncDir,
    /// Renaming or linking.
    Link,
    /// Removing a file.
    Remove,
}

/// What an injected fault looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error.
    Eio,
    /// No space left on the device.
    Enospc,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Eio => io::Error::from_raw_os_error(libc::EIO),
            Fault::Enospc => io::Error::from_raw_os_error(libc::ENOSPC),
        }
    }
}

/// A file system in memory with live and durable state.
pub struct SimDisk(Arc<Mutex<State>>);

type FileRef = Arc<Mutex<Inode>>;

#[derive(Clone)]
enum Node {
    File(FileRef),
    Dir,
}

impl Node {
    fn same(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::File(one), Node::File(two)) => Arc::ptr_eq(one, two),
            (Node::Dir, Node::Dir) => true,
            _ => false,
        }
    }
}

#[derive(Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// A sync failed: what is not durable yet never will be.
    forgotten: bool,
}

struct State {
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    locks: BTreeMap<PathBuf, u64>,
    generation: u64,
    dice: Dice,
    script: Vec<(Operation, u32, Fault)>,
    rates: BTreeMap<Operation, (u32, Fault)>,
    capacity: Option<u64>,
    flips_per_million_reads: u32,
    broken_sync: bool,
    syncs: u64,
}

impl SimDisk {
    /// An empty disk; the seed chooses what a crash keeps and which calls fail.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SimDisk(Arc::new(Mutex::new(State {
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            locks: BTreeMap::new(),
            generation: 0,
            dice: Dice(seed),
            script: Vec::new(),
            rates: BTreeMap::new(),
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
        state.script.clear();
        state.rates.clear();
        let mut dice = Dice(seed);
        let names = state.surviving_names(&mut dice);
        let mut done: Vec<*const Mutex<Inode>> = Vec::new();
        for node in names.values() {
            if let Node::File(file) = node
                && !done.contains(&Arc::as_ptr(file))
            {
                done.push(Arc::as_ptr(file));
                file.lock().crash(&mut dice);
            }
        }
        state.live.clone_from(&names);
        state.durable = names;
    }

    /// Makes the operation fail once, after `after` more that succeed.
    pub fn fail_after(&self, operation: Operation, after: u32, fault: Fault) {
        self.0.lock().script.push((operation, after, fault));
    }

    /// Makes that many of a million operations fail; zero switches it off.
    pub fn set_error_rate(&self, operation: Operation, per_million: u32, fault: Fault) {
        self.0.lock().rates.insert(operation, (per_million, fault));
    }

    /// Limits the bytes of all files; what does not fit is written in part and then refused.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Forgets the faults that were asked for and did not happen yet.
    pub fn heal(&self) {
        let mut state = self.0.lock();
        state.script.clear();
        state.rates.clear();
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
        let file = state.file(path)?;
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
        self.0.lock().used()
    }

    /// The paths of all files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.0.lock();
        let files = state.live.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }
}

impl Inode {
    /// Replaces both states by one that a crash could leave.
    fn crash(&mut self, dice: &mut Dice) {
        if self.live != self.durable {
            self.live = match dice.below(4) {
                0 => self.durable.clone(),
                1 if !self.forgotten => self.live.clone(),
                _ => self.torn(dice),
            };
        }
        self.durable = self.live.clone();
        self.forgotten = false;
    }

    fn torn(&self, dice: &mut Dice) -> Vec<u8> {
        let (short, long) = {
            let (one, two) = (self.live.len(), self.durable.len());
            (one.min(two), one.max(two))
        };
        let len = match dice.below(3) {
            0 => self.live.len(),
            1 => short + dice.below((long - short) / SECTOR + 1) * SECTOR,
            _ => short + dice.below(long - short + 1),
        };
        let mut content = vec![0; len];
        for start in (0..len).step_by(SECTOR) {
            let end = (start + SECTOR).min(len);
            let source = if dice.coin() { &self.live } else { &self.durable };
            let have = source.len().min(end);
            if have > start {
                content[start..have].copy_from_slice(&source[start..have]);
            }
            // A sector that was durable and is unchanged stays what it was.
            let same = self.durable.len().min(self.live.len()).min(end);
            if same > start && self.durable[start..same] == self.live[start..same] {
                content[start..same].copy_from_slice(&self.durable[start..same]);
            }
        }
        content
    }
}

impl State {
    /// Each name that is the same live and durable stays; the others by the dice.
    fn surviving_names(&self, dice: &mut Dice) -> BTreeMap<PathBuf, Node> {
        let mut paths: Vec<&PathBuf> = self.live.keys().chain(self.durable.keys()).collect();
        paths.sort();
        paths.dedup();
        let mut names: BTreeMap<PathBuf, Node> = BTreeMap::new();
        for path in paths {
            let (live, durable) = (self.live.get(path), self.durable.get(path));
            let settled = match (live, durable) {
                (Some(one), Some(two)) => one.same(two),
                _ => false,
            };
            let kept = if settled || dice.coin() { live } else { durable };
            let parent = path.parent().filter(|parent| !is_root(parent));
            let reachable = parent.is_none_or(|parent| names.contains_key(parent));
            if let (Some(node), true) = (kept, reachable) {
                names.insert(path.clone(), node.clone());
            }
        }
        names
    }

    fn used(&self) -> u64 {
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

    fn file(&self, path: &Path) -> io::Result<FileRef> {
        match self.live.get(path) {
            Some(Node::File(file)) => Ok(file.clone()),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !is_root(parent) => match self.live.get(parent) {
                Some(Node::Dir) => Ok(()),
                Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
                None => Err(io::ErrorKind::NotFound.into()),
            },
            _ => Ok(()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<()> {
        self.parent_exists(path)?;
        if self.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.live.insert(path.to_owned(), node);
        Ok(())
    }

    /// Fails where the script or the rate says so.
    fn fault(&mut self, operation: Operation) -> io::Result<()> {
        let mut hit = None;
        self.script.retain_mut(|(wanted, after, fault)| {
            if *wanted != operation || hit.is_some() {
                return true;
            }
            if *after == 0 {
                hit = Some(*fault);
                return false;
            }
            *after -= 1;
            true
        });
        if hit.is_none()
            && let Some((rate, fault)) = self.rates.get(&operation).copied()
            && rate > 0
            && self.dice.below(1_000_000) < rate as usize
        {
            hit = Some(fault);
        }
        hit.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn sync_names(&mut self, dir: &Path) {
        let inside = |path: &Path| path.parent() == Some(dir);
        self.durable.retain(|path, _| !inside(path));
        for (path, node) in &self.live {
            if inside(path) {
                self.durable.insert(path.clone(), node.clone());
            }
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/")
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.fault(Operation::Create)?;
        let file = FileRef::default();
        state.add(path, Node::File(file.clone()))?;
        Ok(Box::new(SimFile { disk: self.0.clone(), generation: state.generation, file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.0.lock();
        let file = state.file(path)?;
        Ok(Box::new(SimFile { disk: self.0.clone(), generation: state.generation, file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::Link)?;
        let file = state.file(from)?;
        state.parent_exists(to)?;
        state.live.remove(from);
        state.live.insert(to.to_owned(), Node::File(file));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::Link)?;
        let file = state.file(from)?;
        state.add(to, Node::File(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::Remove)?;
        state.file(path)?;
        state.live.remove(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        match state.live.get(path) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        if state.live.keys().any(|other| other.parent() == Some(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.live.remove(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let state = self.0.lock();
        if !is_root(dir) && !matches!(state.live.get(dir), Some(Node::Dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.live.iter().filter(|(path, _)| path.parent() == Some(dir));
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
            match state.live.get(ancestor) {
                Some(Node::Dir) => break,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => missing.push(ancestor.to_owned()),
            }
        }
        for folder in missing.into_iter().rev() {
            state.live.insert(folder.clone(), Node::Dir);
            // As in the real one, each parent is synced, which settles its other names too.
            state.sync_names(folder.parent().unwrap_or(Path::new("")));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Operation::SyncDir)?;
        state.sync_names(dir);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.lock().live.contains_key(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut state = self.0.lock();
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !state.live.contains_key(path) {
            state.add(path, Node::File(FileRef::default()))?;
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

struct SimFile {
    disk: Arc<Mutex<State>>,
    generation: u64,
    file: FileRef,
}

impl SimFile {
    /// The disk's state, unless the process that opened this handle has died.
    fn enter(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.lock();
        if state.generation != self.generation {
            return Err(io::Error::other("file handle from before a simulated crash"));
        }
        state.fault(operation)?;
        Ok(state)
    }
}

impl DiskFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let entered = self.enter(Operation::Append);
        let mut state = match entered {
            Ok(state) => state,
            Err(error) => {
                // A failing write may have written a part.
                let mut state = self.disk.lock();
                if state.generation == self.generation {
                    let some = state.dice.below(bytes.len() + 1);
                    self.file.lock().live.extend_from_slice(&bytes[..some]);
                }
                return Err(error);
            }
        };
        let room = match state.capacity {
            Some(capacity) => capacity.saturating_sub(state.used()),
            None => u64::MAX,
        };
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let full = fits < bytes.len();
        let written = if full { state.dice.below(fits + 1) } else { fits };
        self.file.lock().live.extend_from_slice(&bytes[..written]);
        if full { Err(Fault::Enospc.error()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.enter(Operation::Read)?;
        let inode = self.file.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.live.len());
        let count = buffer.len().min(inode.live.len() - start);
        buffer[..count].copy_from_slice(&inode.live[start..start + count]);
        let rate = state.flips_per_million_reads as usize;
        if rate > 0 && count > 0 && state.dice.below(1_000_000) < rate {
            let at = state.dice.below(count);
            buffer[at] ^= 1 << state.dice.below(8);
        }
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        let entered = self.enter(Operation::Sync).map(|mut state| {
            state.syncs += 1;
            state.broken_sync
        });
        let mut inode = self.file.lock();
        match entered {
            Ok(broken) if broken || inode.forgotten => Ok(()),
            Ok(_) => {
                let Inode { live, durable, .. } = &mut *inode;
                durable.clone_from(live);
                Ok(())
            }
            Err(error) => {
                inode.forgotten = true;
                Err(error)
            }
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let state = self.enter(Operation::Append)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.file.lock().live.truncate(len);
        drop(state);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().live.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_file(content: &[u8]) -> (SimDisk, Box<dyn DiskFile>) {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("/d")).unwrap();
        let mut file = disk.create(Path::new("/d/f")).unwrap();
        file.append(content).unwrap();
        (disk, file)
    }

    fn content(disk: &SimDisk) -> Vec<u8> {
        let file = disk.open(Path::new("/d/f")).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn what_was_synced_survives_every_crash() {
        for seed in 0..200 {
            let (disk, mut file) = disk_with_file(&[7; 2000]);
            file.sync().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.append(&[9; 3000]).unwrap();
            disk.crash(seed);
            assert_eq!(content(&disk)[..2000], [7; 2000]);
            assert!(file.append(b"x").is_err(), "a dead process cannot write");
        }
    }

    #[test]
    fn what_was_not_synced_is_kept_lost_or_torn() {
        let (mut kept, mut lost, mut torn, mut gone) = (0, 0, 0, 0);
        for seed in 0..400 {
            let (disk, mut file) = disk_with_file(&[7; 600]);
            if seed % 2 == 0 {
                disk.sync_dir(Path::new("/d")).unwrap();
            }
            file.sync().unwrap();
            file.append(&[9; 3000]).unwrap();
            disk.crash(seed);
            if !disk.exists(Path::new("/d/f")).unwrap() {
                gone += 1;
                continue;
            }
            match content(&disk) {
                all if all[600..] == [9; 3000] => kept += 1,
                none if none.len() == 600 => lost += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 10 && lost > 10 && torn > 10 && gone > 10, "{kept} {lost} {torn} {gone}");
    }

    #[test]
    fn a_failed_sync_is_never_made_good() {
        let (disk, mut file) = disk_with_file(b"x");
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.fail_after(Operation::Sync, 0, Fault::Eio);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let lost = (0..50).any(|seed| {
            let (disk, mut file) = disk_with_file(b"x");
            disk.sync_dir(Path::new("/d")).unwrap();
            disk.fail_after(Operation::Sync, 0, Fault::Eio);
            assert!(file.sync().is_err());
            file.sync().unwrap();
            disk.crash(seed);
            content(&disk) != b"x"
        });
        assert!(lost);
    }

    #[test]
    fn a_full_disk_writes_a_part_and_says_so() {
        let (disk, mut file) = disk_with_file(&[1; 100]);
        disk.set_capacity(Some(150));
        let error = file.append(&[2; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(file.len().unwrap() <= 150);
        disk.set_capacity(None);
        file.append(&[2; 100]).unwrap();
    }

    #[test]
    fn a_name_is_linked_once_and_survives_when_its_folder_is_synced() {
        let (disk, mut file) = disk_with_file(b"x");
        file.sync().unwrap();
        disk.link(Path::new("/d/f"), Path::new("/d/g")).unwrap();
        let twice = disk.link(Path::new("/d/f"), Path::new("/d/g")).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.remove(Path::new("/d/g")).unwrap();
        let kept = (0..50).filter(|seed| {
            let (disk, mut file) = disk_with_file(b"x");
            file.sync().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            disk.remove(Path::new("/d/f")).unwrap();
            disk.crash(*seed);
            disk.exists(Path::new("/d/f")).unwrap()
        });
        assert!((1..50).contains(&kept.count()));
    }

    #[test]
    fn sleepers_wake_when_time_is_moved() {
        let clock = SimClock::new(0);
        let mut sleep = clock.sleep(Duration::from_secs(2));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sleep.as_mut().poll(&mut cx).is_pending());
        clock.advance(Duration::from_secs(1));
        assert!(sleep.as_mut().poll(&mut cx).is_pending());
        clock.advance(Duration::from_secs(1));
        assert!(sleep.as_mut().poll(&mut cx).is_ready());
        assert_eq!(clock.now_ns(), 2_000_000_000);
    }
}
