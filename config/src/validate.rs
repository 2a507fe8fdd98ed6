//! What the settings must be beyond their types: words, ranges, and what has to go
//! together. Every rule is looked at; none hides another.

use std::net::{IpAddr, ToSocketAddrs};

use crate::load::{Problem, REDACTED};
use crate::settings::{AlertChannel, Alerts, Plugins, Settings, Storage};
use crate::span::Span;

/// Every rule that `settings` break. `place` tells where the value of a key came from.
#[must_use]
pub fn check(settings: &Settings, place: &dyn Fn(&str) -> String) -> Vec<Problem> {
    let mut rules = Rules { place, found: Vec::new() };
    rules.words(settings);
    rules.addresses(settings);
    rules.sizes(settings);
    rules.order(settings);
    rules.plugins(&settings.plugins);
    rules.channels(&settings.alerts);
    rules.today(settings);
    rules.storage(&settings.storage);
    rules.together(settings);
    rules.found
}

struct Rules<'a> {
    place: &'a dyn Fn(&str) -> String,
    found: Vec<Problem>,
}

impl Rules<'_> {
    fn need(&mut self, holds: bool, key: &str, what: impl Into<String>, hint: impl Into<String>) {
        if !holds {
            self.found.push(Problem {
                key: key.to_owned(),
                place: (self.place)(key),
                what: what.into(),
                hint: hint.into(),
            });
        }
    }

    fn word(&mut self, key: &str, value: &str, allowed: &[&str]) {
        self.need(
            allowed.contains(&value),
            key,
            format!("{value:?} is not a word that is known here"),
            format!("use one of: {}", allowed.join(", ")),
        );
    }

    fn positive(&mut self, key: &str, value: u64) {
        self.need(value > 0, key, "must be larger than 0", "leave it out for the default");
    }

    fn channels(&mut self, alerts: &Alerts) {
        let key = "alerts.channels";
        for (name, channel) in &alerts.channels {
            let AlertChannel { r#type: kind, url, secret } = channel;
            let has_url = url.starts_with("http://") || url.starts_with("https://");
            let known = ["webhook", "alertmanager", "log"].contains(&kind.as_str());
            self.need(
                known,
                key,
                format!("{name} has the type {kind:?}"),
                "use webhook, alertmanager or log",
            );
            self.need(
                !known || has_url == (kind != "log"),
                key,
                format!("{name} of type {kind} has the url {url:?}"),
                "webhook and alertmanager need http://… or https://…, log needs none",
            );
            self.need(
                secret.is_empty() || kind == "webhook",
                key,
                format!("{name} has a secret that nothing uses"),
                "webhooks alone are signed; leave it out",
            );
            self.need(
                secret != REDACTED,
                key,
                format!("the secret of {name} is the mark of one that was left out"),
                "write the secret itself",
            );
        }
        self.need(
            alerts.channels.len() <= alerts.max_channels,
            key,
            format!("there are {} channels", alerts.channels.len()),
            "name fewer, or raise alerts.max_channels",
        );
        self.need(
            alerts.retry_first_ms <= alerts.retry_longest_ms,
            "alerts.retry_longest_ms",
            format!("{} is less than alerts.retry_first_ms", alerts.retry_longest_ms),
            "make it at least as long",
        );
    }

    fn words(&mut self, s: &Settings) {
        const DURABILITY: [&str; 4] = ["every_write", "periodic", "os_default", "none"];
        const ROLES: [&str; 5] = ["all", "gateway", "ingest", "query", "compact"];
        self.word("journal.durability", &s.journal.durability, &DURABILITY);
        if let Err(problem) = s.journal.retention.parse::<Span>() {
            self.need(
                false,
                "journal.retention",
                problem,
                "use for example 0s, 12h, 7d or forever",
            );
        }
        self.word("observe.log_format", &s.observe.log_format, &["text", "json"]);
        for role in &s.node.roles {
            self.word("node.roles", role, &ROLES);
        }
        self.need(!s.node.roles.is_empty(), "node.roles", "names no role", "use [\"all\"]");
        let names = [
            ("node.id", &s.node.id),
            ("cluster.name", &s.cluster.name),
            ("auth.admin_user", &s.auth.admin_user),
        ];
        for (key, name) in names {
            self.need(!name.trim().is_empty(), key, "is empty", "give it a name");
        }
    }

    fn addresses(&mut self, s: &Settings) {
        let server = &s.server;
        for (key, host) in
            [("server.http_host", &server.http_host), ("server.pg_host", &server.pg_host)]
        {
            self.need(
                host.parse::<IpAddr>().is_ok() || looks_like_name(host),
                key,
                format!("{host:?} is neither an address nor a host name"),
                "use for example 127.0.0.1 or 0.0.0.0",
            );
        }
        self.need(
            server.http_port == 0
                || server.http_port != server.pg_port
                || server.http_host != server.pg_host,
            "server.pg_port",
            format!("port {} serves HTTP already", server.pg_port),
            "choose another port, or 0 for a free one",
        );
        self.need(
            !server.data_dir.as_os_str().is_empty(),
            "server.data_dir",
            "is empty",
            "name a folder",
        );
    }

    fn sizes(&mut self, s: &Settings) {
        let sizes = [
            ("server.max_connections", s.server.max_connections as u64),
            ("server.startup_timeout_ms", s.server.startup_timeout_ms),
            ("auth.cache_entries", s.auth.cache_entries as u64),
            ("auth.max_hashing", s.auth.max_hashing as u64),
            ("ingest.max_body_bytes", s.ingest.max_body_bytes),
            ("ingest.max_line_bytes", s.ingest.max_line_bytes),
            ("ingest.max_reported_errors", s.ingest.max_reported_errors as u64),
            ("ingest.max_columns", s.ingest.max_columns as u64),
            ("ingest.max_tables", s.ingest.max_tables as u64),
            ("ingest.queue_bytes", s.ingest.queue_bytes),
            ("ingest.queue_timeout_ms", s.ingest.queue_timeout_ms),
            ("ingest.body_timeout_ms", s.ingest.body_timeout_ms),
            ("memory.check_ms", s.memory.check_ms),
            ("memory.wait_ms", s.memory.wait_ms),
            ("journal.periodic_ms", s.journal.periodic_ms),
            ("journal.file_bytes", s.journal.file_bytes),
            ("journal.queue_bytes", s.journal.queue_bytes),
            ("journal.max_record_bytes", s.journal.max_record_bytes),
            ("journal.replay_bytes", s.journal.replay_bytes),
            ("memtable.table_bytes", s.memtable.table_bytes),
            ("memtable.soft_bytes", s.memtable.soft_bytes),
            ("memtable.hard_bytes", s.memtable.hard_bytes),
            ("memtable.max_age_ms", s.memtable.max_age_ms),
            ("memtable.max_frozen", s.memtable.max_frozen as u64),
            ("memtable.queue_bytes", s.memtable.queue_bytes),
            ("segment.row_group_rows", s.segment.row_group_rows as u64),
            ("compaction.interval_ms", s.compaction.interval_ms),
            ("compaction.target_bytes", s.compaction.target_bytes),
            ("retention.interval_ms", s.retention.interval_ms),
            ("backup.max_running", s.backup.max_running as u64),
            ("backup.lease_ms", s.backup.lease_ms),
            ("backup.max_snapshots", s.backup.max_snapshots as u64),
            ("query.max_running", s.query.max_running as u64),
            ("query.memory_bytes", s.query.memory_bytes),
            ("query.max_sql_bytes", s.query.max_sql_bytes),
            ("query.max_value_bytes", s.query.max_value_bytes),
            ("query.max_batch_bytes", s.query.max_batch_bytes),
            ("query.stream_batches", s.query.stream_batches as u64),
            ("live.max_connections", s.live.max_connections as u64),
            ("live.max_subscriptions", s.live.max_subscriptions as u64),
            ("live.max_connection_subscriptions", s.live.max_connection_subscriptions as u64),
            ("live.feed_bytes", s.live.feed_bytes),
            ("live.buffer_bytes", s.live.buffer_bytes),
            ("live.max_snapshots", s.live.max_snapshots as u64),
            ("live.state_bytes", s.live.state_bytes),
            ("live.max_message_bytes", s.live.max_message_bytes),
            ("live.max_requests", s.live.max_requests as u64),
            ("live.max_reply_bytes", s.live.max_reply_bytes),
            ("live.heartbeat_ms", s.live.heartbeat_ms),
            ("live.idle_timeout_ms", s.live.idle_timeout_ms),
            ("continuous.cursor_ms", s.continuous.cursor_ms),
            ("continuous.check_ms", s.continuous.check_ms),
            ("continuous.piece_rows", s.continuous.piece_rows as u64),
            ("continuous.retry_ms", s.continuous.retry_ms),
            ("alerts.staleness_ms", s.alerts.staleness_ms),
            ("alerts.max_rules", s.alerts.max_rules as u64),
            ("alerts.max_rule_files", s.alerts.max_rule_files as u64),
            ("alerts.max_rule_file_bytes", s.alerts.max_rule_file_bytes),
            ("alerts.max_silences", s.alerts.max_silences as u64),
            ("alerts.max_label_sets", s.alerts.max_label_sets as u64),
            ("alerts.max_evaluations", s.alerts.max_evaluations as u64),
            ("alerts.timeout_ms", s.alerts.timeout_ms),
            ("alerts.buffer_bytes", s.alerts.buffer_bytes),
            ("alerts.max_pending", s.alerts.max_pending as u64),
            ("alerts.max_notifications", s.alerts.max_notifications as u64),
            ("alerts.max_backtest_evaluations", s.alerts.max_backtest_evaluations),
            ("alerts.max_backtest_transitions", s.alerts.max_backtest_transitions as u64),
            ("alerts.max_channels", s.alerts.max_channels as u64),
            ("alerts.send_timeout_ms", s.alerts.send_timeout_ms),
            ("alerts.retry_first_ms", s.alerts.retry_first_ms),
            ("alerts.resend_ms", s.alerts.resend_ms),
            ("alerts.max_request_alerts", s.alerts.max_request_alerts as u64),
            ("storage.connect_timeout_ms", s.storage.connect_timeout_ms),
            ("storage.request_timeout_ms", s.storage.request_timeout_ms),
            ("storage.retry_timeout_ms", s.storage.retry_timeout_ms),
            ("storage.cache_bytes", s.storage.cache_bytes),
            ("storage.commit_timeout_ms", s.storage.commit_timeout_ms),
            ("storage.watch_ms", s.storage.watch_ms),
            ("storage.cold_interval_ms", s.storage.cold_interval_ms),
            ("pg.max_message_bytes", s.pg.max_message_bytes),
            ("pg.max_statements", s.pg.max_statements as u64),
            ("pg.max_statement_bytes", s.pg.max_statement_bytes),
        ];
        for (key, value) in sizes {
            self.positive(key, value);
        }
        self.need(
            (1..=22).contains(&s.segment.zstd_level),
            "segment.zstd_level",
            format!("{} is not a level", s.segment.zstd_level),
            "use 1 (fast) to 22 (small)",
        );
        self.need(
            s.alerts.evaluation_ms >= 100,
            "alerts.evaluation_ms",
            format!("{} is too often", s.alerts.evaluation_ms),
            "use 100 or more",
        );
        self.need(
            s.compaction.memory_bytes >= 64 << 20,
            "compaction.memory_bytes",
            format!("{} is too little for a merge", s.compaction.memory_bytes),
            "use 67108864 (64 MiB) or more",
        );
        self.need(
            s.compaction.max_segments >= s.compaction.min_segments,
            "compaction.max_segments",
            "is less than compaction.min_segments",
            "a window would be crowded before it is worth merging: raise it",
        );
        self.need(
            s.compaction.min_segments >= 2,
            "compaction.min_segments",
            "fewer than 2 segments cannot be merged",
            "use 2 or more",
        );
    }

    fn order(&mut self, s: &Settings) {
        self.need(
            s.memtable.soft_bytes < s.memtable.hard_bytes,
            "memtable.soft_bytes",
            format!(
                "{} is not below memtable.hard_bytes ({})",
                s.memtable.soft_bytes, s.memtable.hard_bytes
            ),
            "flushing has to begin before writes are turned away: lower soft or raise hard",
        );
        self.need(
            s.live.heartbeat_ms < s.live.idle_timeout_ms,
            "live.idle_timeout_ms",
            format!("{} is not above live.heartbeat_ms", s.live.idle_timeout_ms),
            "a client is asked for a sign of life before it is taken for gone",
        );
        self.need(
            s.ingest.max_line_bytes <= s.ingest.max_body_bytes,
            "ingest.max_line_bytes",
            "a line may be longer than the body that holds it",
            "raise ingest.max_body_bytes or lower this",
        );
        self.need(
            s.ingest.max_body_bytes <= s.journal.max_record_bytes,
            "ingest.max_body_bytes",
            "a body may be larger than the journal record that has to hold it",
            "raise journal.max_record_bytes or lower this",
        );
    }

    fn plugins(&mut self, p: &Plugins) {
        let sizes = [
            ("plugins.max_plugins", p.max_plugins as u64),
            ("plugins.max_versions", p.max_versions as u64),
            ("plugins.max_component_bytes", p.max_component_bytes),
            ("plugins.max_code_functions", p.max_code_functions as u64),
            ("plugins.max_code_body_bytes", p.max_code_body_bytes),
            ("plugins.compile_timeout_ms", p.compile_timeout_ms),
            ("plugins.compile_memory_bytes", p.compile_memory_bytes),
            ("plugins.max_instances", p.max_instances as u64),
            ("plugins.instance_wait_ms", p.instance_wait_ms),
            ("plugins.memory_bytes", p.memory_bytes),
            ("plugins.max_memory_bytes", p.max_memory_bytes),
            ("plugins.max_memories", u64::from(p.max_memories)),
            ("plugins.max_table_elements", p.max_table_elements as u64),
            ("plugins.stack_bytes", p.stack_bytes as u64),
            ("plugins.call_timeout_ms", p.call_timeout_ms),
            ("plugins.max_call_timeout_ms", p.max_call_timeout_ms),
            ("plugins.start_timeout_ms", p.start_timeout_ms),
            ("plugins.max_result_bytes", p.max_result_bytes),
            ("plugins.max_batch_rows", p.max_batch_rows as u64),
            ("plugins.max_functions", p.max_functions as u64),
            ("plugins.max_overloads", p.max_overloads as u64),
            ("plugins.max_columns", p.max_columns as u64),
            ("plugins.max_text_bytes", p.max_text_bytes),
            ("plugins.max_type_depth", p.max_type_depth as u64),
            ("plugins.log_lines", p.log_lines as u64),
            ("plugins.log_bytes", p.log_bytes),
            ("plugins.log_entries", p.log_entries as u64),
            ("plugins.max_faults", p.max_faults as u64),
            ("plugins.fault_window_ms", p.fault_window_ms),
            ("plugins.max_transform_faults", p.max_transform_faults as u64),
            ("plugins.max_transforms", p.max_transforms as u64),
            ("plugins.recycle_calls", p.recycle_calls),
            ("plugins.recycle_ms", p.recycle_ms),
        ];
        for (key, value) in sizes {
            self.positive(key, value);
        }
        self.word("plugins.on_fault", &p.on_fault, &["suspend", "rollback"]);
        self.need(
            p.memory_bytes <= p.max_memory_bytes,
            "plugins.memory_bytes",
            format!(
                "{} is above plugins.max_memory_bytes ({})",
                p.memory_bytes, p.max_memory_bytes
            ),
            "raise the maximum or lower this",
        );
        self.need(
            p.call_timeout_ms <= p.max_call_timeout_ms,
            "plugins.call_timeout_ms",
            format!(
                "{} is above plugins.max_call_timeout_ms ({})",
                p.call_timeout_ms, p.max_call_timeout_ms
            ),
            "raise the maximum or lower this",
        );
        self.need(
            p.max_memory_bytes <= 4 << 30,
            "plugins.max_memory_bytes",
            format!("{} is more than an instance can address", p.max_memory_bytes),
            "use 4294967296 or less",
        );
        self.need(
            (64 << 10..=2 << 20).contains(&p.stack_bytes),
            "plugins.stack_bytes",
            format!("{} is not a size for a stack", p.stack_bytes),
            "use 65536 to 2097152: calls run on the stacks of the query threads",
        );
    }

    /// Keys that exist for later growth and have one possible value so far.
    fn today(&mut self, s: &Settings) {
        self.need(
            s.cluster.partitions == 1,
            "cluster.partitions",
            format!("{} partitions are not offered yet", s.cluster.partitions),
            "use 1",
        );
        self.need(
            s.log.kind == "local",
            "log.kind",
            format!("a log of kind {:?} is not offered yet", s.log.kind),
            "use \"local\"",
        );
    }

    fn storage(&mut self, s: &Storage) {
        let named = |scheme: &str| s.url.strip_prefix(scheme).is_some_and(has_bucket);
        self.need(
            s.url.is_empty() || named("s3://") || named("memory://"),
            "storage.url",
            format!("{:?} names no bucket", s.url),
            "use s3://bucket/prefix, or leave it empty for the data folder",
        );
        self.need(
            s.endpoint.is_empty() || is_http(&s.endpoint),
            "storage.endpoint",
            format!("{:?} is no address", s.endpoint),
            "use https://host:port, or leave it empty for Amazon S3",
        );
        self.need(
            !s.endpoint.starts_with("http://") || s.allow_http,
            "storage.endpoint",
            format!("{:?} is without TLS", s.endpoint),
            "use https://…, or set storage.allow_http = true",
        );
        self.need(
            s.access_key_id.is_empty() == s.secret_access_key.is_empty(),
            "storage.secret_access_key",
            "an access key and its secret go together",
            "set storage.access_key_id and storage.secret_access_key, or neither",
        );
        self.need(
            s.secret_access_key != REDACTED,
            "storage.secret_access_key",
            "is the placeholder of printed settings",
            "put the real secret there, or leave it out",
        );
        self.need(
            s.part_bytes >= MIN_PART,
            "storage.part_bytes",
            format!("{} is less than a part may have", s.part_bytes),
            format!("use {MIN_PART} or more"),
        );
        self.cold(s);
    }

    fn cold(&mut self, s: &Storage) {
        let url = &s.cold_url;
        let bucket = |scheme: &str| url.strip_prefix(scheme).is_some_and(has_bucket);
        let folder = url.starts_with("file:///") || !url.contains("://");
        self.need(
            folder || bucket("s3://") || bucket("memory://"),
            "storage.cold_url",
            format!("{url:?} names no place"),
            "use s3://bucket/prefix, a path or file:///path, or leave it empty",
        );
        let key = "storage.cold_after";
        match s.cold_after.parse::<Span>() {
            Err(problem) => {
                self.need(false, key, problem, "use for example 12h, 30d, 8w or forever");
            }
            Ok(after) => self.need(
                after == Span::Forever || !url.is_empty(),
                key,
                format!("{:?} is set, but storage.cold_url is not", s.cold_after),
                "name the place in storage.cold_url, or leave this out",
            ),
        }
    }

    fn together(&mut self, s: &Settings) {
        let server = &s.server;
        if server.tls_cert.is_some() != server.tls_key.is_some() {
            let (have, lack) = if server.tls_cert.is_some() {
                ("server.tls_cert", "server.tls_key")
            } else {
                ("server.tls_key", "server.tls_cert")
            };
            self.need(
                false,
                have,
                format!("is set, but {lack} is not"),
                "TLS takes both: set the other too, or neither",
            );
        }
        if !s.auth.enabled {
            for (key, host) in
                [("server.http_host", &server.http_host), ("server.pg_host", &server.pg_host)]
            {
                self.need(
                    is_loopback(host),
                    key,
                    format!("{host} can be reached from other machines, and auth is off"),
                    "switch auth on, or bind to 127.0.0.1",
                );
            }
        }
        if let Some(password) = &s.auth.admin_password {
            let key = "auth.admin_password";
            self.need(!password.is_empty(), key, "is empty", "leave it out to have one made up");
            self.need(
                password != REDACTED,
                key,
                "is the placeholder of printed settings",
                "put the real password there, or leave it out",
            );
        }
    }
}

