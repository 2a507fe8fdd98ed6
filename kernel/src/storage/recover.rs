//! Opening a store: what is on disk becomes tables in memory.
//!
//! The order matters. The lock comes first, so that nobody else writes. The metadata says which
//! tables exist and up to which position their rows are in segments. A new epoch is committed
//! before the log is read: from then on an earlier owner that still runs is refused. The log is
//! replayed as older than anything written from now on; whenever its rows take more memory than
//! `journal.replay_bytes`, the largest table is flushed. Only then does a new log file begin.
//! Last, segment files and components that nothing names (of flushes, merges and uploads that
//! did not come to their commit) are removed.
//!
//! Where the files lie in a bucket, the folder's claim to them ([`owner`]) comes between the
//! metadata and the new epoch, and so does the claim to a second place for segments ([`place`]).
//!
//! Opening twice gives the same store: nothing is changed before it can be repeated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::bucket;
use crate::cancel::CancelToken;
use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, MetaVersion, PartitionId, Position, SLOTS, Slot, TableId};
use crate::storage::committer::{self, Committer, Habits};
use crate::storage::components::Components;
use crate::storage::frame::FRAME_HEADER;
use crate::storage::journal::kept::Keep;
use crate::storage::journal::local::LocalLog;
use crate::storage::journal::{Drive, Limits};
use crate::storage::log::{DurableLog, Record};
use crate::storage::meta::{Assignment, Author, Edit, NodeMeta, Op, Snapshot};
use crate::storage::metalog::{AppendError, LocalMetaLog, MetaLog};
use crate::storage::owner::{self, Owner};
use crate::storage::poison::Poison;
use crate::storage::segment::LocalSegments;
use crate::storage::segment::write::{Target, flush};
use crate::storage::tier::place;
use crate::storage::version::{SegmentFiles, TableState};
use crate::storage::{Store, Tables, backup, collect, trim_log};

/// How far opening is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Records of the log that were looked at.
    pub records: u64,
    /// Rows that were put into memory.
    pub rows: u64,
    /// Flushes that made room for more.
    pub flushes: u64,
    /// Bytes of the log that were read.
    pub bytes: u64,
    /// Bytes of the log.
    pub total_bytes: u64,
}

/// Time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Metadata versions between two checkpoints. Runs of a simulation are short and should meet
/// some all the same.
fn checkpoint_every(drive: Drive) -> u64 {
    match drive {
        Drive::Thread => 256,
        Drive::Manual => 8,
    }
}

