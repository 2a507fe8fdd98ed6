//! Moves old segments to the second place, one at a time: looks at an interval at every table for
//! segments whose rows are all older than `storage.cold_after`.
//!
//! Which segment is next is a pure choice over a version ([`tier::pick`]); the copy is made on the
//! background pool and is garbage until one edit of the metadata names it. A place that does not
//! answer, or is full, costs nothing but the move: the segment stays where it is, and the look
//! ends. The next one comes after a pause, longer each time. A segment that does not verify is
//! left alone until the next start, so that it does not keep the others from moving.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kymo_config::Span;
use kymo_config::settings::{self, Settings};
use kymo_kernel::actor::{Actor, Cx};
use kymo_kernel::cancel::{CancelOnDrop, CancelToken};
use kymo_kernel::env::Clock;
use kymo_kernel::ids::{SegmentId, TableId};
use kymo_kernel::observe;
use kymo_kernel::pools::Pools;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact::Reason;
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::storage::sort::window_start;
use kymo_kernel::storage::tier;
use kymo_kernel::storage::version::SegmentRef;
use kymo_kernel::{Code, Error, Result};
use serde_json::json;
use tracing::{info, warn};

use crate::compactor::history::{self, Entry, History};
use crate::writer::{Replaced, Writers};

const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The actor.
pub struct Mover {
    shared: Arc<Shared>,
    interval: Duration,
    /// Stops a copy with the actor: it is garbage until it is committed.
    cancel: CancelOnDrop,
    looking: bool,
    /// After a failure: how long to wait, and until when.
    pause: Option<(Duration, Duration)>,
    /// Segments that do not verify.
    damaged: BTreeSet<SegmentId>,
    stats: Stats,
}

/// What a move needs of its surroundings.
struct Shared {
    store: Arc<Store>,
    writers: Writers,
    compaction: settings::Compaction,
    /// How old rows must be; `None` where nothing moves.
    after: Option<Duration>,
    pools: Pools,
    clock: Arc<dyn Clock>,
    history: Arc<History>,
}

#[derive(Debug, Default)]
struct Stats {
    segments: u64,
    bytes: u64,
    failures: u64,
    last_error: Option<String>,
}

/// What a look came to.
#[derive(Default)]
struct Looked {
    segments: u64,
    bytes: u64,
    /// What ended it.
    failure: Option<(SegmentId, Error)>,
}

impl Mover {
    /// An actor that looks at an interval, where the settings name a place and an age.
    #[must_use]
    pub fn new(
        (store, writers, history): (Arc<Store>, Writers, Arc<History>),
        settings: &Settings,
        (pools, clock): (Pools, Arc<dyn Clock>),
    ) -> Self {
        let storage = &settings.storage;
        let after = match storage.cold_after.parse() {
            Ok(Span::For(after)) if !storage.cold_url.is_empty() => Some(after),
            _ => None,
        };
        let compaction = settings.compaction.clone();
        let shared = Shared { store, writers, compaction, after, pools, clock, history };
        Mover {
            shared: Arc::new(shared),
            interval: Duration::from_millis(storage.cold_interval_ms.max(1)),
            cancel: CancelOnDrop::default(),
            looking: false,
            pause: None,
            damaged: BTreeSet::new(),
            stats: Stats::default(),
        }
    }

    fn look(&mut self, after: Duration, cx: &mut Cx<Self>) {
        let paused = self.pause.is_some_and(|(_, until)| self.shared.clock.monotonic() < until);
        if self.looking || paused {
            return;
        }
        self.looking = true;
        let (shared, cancel) = (self.shared.clone(), self.cancel.0.clone());
        let damaged = self.damaged.clone();
        let look = async move { shared.look(after, &damaged, &cancel).await };
        cx.then(look, |mover, looked, _| {
            mover.looking = false;
            mover.note(looked);
        });
    }

    fn note(&mut self, looked: Looked) {
        self.stats.segments += looked.segments;
        self.stats.bytes += looked.bytes;
        let Some((segment, error)) = looked.failure else {
            self.pause = None;
            return;
        };
        observe::metrics().store.move_failures.inc();
        self.stats.failures += 1;
        self.stats.last_error = Some(error.to_string());
        if error.code() == Code::Corrupt {
            self.damaged.insert(segment);
            warn!(%segment, %error, "a segment cannot be moved and stays where it is");
            return;
        }
        let length = self.pause.map_or(self.interval, |(before, _)| before * 2);
        let length = length.min(LONGEST_PAUSE.max(self.interval));
        self.pause = Some((length, self.shared.clock.monotonic() + length));
        warn!(%segment, %error, pause_ms = length.as_millis(), "segment could not be moved");
    }
}

