//! The journal: the one place where rows become durable, by group commit.
//!
//! Callers queue encoded groups and go on. One thread takes everything that was queued while
//! the last fsync ran, writes it with one call, syncs once, and answers in order. A group's
//! sequence is given when it is queued, so the order of the queue is the order of the log.
//!
//! What each [`Durability`] asks for: `every_write` is answered after the fsync; `periodic`
//! after the write, with an fsync within the configured interval; `os_default` after the
//! write, with an fsync when the file is full; `none` before the write. A request may choose
//! its own; an answer still never overtakes one before it.
//!
//! Any failure of the disk throws the [`Poison`] switch: those who wait get the error, and so
//! does everybody afterwards. The core is the synchronous [`Journal::step`]; in production a
//! thread calls it, in simulation the test does ([`Drive::Manual`]).
//!
//! The price of one thread for everything: a slow disk is felt by every table alike, and one
//! table cannot be given a faster one.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::env::{DiskFile, Env};
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, PartitionId, Position, Seq};
use crate::observe::{Trace, metrics};
use crate::storage::frame::{FILE_HEADER, FRAME_HEADER, FileHeader, frame_header};
use crate::storage::journal::files::{FileInfo, Files};
use crate::storage::log::{Done, Durability, LogWriter, RecordGroup};
use crate::storage::poison::Poison;

pub mod files;
pub mod kept;
pub mod local;
pub mod stats;
#[cfg(test)]
mod tests;

use stats::Stats;

/// How far the log is durable: all files before this one, and so much of it, which is up to the
/// end of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The number of the file that is written to.
    pub number: u64,
    /// How many of its bytes are durable.
    pub bytes: u64,
}

/// Who calls [`Journal::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// A thread of the journal's own.
    Thread,
    /// The test, by hand.
    Manual,
}

/// Limits and habits of a journal.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size at which a new file is begun.
    pub file_bytes: u64,
    /// Bytes that may wait.
    pub queue_bytes: usize,
    /// Size of one record.
    pub max_record_bytes: usize,
    /// Interval between fsyncs for `periodic`.
    pub period: Duration,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// There was nothing to do.
    Idle,
    /// Written bytes wait for an fsync that is due after this time.
    SyncIn(Duration),
    /// Groups were written or synced.
    Worked,
}

/// The writer of one partition's log files.
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    env: Env,
    partition: PartitionId,
    epoch: Epoch,
    limits: Limits,
    poison: Poison,
    queue: Mutex<Queue>,
    /// Signalled when something is queued or the journal is closed.
    wake: Condvar,
    core: Mutex<Core>,
    files: Arc<Files>,
    stats: Arc<Stats>,
    queued_bytes: AtomicU64,
    rotate: AtomicBool,
    /// Whether the file has bytes that may not be durable yet.
    unsynced: AtomicBool,
    durable: watch::Sender<Extent>,
}

struct Queue {
    waiting: Vec<Waiting>,
    next: Seq,
    closed: bool,
}

struct Waiting {
    group: RecordGroup,
    first: Seq,
    durability: Durability,
    done: Done,
    /// From queueing to the answer, within the trace of whoever queued it.
    trace: Trace,
}

/// The open file; touched only by whoever steps.
struct Core {
    dir: PathBuf,
    file: Box<dyn DiskFile>,
    info: FileInfo,
    /// Bytes of the file that are known to be durable.
    mark: u64,
    /// When the oldest unsynced `periodic` byte was written.
    unsynced_since: Option<Duration>,
    headers: Vec<[u8; FRAME_HEADER]>,
}

impl Journal {
    /// Begins the partition's next file, so that an earlier owner's files stay as they are.
    ///
    /// # Errors
    /// `fenced` where the file exists already; I/O errors.
    pub(crate) fn start(
        env: &Env,
        dir: PathBuf,
        partition: PartitionId,
        epoch: Epoch,
        files: Arc<Files>,
        poison: Poison,
        limits: Limits,
        drive: Drive,
    ) -> Result<Journal> {
        let (number, previous_len) = files.next_number();
        let first = Seq(1);
        let before = files.before();
        let header = FileHeader { partition, epoch, number, first, previous_len, before };
        let core = Core::begin(env, dir, header)?;
        let (durable, _) = watch::channel(core.extent());
        let shared = Arc::new(Shared {
            env: env.clone(),
            partition,
            epoch,
            limits,
            poison,
            queue: Mutex::new(Queue { waiting: Vec::new(), next: first, closed: false }),
            wake: Condvar::new(),
            core: Mutex::new(core),
            files,
            stats: Arc::default(),
            queued_bytes: AtomicU64::new(0),
            rotate: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
            durable,
        });
        let thread = match drive {
            Drive::Manual => None,
            Drive::Thread => Some(spawn(shared.clone())?),
        };
        Ok(Journal { shared, thread: Mutex::new(thread) })
    }