/// The smallest part of an upload that S3 takes, but for the last one.
const MIN_PART: u64 = 5 << 20;

/// Whether what follows the scheme of an address names a bucket, and a prefix if anything.
fn has_bucket(rest: &str) -> bool {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn is_http(address: &str) -> bool {
    address.starts_with("http://") || address.starts_with("https://")
}

fn looks_like_name(host: &str) -> bool {
    !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_')
        && !host.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// Whether only this machine can reach an address. A name counts if all it stands for does.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.is_loopback();
    }
    match (host, 0).to_socket_addrs() {
        Ok(addresses) => {
            let addresses: Vec<_> = addresses.collect();
            !addresses.is_empty() && addresses.iter().all(|each| each.ip().is_loopback())
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(change: impl FnOnce(&mut Settings)) -> Vec<String> {
        let mut settings = Settings::default();
        change(&mut settings);
        let found = check(&settings, &|_| "a test".to_owned());
        found.into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn defaults_break_no_rule() {
        assert!(broken(|_| ()).is_empty());
    }

    #[test]
    fn each_rule_finds_its_mistake() {
        type Mistake = (&'static str, fn(&mut Settings));
        let mistakes: Vec<Mistake> = vec![
            ("journal.durability", |s| s.journal.durability = "sometimes".into()),
            ("journal.retention", |s| s.journal.retention = "7".into()),
            ("observe.log_format", |s| s.observe.log_format = "xml".into()),
            ("node.roles", |s| s.node.roles = vec!["king".into()]),
            ("node.roles", |s| s.node.roles.clear()),
            ("node.id", |s| s.node.id.clear()),
            ("server.http_host", |s| s.server.http_host = "1.2.3".into()),
            ("server.pg_port", |s| s.server.pg_port = s.server.http_port),
            ("memtable.table_bytes", |s| s.memtable.table_bytes = 0),
            ("segment.zstd_level", |s| s.segment.zstd_level = 40),
            ("alerts.evaluation_ms", |s| s.alerts.evaluation_ms = 99),
            ("alerts.max_rules", |s| s.alerts.max_rules = 0),
            ("alerts.channels", |s| drop(s.alerts.channels.insert("a".into(), <_>::default()))),
            ("alerts.retry_longest_ms", |s| s.alerts.retry_longest_ms = 999),
            ("alerts.max_rule_files", |s| s.alerts.max_rule_files = 0),
            ("alerts.max_rule_file_bytes", |s| s.alerts.max_rule_file_bytes = 0),
            ("compaction.memory_bytes", |s| s.compaction.memory_bytes = 1),
            ("compaction.max_segments", |s| s.compaction.max_segments = 3),
            ("compaction.min_segments", |s| s.compaction.min_segments = 1),
            ("memtable.soft_bytes", |s| s.memtable.soft_bytes = s.memtable.hard_bytes),
            ("ingest.max_line_bytes", |s| s.ingest.max_line_bytes = s.ingest.max_body_bytes + 1),
            ("ingest.max_body_bytes", |s| s.journal.max_record_bytes = 1),
            ("cluster.partitions", |s| s.cluster.partitions = 2),
            ("log.kind", |s| s.log.kind = "nats".into()),
            ("storage.url", |s| s.storage.url = "s3://".into()),
            ("storage.url", |s| s.storage.url = "s3://bucket/../other".into()),
            ("storage.url", |s| s.storage.url = "ftp://bucket".into()),
            ("storage.endpoint", |s| s.storage.endpoint = "minio:9000".into()),
            ("storage.endpoint", |s| s.storage.endpoint = "http://minio:9000".into()),
            ("storage.secret_access_key", |s| s.storage.access_key_id = "key".into()),
            ("storage.part_bytes", |s| s.storage.part_bytes = 5 << 19),
            ("storage.cache_bytes", |s| s.storage.cache_bytes = 0),
            ("storage.cold_url", |s| s.storage.cold_url = "ftp://bucket".into()),
            ("storage.cold_url", |s| s.storage.cold_url = "s3://".into()),
            ("storage.cold_url", |s| s.storage.cold_url = "file://mnt".into()),
            ("storage.cold_after", |s| s.storage.cold_after = "30d".into()),
            ("storage.cold_after", |s| s.storage.cold_after = "a month".into()),
            ("storage.cold_interval_ms", |s| s.storage.cold_interval_ms = 0),
            ("server.tls_cert", |s| s.server.tls_cert = Some("cert.pem".into())),
            ("server.tls_key", |s| s.server.tls_key = Some("key.pem".into())),
            ("plugins.max_instances", |s| s.plugins.max_instances = 0),
            ("plugins.on_fault", |s| s.plugins.on_fault = "cry".into()),
            ("plugins.memory_bytes", |s| s.plugins.max_memory_bytes = 1),
            ("plugins.max_memory_bytes", |s| s.plugins.max_memory_bytes = u64::MAX),
            ("plugins.call_timeout_ms", |s| s.plugins.max_call_timeout_ms = 1),
            ("plugins.stack_bytes", |s| s.plugins.stack_bytes = 1),
            ("auth.admin_password", |s| s.auth.admin_password = Some(String::new())),
            ("auth.admin_password", |s| s.auth.admin_password = Some(REDACTED.into())),
        ];
        for (key, change) in mistakes {
            assert_eq!(broken(change), [key], "mistake in {key}");
        }
    }

    #[test]
    fn auth_may_be_off_on_loopback_only() {
        assert!(broken(|s| s.auth.enabled = false).is_empty());
        let open = broken(|s| {
            s.auth.enabled = false;
            s.server.http_host = "0.0.0.0".into();
            s.server.pg_host = "::".into();
        });
        assert_eq!(open, ["server.http_host", "server.pg_host"]);
    }
}
