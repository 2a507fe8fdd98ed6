//! What can be set, with its unit in the name and its default in the code.
//!
//! `default.toml` beside this crate explains every key to operators; a test keeps the two equal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$key_doc])* pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($key: $default,)* }
            }
        }
    };
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

section! {
    /// Everything that can be set.
    Settings {
        /// Who this process is.
        node: Node = Node::default(),
        /// The cluster that it belongs to.
        cluster: Cluster = Cluster::default(),
        /// Where segments and metadata lie.
        storage: Storage = Storage::default(),
        /// Where the durable log lies.
        log: Log = Log::default(),
        /// Sockets and the data folder.
        server: Server = Server::default(),
        /// Who may come in.
        auth: Auth = Auth::default(),
        /// The memory of the process.
        memory: Memory = Memory::default(),
        /// Limits of writing.
        ingest: Ingest = Ingest::default(),
        /// The journal.
        journal: Journal = Journal::default(),
        /// Rows in memory.
        memtable: Memtable = Memtable::default(),
        /// Parquet segments.
        segment: Segment = Segment::default(),
        /// Merging segments.
        compaction: Compaction = Compaction::default(),
        /// Letting expired rows go.
        retention: Retention = Retention::default(),
        /// Backups that are being taken.
        backup: Backup = Backup::default(),
        /// Limits of querying.
        query: Query = Query::default(),
        /// The PostgreSQL wire protocol.
        pg: Pg = Pg::default(),
        /// Live data: subscriptions, the WebSocket and event streams.
        live: Live = Live::default(),
        /// Continuous queries.
        continuous: Continuous = Continuous::default(),
        /// Alert rules.
        alerts: Alerts = Alerts::default(),
        /// Plugins.
        plugins: Plugins = Plugins::default(),
        /// Logs, metrics and traces.
        observe: Observe = Observe::default(),
        /// Stopping.
        shutdown: Shutdown = Shutdown::default(),
    }
}

section! {
    /// Who this process is.
    Node {
        /// Name of the node, unique in its cluster.
        id: String = "node-1".to_owned(),
        /// What the node does: `all`, or any of `gateway`, `ingest`, `query`, `compact`.
        roles: Vec<String> = vec!["all".to_owned()],
    }
}

section! {
    /// The cluster that the node belongs to.
    Cluster {
        /// Name of the cluster; a bucket's prefix is part of `storage.url`.
        name: String = "kymo".to_owned(),
        /// Number of log partitions. One process serves one partition today.
        partitions: u16 = 1,
    }
}

section! {
    /// Where segments and metadata lie.
    Storage {
        /// `s3://bucket/prefix`, or empty for the data folder of this machine.
        url: String = String::new(),
        /// Address of the service; empty for Amazon S3.
        endpoint: String = String::new(),
        /// Region of the bucket; empty for `AWS_REGION`, or us-east-1.
        region: String = String::new(),
        /// Access key; empty for the usual `AWS_…` variables or the machine's own credentials.
        access_key_id: String = String::new(),
        /// Secret of that key.
        secret_access_key: String = String::new(),
        /// Whether the service may be talked to without TLS.
        allow_http: bool = false,
        /// Time for a connection to come about.
        connect_timeout_ms: u64 = 5_000,
        /// Time for one request, its body included.
        request_timeout_ms: u64 = 30_000,
        /// Attempts after the first one, of one request.
        max_retries: usize = 5,
        /// Time after which a request is not tried again.
        retry_timeout_ms: u64 = 60_000,
        /// Objects above are uploaded in parts of this size.
        part_bytes: u64 = 16 * MIB,
        /// Memory for pieces of segments that were read.
        cache_bytes: u64 = 256 * MIB,
        /// Time for which a change of the metadata is tried before the server stops.
        commit_timeout_ms: u64 = 600_000,
        /// Time between two looks for another server that has taken over.
        watch_ms: u64 = 1_000,
        /// Whether to go on without rows that may lie in the journal of another server.
        take_over: bool = false,
        /// The second place for segments: `s3://bucket/prefix`, a path or `file:///path`; empty for
        /// none.
        cold_url: String = String::new(),
        /// How old the newest row of a segment must be before it moves there: a [`crate::Span`],
        /// `forever` for never.
        cold_after: String = "forever".to_owned(),
        /// How often tables are looked at for such segments.
        cold_interval_ms: u64 = 60_000,
    }
}