    /// One round by hand: writes what is queued, syncs where asked, answers.
    pub fn step(&self) -> Stepped {
        self.shared.step()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.shared.queued_bytes.load(Ordering::Relaxed)
    }

    /// Writes what is queued and gives the current file as far as it is written, which is up to
    /// the end of a group. Blocks for as long as an fsync takes.
    pub fn extent(&self) -> FileInfo {
        self.shared.step();
        self.shared.core.lock().info.clone()
    }

    /// How far the log is durable, now and as it goes on.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Extent> {
        self.shared.durable.subscribe()
    }

    /// The position that the next record gets.
    #[must_use]
    pub fn next(&self) -> Position {
        let Shared { partition, epoch, .. } = *self.shared;
        Position { partition, epoch, seq: self.shared.queue.lock().next }
    }

    /// The path of a file that the journal writes to, or wrote to.
    #[must_use]
    pub fn path(&self, number: u64) -> PathBuf {
        self.shared.core.lock().dir.join(file_name(number))
    }

    /// Whether records are written that no fsync has followed yet, as in the weaker modes.
    #[must_use]
    pub fn is_unsynced(&self) -> bool {
        self.shared.unsynced.load(Ordering::Relaxed)
    }

    /// Makes what is written durable, whatever was asked for. Blocks for as long as an fsync
    /// takes; a failure stops the store.
    pub fn sync(&self) {
        self.shared.sync_rest();
    }

    /// Begins a new file with the next step that writes, whatever the size of the current one.
    pub fn rotate(&self) {
        self.shared.rotate.store(true, Ordering::Relaxed);
    }

    /// Writes and syncs what is queued, then refuses more. Groups queued afterwards are
    /// answered `shutting_down`.
    pub fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().take();
        match thread {
            // The last owner may be dropped by an answer, on the journal's own thread.
            Some(thread) if thread.thread().id() != std::thread::current().id() => {
                if thread.join().is_err() {
                    self.shared.poison.poison(Error::internal("the journal thread panicked"));
                }
            }
            Some(_) => {}
            None => {
                self.shared.step();
                self.shared.sync_rest();
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.thread.lock().is_some() {
            self.close();
        }
    }
}

impl LogWriter for Journal {
    fn append(&self, group: RecordGroup, durability: Durability, done: Done) {
        self.shared.append(group, durability, done);
    }

    fn has_room(&self) -> bool {
        self.queued_bytes() < self.shared.limits.queue_bytes as u64
    }
}

fn spawn(shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || shared.run())
        .map_err(|error| Error::io("start the journal thread", error))
}