pub(super) fn open(
    env: Env,
    root: PathBuf,
    settings: &Settings,
    drive: Drive,
    progress: &mut dyn FnMut(Progress),
) -> Result<Arc<Store>> {
    let began = env.clock.monotonic();
    let lock = lock(&env, &root)?;
    backup::refuse_unfinished(&env, &root)?;
    let env = bucket::attached(env, &root, &settings.storage)?;
    owner::refuse_astray(&env, &root)?;
    let poison = Poison::default();
    let meta = LocalMetaLog::open(env.clone(), &root.join("meta"))?;
    let found = meta.head()?;
    let owner = owner::claim(&env, &root, &found, settings.storage.take_over)?;
    place::claim(&env, &root, &found)?;
    let (head, author) = take(&meta, found, &env, settings, owner.as_ref())?;
    let epoch = author.epoch;
    let files = SegmentFiles::new(
        Arc::new(LocalSegments::new(env.disk.clone(), root.clone())),
        usize::try_from(settings.segment.cache_bytes).unwrap_or(usize::MAX),
    );
    let tables = Arc::new(Tables::new(files.clone()));
    let log = LocalLog::new(env.clone(), root.join("wal"), limits(settings), drive, poison.clone());
    let log_files = log.files(PartitionId::ONLY);
    let keep = Keep::of(&settings.journal)?;
    let observer = {
        let (env, tables, log_files) = (env.clone(), tables.clone(), log_files.clone());
        Box::new(move |before: &Snapshot, after: &Arc<Snapshot>| {
            tables.follow(before, after);
            trim_log(&env, &log_files, after, keep);
        })
    };
    let committer = Committer::start(
        env.clone(),
        Box::new(meta),
        head.clone(),
        author,
        poison.clone(),
        observer,
        habits(drive, settings, owner.is_some()),
    )?;
    let target =
        Target { store: files.store.clone(), env: env.clone(), settings: settings.segment.clone() };
    let mut replay = Replay::new(&committer, &target, &files, &head, settings);
    replay.run(&log, progress)?;
    let (states, done) = replay.finish();
    states.into_iter().for_each(|state| tables.unclaim(state));
    let journal = log.open_journal(PartitionId::ONLY, epoch)?;
    collect::sweep(&env, &root, &committer.head())?;
    let components = Components::new(env.disk.clone(), &root);
    components.sweep(&committer.head())?;
    trim_log(&env, &log_files, &committer.head(), keep);
    tracing::info!(
        folder = %root.display(),
        version = committer.head().version.0,
        epoch = epoch.0,
        tables = head.tables.len(),
        records = done.records,
        rows = done.rows,
        flushes = done.flushes,
        ms = env.clock.monotonic().saturating_sub(began).as_millis(),
        "store opened"
    );
    let garbage = collect::Garbage::new(Duration::from_millis(settings.compaction.grace_ms));
    Ok(Arc::new(Store {
        env,
        root,
        committer,
        journal,
        log_files,
        keep,
        tables,
        target,
        poison,
        epoch,
        garbage,
        components,
        holds: Mutex::default(),
        owner,
        _lock: lock,
    }))
}

pub(super) fn lock(env: &Env, root: &Path) -> Result<Box<dyn std::any::Any + Send + Sync>> {
    env.disk
        .create_dir_all(root)
        .map_err(|error| Error::io(format_args!("create folder {}", root.display()), error))?;
    env.disk.lock(&root.join("LOCK")).map_err(|error| {
        if error.kind() == std::io::ErrorKind::WouldBlock {
            return Error::new(
                Code::Locked,
                format!("data folder {} is in use by another process", root.display()),
            )
            .with_hint("stop the other server, or choose another folder with --data-dir");
        }
        Error::io(format_args!("lock folder {}", root.display()), error)
    })
}

fn habits(drive: Drive, settings: &Settings, is_shared: bool) -> Habits {
    let alone = Habits::alone(drive, checkpoint_every(drive));
    if !is_shared {
        return alone;
    }
    let patience = Duration::from_millis(settings.storage.commit_timeout_ms);
    let watch = Some(Duration::from_millis(settings.storage.watch_ms));
    Habits { patience, watch, ..alone }
}

fn limits(settings: &Settings) -> Limits {
    let bytes = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Limits {
        file_bytes: settings.journal.file_bytes,
        queue_bytes: bytes(settings.journal.queue_bytes),
        max_record_bytes: bytes(settings.journal.max_record_bytes),
        period: Duration::from_millis(settings.journal.periodic_ms),
    }
}

/// How often the metadata is read again because an owner that still runs came first.
const TAKES: usize = 100;

/// Takes the partition with a new epoch, going on from `head`: the metadata from then on, and in
/// whose name it changes.
pub(super) fn take(
    meta: &dyn MetaLog,
    mut head: Arc<Snapshot>,
    env: &Env,
    settings: &Settings,
    owner: Option<&Owner>,
) -> Result<(Arc<Snapshot>, Author)> {
    let mut last = None;
    for _ in 0..TAKES {
        let epoch = Epoch(head.epoch(PartitionId::ONLY).0 + 1);
        let author = Author { node: settings.node.id.clone(), partition: PartitionId::ONLY, epoch };
        let ops = announcement(env, settings, epoch, owner);
        let edit = Edit { commit_id: env.random.uuid(), by: author.clone(), ops };
        let mut next = head.apply(&edit)?;
        match meta.append(head.version, &[edit]) {
            // The owner before may have let go what came after `head`: the name was free again.
            Ok(version) if owner.is_some() && meta.newest()? > version => {
                meta.withdraw(version)?;
                head = meta.head()?;
                continue;
            }
            Ok(version) => next.version = version,
            // Only what came first is read, or an owner that commits all the time would always
            // be ahead.
            Err(AppendError::Conflict(others)) if owner.is_some() => {
                head = caught_up(meta, &head)?;
                last = Some(committer::as_error(AppendError::Conflict(others)));
                continue;
            }
            Err(error) => return Err(committer::as_error(error)),
        }
        return Ok((Arc::new(next), author));
    }
    Err(last.unwrap_or_else(|| Error::internal("no attempt to take the partition")))
}