section! {
    /// Where the durable log lies.
    Log {
        /// `local`: a journal in the data folder, the only kind today.
        kind: String = "local".to_owned(),
    }
}

section! {
    /// Sockets and the data folder.
    Server {
        /// The folder that holds everything.
        data_dir: PathBuf = PathBuf::from("./kymo-data"),
        /// Address for HTTP and WebSocket.
        http_host: String = "127.0.0.1".to_owned(),
        /// Port for HTTP and WebSocket; 0 takes a free one.
        http_port: u16 = 7878,
        /// Address for the PostgreSQL wire protocol.
        pg_host: String = "127.0.0.1".to_owned(),
        /// Port for the PostgreSQL wire protocol; 0 takes a free one.
        pg_port: u16 = 5433,
        /// Connections at a time, on each of the two ports.
        max_connections: usize = 1000,
        /// Time for a connection to send its first request or to log in.
        startup_timeout_ms: u64 = 10_000,
        /// Certificate chain (PEM) that switches TLS on, for both ports; needs `tls_key`.
        tls_cert: Option<PathBuf> = None,
        /// Private key (PEM) of the certificate.
        tls_key: Option<PathBuf> = None,
        /// Threads for sockets; 0 means one a core.
        io_threads: usize = 0,
        /// Threads for flushing and compacting; 0 means a quarter of the cores, at least one.
        background_threads: usize = 0,
    }
}

section! {
    /// Who may come in.
    Auth {
        /// Whether anybody has to prove who they are. Off is accepted on loopback only.
        enabled: bool = true,
        /// Name of the administrator that the first start creates.
        admin_user: String = "admin".to_owned(),
        /// Password for that administrator; made up and printed once where absent.
        admin_password: Option<String> = None,
        /// How many proven credentials are remembered, to spare the password hash.
        cache_entries: usize = 1024,
        /// How many password hashes are computed at a time.
        max_hashing: usize = 2,
    }
}

section! {
    /// Limits of writing.
    Ingest {
        /// Size of a request body after decompression.
        max_body_bytes: u64 = 32 * MIB,
        /// Length of one line of line protocol.
        max_line_bytes: u64 = MIB,
        /// Bad lines reported in one answer; the rest is counted.
        max_reported_errors: usize = 100,
        /// Tag and field columns a table may have.
        max_columns: usize = 5000,
        /// Tables a database may have.
        max_tables: usize = 10_000,
        /// Bytes of accepted requests on their way to the writers.
        queue_bytes: u64 = 64 * MIB,
        /// How long a request waits for room before it is told to come back.
        queue_timeout_ms: u64 = 1000,
        /// Bodies that are read and parsed at a time; 0 means twice the cores.
        max_parsing: usize = 0,
        /// Time for a request's body to arrive.
        body_timeout_ms: u64 = 30_000,
        /// Size of the segments of each database's `system.rejected_writes`, beyond which its
        /// oldest rows go; 0 keeps them all.
        rejected_bytes: u64 = 256 * MIB,
    }
}

section! {
    /// The memory of the process.
    Memory {
        /// What the process may take; 0 means what its container or the machine allows.
        limit_bytes: u64 = 0,
        /// Time between two looks at what it takes.
        check_ms: u64 = 200,
        /// Time that a query waits while memory is short.
        wait_ms: u64 = 10_000,
    }
}