impl Shared {
    fn append(&self, group: RecordGroup, durability: Durability, done: Done) {
        if let Err(error) = self.admit(&group) {
            return done(Err(error));
        }
        let bytes = group.bytes() as u64;
        let trace = Trace::here().child("journal.commit");
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return done(Err(Error::new(Code::ShuttingDown, "the journal is closed")));
        }
        let first = queue.next;
        queue.next = Seq(first.0 + group.records.len() as u64);
        queue.waiting.push(Waiting { group, first, durability, done, trace });
        let was_idle = queue.waiting.len() == 1;
        // Counted under the lock, so that the thread never takes away what was not added.
        let waiting = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        drop(queue);
        metrics().journal.queued_bytes.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        if was_idle {
            self.wake.notify_one();
        }
    }

    fn admit(&self, group: &RecordGroup) -> Result<()> {
        self.poison.check()?;
        let limit = self.limits.max_record_bytes;
        if group.records.is_empty() {
            return Err(Error::internal("a log group without records"));
        }
        if let Some(large) = group.records.iter().find(|record| record.payload.len() > limit) {
            return Err(Error::new(
                Code::TooLarge,
                format!("a record of {} bytes exceeds {limit} bytes", large.payload.len()),
            )
            .with_hint("send smaller batches, or raise journal.max_record_bytes"));
        }
        let waiting = self.queued_bytes.load(Ordering::Relaxed);
        // A group larger than the whole queue is let through when nothing else waits.
        if waiting > 0 && waiting + group.bytes() as u64 > self.limits.queue_bytes as u64 {
            return Err(Error::new(Code::Busy, format!("{waiting} bytes wait for the journal"))
                .with_hint("the disk is slower than the writers; retry shortly"));
        }
        Ok(())
    }

    /// The thread's loop. A panic in an answer is a failure of a durable path like any other.
    fn run(&self) {
        loop {
            let round = std::panic::catch_unwind(AssertUnwindSafe(|| self.step()));
            let Ok(stepped) = round else {
                // Later rounds answer with the poison's cause.
                self.poison.poison(Error::internal("the journal thread panicked"));
                continue;
            };
            let mut queue = self.queue.lock();
            if !queue.waiting.is_empty() {
                continue;
            }
            if queue.closed {
                drop(queue);
                self.sync_rest();
                return;
            }
            match stepped {
                Stepped::SyncIn(delay) => {
                    self.wake.wait_for(&mut queue, delay);
                }
                Stepped::Idle => self.wake.wait(&mut queue),
                // Another round tells whether an fsync is due.
                Stepped::Worked => {}
            }
        }
    }

    fn step(&self) -> Stepped {
        let mut core = self.core.lock();
        let taken = std::mem::take(&mut self.queue.lock().waiting);
        if taken.is_empty() {
            return self.sync_when_due(&mut core);
        }
        let bytes: usize = taken.iter().map(|each| each.group.bytes()).sum();
        self.commit(&mut core, taken);
        let before = self.queued_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        let left = before.saturating_sub(bytes as u64);
        metrics().journal.queued_bytes.set(i64::try_from(left).unwrap_or(i64::MAX));
        Stepped::Worked
    }

    /// Writes and answers a batch. After a failure the rest of the batch is told of it.
    fn commit(&self, core: &mut Core, taken: Vec<Waiting>) {
        let mut answers = Answers(VecDeque::with_capacity(taken.len()));
        let mut groups = Vec::with_capacity(taken.len());
        // One write and one fsync serve them all, so each trace has a step of its own for it.
        let mut steps = Vec::new();
        for Waiting { group, first, durability, done, trace } in taken {
            let done = traced(done, trace, &mut steps);
            let seq = Seq(first.0 + group.records.len() as u64 - 1);
            let last = Position { partition: self.partition, epoch: self.epoch, seq };
            answers.0.push_back((durability, last, done));
            groups.push((first, group));
        }
        let result =
            self.poison.check().and_then(|()| self.write_and_sync(core, &groups, &mut answers));
        if let Err(error) = result {
            self.poison.poison(error.clone());
            answers.fail(&error);
        }
    }

    fn write_and_sync(
        &self,
        core: &mut Core,
        groups: &[(Seq, RecordGroup)],
        answers: &mut Answers,
    ) -> Result<()> {
        let wants = |wanted| answers.0.iter().any(|(durability, _, _)| *durability == wanted);
        let sync = wants(Durability::EveryWrite);
        let periodic = wants(Durability::Periodic);
        answers.give_while(|durability| durability == Durability::None);
        let rotate = self.rotate.swap(false, Ordering::Relaxed);
        if (rotate || core.info.bytes >= self.limits.file_bytes)
            && let Some((first, _)) = groups.first()
        {
            self.next_file(core, *first)?;
        }
        self.write(core, groups)?;
        if periodic && core.unsynced_since.is_none() {
            core.unsynced_since = Some(self.env.clock.monotonic());
        }
        // A queue that is never empty must not put off the sync that `periodic` promises.
        let due = || core.unsynced_since.is_some_and(|since| self.until_sync(since).is_zero());
        if sync || due() {
            answers.give_while(|durability| durability != Durability::EveryWrite);
            self.sync(core)?;
        }
        answers.give_while(|_| true);
        Ok(())
    }

    /// Writes frames for all groups with one call. Payloads are not copied.
    fn write(&self, core: &mut Core, groups: &[(Seq, RecordGroup)]) -> Result<()> {
        core.headers.clear();
        self.unsynced.store(true, Ordering::Relaxed);
        let written_ms = u64::try_from(self.env.clock.now_ns() / 1_000_000).unwrap_or(0);
        let mut payloads = Vec::new();
        for (first, group) in groups {
            for (index, record) in group.records.iter().enumerate() {
                let seq = Seq(first.0 + index as u64);
                let last = index + 1 == group.records.len();
                core.headers.push(frame_header(record, seq, last, core.mark, written_ms));
                payloads.push(record.payload.as_ref());
                let position = Position { partition: self.partition, epoch: self.epoch, seq };
                core.info.note(record.table, position, written_ms);
            }
        }
        let parts: Vec<&[u8]> = core
            .headers
            .iter()
            .zip(payloads)
            .flat_map(|(header, payload)| [header.as_slice(), payload])
            .collect();
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        core.file.append_all(&parts).map_err(|error| {
            full_hint(Error::io(format_args!("write log file {}", core.info.path.display()), error))
        })?;
        core.info.bytes += bytes as u64;
        self.stats.written(groups.len(), core.headers.len(), bytes);
        Ok(())
    }

    fn sync(&self, core: &mut Core) -> Result<()> {
        let before = self.env.clock.monotonic();
        core.file.sync().map_err(|error| {
            full_hint(Error::io(format_args!("sync log file {}", core.info.path.display()), error))
        })?;
        self.stats.synced(self.env.clock.monotonic().saturating_sub(before));
        core.mark = core.info.bytes;
        core.unsynced_since = None;
        self.unsynced.store(false, Ordering::Relaxed);
        self.durable.send_replace(core.extent());
        Ok(())
    }

    fn sync_when_due(&self, core: &mut Core) -> Stepped {
        let Some(since) = core.unsynced_since else { return Stepped::Idle };
        let left = self.until_sync(since);
        if !left.is_zero() {
            return Stepped::SyncIn(left);
        }
        self.sync_or_poison(core);
        Stepped::Worked
    }

    /// What is left of the interval that began with the oldest unsynced `periodic` byte.
    fn until_sync(&self, since: Duration) -> Duration {
        let waited = self.env.clock.monotonic().saturating_sub(since);
        self.limits.period.saturating_sub(waited)
    }

    /// The last sync, so that a clean stop costs nothing in any mode.
    fn sync_rest(&self) {
        let mut core = self.core.lock();
        if core.mark < core.info.bytes && self.poison.cause().is_none() {
            self.sync_or_poison(&mut core);
        }
    }

    fn sync_or_poison(&self, core: &mut Core) {
        if let Err(error) = self.sync(core) {
            core.unsynced_since = None;
            self.poison.poison(error);
        }
    }

    /// Syncs the current file and begins the next, which vouches for it.
    fn next_file(&self, core: &mut Core, first: Seq) -> Result<()> {
        self.sync(core)?;
        let header = FileHeader {
            partition: self.partition,
            epoch: self.epoch,
            number: core.info.number + 1,
            first,
            previous_len: core.info.bytes,
            before: (self.epoch, Seq(first.0.saturating_sub(1))),
        };
        let next = Core::begin(&self.env, core.dir.clone(), header)?;
        let full = std::mem::replace(core, next);
        self.files.seal(full.info);
        // Whoever sees the next file finds this one among those that are complete.
        self.durable.send_replace(core.extent());
        Ok(())
    }
}

