//! The durable store, as a plain library: no actors, no SQL.
//!
//! | module | owns |
//! |---|---|
//! | [`log`], [`frame`], [`journal`] | rows become durable: records, their bytes, group commit |
//! | [`meta`], [`metalog`], [`committer`] | what exists: snapshot and edits, their files, the one who commits |
//! | [`memtable`], [`late`], [`interner`] | rows in memory |
//! | [`sort`], [`merge`], [`overlap`], [`key`] | order by series and time, last write wins |
//! | [`segment`], [`compact`], [`delete`] | Parquet files, merging them, taking rows out |
//! | [`expire`] | letting expired rows go |
//! | [`tier`] | moving old segments to a second place |
//! | [`version`] | what readers see |
//! | [`components`] | the bytes of plugins |
//! | [`recover`], [`collect`], [`poison`] | opening after a crash, deleting files, stopping |
//! | [`missed`], [`changes`] | rows read back from the log: of one table, of all as a feed |
//! | [`owner`] | which folder a store in a bucket belongs to |
//! | [`integrity`], [`backup`] | checking and repairing a closed store, copying an open one |
//!
//! **Write path**: a writer encodes a batch ([`log::Record::encode`]) and hands it to
//! [`Store::log`]; when it is durable it calls `TableState::apply`, which shows it to readers.
//! [`Store::write_frozen`] turns frozen rows into segments, [`Store::commit`] names them in the
//! metadata together with the position up to which they cover the log, and the journal's files
//! go when every table in them is covered.
//!
//! **Read path**: [`Store::catalog`] and [`Store::table`]; nothing blocks.
//!
//! **Opening**: lock file, metadata, a new epoch for the partition (which fences any earlier
//! owner), replay of the log into memory within a bound, removal of files that nothing names.
//!
//! If you touch the format of a file, touch the table at the head of its module; if you add an
//! [`meta::Op`], add its record in [`meta::codec`] and a case in the model test.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kymo_config::Settings;
use parking_lot::{Mutex, RwLock};

use crate::cancel::CancelToken;
use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::{Epoch, MetaVersion, PartitionId, Position, TableId};
use crate::schema::TableDef;
use crate::storage::committer::Committer;
use crate::storage::components::Components;
use crate::storage::journal::Journal;
use crate::storage::journal::files::Files;
use crate::storage::journal::kept::Keep;
use crate::storage::log::LogWriter;
use crate::storage::meta::{Op, SegmentMeta, Snapshot};
use crate::storage::poison::Poison;
use crate::storage::segment::write::{Target, flush};
use crate::storage::version::{Frozen, SegmentFiles, SegmentRef, TableState, VersionCell};

pub mod backup;
pub mod changes;
pub mod collect;
pub mod committer;
pub mod compact;
pub mod components;
pub mod conform;
pub mod delete;
pub mod expire;
mod folder;
pub mod frame;
pub mod integrity;
pub mod interner;
pub mod journal;
pub mod key;
pub mod late;
pub mod log;
pub mod memtable;
pub mod merge;
pub mod meta;
pub mod metalog;
pub mod missed;
#[cfg(test)]
mod model;
pub mod narrow;
pub mod overlap;
pub mod owner;
pub mod poison;
pub mod recover;
pub mod segment;
pub mod sort;
pub mod tier;
pub mod version;
pub mod width;

pub use journal::Drive;
pub use recover::Progress;

/// Everything durable of one process; see the module.
pub struct Store {
    env: Env,
    root: PathBuf,
    committer: Committer,
    journal: Arc<Journal>,
    log_files: Arc<Files>,
    keep: Keep,
    tables: Arc<Tables>,
    target: Target,
    poison: Poison,
    epoch: Epoch,
    garbage: collect::Garbage,
    components: Arc<Components>,
    /// How many backups ask that no file goes; locked while files are deleted.
    holds: Mutex<usize>,
    /// Who holds the store, where its files lie in a bucket.
    owner: Option<owner::Owner>,
    /// Held for as long as the store is open.
    _lock: Box<dyn Any + Send + Sync>,
}

/// Figures for metrics and for `kymo status`.
#[derive(Debug, Clone, Default)]
pub struct StoreStats {
    /// The last metadata edit.
    pub version: MetaVersion,
    /// Tables.
    pub tables: usize,
    /// Live segments.
    pub segments: usize,
    /// Bytes of those segments.
    pub segment_bytes: u64,
    /// Rows in those segments, counting each time that a row was written.
    pub segment_rows: u64,
    /// Complete log files.
    pub log_files: usize,
    /// Bytes of those files.
    pub log_bytes: u64,
    /// Bytes that wait for the journal.
    pub queued_bytes: u64,
    /// Groups that the journal wrote.
    pub log_groups: u64,
    /// Bytes that the journal wrote.
    pub log_written_bytes: u64,
    /// Fsyncs of the journal.
    pub log_syncs: u64,
    /// Seconds spent in those fsyncs.
    pub log_sync_seconds: f64,
    /// Files that wait for their deletion.
    pub garbage: usize,
}