section! {
    /// The journal.
    Journal {
        /// `every_write`, `periodic`, `os_default` or `none`.
        durability: String = "every_write".to_owned(),
        /// Interval between fsyncs for `periodic`.
        periodic_ms: u64 = 100,
        /// Size at which a new file is begun.
        file_bytes: u64 = 64 * MIB,
        /// Bytes that wait for the journal thread.
        queue_bytes: u64 = 32 * MIB,
        /// Size of one record; larger ones are refused.
        max_record_bytes: u64 = 256 * MIB,
        /// Memory that replaying may hold before it flushes.
        replay_bytes: u64 = 160 * MIB,
        /// How long files are kept as history whose rows are all flushed, by their newest row: a
        /// [`crate::Span`].
        retention: String = "0s".to_owned(),
        /// Size of the history beyond which its oldest files go, unless it is kept for ever.
        retention_bytes: u64 = 4 * GIB,
    }
}

section! {
    /// Rows in memory.
    Memtable {
        /// Size of a table's rows in memory at which they are flushed.
        table_bytes: u64 = 64 * MIB,
        /// Size of all rows in memory at which the largest table is flushed.
        soft_bytes: u64 = 256 * MIB,
        /// Size of all rows in memory at which writes are turned away.
        hard_bytes: u64 = 512 * MIB,
        /// Age of the oldest row in memory at which it is flushed.
        max_age_ms: u64 = 300_000,
        /// Frozen memtables of a table that may wait for their flush before it stalls.
        max_frozen: usize = 2,
        /// Bytes that wait for one table's writer.
        queue_bytes: u64 = 32 * MIB,
    }
}

section! {
    /// Parquet segments.
    Segment {
        /// Rows in a row group.
        row_group_rows: usize = 131_072,
        /// Zstandard level for segments that compaction writes.
        zstd_level: i32 = 3,
        /// Memory for the footers and indexes of segments that are kept open.
        cache_bytes: u64 = 64 * MIB,
    }
}

section! {
    /// Merging segments.
    Compaction {
        /// Whether segments are merged at all.
        enabled: bool = true,
        /// How often tables are looked at.
        interval_ms: u64 = 10_000,
        /// Segments of about one size in a time window that are worth merging.
        min_segments: usize = 4,
        /// Size beyond which a segment is left alone.
        target_bytes: u64 = 128 * MIB,
        /// Segments below the target size in a time window beyond which its merges go first and
        /// rows in memory wait longer for their flush.
        max_segments: usize = 64,
        /// Memory that one merge may take, about.
        memory_bytes: u64 = 256 * MIB,
        /// Time without a new segment after which a time window is merged as far as the
        /// target size allows.
        quiet_ms: u64 = 600_000,
        /// Age at which files that nothing names any more are deleted.
        grace_ms: u64 = 60_000,
        /// Ended exchanges of segments that `system.compactions` shows.
        history: usize = 256,
    }
}

section! {
    /// Letting expired rows go.
    Retention {
        /// How often tables are looked at for segments whose rows are all expired.
        interval_ms: u64 = 60_000,
    }
}

section! {
    /// Backups that are being taken.
    Backup {
        /// How many at a time.
        max_running: usize = 2,
        /// Silence of the client after which a backup is let go.
        lease_ms: u64 = 60_000,
        /// Snapshots that are kept in the data folder.
        max_snapshots: usize = 16,
    }
}

section! {
    /// Limits of querying.
    Query {
        /// Queries that run at a time.
        max_running: usize = 32,
        /// Queries that wait for their turn.
        max_waiting: usize = 256,
        /// Time for one query, waiting included; 0 means no limit.
        timeout_ms: u64 = 300_000,
        /// Memory of all running queries, beyond which they spill to disk or fail.
        memory_bytes: u64 = GIB,
        /// Disk space for spilling.
        spill_bytes: u64 = 16 * GIB,
        /// Threads that plan and run queries; 0 means one a core.
        threads: usize = 0,
        /// Length of SQL text.
        max_sql_bytes: u64 = 16 * MIB,
        /// Size of one value that a function may make.
        max_value_bytes: u64 = 16 * MIB,
        /// Size of the values that a function may make in one call, which is for a batch of rows.
        max_batch_bytes: u64 = 256 * MIB,
        /// Batches in the channel between a query and its socket.
        stream_batches: usize = 4,
    }
}