impl Core {
    fn extent(&self) -> Extent {
        Extent { number: self.info.number, bytes: self.mark }
    }

    /// Makes a file that has a durable header and a durable name.
    fn begin(env: &Env, dir: PathBuf, header: FileHeader) -> Result<Core> {
        let path = dir.join(file_name(header.number));
        let file = create(env, &dir, &path, &header).map_err(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                return Error::new(
                    Code::Fenced,
                    format!("log file {} was made by another process", path.display()),
                );
            }
            full_hint(Error::io(format_args!("begin log file {}", path.display()), error))
        })?;
        let position = Position {
            partition: header.partition,
            epoch: header.epoch,
            seq: Seq(header.first.0.saturating_sub(1)),
        };
        let bytes = FILE_HEADER as u64;
        Ok(Core {
            dir,
            file,
            info: FileInfo::new(header.number, path, bytes, position),
            mark: bytes,
            unsynced_since: None,
            headers: Vec::new(),
        })
    }
}

fn create(
    env: &Env,
    dir: &Path,
    path: &Path,
    header: &FileHeader,
) -> std::io::Result<Box<dyn DiskFile>> {
    let mut file = env.disk.create(path)?;
    file.append(&header.encode())?;
    file.sync()?;
    env.disk.sync_dir(dir)?;
    Ok(file)
}

/// The name of a log file: its number in 20 digits, so that names sort as numbers do.
#[must_use]
pub fn file_name(number: u64) -> String {
    format!("{number:020}.log")
}

/// Adds the way out to an error of a full disk.
fn full_hint(error: Error) -> Error {
    match error.code() {
        Code::DiskFull => error.with_hint(
            "make room on the device of the data folder, then start the server again; nothing \
             acknowledged is lost",
        ),
        _ => error,
    }
}

/// Lets the step of a commit last until its answer, and begins one for writing and syncing.
fn traced(done: Done, commit: Trace, steps: &mut Vec<Trace>) -> Done {
    if !commit.is_on() {
        return done;
    }
    steps.push(commit.child("journal.write"));
    Box::new(move |outcome| {
        done(outcome);
        drop(commit);
    })
}

/// Who waits for a batch, in order.
struct Answers(VecDeque<(Durability, Position, Done)>);

impl Answers {
    /// Tells those at the front that they are done, as long as the condition holds.
    fn give_while(&mut self, ready: impl Fn(Durability) -> bool) {
        while let Some((durability, _, _)) = self.0.front()
            && ready(*durability)
        {
            if let Some((_, position, done)) = self.0.pop_front() {
                done(Ok(position));
            }
        }
    }

    fn fail(&mut self, error: &Error) {
        for (_, _, done) in self.0.drain(..) {
            done(Err(error.clone()));
        }
    }
}