impl Actor for Mover {
    fn started(&mut self, cx: &mut Cx<Self>) {
        if let Some(after) = self.shared.after {
            cx.every(self.interval, move |mover, cx| mover.look(after, cx));
        }
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "enabled": self.shared.after.is_some(),
            "looking": self.looking,
            "paused": self.pause.is_some(),
            "moved_segments": self.stats.segments,
            "moved_bytes": self.stats.bytes,
            "failures": self.stats.failures,
            "last_error": self.stats.last_error,
        })
    }
}

impl Shared {
    /// Moves what there is to move of all tables, until something fails.
    async fn look(
        &self,
        after: Duration,
        damaged: &BTreeSet<SegmentId>,
        cancel: &CancelToken,
    ) -> Looked {
        let age = i64::try_from(after.as_nanos()).unwrap_or(i64::MAX);
        let before = self.clock.now_ns().saturating_sub(age);
        let catalog = self.store.catalog();
        let mut looked = Looked::default();
        for (id, table) in catalog.tables.iter() {
            while !cancel.is_cancelled() {
                match self.next(*id, &table.def, before, damaged, cancel).await {
                    Ok(None) => break,
                    Ok(Some(moved)) => {
                        looked.segments += 1;
                        looked.bytes += moved.bytes;
                    }
                    // The table or the segment went meanwhile, or the server stops.
                    Err((_, error)) if is_passing(&error) => break,
                    Err(failure) => {
                        looked.failure = Some(failure);
                        return looked;
                    }
                }
            }
        }
        looked
    }

    /// Moves the next segment of a table; `None` where there is none or somebody else has the
    /// turn.
    async fn next(
        &self,
        table: TableId,
        def: &Arc<TableDef>,
        before: i64,
        damaged: &BTreeSet<SegmentId>,
        cancel: &CancelToken,
    ) -> std::result::Result<Option<SegmentMeta>, (SegmentId, Error)> {
        let pick = || {
            let version = self.store.table(table)?.load();
            tier::pick(&version, &self.compaction, before, &|id| !damaged.contains(&id))
        };
        if pick().is_none() {
            return Ok(None);
        }
        // Who has the turn may be about to exchange this very segment: the next look comes.
        let Some(_turn) = self.writers.turns().try_take(table) else { return Ok(None) };
        let Some(segment) = pick() else { return Ok(None) };
        let meta = segment.meta();
        let (id, inputs) = (meta.id, (1, meta.bytes, meta.rows));
        let window = window_start(meta.time.first, def.options.window_ns);
        let entry = self.history.begin(Reason::Cold, &def.name, Some(window), meta.level, inputs);
        match self.exchange(segment, def, &entry, cancel).await {
            Ok(moved) => {
                let rows = moved.rows;
                let result = history::Result::of(std::slice::from_ref(&moved), 0);
                let _ = entry.done(history::Result { copied: rows, ..result });
                Ok(Some(moved))
            }
            Err(error) => {
                entry.failed(&error);
                Err((id, error))
            }
        }
    }

    /// Copies on the background pool, commits, and has the writer swap the segments.
    async fn exchange(
        &self,
        segment: Arc<SegmentRef>,
        def: &Arc<TableDef>,
        entry: &Entry,
        cancel: &CancelToken,
    ) -> Result<SegmentMeta> {
        let began = self.clock.monotonic();
        let inputs = vec![segment.meta().id];
        let (bytes, rows) = (segment.meta().bytes.max(1), segment.meta().rows);
        let (store, cancel, written) = (self.store.clone(), cancel.clone(), entry.rows());
        let copy = move || {
            // A row is as good as any other: the share of the bytes tells how far it is.
            let mut progress = |at| {
                let share = u128::from(rows) * u128::from(at) / u128::from(bytes);
                written.store(u64::try_from(share).unwrap_or(rows), Ordering::Relaxed);
            };
            store.copy_to_cold(&segment, &cancel, &mut progress)
        };
        let moved = self.pools.background("move segment", copy).await??;
        let outputs = vec![moved.clone()];
        let op = Op::Replace { table: def.id, inputs: inputs.clone(), outputs };
        self.store.commit_async(vec![op]).await?;
        let outputs = vec![Arc::new(moved.clone())];
        let replaced = Replaced { inputs, outputs, deleted: None };
        self.writers.ports(def)?.replaced.call(replaced).await?;
        let took = self.clock.monotonic().saturating_sub(began);
        let metrics = &observe::metrics().store;
        metrics.moves.inc();
        metrics.moved_bytes.inc_by(moved.bytes);
        metrics.move_seconds.observe(took.as_secs_f64());
        info!(
            table = %def.name, path = moved.path, rows = moved.rows, bytes = moved.bytes,
            ms = took.as_millis(), "moved a segment to the second place"
        );
        Ok(moved)
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error.code(), Code::Conflict | Code::TableNotFound | Code::Cancelled)
}