impl Store {
    /// Opens or creates the store in a folder: takes its lock, reads the metadata, replays the
    /// log. Blocks. `progress` is told now and then how far the replay is.
    ///
    /// # Errors
    /// `locked` where another process has it, `corrupt` naming file and offset, `unsupported`
    /// for a newer format, `disk_full` and `io_error`.
    pub fn open(
        env: Env,
        root: PathBuf,
        settings: &Settings,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Arc<Store>> {
        recover::open(env, root, settings, Drive::Thread, progress)
    }

    /// As [`Store::open`], but without threads: [`Store::step`] does the journal's work, and
    /// [`Store::commit`] its own. For simulation.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_stepped(env: Env, root: PathBuf, settings: &Settings) -> Result<Arc<Store>> {
        recover::open(env, root, settings, Drive::Manual, &mut |_| {})
    }

    /// One round of the journal, under [`Store::open_stepped`].
    pub fn step(&self) -> journal::Stepped {
        self.journal.step()
    }

    /// The current metadata. Never blocks.
    #[must_use]
    pub fn catalog(&self) -> Arc<Snapshot> {
        self.committer.head()
    }

    /// The folder that holds everything.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The outside world that the store was opened with.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The number of this ownership of the partition.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where rows become durable.
    #[must_use]
    pub fn log(&self) -> &dyn LogWriter {
        self.journal.as_ref()
    }

    /// Where readers find the versions of a table. Never blocks on writers.
    #[must_use]
    pub fn table(&self, id: TableId) -> Option<Arc<VersionCell>> {
        self.tables.cell(id)
    }

    /// Hands the state of a table to its one writer.
    ///
    /// # Errors
    /// `table_not_found` where it was dropped, `conflict` where another writer has it.
    pub fn claim(&self, id: TableId) -> Result<TableState> {
        self.tables.claim(id)
    }

    /// Takes a state back from a writer that ends while its table goes on.
    pub fn unclaim(&self, state: TableState) {
        self.tables.unclaim(state);
    }

    /// Lets go of a dropped table that no writer has claimed.
    pub fn forget(&self, id: TableId) {
        self.tables.remove(id);
    }

    /// The tables that hold rows in memory after recovery; their writers should start soon,
    /// so that the rows reach segments.
    #[must_use]
    pub fn recovered(&self) -> Vec<Arc<TableDef>> {
        self.tables.with_rows()
    }

    /// What writing a segment needs: where it goes, its name, its layout.
    #[must_use]
    pub fn segments(&self) -> &Target {
        &self.target
    }

    /// Writes frozen rows as segments, durable but named by nothing yet. Blocks, and uses the
    /// processor: belongs on the background pool.
    ///
    /// # Errors
    /// `disk_full` and `io_error`, naming the file; what was written is collected later.
    pub fn write_frozen(&self, table: &Arc<TableDef>, frozen: &Frozen) -> Result<Vec<SegmentMeta>> {
        self.poison.check()?;
        flush(&self.target, table, frozen, &CancelToken::default())
    }

    /// Copies a segment to the second place, durable and verified but named by nothing yet
    /// ([`tier::run`]). Blocks: belongs on the background pool.
    ///
    /// # Errors
    /// As [`tier::run`]; `storage_unreachable` where the place is not there.
    pub fn copy_to_cold(
        &self,
        segment: &SegmentRef,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(u64),
    ) -> Result<SegmentMeta> {
        self.poison.check()?;
        tier::place::confirm(&self.env, &self.root)?;
        tier::run(segment, &self.target, cancel, progress)
    }

