//! Failpoints: a name for every durable step of the store, and a disk that fails there on demand.
//!
//! [`FAILPOINTS`] lists every kind of change that the store makes to its folder, and
//! [`BACKUP_FAILPOINTS`] those of a backup that is written. [`Failpoints`] is a disk over another one that knows at each call which point it is, and kills the process,
//! fails or hangs where it was told to. Nothing of this is in the code that keeps data, so no
//! step can be forgotten there: a step without a name is noted ([`Failpoints::unnamed`]), and a
//! test fails on it.
//!
//! A server takes its orders from the variable [`VARIABLE`] of its environment, separated by
//! commas: `point=effect`, `point=effect@n` for the n-th time that the point is reached, or
//! `point=effect@nxm` for m times from then on. Without the variable the plain disk is used and
//! this file costs nothing; with it, every start and every shot is logged. A name that does not
//! exist refuses the start.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::env::{Disk, DiskFile, Elsewhere, Entry, Env, Shared};
use crate::error::{Code, Error, Result};

/// The variable of the environment that a server takes its failpoints from.
pub const VARIABLE: &str = "KYMO_FAILPOINTS";

/// What an error of a step comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The store refuses to go on, or to open; the next start recovers.
    Stop,
    /// The work is done again, by itself; the store goes on.
    Retry,
    /// The request that needed it fails; the store goes on.
    Refuse,
}

/// What is done to a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Making a folder.
    Folder,
    /// Making a file.
    Create,
    /// Appending to it.
    Write,
    /// Syncing it.
    Sync,
    /// Giving it its last name, by a link or by renaming.
    Name,
    /// Syncing the folder after a name came.
    SyncDir,
    /// Removing a temporary name.
    Unname,
    /// Removing a file.
    Remove,
    /// Syncing the folder after a file went.
    SyncRemoved,
}

/// Whose file or folder it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The folders that a store begins with.
    Store,
    /// Log files.
    Journal,
    /// Log files that are kept as history.
    Kept,
    /// The end of a log file on its way into another one, while a store is opened.
    Recovery,
    /// Edits of the metadata.
    Manifest,
    /// Checkpoints of the metadata.
    Checkpoint,
    /// Segments.
    Segment,
    /// The bytes of plugins.
    Component,
    /// Everything in a folder of backups.
    Backup,
}

/// What the folder holds that failpoints are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A store.
    Store,
    /// Backups.
    Backups,
}

/// A durable step of the store.
#[derive(Debug, PartialEq, Eq)]
pub struct Failpoint {
    name: &'static str,
    place: Place,
    step: Step,
    on_error: OnError,
}

impl Failpoint {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What an error there comes to.
    #[must_use]
    pub fn on_error(&self) -> OnError {
        self.on_error
    }

    /// Whether bytes are written there, which can be cut off in the middle.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.step == Step::Write
    }
}

const fn point(name: &'static str, place: Place, step: Step, on_error: OnError) -> Failpoint {
    Failpoint { name, place, step, on_error }
}