/// Metadata with the edits that came after it, or the newest where some of these are gone.
fn caught_up(meta: &dyn MetaLog, head: &Arc<Snapshot>) -> Result<Arc<Snapshot>> {
    match follow(meta, head) {
        Ok(next) if next.version > head.version => Ok(Arc::new(next)),
        _ => meta.head(),
    }
}

fn follow(meta: &dyn MetaLog, head: &Snapshot) -> Result<Snapshot> {
    let mut head = head.clone();
    while let Some(edits) = meta.after(head.version)? {
        let version = MetaVersion(head.version.0 + 1);
        for edit in &edits {
            head = head.replay(edit)?;
        }
        head.version = version;
    }
    Ok(head)
}

/// Says who we are, and that the partition is ours.
fn announcement(env: &Env, settings: &Settings, epoch: Epoch, owner: Option<&Owner>) -> Vec<Op> {
    let assignment =
        Assignment { node: settings.node.id.clone(), epoch, slots: (Slot(0), Slot(SLOTS - 1)) };
    let node = NodeMeta {
        id: settings.node.id.clone(),
        instance: owner.map_or_else(|| env.random.uuid(), |owner| owner.id),
        roles: settings.node.roles.clone(),
    };
    debug_assert_ne!(node.instance, Uuid::nil());
    vec![Op::Assign { partition: PartitionId::ONLY, assignment }, Op::Node { node }]
}

pub(super) fn commit(committer: &Committer, ops: Vec<Op>) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    committer.propose(
        ops,
        Box::new(move |outcome| {
            if sender.send(outcome).is_err() {
                tracing::debug!("nobody waits for a metadata edit");
            }
        }),
    );
    let ended = || Error::new(Code::Down, "the metadata committer ended without an answer");
    receiver.recv().unwrap_or_else(|_| Err(ended())).map(|_| ())
}

