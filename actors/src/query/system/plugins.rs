//! `system.plugins`, `system.functions`, `system.transforms` and `system.plugin_log`.
//!
//! What is installed comes from the metadata, what goes on from the plugin host. Log lines can
//! hold data of rows: only administrators see them.

use std::collections::HashMap;

use kymo_kernel::digest::Digest;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::SessionContext;
use kymo_kernel::plugin::{PluginDef, PluginVersionDef};

use super::{Cell, Inspector, Kind, SystemTable, number};
use crate::catalog::plan::plugins::{describe, signature};

/// A row about a plugin as the plugin host has it.
#[derive(Debug, Clone, Default)]
pub struct PluginRow {
    /// Its name.
    pub name: String,
    /// `active`, `suspended`, `disabled` or `failed`.
    pub state: String,
    /// Why it cannot be called, if so.
    pub reason: Option<String>,
}

/// A row about a loaded version.
#[derive(Debug, Clone)]
pub struct PluginVersionRow {
    /// The plugin.
    pub name: String,
    /// The version.
    pub digest: Digest,
    /// Instances that live.
    pub instances: u64,
    /// Calls that ended.
    pub calls: u64,
    /// Rows handed over.
    pub rows: u64,
    /// Time within calls.
    pub nanoseconds: u64,
    /// Faults of all kinds.
    pub faults: u64,
}

/// What was counted of one transform of one table.
#[derive(Debug, Clone)]
pub struct TransformRow {
    /// The table.
    pub table: TableId,
    /// The plugin.
    pub plugin: String,
    /// Its transform.
    pub function: String,
    /// Rows that came.
    pub rows_in: u64,
    /// Rows that it handed back.
    pub rows_out: u64,
    /// Rows that it refused.
    pub refused: u64,
    /// Rows that went on as they were because it failed.
    pub passed: u64,
    /// Rows that were put aside because it failed.
    pub dead_letter: u64,
    /// Batches on which it failed or could not be called.
    pub failures: u64,
    /// Time that batches spent in it.
    pub nanoseconds: u64,
}

/// A row of `system.plugin_log`.
#[derive(Debug, Clone, Default)]
pub struct PluginLogRow {
    /// When, in nanoseconds since 1970.
    pub time: i64,
    /// The plugin.
    pub plugin: String,
    /// The first digits of its version's digest.
    pub version: String,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// What it said.
    pub message: String,
}

pub(super) static TABLES: &[SystemTable] = &[
    SystemTable {
        name: "plugins",
        columns: &[
            ("plugin", Kind::Text),
            ("version", Kind::Text),
            ("digest", Kind::Text),
            ("role", Kind::Text),
            ("canary_percent", Kind::Number),
            ("state", Kind::Text),
            ("reason", Kind::Text),
            ("bytes", Kind::Number),
            ("installed", Kind::Time),
            ("settings", Kind::Text),
            ("instances", Kind::Number),
            ("calls", Kind::Number),
            ("rows", Kind::Number),
            ("busy_ms", Kind::Number),
            ("faults", Kind::Number),
        ],
        rows: plugins,
    },
    SystemTable {
        name: "functions",
        columns: &[
            ("name", Kind::Text),
            ("plugin", Kind::Text),
            ("function", Kind::Text),
            ("kind", Kind::Text),
            ("signature", Kind::Text),
            ("volatility", Kind::Text),
            ("description", Kind::Text),
        ],
        rows: functions,
    },
    SystemTable {
        name: "transforms",
        columns: &[
            ("database", Kind::Text),
            ("schema", Kind::Text),
            ("table", Kind::Text),
            ("position", Kind::Number),
            ("plugin", Kind::Text),
            ("function", Kind::Text),
            ("on_error", Kind::Text),
            ("settings", Kind::Text),
            ("rows_in", Kind::Number),
            ("rows_out", Kind::Number),
            ("refused", Kind::Number),
            ("passed", Kind::Number),
            ("dead_letter", Kind::Number),
            ("failures", Kind::Number),
            ("busy_ms", Kind::Number),
        ],
        rows: transforms,
    },
    SystemTable {
        name: "plugin_log",
        columns: &[
            ("time", Kind::Time),
            ("plugin", Kind::Text),
            ("version", Kind::Text),
            ("level", Kind::Text),
            ("message", Kind::Text),
        ],
        rows: log,
    },
];

fn text(value: impl Into<String>) -> Cell {
    Cell::Text(value.into())
}