/// Those of a store, in the order in which it comes by them.
pub static FAILPOINTS: &[Failpoint] = &{
    use OnError::{Refuse, Retry, Stop};
    use Place::{Checkpoint, Component, Journal, Kept, Manifest, Recovery, Segment, Store};
    use Step::{Create, Folder, Name, Remove, Sync, SyncDir, SyncRemoved, Unname, Write};
    [
        point("store.mkdir", Store, Folder, Stop),
        point("recovery.create", Recovery, Create, Stop),
        point("recovery.write", Recovery, Write, Stop),
        point("recovery.sync", Recovery, Sync, Stop),
        point("recovery.rename", Recovery, Name, Stop),
        point("recovery.sync_dir", Recovery, SyncDir, Stop),
        point("recovery.remove", Recovery, Unname, Stop),
        point("journal.rotate", Journal, Create, Stop),
        point("journal.write", Journal, Write, Stop),
        point("journal.sync", Journal, Sync, Stop),
        point("journal.sync_dir", Journal, SyncDir, Stop),
        point("journal.remove", Journal, Remove, Retry),
        point("journal.sync_removed", Journal, SyncRemoved, Retry),
        point("kept.mkdir", Kept, Folder, Retry),
        point("kept.link", Kept, Name, Retry),
        point("kept.sync_dir", Kept, SyncDir, Retry),
        point("kept.remove", Kept, Remove, Retry),
        point("segment.mkdir", Segment, Folder, Retry),
        point("segment.create", Segment, Create, Retry),
        point("segment.write", Segment, Write, Retry),
        point("segment.sync", Segment, Sync, Retry),
        point("segment.link", Segment, Name, Retry),
        point("segment.unlink", Segment, Unname, Retry),
        point("segment.sync_dir", Segment, SyncDir, Retry),
        point("segment.remove", Segment, Remove, Retry),
        point("manifest.create", Manifest, Create, Stop),
        point("manifest.write", Manifest, Write, Stop),
        point("manifest.sync", Manifest, Sync, Stop),
        point("manifest.link", Manifest, Name, Stop),
        point("manifest.sync_dir", Manifest, SyncDir, Stop),
        point("manifest.unlink", Manifest, Unname, Stop),
        point("manifest.remove", Manifest, Remove, Retry),
        point("checkpoint.create", Checkpoint, Create, Retry),
        point("checkpoint.write", Checkpoint, Write, Retry),
        point("checkpoint.sync", Checkpoint, Sync, Retry),
        point("checkpoint.link", Checkpoint, Name, Retry),
        point("checkpoint.sync_dir", Checkpoint, SyncDir, Retry),
        point("checkpoint.unlink", Checkpoint, Unname, Retry),
        point("checkpoint.remove", Checkpoint, Remove, Retry),
        point("component.mkdir", Component, Folder, Refuse),
        point("component.create", Component, Create, Refuse),
        point("component.write", Component, Write, Refuse),
        point("component.sync", Component, Sync, Refuse),
        point("component.rename", Component, Name, Refuse),
        point("component.sync_dir", Component, SyncDir, Refuse),
        point("component.unlink", Component, Unname, Retry),
        point("component.remove", Component, Remove, Retry),
    ]
};

/// Those of a backup while it is written. An error fails the backup; earlier ones stay as they
/// are, and the next one goes on from what was copied.
pub static BACKUP_FAILPOINTS: &[Failpoint] = &{
    use OnError::Refuse;
    use Place::Backup;
    use Step::{Create, Folder, Name, Remove, Sync, SyncDir, Unname, Write};
    [
        point("backup.mkdir", Backup, Folder, Refuse),
        point("backup.create", Backup, Create, Refuse),
        point("backup.write", Backup, Write, Refuse),
        point("backup.sync", Backup, Sync, Refuse),
        point("backup.link", Backup, Name, Refuse),
        point("backup.unlink", Backup, Unname, Refuse),
        point("backup.sync_dir", Backup, SyncDir, Refuse),
        point("backup.remove", Backup, Remove, Refuse),
    ]
};

/// The points of stores and of backups.
fn all() -> impl Iterator<Item = &'static Failpoint> {
    FAILPOINTS.iter().chain(BACKUP_FAILPOINTS)
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The process is aborted before the step.
    KillBefore,
    /// The process is aborted when half of the bytes are written.
    KillTorn,
    /// The process is aborted after the step, before anybody hears of it.
    KillAfter,
    /// The step fails with an I/O error, a write after half of its bytes.
    Eio,
    /// The step fails for want of space, a write after half of its bytes.
    Enospc,
    /// The step never ends, as on a disk that does not answer.
    Hang,
}

const EFFECTS: [(&str, Effect); 6] = [
    ("kill_before", Effect::KillBefore),
    ("kill_torn", Effect::KillTorn),
    ("kill_after", Effect::KillAfter),
    ("eio", Effect::Eio),
    ("enospc", Effect::Enospc),
    ("hang", Effect::Hang),
];

