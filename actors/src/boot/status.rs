//! What the system tells about itself: one JSON value for people and tools, one text for
//! Prometheus.

use kymo_kernel::Result;
use kymo_kernel::observe;
use kymo_kernel::storage::StoreStats;
use kymo_kernel::storage::tier::Tier;
use serde_json::{Value, json};

use super::System;

/// Tables listed in one status; the counts are of all of them.
const LISTED_TABLES: usize = 1000;

impl System {
    /// Tables with rows and bytes, the journal, ports, memory, uptime: for `/stats` and
    /// `kymo status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let inner = &self.0;
        let catalog = self.catalog();
        let store = inner.engine.store();
        let uptime = inner.env.clock.monotonic().saturating_sub(inner.started);
        let (mut rows, mut bytes, mut segments) = (0, 0, 0);
        let mut tables = Vec::new();
        for (id, table) in catalog.tables.iter() {
            let version = store.table(*id).map(|cell| cell.load());
            let stored = version.as_ref().map_or(0, |version| version.stored_rows());
            let size: u64 = table.segments.values().map(|segment| segment.bytes).sum();
            rows += stored;
            bytes += size;
            segments += table.segments.len();
            if tables.len() < LISTED_TABLES {
                tables.push(json!({
                    "name": table.def.name.to_string(),
                    "rows": stored,
                    "bytes": size,
                    "segments": table.segments.len(),
                    "columns": table.def.schema.columns.len(),
                    "watermark": version.map(|version| version.watermark.to_string()),
                }));
            }
        }
        let here = inner.engine.membership().here();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": here.id.to_string(),
            "uptime_seconds": uptime.as_secs(),
            "ready": self.is_ready(),
            "poisoned": self.poisoned().map(|error| error.to_string()),
            "metadata_version": catalog.version.0,
            "databases": catalog.databases.iter().collect::<Vec<_>>(),
            "table_count": catalog.tables.len(),
            "rows": rows,
            "bytes": bytes,
            "segments": segments,
            "memory_bytes": inner.engine.memory().total(),
            "writers": inner.engine.writers().len(),
            "subscribers": inner.engine.feed().subscribers(),
            "journal": journal(&store.stats()),
            "tables": tables,
            "ports": inner.supervisor.ports(),
        })
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// `internal` if a family cannot be rendered.
    pub fn observe(&self) -> Result<String> {
        let gauges = &observe::metrics().store;
        let catalog = self.catalog();
        let segments = catalog.tables.values().flat_map(|table| table.segments.values());
        // Hot and cold: how many, and their bytes.
        let mut tiers = [(0, 0); 2];
        for segment in segments {
            let (count, bytes) = &mut tiers[usize::from(Tier::of(segment) == Tier::Cold)];
            (*count, *bytes) = (*count + 1, *bytes + segment.bytes);
        }
        let [hot, cold] = tiers;
        gauges.memtable_bytes.set(signed(self.0.engine.memory().total()));
        gauges.segments.set(hot.0 + cold.0);
        gauges.segment_bytes.set(signed(hot.1 + cold.1));
        gauges.cold_segments.set(cold.0);
        gauges.cold_bytes.set(signed(cold.1));
        gauges.tables.set(signed(catalog.tables.len() as u64));
        gauges.metadata_version.set(signed(catalog.version.0));
        self.0.channels.count();
        observe::text(&self.0.supervisor.ports())
    }
}

fn journal(stats: &StoreStats) -> Value {
    json!({
        "complete_files": stats.log_files,
        "complete_bytes": stats.log_bytes,
        "queued_bytes": stats.queued_bytes,
        "groups": stats.log_groups,
        "written_bytes": stats.log_written_bytes,
        "syncs": stats.log_syncs,
        "sync_seconds": stats.log_sync_seconds,
        "garbage_files": stats.garbage,
    })
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