    /// Changes the metadata, all ops or none, and returns when that is durable. Blocks.
    ///
    /// # Errors
    /// As [`Snapshot::apply`]; `poisoned` and I/O errors.
    pub fn commit(&self, ops: Vec<Op>) -> Result<MetaVersion> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.commit_then(ops, move |outcome| {
            // The receiver waits below for as long as this exists.
            if sender.send(outcome).is_err() {
                tracing::debug!("nobody waits for a metadata edit");
            }
        });
        let outcome = receiver.recv().unwrap_or_else(|_| Err(unanswered()));
        outcome.map(|snapshot| snapshot.version)
    }

    /// As [`Store::commit`], without blocking.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_async(
        &self,
        ops: Vec<Op>,
    ) -> impl Future<Output = Result<MetaVersion>> + Send + use<> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.commit_then(ops, move |outcome| {
            if sender.send(outcome).is_err() {
                tracing::debug!("nobody waits for a metadata edit");
            }
        });
        async move {
            let outcome = receiver.await.unwrap_or_else(|_| Err(unanswered()));
            outcome.map(|snapshot| snapshot.version)
        }
    }

    /// As [`Store::commit`], with an answer by callback, on the committer's thread.
    pub fn commit_then(
        &self,
        ops: Vec<Op>,
        done: impl FnOnce(Result<Arc<Snapshot>>) + Send + 'static,
    ) {
        self.committer.propose(ops, Box::new(done));
    }

    /// Why the store stopped, if it has.
    #[must_use]
    pub fn poisoned(&self) -> Option<Error> {
        self.poison.cause()
    }

    /// Names who is told when the store stops; at once where it has.
    pub fn on_poison(&self, listener: impl FnOnce(Error) + Send + 'static) {
        self.poison.on_poison(listener);
    }

    /// The switch itself, for those who keep durable state beside the store.
    #[must_use]
    pub fn poison(&self) -> &Poison {
        &self.poison
    }

    /// Where the bytes of plugins lie.
    #[must_use]
    pub fn components(&self) -> &Arc<Components> {
        &self.components
    }

    /// Deletes segments and components that nothing names any more and that nobody has used for
    /// the grace period, unless a backup is under way. Blocks on the disk; meant to be called now
    /// and then.
    ///
    /// # Errors
    /// I/O errors; what was not deleted is tried again with the next call.
    pub fn collect_garbage(&self) -> Result<usize> {
        self.poison.check()?;
        let holds = self.holds.lock();
        if *holds > 0 {
            return Ok(0);
        }
        if self.owner.is_some() {
            // Somebody who took over may name again what this process lets go: a component.
            self.committer.confirm()?;
        }
        let segments = self.garbage.collect(&self.env, &self.tables.files, || self.catalog());
        let grace = self.garbage.grace();
        let components = self.components.collect(&self.env, grace, || self.catalog());
        Ok(segments? + components?)
    }

    /// Lets log files go that recovery does not need and that have been kept long enough. Blocks
    /// on the disk; meant to be called now and then, as time alone makes files old.
    pub fn trim_log(&self) {
        if self.poison.cause().is_none() {
            trim_log(&self.env, &self.log_files, &self.catalog(), self.keep);
        }
    }

    /// The tables whose rows in memory keep log files from being removed, where those files
    /// together exceed `bytes`. Flushing them shrinks the log.
    #[must_use]
    pub fn log_pins(&self, bytes: u64) -> Vec<TableId> {
        let catalog = self.catalog();
        let mut excess = self.log_files.bytes();
        let mut pins = Vec::new();
        for file in self.log_files.all() {
            if excess <= bytes {
                break;
            }
            excess -= file.bytes;
            let open = file.tables.iter().filter(|(id, last)| !covered(&catalog, **id, **last));
            pins.extend(open.map(|(id, _)| *id));
        }
        pins.sort_unstable();
        pins.dedup();
        pins
    }

    /// Figures for metrics and status.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let catalog = self.catalog();
        let journal = self.journal.stats();
        let segments = || catalog.tables.values().flat_map(|table| table.segments.values());
        StoreStats {
            version: catalog.version,
            tables: catalog.tables.len(),
            segments: segments().count(),
            segment_bytes: segments().map(|segment| segment.bytes).sum(),
            segment_rows: segments().map(|segment| segment.rows).sum(),
            log_files: self.log_files.all().len(),
            log_bytes: self.log_files.bytes(),
            queued_bytes: self.journal.queued_bytes(),
            log_groups: journal.groups(),
            log_written_bytes: journal.bytes(),
            log_syncs: journal.syncs(),
            log_sync_seconds: journal.sync_time().as_secs_f64(),
            garbage: self.garbage.len(),
        }
    }

    /// Makes everything queued durable and refuses more. The lock goes with the last owner. A
    /// bucket is let go where segments hold all rows of the journal.
    pub fn close(&self) {
        self.journal.close();
        self.committer.hurry();
        if let Err(error) = self.let_go() {
            tracing::warn!(%error, "the bucket stays with this data folder");
        }
        self.committer.close();
    }

    fn let_go(&self) -> Result<()> {
        let Some(owner) = &self.owner else { return Ok(()) };
        let catalog = self.catalog();
        let mut files = self.log_files.all();
        files.push(self.journal.extent());
        let mut tables = files.iter().flat_map(|file| &file.tables);
        if self.poison.cause().is_some() || !tables.all(|(id, last)| covered(&catalog, *id, *last))
        {
            return Ok(());
        }
        let own = owner::holder(&catalog).filter(|node| node.instance == owner.id);
        let Some(node) = own.map(owner::released) else { return Ok(()) };
        self.commit(vec![Op::Node { node }])?;
        owner::release(&self.env, &self.root, owner)
    }
}