section! {
    /// The PostgreSQL wire protocol.
    Pg {
        /// Size of one message after log-in.
        max_message_bytes: u64 = 64 * MIB,
        /// Prepared statements of one connection.
        max_statements: usize = 1024,
        /// Bytes of SQL text in the prepared statements of one connection.
        max_statement_bytes: u64 = 16 * MIB,
    }
}

section! {
    /// Live data: subscriptions, the WebSocket and event streams.
    Live {
        /// WebSocket connections and event streams at a time.
        max_connections: usize = 2000,
        /// Subscriptions at a time, over all connections.
        max_subscriptions: usize = 10_000,
        /// Subscriptions of one WebSocket connection.
        max_connection_subscriptions: usize = 100,
        /// Committed rows on their way to all subscribers.
        feed_bytes: u64 = 8 * MIB,
        /// Committed rows that wait for one subscriber; beyond, it lags behind and catches up.
        buffer_bytes: u64 = 4 * MIB,
        /// What a subscriber that lags may read back from the journal at once; beyond, it gets
        /// a new snapshot.
        catch_up_bytes: u64 = 32 * MIB,
        /// Snapshots for subscribers that are read at a time.
        max_snapshots: usize = 8,
        /// Memory of one query whose result is kept up to date by windows of time: of its states,
        /// of one result, and of what a subscriber was sent. Beyond, the oldest windows are
        /// forgotten and read from the tables when they change.
        state_bytes: u64 = 32 * MIB,
        /// How long changes are gathered before windows that commits touched are pushed.
        window_push_ms: u64 = 10,
        /// How long changes are gathered before a query that cannot follow single commits runs
        /// again.
        rerun_ms: u64 = 1000,
        /// Size of one message of a WebSocket client.
        max_message_bytes: u64 = MIB,
        /// Requests of one WebSocket connection that wait for their turn.
        max_requests: usize = 64,
        /// Size of the answer to a statement that was sent as plain text, which is one message.
        max_reply_bytes: u64 = 16 * MIB,
        /// How long a `FETCH` without a timeout waits for rows that are committed already; beyond,
        /// it answers what has come.
        cursor_wait_ms: u64 = 1000,
        /// How often the server shows that it is there.
        heartbeat_ms: u64 = 15_000,
        /// Silence after which a WebSocket client is taken for gone.
        idle_timeout_ms: u64 = 60_000,
        /// Web sites whose pages may open a WebSocket, beside the server's own, as
        /// `https://host:port`.
        allowed_origins: Vec<String> = Vec::new(),
    }
}

section! {
    /// Continuous queries.
    Continuous {
        /// How many there may be.
        max_queries: usize = 1000,
        /// Time between a change and the evaluation of its windows, for queries without `EVERY`.
        delay_ms: u64 = 1000,
        /// How often the places that queries have reached are kept; what a crash makes them
        /// compute again.
        cursor_ms: u64 = 5000,
        /// How often queries are compared with their definitions and tables.
        check_ms: u64 = 1000,
        /// Rows of a result above which windows are taken fewer at a time.
        piece_rows: usize = 65_536,
        /// Rows of results that one query remembers to write only what changed.
        memory_bytes: u64 = 16 * MIB,
        /// Failures in a row after which a query is paused.
        max_failures: u32 = 5,
        /// The pause after a failure, which doubles with each further one, up to five minutes.
        retry_ms: u64 = 1000,
    }
}