/// An order: what happens where, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shot {
    /// Where.
    pub point: &'static Failpoint,
    /// What.
    pub effect: Effect,
    /// At which time that the point is reached, counted from 1.
    pub first: u64,
    /// How many times from then on.
    pub times: u64,
}

impl Shot {
    /// What happens the first time that a point is reached, and not again.
    #[must_use]
    pub fn once(point: &'static Failpoint, effect: Effect) -> Shot {
        Shot { point, effect, first: 1, times: 1 }
    }

    fn hits(&self, point: &Failpoint, time: u64) -> bool {
        self.point == point && time >= self.first && time - self.first < self.times
    }
}

impl FromStr for Shot {
    type Err = Error;

    fn from_str(text: &str) -> Result<Shot> {
        let (name, rest) = text.split_once('=').ok_or_else(|| wrong(text, "names no effect"))?;
        let (effect, when) = rest.split_once('@').unwrap_or((rest, "1"));
        let (first, times) = when.split_once('x').unwrap_or((when, "1"));
        let point = all().find(|point| point.name == name);
        let effect = EFFECTS.iter().find(|(known, _)| *known == effect).map(|(_, effect)| *effect);
        let count = |text: &str| text.parse::<u64>().ok().filter(|count| *count > 0);
        let shot = Shot {
            point: point.ok_or_else(|| wrong(text, "names no point that exists"))?,
            effect: effect.ok_or_else(|| wrong(text, "names no effect that exists"))?,
            first: count(first).ok_or_else(|| wrong(text, "counts from 1"))?,
            times: count(times).ok_or_else(|| wrong(text, "counts from 1"))?,
        };
        if shot.effect == Effect::KillTorn && !shot.point.is_write() {
            return Err(wrong(text, "tears what is no write"));
        }
        Ok(shot)
    }
}

fn wrong(order: &str, what: &str) -> Error {
    let points: Vec<&str> = all().map(Failpoint::name).collect();
    let effects = EFFECTS.map(|(name, _)| name);
    Error::new(Code::Settings, format!("{VARIABLE}: {order:?} {what}")).with_hint(format!(
        "this variable is for tests: unset it. Orders are point=effect[@n[xm]]; points are {}; \
         effects are {}",
        points.join(", "),
        effects.join(", ")
    ))
}

/// Reads orders that are separated by commas.
///
/// # Errors
/// `invalid_settings`, naming the order and what there is.
pub fn parse(text: &str) -> Result<Vec<Shot>> {
    text.split(',')
        .map(str::trim)
        .filter(|order| !order.is_empty())
        .map(str::parse::<Shot>)
        .collect()
}

/// The environment of a process whose store, or whose backups, lie in `root`: with a disk that
/// fails where [`VARIABLE`] says, which is as it is where that is not set.
///
/// # Errors
/// As [`parse`].
pub fn armed(env: Env, root: &Path, holds: Holds) -> Result<Env> {
    let shots = match std::env::var(VARIABLE) {
        Ok(text) => parse(&text)?,
        Err(std::env::VarError::NotPresent) => return Ok(env),
        Err(std::env::VarError::NotUnicode(_)) => return Err(wrong("…", "is no text")),
    };
    if shots.is_empty() {
        return Ok(env);
    }
    tracing::warn!(?shots, "failpoints are armed: this process is going to fail on purpose");
    let disk = Failpoints::over(env.disk, root, holds, shots, || std::process::abort());
    Ok(Env { disk: Arc::new(disk), ..env })
}

/// A disk that fails where it is told to; clones are one and the same.
#[derive(Clone)]
pub struct Failpoints {
    disk: Arc<dyn Disk>,
    state: Arc<State>,
}

struct State {
    root: PathBuf,
    holds: Holds,
    shots: Vec<Shot>,
    /// How often each of [`all`] was reached.
    reached: Vec<AtomicU64>,
    fired: AtomicU64,
    unnamed: Mutex<BTreeSet<String>>,
    kill: Box<dyn Fn() + Send + Sync>,
    /// The process was killed, which only a simulated one survives.
    dead: AtomicBool,
}