/// The log on its way into tables.
pub(super) struct Replay<'a> {
    committer: &'a Committer,
    target: &'a Target,
    states: BTreeMap<TableId, TableState>,
    bytes: usize,
    limit: usize,
    done: Progress,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        committer: &'a Committer,
        target: &'a Target,
        files: &SegmentFiles,
        head: &Snapshot,
        settings: &Settings,
    ) -> Self {
        let open = |table: &Arc<crate::storage::meta::TableMeta>| {
            let start = table.flushed_upto(PartitionId::ONLY);
            let segments = table.segments.values().cloned();
            TableState::open(table.def.clone(), segments, start, files.clone())
                .with_deletions(table.deletions)
        };
        Replay {
            committer,
            target,
            states: head.tables.iter().map(|(id, table)| (*id, open(table))).collect(),
            bytes: 0,
            limit: usize::try_from(settings.journal.replay_bytes).unwrap_or(usize::MAX),
            done: Progress::default(),
        }
    }

    fn run(&mut self, log: &LocalLog, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        self.done.total_bytes = log.bytes(PartitionId::ONLY)?;
        let clock = &self.target.env.clock;
        let mut reported = clock.monotonic();
        for group in log.read(PartitionId::ONLY, Position::default())? {
            for (position, record) in group? {
                self.done.bytes += (FRAME_HEADER + record.payload.len()) as u64;
                self.apply(position, &record)?;
            }
            let now = clock.monotonic();
            if now.saturating_sub(reported) >= REPORT_EVERY {
                reported = now;
                progress(self.done);
            }
        }
        self.done.bytes = self.done.total_bytes;
        progress(self.done);
        Ok(())
    }

    /// Rows of tables that were dropped, and rows that are in segments, are passed over.
    pub(super) fn apply(&mut self, position: Position, record: &Record) -> Result<()> {
        self.done.records += 1;
        let Some(state) = self.states.get_mut(&record.table) else { return Ok(()) };
        // A table's watermark starts at what is flushed and then follows what was applied.
        if position <= state.watermark() {
            return Ok(());
        }
        let batch = record.decode()?;
        self.done.rows += batch.num_rows() as u64;
        let before = state.hot_bytes();
        state.append(position, batch)?;
        self.bytes = (self.bytes + state.hot_bytes()).saturating_sub(before);
        while self.bytes > self.limit && self.flush_largest()? {}
        Ok(())
    }

    /// Makes room; false where there is nothing to flush.
    fn flush_largest(&mut self) -> Result<bool> {
        let largest = self.states.values_mut().max_by_key(|state| state.hot_bytes());
        let Some(state) = largest else { return Ok(false) };
        let bytes = state.hot_bytes();
        let Some(frozen) = state.freeze() else { return Ok(false) };
        let table = state.table().clone();
        let segments = flush(self.target, &table, &frozen, &CancelToken::default())?;
        let op = Op::AddSegments {
            table: table.id,
            segments: segments.clone(),
            flushed_upto: frozen.span.last,
        };
        commit(self.committer, vec![op])?;
        state.flushed(&frozen, segments.into_iter().map(Arc::new))?;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.done.flushes += 1;
        Ok(true)
    }

    /// How many rows were put into memory.
    pub(super) fn rows(&self) -> u64 {
        self.done.rows
    }

    /// Puts everything into segments.
    pub(super) fn flush_all(&mut self) -> Result<()> {
        while self.flush_largest()? {}
        Ok(())
    }

    fn finish(self) -> (Vec<TableState>, Progress) {
        let states: Vec<TableState> = self.states.into_values().collect();
        states.iter().for_each(TableState::publish);
        (states, self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket;
    use crate::env::sim::Sim;

    fn edit(env: &Env, by: &Author, name: String) -> Edit {
        let ops = vec![Op::CreateDatabase { name }];
        Edit { commit_id: env.random.uuid(), by: by.clone(), ops }
    }

    #[test]
    fn a_take_over_that_read_long_ago_does_not_land_in_the_past() {
        let mut settings = Settings::default();
        settings.storage.url = "memory://long-ago/store".to_owned();
        let root = Path::new("/store");
        let env = bucket::attached(Sim::new(1).env(), root, &settings.storage).unwrap();
        let open = || LocalMetaLog::open(env.clone(), &root.join("meta")).unwrap();
        let (first, second) = (open(), open());
        let owner = Owner::unreleased();
        let read = first.head().unwrap();
        let (head, author) = take(&first, read, &env, &settings, Some(&owner)).unwrap();
        let long_ago = head.clone();
        let mut head = Arc::unwrap_or_clone(head);
        for number in 0..6 {
            let edit = edit(&env, &author, format!("d{number}"));
            let version = first.append(head.version, std::slice::from_ref(&edit)).unwrap();
            head = head.apply(&edit).unwrap();
            head.version = version;
            if number % 2 == 1 {
                first.checkpoint(&head).unwrap();
            }
        }
        assert_eq!(second.after(long_ago.version).unwrap(), None, "let go");
        let (taken, author) = take(&second, long_ago, &env, &settings, Some(&owner)).unwrap();
        assert_eq!(taken.version.0, head.version.0 + 1);
        assert_eq!(taken.databases, head.databases);
        let late = edit(&env, &author, "late".to_owned());
        let conflict = first.append(head.version, &[late]);
        assert!(matches!(conflict, Err(AppendError::Conflict(_))), "{conflict:?}");
        assert_eq!(*open().head().unwrap(), *taken);
    }
}