section! {
    /// Alert rules: how often they are evaluated, and how much they may hold.
    Alerts {
        /// Interval of evaluation of rules that are created without EVERY.
        evaluation_ms: u64 = 10_000,
        /// Age at which the last row of a label set no longer counts, without NO DATA AFTER.
        staleness_ms: u64 = 300_000,
        /// How long an alert that was resolved is still shown, and sent again after a restart.
        resolved_ms: u64 = 900_000,
        /// Rules that there may be.
        max_rules: usize = 20_000,
        /// The folder whose files `*.yml` and `*.yaml` hold rules; empty for none.
        rules_dir: PathBuf = PathBuf::new(),
        /// Files of rules that there may be.
        max_rule_files: usize = 1_000,
        /// Size of one file of rules.
        max_rule_file_bytes: u64 = 4 * MIB,
        /// Silences that there may be.
        max_silences: usize = 10_000,
        /// Label sets that one rule may have; a rule with more fails.
        max_label_sets: usize = 100_000,
        /// Queries of rules that run at a time.
        max_evaluations: usize = 2,
        /// Time for one query of a rule.
        timeout_ms: u64 = 30_000,
        /// Committed rows that wait to be evaluated; beyond, the table is read again.
        buffer_bytes: u64 = 16 * MIB,
        /// Transitions that may wait to become durable; beyond, nothing is evaluated until they
        /// are.
        max_pending: usize = 100_000,
        /// Notifications that wait for one channel; beyond, the oldest go.
        max_notifications: usize = 10_000,
        /// Size of the segments of `system.alert_history`, beyond which its oldest rows go; 0
        /// keeps them all.
        history_bytes: u64 = 256 * MIB,
        /// Evaluations of one backtest.
        max_backtest_evaluations: u64 = 1_000_000,
        /// Transitions that one backtest may return.
        max_backtest_transitions: usize = 100_000,
        /// Where alerts go, by name; `log` is there without being named.
        channels: BTreeMap<String, AlertChannel> = BTreeMap::new(),
        /// What addresses of channels that SQL creates have to begin with; none may be created
        /// that have one where nothing is named.
        channel_urls: Vec<String> = Vec::new(),
        /// Channels that there may be, those of the settings included.
        max_channels: usize = 64,
        /// Time for one request to a channel, connecting included.
        send_timeout_ms: u64 = 10_000,
        /// The pause after the first failed attempt; it doubles with each further one.
        retry_first_ms: u64 = 1_000,
        /// The longest pause between two attempts.
        retry_longest_ms: u64 = 60_000,
        /// Age of a transition at which it is not tried again.
        retry_for_ms: u64 = 3_600_000,
        /// Interval in which Alertmanager is told again what fires.
        resend_ms: u64 = 60_000,
        /// Alerts in one request to Alertmanager.
        max_request_alerts: usize = 64,
        /// The address of this server as people reach it; empty for the one it listens on.
        external_url: String = String::new(),
    }
}

section! {
    /// Where alerts go.
    AlertChannel {
        /// `webhook`, `alertmanager` or `log`.
        r#type: String = String::new(),
        /// Where requests go: a webhook's address, or Alertmanager's without `/api/v2/alerts`.
        url: String = String::new(),
        /// What webhooks are signed with; not signed where empty.
        secret: String = String::new(),
    }
}