thread_local! {
    /// What this thread did last to a file: a sync of the folder belongs to it.
    static LAST: Cell<Option<(Place, Step)>> = const { Cell::new(None) };
}

impl Failpoints {
    /// A disk over `disk` for a store in the folder `root`. `kill` ends the process; where it
    /// returns, every later call fails as if it had.
    #[must_use]
    pub fn new(
        disk: Arc<dyn Disk>,
        root: &Path,
        shots: Vec<Shot>,
        kill: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self::over(disk, root, Holds::Store, shots, kill)
    }

    /// As [`Failpoints::new`], for a folder that holds something else.
    #[must_use]
    pub fn over(
        disk: Arc<dyn Disk>,
        root: &Path,
        holds: Holds,
        shots: Vec<Shot>,
        kill: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            root: root.to_owned(),
            holds,
            shots,
            reached: all().map(|_| AtomicU64::new(0)).collect(),
            fired: AtomicU64::new(0),
            unnamed: Mutex::default(),
            kill: Box::new(kill),
            dead: AtomicBool::new(false),
        };
        Failpoints { disk, state: Arc::new(state) }
    }

    /// How often a point was reached.
    #[must_use]
    pub fn reached(&self, point: &Failpoint) -> u64 {
        let at = all().position(|each| each == point);
        at.map_or(0, |at| self.state.reached[at].load(Ordering::Relaxed))
    }

    /// How many shots were fired.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.state.fired.load(Ordering::Relaxed)
    }

    /// Whether the process was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state.dead.load(Ordering::Relaxed)
    }

    /// Steps in the store's folder that no point is a name for.
    #[must_use]
    pub fn unnamed(&self) -> Vec<String> {
        self.state.unnamed.lock().iter().cloned().collect()
    }

    /// Does a step on a path, or what was ordered in its place.
    fn pass<T>(
        &self,
        step: Step,
        path: &Path,
        work: impl FnOnce(&dyn Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.state.reach(step, path)? {
            None => work(&*self.disk),
            Some(effect) => self.state.act(effect, || work(&*self.disk)),
        }
    }

    fn file(&self, path: &Path, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(File { inner, path: path.to_owned(), state: self.state.clone() })
    }
}

impl State {
    /// Notes that a point is reached; gives what was ordered for it.
    fn reach(&self, step: Step, path: &Path) -> io::Result<Option<Effect>> {
        self.alive()?;
        let Some((place, temporary)) = self.place(path) else {
            // Nor has the sync of its folder a name.
            LAST.set(None);
            return Ok(None);
        };
        let step = match step {
            Step::Remove if temporary => Step::Unname,
            step => step,
        };
        LAST.set(Some((place, step)));
        Ok(self.arrive(place, step, path))
    }

    /// As [`State::reach`], for the sync of a folder, which belongs to what was done before it.
    fn reach_sync_dir(&self, folder: &Path) -> io::Result<Option<Effect>> {
        self.alive()?;
        let Some((place, last)) = LAST.get().filter(|_| folder.starts_with(&self.root)) else {
            return Ok(None);
        };
        let step = if last == Step::Remove { Step::SyncRemoved } else { Step::SyncDir };
        Ok(self.arrive(place, step, folder))
    }

