//! The metric families, one struct per subject. Names end in their unit; counters in `_total`.

use std::sync::OnceLock;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::invariant::Invariant;

/// Buckets for what should take microseconds to milliseconds: turns, fsyncs, waits.
const FAST: &[f64] =
    &[1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Buckets for what should take milliseconds to minutes: requests, queries, flushes.
const SLOW: &[f64] =
    &[1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Buckets for how many were done at once.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// The families of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

macro_rules! families {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $help:literal])+ $field:ident: $type:ident = $metric:literal $([$($label:literal),+])? $(buckets $buckets:ident)?,)* }) => {
        $(#[$doc])*
        pub struct $name { $($(#[doc = $help])+ pub $field: $type,)* }

        impl $name {
            fn new(registry: &Registry) -> Self {
                $name { $($field: register(
                    registry,
                    families!(@make $type, $metric, concat!($($help),+).trim() $(, [$($label),+])? $(, $buckets)?),
                ),)* }
            }
        }
    };
    (@make IntCounter, $metric:literal, $help:expr) => { IntCounter::new($metric, $help) };
    (@make IntGauge, $metric:literal, $help:expr) => { IntGauge::new($metric, $help) };
    (@make IntCounterVec, $metric:literal, $help:expr, [$($label:literal),+]) => {
        IntCounterVec::new(Opts::new($metric, $help), &[$($label),+])
    };
    (@make IntGaugeVec, $metric:literal, $help:expr, [$($label:literal),+]) => {
        IntGaugeVec::new(Opts::new($metric, $help), &[$($label),+])
    };
    (@make Histogram, $metric:literal, $help:expr, $buckets:ident) => {
        Histogram::with_opts(HistogramOpts::new($metric, $help).buckets($buckets.to_vec()))
    };
    (@make HistogramVec, $metric:literal, $help:expr, [$($label:literal),+], $buckets:ident) => {
        HistogramVec::new(
            HistogramOpts::new($metric, $help).buckets($buckets.to_vec()),
            &[$($label),+],
        )
    };
}

families! {
    /// Actors, by kind.
    ActorMetrics {
        /// Time of one turn; half a millisecond is the aim.
        turn_seconds: HistogramVec = "kymo_actor_turn_seconds" ["kind"] buckets FAST,
        /// Panics, restarts and other events of supervision.
        events: IntCounterVec = "kymo_actor_events_total" ["kind", "event"],
    }
}

families! {
    /// The journal.
    JournalMetrics {
        /// Record groups written.
        groups: IntCounter = "kymo_journal_groups_total",
        /// Record groups written at once, and so made durable by one fsync.
        groups_per_write: Histogram = "kymo_journal_groups_per_write" buckets COUNTS,
        /// Bytes written, frames included.
        written_bytes: IntCounter = "kymo_journal_written_bytes_total",
        /// Time of one fsync.
        sync_seconds: Histogram = "kymo_journal_sync_seconds" buckets FAST,
        /// Bytes that wait for the journal thread.
        queued_bytes: IntGauge = "kymo_journal_queued_bytes",
        /// Journal files on disk that a start would read.
        files: IntGauge = "kymo_journal_files",
        /// Journal files that are kept as history.
        kept_files: IntGauge = "kymo_journal_kept_files",
        /// Bytes of those.
        kept_bytes: IntGauge = "kymo_journal_kept_bytes",
        /// Who reads the journal as a feed.
        tails: IntGauge = "kymo_journal_tails",
        /// Whether an error in a durable path has stopped the store (1) or not (0).
        poisoned: IntGauge = "kymo_store_poisoned",
    }
}

families! {
    /// The memory of the process.
    MemoryMetrics {
        /// Bytes that it may have; 0 where no limit is known.
        limit_bytes: IntGauge = "kymo_memory_limit_bytes",
        /// Bytes that it has, without the page cache.
        resident_bytes: IntGauge = "kymo_memory_resident_bytes",
        /// Whether memory is short (1) or not (0).
        pressure: IntGauge = "kymo_memory_pressure",
        /// Queries that were refused because memory was short for too long.
        refused_queries: IntCounter = "kymo_memory_refused_queries_total",
    }
}

families! {
    /// The store.
    StoreMetrics {
        /// Bytes of rows in memory, frozen ones included.
        memtable_bytes: IntGauge = "kymo_store_memtable_bytes",
        /// Frozen memtables that wait for their flush.
        frozen: IntGauge = "kymo_store_frozen_memtables",
        /// Segments that are part of a table.
        segments: IntGauge = "kymo_store_segments",
        /// Bytes of those segments.
        segment_bytes: IntGauge = "kymo_store_segment_bytes",
        /// Segments in the second place, of those.
        cold_segments: IntGauge = "kymo_store_cold_segments",
        /// Bytes of the segments in the second place.
        cold_bytes: IntGauge = "kymo_store_cold_bytes",
        /// Tables.
        tables: IntGauge = "kymo_store_tables",
        /// Number of the last metadata edit.
        metadata_version: IntGauge = "kymo_store_metadata_version",
        /// Rows that became durable and visible.
        rows: IntCounter = "kymo_store_rows_total",
        /// Flushes that were committed.
        flushes: IntCounter = "kymo_store_flushes_total",
        /// Time of a flush, from freezing to commit.
        flush_seconds: Histogram = "kymo_store_flush_seconds" buckets SLOW,
        /// Compactions that were committed.
        compactions: IntCounter = "kymo_store_compactions_total",
        /// Compactions that failed and will be tried again.
        compaction_failures: IntCounter = "kymo_store_compaction_failures_total",
        /// Compactions under way.
        compactions_running: IntGauge = "kymo_store_compactions_running",
        /// Tables with more small segments in a time window than they should have.
        crowded_tables: IntGauge = "kymo_store_crowded_tables",
        /// Rows that compactions copied without decoding them.
        compaction_copied_rows: IntCounter = "kymo_store_compaction_copied_rows_total",
        /// Rows that compactions left behind because a later write had their tags and time.
        compaction_overwritten_rows: IntCounter = "kymo_store_compaction_overwritten_rows_total",
        /// Time of a compaction.
        compaction_seconds: Histogram = "kymo_store_compaction_seconds" buckets SLOW,
        /// Bytes read by compactions.
        compaction_read_bytes: IntCounter = "kymo_store_compaction_read_bytes_total",
        /// Bytes written by compactions.
        compaction_written_bytes: IntCounter = "kymo_store_compaction_written_bytes_total",
        /// Deletions that removed rows.
        deletes: IntCounter = "kymo_store_deletes_total",
        /// Rows that deletions removed.
        deleted_rows: IntCounter = "kymo_store_deleted_rows_total",
        /// Time of a deletion.
        delete_seconds: Histogram = "kymo_store_delete_seconds" buckets SLOW,
        /// Rows that retention removed, counting each time that a row was written.
        expired_rows: IntCounter = "kymo_store_expired_rows_total",
        /// Segments that retention removed whole.
        expired_segments: IntCounter = "kymo_store_expired_segments_total",
        /// Bytes of those segments.
        expired_bytes: IntCounter = "kymo_store_expired_bytes_total",
        /// Segments that moved to the second place.
        moves: IntCounter = "kymo_store_moves_total",
        /// Moves that failed; the segment stayed where it was.
        move_failures: IntCounter = "kymo_store_move_failures_total",
        /// Bytes of segments that moved.
        moved_bytes: IntCounter = "kymo_store_moved_bytes_total",
        /// Time of a move, from copying to commit.
        move_seconds: Histogram = "kymo_store_move_seconds" buckets SLOW,
        /// Files deleted because nothing named them any more.
        deleted_files: IntCounter = "kymo_store_deleted_files_total",
        /// Backups for whose sake no file is deleted.
        backups: IntGauge = "kymo_store_backups",
        /// Snapshots in the data folder.
        snapshots: IntGauge = "kymo_store_snapshots",
    }
}

families! {
    /// The bucket.
    ObjectMetrics {
        /// Requests that ended, by operation and outcome: `ok`, `missing`, `exists` or `failed`.
        /// Each counts once, however often it was tried.
        requests: IntCounterVec = "kymo_objects_requests_total" ["operation", "outcome"],
        /// Time of a request, with all attempts.
        request_seconds: HistogramVec = "kymo_objects_request_seconds" ["operation"] buckets SLOW,
        /// Bytes of objects, by whether they were `read` or `written`.
        bytes: IntCounterVec = "kymo_objects_bytes_total" ["direction"],
        /// Pieces of segments that a read wanted, by whether they were in memory: `hit` or `missed`.
        cache: IntCounterVec = "kymo_objects_cache_total" ["outcome"],
        /// Memory for pieces of segments.
        cache_bytes: IntGauge = "kymo_objects_cache_bytes",
        /// Whether the last request was answered (1) or not (0).
        reachable: IntGauge = "kymo_objects_reachable",
        /// Puts that seemed to fail and had succeeded, found by reading the object back.
        settled: IntCounter = "kymo_objects_settled_puts_total",
        /// Times that an edit of the metadata was tried again because its outcome was unknown.
        retried_commits: IntCounter = "kymo_objects_retried_commits_total",
    }
}

families! {
    /// Writing, whatever the protocol.
    IngestMetrics {
        /// Rows accepted, by protocol.
        rows: IntCounterVec = "kymo_ingest_rows_total" ["protocol"],
        /// Rows left out because they could not be taken, by protocol.
        rejected_rows: IntCounterVec = "kymo_ingest_rejected_rows_total" ["protocol"],
        /// Bytes of request bodies after decompression, by protocol.
        body_bytes: IntCounterVec = "kymo_ingest_body_bytes_total" ["protocol"],
        /// Writes refused as a whole, by error code.
        refused: IntCounterVec = "kymo_ingest_refused_total" ["code"],
        /// Rows of `system.rejected_writes` and `system.alert_history` that went to keep them within
        /// their bounds.
        forgotten_rows: IntCounter = "kymo_rejected_writes_forgotten_rows_total",
    }
}

families! {
    /// HTTP.
    HttpMetrics {
        /// Requests answered, by route pattern and status.
        requests: IntCounterVec = "kymo_http_requests_total" ["route", "status"],
        /// Time until the head of the answer, by route pattern.
        request_seconds: HistogramVec = "kymo_http_request_seconds" ["route"] buckets SLOW,
        /// Open connections.
        connections: IntGauge = "kymo_http_connections",
        /// Connections refused because there were too many.
        refused_connections: IntCounter = "kymo_http_refused_connections_total",
    }
}

families! {
    /// The PostgreSQL wire protocol.
    PgMetrics {
        /// Open connections.
        connections: IntGauge = "kymo_pg_connections",
        /// Connections refused because there were too many.
        refused_connections: IntCounter = "kymo_pg_refused_connections_total",
        /// Messages received, by kind.
        messages: IntCounterVec = "kymo_pg_messages_total" ["kind"],
    }
}

families! {
    /// Queries.
    QueryMetrics {
        /// Statements that ended, by the code of their error or `ok`.
        total: IntCounterVec = "kymo_query_total" ["code"],
        /// Time from admission to the last batch.
        seconds: Histogram = "kymo_query_seconds" buckets SLOW,
        /// Time of planning.
        planning_seconds: Histogram = "kymo_query_planning_seconds" buckets FAST,
        /// Time that queries waited for their turn.
        wait_seconds: Histogram = "kymo_query_wait_seconds" buckets FAST,
        /// Queries that run.
        running: IntGauge = "kymo_query_running",
        /// Queries that wait for their turn.
        waiting: IntGauge = "kymo_query_waiting",
        /// Rows returned.
        rows: IntCounter = "kymo_query_rows_total",
        /// Memory reserved by running queries.
        memory_bytes: IntGauge = "kymo_query_memory_bytes",
    }
}

families! {
    /// Plugins, by name and version.
    PluginMetrics {
        /// Calls into plugins that ended, by plugin and the first digits of its version's digest.
        calls: IntCounterVec = "kymo_plugin_calls_total" ["plugin", "version"],
        /// Rows handed to plugins.
        rows: IntCounterVec = "kymo_plugin_rows_total" ["plugin", "version"],
        /// Time within plugins, in nanoseconds.
        nanoseconds: IntCounterVec = "kymo_plugin_nanoseconds_total" ["plugin", "version"],
        /// Faults of plugins: traps, deadlines, memory and broken promises of the interface.
        faults: IntCounterVec = "kymo_plugin_faults_total" ["plugin", "version", "kind"],
        /// The most memory that one instance has had.
        memory_bytes: IntGaugeVec = "kymo_plugin_memory_high_water_bytes" ["plugin", "version"],
        /// Instances that live, over all plugins.
        instances: IntGauge = "kymo_plugin_instances",
        /// Instances made.
        created_instances: IntCounter = "kymo_plugin_instances_created_total",
        /// Times that somebody waited for a free instance.
        instance_waits: IntCounter = "kymo_plugin_instance_waits_total",
        /// Time of compiling one component.
        compile_seconds: Histogram = "kymo_plugin_compile_seconds" buckets SLOW,
        /// Compiled components taken from the cache, by whether they were `hit`, `missing` or
        /// `rejected`.
        cache: IntCounterVec = "kymo_plugin_cache_total" ["outcome"],
        /// Rows that met a transform, by what became of them: `in` for all that came, then `out`,
        /// `refused`, or by its policy where it failed `passed` or `dead_letter`.
        transform_rows: IntCounterVec = "kymo_transform_rows_total" ["transform", "table", "outcome"],
        /// Batches on which a transform failed or could not be called.
        transform_failures: IntCounterVec = "kymo_transform_failures_total" ["transform", "table"],
        /// Time that rows spent in a transform, waiting for an instance included, in nanoseconds.
        transform_nanoseconds: IntCounterVec = "kymo_transform_nanoseconds_total" ["transform", "table"],
        /// Instances of transforms that are kept for the next batch.
        idle_transforms: IntGauge = "kymo_transform_idle_instances",
        /// Lines that plugins logged beyond their allowance.
        dropped_log_lines: IntCounter = "kymo_plugin_dropped_log_lines_total",
    }
}

families! {
    /// Live data.
    LiveMetrics {
        /// Subscriptions that live.
        subscriptions: IntGauge = "kymo_live_subscriptions",
        /// WebSocket connections and event streams that are open.
        connections: IntGauge = "kymo_live_connections",
        /// Connections and subscriptions refused because there were too many, or for another
        /// reason, by code.
        refused: IntCounterVec = "kymo_live_refused_total" ["code"],
        /// Rows handed to subscribers, those of snapshots included.
        rows: IntCounter = "kymo_live_rows_total",
        /// Times that a subscriber was told that it lags behind.
        lagged: IntCounter = "kymo_live_lagged_total",
        /// Times that rows were read again for a subscriber, from the `log` or as a `snapshot`.
        caught_up: IntCounterVec = "kymo_live_caught_up_total" ["from"],
        /// Memory of the states of queries that are kept by windows.
        state_bytes: IntGauge = "kymo_live_state_bytes",
        /// Windows whose states were read from the tables again.
        rebuilt_windows: IntCounter = "kymo_live_rebuilt_windows_total",
        /// Windows whose states were forgotten to stay within memory.
        evicted_windows: IntCounter = "kymo_live_evicted_windows_total",
        /// Times that a query ran again because commits had touched its result.
        reruns: IntCounter = "kymo_live_reruns_total",
        /// Time from a commit to handing its rows to a subscriber's connection.
        push_seconds: Histogram = "kymo_live_push_seconds" buckets FAST,
    }
}

families! {
    /// Continuous queries, by name; there are at most `continuous.max_queries`.
    ContinuousMetrics {
        /// Age of the oldest commit that a target does not show yet.
        lag_seconds: IntGaugeVec = "kymo_continuous_lag_seconds" ["query"],
        /// Evaluations of some windows.
        evaluations: IntCounterVec = "kymo_continuous_evaluations_total" ["query"],
        /// Windows of which anything was written or removed.
        windows: IntCounterVec = "kymo_continuous_windows_total" ["query"],
        /// Rows written to targets.
        rows: IntCounterVec = "kymo_continuous_rows_total" ["query"],
        /// Rows removed from targets, because their results have them no more.
        removed: IntCounterVec = "kymo_continuous_removed_rows_total" ["query"],
        /// Rows that came too late to change their window.
        late_rows: IntCounterVec = "kymo_continuous_late_rows_total" ["query"],
        /// Times that commits had to be read from the log or from their tables.
        lagged: IntCounterVec = "kymo_continuous_lagged_total" ["query"],
        /// Failures of evaluations.
        failures: IntCounterVec = "kymo_continuous_failures_total" ["query"],
    }
}

impl ContinuousMetrics {
    /// Forgets a query that is gone.
    pub fn forget(&self, query: &str) {
        let counters = [
            &self.evaluations,
            &self.windows,
            &self.rows,
            &self.removed,
            &self.late_rows,
            &self.lagged,
            &self.failures,
        ];
        for family in counters {
            // A family that never had the query has nothing to forget.
            let _ = family.remove_label_values(&[query]);
        }
        let _ = self.lag_seconds.remove_label_values(&[query]);
    }
}

families! {
    /// Alert rules.
    AlertMetrics {
        /// Rules, by whether they are `active`, `paused` or `failed`.
        rules: IntGaugeVec = "kymo_alert_rules" ["state"],
        /// Rules and files of rules that were refused when the files were read last.
        refused_rules: IntGauge = "kymo_alert_rules_refused",
        /// Kinds of rules that are evaluated on commits; those alike but for constants are one.
        shapes: IntGauge = "kymo_alert_shapes",
        /// Evaluations of rules, by what caused them: a `commit` or the `grid` of time.
        evaluations: IntCounterVec = "kymo_alert_evaluations_total" ["cause"],
        /// Evaluations that failed, by error code.
        failures: IntCounterVec = "kymo_alert_failures_total" ["code"],
        /// Instants of the grid that were passed over because an evaluation took too long.
        missed: IntCounter = "kymo_alert_missed_evaluations_total",
        /// Time from a commit, or from an instant of the grid, to the end of the evaluation.
        lag_seconds: HistogramVec = "kymo_alert_lag_seconds" ["cause"] buckets FAST,
        /// Transitions of alerts, by what they became.
        transitions: IntCounterVec = "kymo_alert_transitions_total" ["to"],
        /// Transitions that are not durable yet.
        pending_transitions: IntGauge = "kymo_alert_transitions_pending",
        /// Times that transitions could not be written and were tried again.
        retried_writes: IntCounter = "kymo_alert_retried_writes_total",
        /// Notifications handed to a channel.
        notifications: IntCounterVec = "kymo_alert_notifications_total" ["channel"],
        /// Notifications that a channel did not take in time and that went for newer ones.
        dropped_notifications: IntCounterVec = "kymo_alert_dropped_notifications_total" ["channel"],
    }
}

families! {
    /// Channels of alerts.
    ChannelMetrics {
        /// Notifications that a channel took.
        sent: IntCounterVec = "kymo_channel_notifications_sent_total" ["channel"],
        /// Notifications that a channel did not take, by why: `refused` or `expired`.
        failed: IntCounterVec = "kymo_channel_notifications_failed_total" ["channel", "why"],
        /// Attempts that failed and were followed by another one.
        retried: IntCounterVec = "kymo_channel_retries_total" ["channel"],
        /// Notifications that were sent before and were left out.
        repeated: IntCounterVec = "kymo_channel_repeated_notifications_total" ["channel"],
        /// Notifications that wait.
        queued: IntGaugeVec = "kymo_channel_queued_notifications" ["channel"],
        /// Time of one request.
        request_seconds: HistogramVec = "kymo_channel_request_seconds" ["channel"] buckets SLOW,
    }
}

/// Every family of the process.
pub struct Metrics {
    registry: Registry,
    /// Actors.
    pub actors: ActorMetrics,
    /// The memory of the process.
    pub memory: MemoryMetrics,
    /// The journal.
    pub journal: JournalMetrics,
    /// The store.
    pub store: StoreMetrics,
    /// The bucket.
    pub objects: ObjectMetrics,
    /// Writing.
    pub ingest: IngestMetrics,
    /// HTTP.
    pub http: HttpMetrics,
    /// The PostgreSQL wire protocol.
    pub pg: PgMetrics,
    /// Queries.
    pub queries: QueryMetrics,
    /// Plugins.
    pub plugins: PluginMetrics,
    /// Live data.
    pub live: LiveMetrics,
    /// Continuous queries.
    pub continuous: ContinuousMetrics,
    /// Alert rules.
    pub alerts: AlertMetrics,
    /// Channels of alerts.
    pub channels: ChannelMetrics,
    broken_invariants: IntCounterVec,
}

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        let invariants = IntCounterVec::new(
            Opts::new("kymo_invariant_violations_total", "How often a promise was found broken."),
            &["invariant"],
        );
        Metrics {
            actors: ActorMetrics::new(&registry),
            memory: MemoryMetrics::new(&registry),
            journal: JournalMetrics::new(&registry),
            store: StoreMetrics::new(&registry),
            objects: ObjectMetrics::new(&registry),
            ingest: IngestMetrics::new(&registry),
            http: HttpMetrics::new(&registry),
            pg: PgMetrics::new(&registry),
            queries: QueryMetrics::new(&registry),
            plugins: PluginMetrics::new(&registry),
            live: LiveMetrics::new(&registry),
            continuous: ContinuousMetrics::new(&registry),
            alerts: AlertMetrics::new(&registry),
            channels: ChannelMetrics::new(&registry),
            broken_invariants: register(&registry, invariants),
            registry,
        }
    }

    /// All families but those of the ports.
    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        for invariant in Invariant::ALL {
            let counter = self.broken_invariants.with_label_values(&[invariant.name()]);
            counter.inc_by(invariant.broken().saturating_sub(counter.get()));
        }
        self.registry.gather()
    }
}

#[expect(clippy::expect_used, reason = "names are constants; a test makes every family")]
fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("a valid metric");
    registry.register(Box::new(collector.clone())).expect("a metric of its own name");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_valid_and_shown() {
        metrics().journal.groups.inc();
        metrics().http.requests.with_label_values(&["/write", "204"]).inc();
        let text = crate::observe::text(&[]).unwrap();
        assert!(text.contains("# HELP kymo_journal_groups_total Record groups written."), "{text}");
        assert!(text.contains(r#"kymo_http_requests_total{route="/write",status="204"} 1"#));
        assert!(text.contains(r#"kymo_invariant_violations_total{invariant="W1"} 0"#));
    }
}