fn plugins(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let mut live = HashMap::new();
    for row in inspector.inspect.plugin_versions() {
        // A version that was replaced by itself with other settings lives twice for a while.
        let sum = live.entry((row.name.clone(), row.digest)).or_insert([0; 5]);
        let counts = [row.instances, row.calls, row.rows, row.nanoseconds / 1_000_000, row.faults];
        sum.iter_mut().zip(counts).for_each(|(sum, count): (&mut u64, u64)| *sum += count);
    }
    let states: HashMap<String, PluginRow> =
        inspector.inspect.plugins().into_iter().map(|row| (row.name.clone(), row)).collect();
    let catalog = inspector.tables.catalog();
    let mut rows = Vec::new();
    for plugin in catalog.plugins.values() {
        for version in &plugin.versions {
            let counts = live.get(&(plugin.name.clone(), version.digest)).copied();
            rows.push(row(plugin, version, states.get(&plugin.name), counts));
        }
    }
    rows
}

fn row(
    plugin: &PluginDef,
    version: &PluginVersionDef,
    state: Option<&PluginRow>,
    counts: Option<[u64; 5]>,
) -> Vec<Cell> {
    let is = |digest: Option<Digest>| digest == Some(version.digest);
    let canary = plugin.canary.filter(|canary| canary.digest == version.digest);
    let role = match canary {
        Some(_) => "canary",
        None if is(plugin.active) => "active",
        None if is(plugin.previous) => "previous",
        None => "kept",
    };
    let state_word = state.map_or(plugin.state(), |state| state.state.as_str());
    let reason = state.and_then(|state| state.reason.clone());
    let reason = reason.or_else(|| plugin.suspended.as_ref().map(|each| each.reason.clone()));
    let settings = serde_json::to_string(&version.settings).unwrap_or_default();
    let mut cells = vec![
        text(plugin.name.clone()),
        text(version.version.clone()),
        text(version.digest.to_string()),
        text(role),
        canary.map_or(Cell::Null, |canary| Cell::Number(i64::from(canary.percent))),
        text(state_word),
        reason.map_or(Cell::Null, Cell::Text),
        number(version.bytes),
        Cell::Time(version.installed_ns),
        text(settings),
    ];
    cells.extend(counts.unwrap_or_default().map(number));
    cells
}

fn functions(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let catalog = inspector.tables.catalog();
    let mut rows = Vec::new();
    for plugin in catalog.plugins.values() {
        let Some(Ok(offered)) = plugin.active_version().map(describe) else { continue };
        for function in &offered.functions {
            let own = catalog
                .functions
                .values()
                .filter(|own| own.plugin == plugin.name && own.function == function.name);
            let declared = own.map(|own| {
                let signature = format!("({}) → {}", own.parameters.join(", "), own.returns);
                (own.name.clone(), signature)
            });
            let full = format!("{}.{}", plugin.name, function.name);
            let offered = function.overloads.iter().map(|each| (full.clone(), signature(each)));
            for (name, signature) in offered.chain(declared) {
                rows.push(vec![
                    text(name),
                    text(plugin.name.clone()),
                    text(function.name.clone()),
                    text(function.kind.as_str()),
                    text(signature),
                    text(format!("{:?}", function.volatility).to_lowercase()),
                    text(function.description.clone()),
                ]);
            }
        }
    }
    rows
}

/// Attachments come from the metadata, what they did since the start from ingest.
fn transforms(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let catalog = inspector.tables.catalog();
    let counted: HashMap<_, _> = inspector
        .inspect
        .transforms()
        .into_iter()
        .map(|row| ((row.table, row.plugin.clone(), row.function.clone()), row))
        .collect();
    let mut rows = Vec::new();
    for (table, chain) in catalog.transforms.iter() {
        let Some(meta) = catalog.table_by_id(*table) else { continue };
        for (at, each) in chain.iter().enumerate() {
            let counts = counted.get(&(*table, each.plugin.clone(), each.function.clone()));
            let counts = counts.map_or([0; 7], |row| {
                [
                    row.rows_in,
                    row.rows_out,
                    row.refused,
                    row.passed,
                    row.dead_letter,
                    row.failures,
                    row.nanoseconds / 1_000_000,
                ]
            });
            let name = &meta.def.name;
            let mut cells = vec![
                text(name.database.clone()),
                text(name.schema.clone()),
                text(name.table.clone()),
                number(at as u64 + 1),
                text(each.plugin.clone()),
                text(each.function.clone()),
                text(each.on_error.as_str()),
                text(serde_json::to_string(&each.settings).unwrap_or_default()),
            ];
            cells.extend(counts.map(number));
            rows.push(cells);
        }
    }
    rows
}

fn log(inspector: &Inspector, session: &SessionContext) -> Vec<Vec<Cell>> {
    if !session.admin {
        return Vec::new();
    }
    let row = |each: PluginLogRow| {
        vec![
            Cell::Time(each.time),
            Cell::Text(each.plugin),
            Cell::Text(each.version),
            Cell::Text(each.level),
            Cell::Text(each.message),
        ]
    };
    inspector.inspect.plugin_log().into_iter().map(row).collect()
}