    fn arrive(&self, place: Place, step: Step, path: &Path) -> Option<Effect> {
        let of = |(_, point): &(usize, &Failpoint)| point.place == place && point.step == step;
        let Some((at, point)) = all().enumerate().find(of) else {
            self.unnamed.lock().insert(format!("{step:?} of {place:?}: {}", path.display()));
            return None;
        };
        let time = self.reached[at].fetch_add(1, Ordering::Relaxed) + 1;
        let shot = self.shots.iter().find(|shot| shot.hits(point, time))?;
        self.fired.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            point = point.name,
            effect = ?shot.effect,
            time,
            path = %path.display(),
            "failpoint reached"
        );
        Some(shot.effect)
    }

    /// Whose path it is, and whether it is a temporary name.
    fn place(&self, path: &Path) -> Option<(Place, bool)> {
        let inside = path.strip_prefix(&self.root).ok()?;
        let mut parts = inside.iter().filter_map(|part| part.to_str());
        let (first, second, third) = (parts.next(), parts.next(), parts.next());
        let name = inside.to_str().unwrap_or_default();
        let temporary = name.ends_with(".tmp") || name.ends_with(".partial");
        let place = match (first, second, third) {
            _ if self.holds == Holds::Backups => Place::Backup,
            (Some("data" | "cold"), _, _) => Place::Segment,
            (Some("plugins"), _, _) => Place::Component,
            (Some("meta"), Some("log"), Some(_)) => Place::Manifest,
            (Some("meta"), Some("snap"), Some(_)) => Place::Checkpoint,
            (Some("wal"), Some(_), Some("kept")) => Place::Kept,
            (Some("wal"), Some(_), Some(_)) if temporary => Place::Recovery,
            (Some("wal"), Some(_), Some(_)) => Place::Journal,
            (None | Some("meta" | "wal"), _, _) => Place::Store,
            _ => return None,
        };
        Some((place, temporary))
    }

    fn act<T>(&self, effect: Effect, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match effect {
            Effect::KillBefore | Effect::KillTorn => Err(self.kill()),
            Effect::KillAfter => {
                work()?;
                Err(self.kill())
            }
            Effect::Eio => Err(io::Error::from_raw_os_error(libc::EIO)),
            Effect::Enospc => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Effect::Hang => loop {
                std::thread::park();
            },
        }
    }

    fn kill(&self) -> io::Error {
        (self.kill)();
        self.dead.store(true, Ordering::Relaxed);
        dead()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead.load(Ordering::Relaxed) { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process was killed at a failpoint")
}

impl Disk for Failpoints {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.pass(Step::Create, path, |disk| disk.create(path))?;
        Ok(self.file(path, inner))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.state.alive()?;
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        // A copy that recovery made belongs to recovery until it has its name.
        let whose = if self.state.place(from).is_some_and(|(place, _)| place == Place::Recovery) {
            from
        } else {
            to
        };
        self.pass(Step::Name, whose, |disk| disk.rename(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass(Step::Name, to, |disk| disk.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Step::Remove, path, |disk| disk.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.state.alive()?;
        self.disk.remove_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.state.alive()?;
        self.disk.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.pass(Step::Folder, dir, |disk| disk.create_dir_all(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.state.reach_sync_dir(dir)? {
            None => self.disk.sync_dir(dir),
            Some(effect) => self.state.act(effect, || self.disk.sync_dir(dir)),
        }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.state.alive()?;
        self.disk.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.state.alive()?;
        self.disk.lock(path)
    }

    fn shared(&self) -> Option<&dyn Shared> {
        self.disk.shared()
    }

    fn cold(&self) -> Option<&dyn Elsewhere> {
        self.disk.cold()
    }
}

struct File {
    inner: Box<dyn DiskFile>,
    path: PathBuf,
    state: Arc<State>,
}

impl DiskFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append_all(&[bytes])
    }

    fn append_all(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let Some(effect) = self.state.reach(Step::Write, &self.path)? else {
            return self.inner.append_all(parts);
        };
        if matches!(effect, Effect::KillTorn | Effect::Eio | Effect::Enospc) {
            write_half(&mut *self.inner, parts)?;
        }
        self.state.act(effect, || self.inner.append_all(parts))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.state.alive()?;
        self.inner.read_at(buffer, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.state.reach(Step::Sync, &self.path)? {
            None => self.inner.sync(),
            Some(effect) => self.state.act(effect, || self.inner.sync()),
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.state.alive()?;
        self.inner.truncate(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.state.alive()?;
        self.inner.len()
    }
}

fn write_half(file: &mut dyn DiskFile, parts: &[&[u8]]) -> io::Result<()> {
    let mut left = parts.iter().map(|part| part.len()).sum::<usize>() / 2;
    for part in parts {
        let some = part.len().min(left);
        file.append(&part[..some])?;
        left -= some;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::Sim;

    fn named(name: &str) -> &'static Failpoint {
        all().find(|point| point.name == name).unwrap()
    }

    fn disk(sim: &Sim, orders: &str) -> Failpoints {
        let disk =
            Failpoints::new(sim.disk.clone(), Path::new("/s"), parse(orders).unwrap(), || ());
        disk.create_dir_all(Path::new("/s/wal/0")).unwrap();
        disk
    }

    #[test]
    fn names_are_told_apart() {
        let mut names: Vec<&str> = all().map(Failpoint::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
        for (at, point) in all().enumerate() {
            let same = |other: &Failpoint| (other.place, other.step) == (point.place, point.step);
            assert_eq!(all().position(same), Some(at), "{}", point.name);
        }
    }

    #[test]
    fn orders_are_read_and_mistakes_are_named() {
        let shots = parse("journal.sync=eio@3x10, segment.write=kill_torn,").unwrap();
        let (sync, write) = (named("journal.sync"), named("segment.write"));
        let first = Shot { point: sync, effect: Effect::Eio, first: 3, times: 10 };
        assert_eq!(shots, [first, Shot::once(write, Effect::KillTorn)]);
        for bad in [
            "journal.sync",
            "journal.sink=eio",
            "journal.sync=eoi",
            "journal.sync=eio@0",
            "journal.sync=eio@2xx",
            "journal.sync=kill_torn",
        ] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.code(), Code::Settings, "{bad}");
            assert!(error.message().contains(bad), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("journal.rotate")), "{error:?}");
        }
    }

    #[test]
    fn a_point_is_shot_at_when_it_was_ordered_and_not_otherwise() {
        let sim = Sim::new(1);
        let disk = disk(&sim, "journal.write=enospc@2x2,segment.write=eio");
        let mut file = disk.create(Path::new("/s/wal/0/1.log")).unwrap();
        let outcomes: Vec<bool> = (0..5).map(|_| file.append(b"abcd").is_ok()).collect();
        assert_eq!(outcomes, [true, false, false, true, true]);
        assert_eq!(file.len().unwrap(), 3 * 4 + 2 * 2, "a write that fails has written a part");
        assert_eq!((disk.reached(named("journal.write")), disk.fired()), (5, 2));
        assert_eq!(disk.reached(named("segment.write")), 0);
    }

    #[test]
    fn whoever_was_killed_does_nothing_more() {
        let sim = Sim::new(1);
        let disk = disk(&sim, "journal.write=kill_torn@2");
        let path = Path::new("/s/wal/0/1.log");
        let mut file = disk.create(path).unwrap();
        file.append(b"one").unwrap();
        assert!(file.append_all(&[b"tw", b"o!"]).is_err() && disk.is_dead());
        assert!(file.sync().is_err() && disk.create(Path::new("/s/wal/0/2.log")).is_err());
        let mut left = [0; 9];
        assert_eq!(sim.disk.open(path).unwrap().read_at(&mut left, 0).unwrap(), 5);
        assert_eq!(&left[..5], b"onetw");
    }

    #[test]
    fn the_sync_of_a_folder_belongs_to_what_was_done_there() {
        let sim = Sim::new(1);
        let disk = disk(&sim, "");
        let (folder, path) = (Path::new("/s/wal/0"), Path::new("/s/wal/0/1.log"));
        disk.create(path).unwrap();
        disk.sync_dir(folder).unwrap();
        disk.remove(path).unwrap();
        disk.sync_dir(folder).unwrap();
        disk.create(Path::new("/s/wal/0/1.log.tmp")).unwrap();
        disk.rename(Path::new("/s/wal/0/1.log.tmp"), path).unwrap();
        disk.sync_dir(folder).unwrap();
        for name in ["journal.sync_dir", "journal.sync_removed", "recovery.sync_dir"] {
            assert_eq!(disk.reached(named(name)), 1, "{name}");
        }
        assert_eq!(disk.unnamed(), Vec::<String>::new());
    }
}