section! {
    /// Plugins: WebAssembly components that add functions and ingest transforms.
    Plugins {
        /// Whether plugins can be installed and called at all.
        enabled: bool = true,
        /// Whether plugins may use interfaces that can still change: window and table functions and
        /// ingest transforms.
        preview: bool = false,
        /// Plugins that may be installed.
        max_plugins: usize = 256,
        /// Versions of one plugin that are kept, the one in use included.
        max_versions: usize = 4,
        /// Size of an uploaded component. Plugins in JavaScript need 2 MiB, in Python 20 MiB.
        max_component_bytes: u64 = 4 * MIB,
        /// The folder that `CREATE PLUGIN … FROM 'file:…'` may read components from; empty switches
        /// that off.
        install_folder: PathBuf = PathBuf::new(),
        /// What addresses in `CREATE PLUGIN … FROM 'https://…'` may begin with; none by default:
        /// the server then fetches nothing.
        install_urls: Vec<String> = Vec::new(),
        /// Time for fetching one component.
        fetch_timeout_ms: u64 = 60_000,
        /// WebAssembly functions in one component.
        max_code_functions: usize = 20_000,
        /// Size of the body of one WebAssembly function.
        max_code_body_bytes: u64 = 128 * KIB,
        /// CPU time for compiling one component, in a process of its own. By the clock it may take
        /// four times as long.
        compile_timeout_ms: u64 = 60_000,
        /// Address space of the process that compiles.
        compile_memory_bytes: u64 = GIB,
        /// Instances that live at a time, over all queries.
        max_instances: usize = 256,
        /// How long a query waits for a free instance before it is told to come back.
        instance_wait_ms: u64 = 5000,
        /// Memory of one instance, unless the plugin was installed with a limit of its own.
        memory_bytes: u64 = 64 * MIB,
        /// The largest limit for the memory of one instance that a plugin may be installed with.
        max_memory_bytes: u64 = 256 * MIB,
        /// Linear memories of one instance, which share its `memory_bytes`: an interpreter has
        /// three. For each, address space is set aside.
        max_memories: u32 = 4,
        /// Entries in each function table of one instance.
        max_table_elements: usize = 20_000,
        /// Stack of a call.
        stack_bytes: usize = 512 * 1024,
        /// Time for one call on one batch, unless the plugin was installed with a limit of its own.
        call_timeout_ms: u64 = 1000,
        /// The largest limit for the time of one call that a plugin may be installed with.
        max_call_timeout_ms: u64 = 60_000,
        /// Time for an instance to start and for a component to describe itself. An interpreter
        /// needs some 40 ms where nothing else runs.
        start_timeout_ms: u64 = 1000,
        /// Size of what one call may hand back, on top of four times the size of its arguments.
        max_result_bytes: u64 = 16 * MIB,
        /// Rows of one call; larger batches are split.
        max_batch_rows: usize = 65_536,
        /// Functions that one plugin may offer.
        max_functions: usize = 256,
        /// Overloads that one function may have.
        max_overloads: usize = 64,
        /// Columns, or parameters, of one overload.
        max_columns: usize = 256,
        /// Size of a description or an error message; messages are cut, descriptions refused.
        max_text_bytes: u64 = 4 * KIB,
        /// Depth of a nested type.
        max_type_depth: usize = 8,
        /// Whether what plugins log is kept. Their lines can hold data of rows; only administrators
        /// see them.
        log: bool = true,
        /// Lines that one instance may log; the rest is counted.
        log_lines: usize = 64,
        /// Bytes that one instance may log.
        log_bytes: u64 = 16 * KIB,
        /// Lines that system.plugin_log remembers.
        log_entries: usize = 1024,
        /// Faults within `fault_window_ms` after which a version is suspended.
        max_faults: usize = 5,
        /// The time in which faults are counted.
        fault_window_ms: u64 = 60_000,
        /// Faults of one ingest transform in a row after which its version is suspended.
        max_transform_faults: usize = 3,
        /// What a suspended version is followed by: `suspend` (nothing) or `rollback` (the version
        /// before it).
        on_fault: String = "suspend".to_owned(),
        /// Ingest transforms that one table may have.
        max_transforms: usize = 8,
        /// Batches that are in transforms at a time; 0 means one core less than there are.
        transform_workers: usize = 0,
        /// Instances of ingest transforms that are kept for the next batch, over all tables; at
        /// most half of `max_instances`.
        idle_transforms: usize = 64,
        /// Calls after which the instance of an ingest transform is replaced.
        recycle_calls: u64 = 10_000,
        /// Age at which the instance of an ingest transform is replaced.
        recycle_ms: u64 = 600_000,
    }
}

section! {
    /// Logs, metrics and traces.
    Observe {
        /// Filter of log lines, such as `info` or `info,kymo_kernel=debug`.
        log: String = "info".to_owned(),
        /// `text` or `json`.
        log_format: String = "text".to_owned(),
    }
}

section! {
    /// Stopping.
    Shutdown {
        /// Time for running statements to end.
        statements_ms: u64 = 10_000,
        /// Time for accepted writes to be answered.
        writes_ms: u64 = 5000,
        /// Time for background jobs to end.
        background_ms: u64 = 5000,
        /// Whether rows in memory are flushed, so that the next start replays nothing.
        flush: bool = true,
    }
}