fn unanswered() -> Error {
    Error::new(Code::Down, "the metadata committer ended without an answer")
}

/// Whether the rows of a table up to a position are in segments, or gone with it.
fn covered(catalog: &Snapshot, table: TableId, last: Position) -> bool {
    match catalog.table_by_id(table) {
        None => true,
        Some(table) => table.flushed_upto(PartitionId::ONLY) >= last,
    }
}

/// The tables' states until writers claim them, and what readers see of all of them.
pub(crate) struct Tables {
    files: SegmentFiles,
    cells: RwLock<HashMap<TableId, Arc<VersionCell>>>,
    unclaimed: Mutex<BTreeMap<TableId, TableState>>,
}

impl Tables {
    fn new(files: SegmentFiles) -> Self {
        Tables { files, cells: RwLock::default(), unclaimed: Mutex::default() }
    }

    fn cell(&self, id: TableId) -> Option<Arc<VersionCell>> {
        self.cells.read().get(&id).cloned()
    }

    fn unclaim(&self, state: TableState) {
        let id = state.table().id;
        self.cells.write().insert(id, state.cell());
        self.unclaimed.lock().insert(id, state);
    }

    fn claim(&self, id: TableId) -> Result<TableState> {
        if let Some(state) = self.unclaimed.lock().remove(&id) {
            return Ok(state);
        }
        Err(match self.cell(id) {
            Some(cell) => Error::new(
                Code::Conflict,
                format!("table {} has a writer already", cell.load().table.name),
            ),
            None => Error::new(Code::TableNotFound, format!("table with id {id} does not exist")),
        })
    }

    fn remove(&self, id: TableId) {
        let state = self.unclaimed.lock().remove(&id);
        if let Some(mut state) = state {
            state.retire();
        }
    }

    fn with_rows(&self) -> Vec<Arc<TableDef>> {
        let states = self.unclaimed.lock();
        let with_rows = states.values().filter(|state| state.hot_rows() > 0);
        with_rows.map(|state| state.table().clone()).collect()
    }

    /// Follows a change of the metadata: tables that came, went, or changed without a writer.
    fn follow(&self, before: &Snapshot, after: &Snapshot) {
        if Arc::ptr_eq(&before.tables, &after.tables) {
            return;
        }
        for id in before.tables.keys().filter(|id| !after.tables.contains_key(id)) {
            self.cells.write().remove(id);
            self.remove(*id);
        }
        for (id, table) in after.tables.iter() {
            match before.tables.get(id) {
                Some(known) if Arc::ptr_eq(&known.def, &table.def) => {}
                Some(_) => {
                    let mut unclaimed = self.unclaimed.lock();
                    let altered = unclaimed.get_mut(id).map(|state| state.alter(table.def.clone()));
                    if let Some(Err(error)) = altered {
                        // No edit that was applied can be the reason.
                        let table = &table.def.name;
                        tracing::error!(%error, %table, "a definition does not fit its rows");
                    }
                }
                None => {
                    let start = table.flushed_upto(PartitionId::ONLY);
                    let segments = table.segments.values().cloned();
                    let files = self.files.clone();
                    let state = TableState::open(table.def.clone(), segments, start, files);
                    self.unclaim(state.with_deletions(table.deletions));
                }
            }
        }
    }
}

/// Lets the oldest log files go whose rows are all covered by segments, and what is kept too long.
fn trim_log(env: &Env, files: &Files, catalog: &Snapshot, keep: Keep) {
    let all = files.all();
    let done = all
        .iter()
        .take_while(|file| file.tables.iter().all(|(id, last)| covered(catalog, *id, *last)));
    let upto = done.last().map(|file| file.last);
    let trimmed = upto.map_or(Ok(0), |upto| files.trim(env, upto, keep));
    if let Err(error) = trimmed.and_then(|_| files.expire(env, keep)) {
        // They are covered: keeping them costs space, and the next look tries again.
        tracing::warn!(%error, "log files could not be removed");
    }
}
