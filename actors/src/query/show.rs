//! The answers of `SHOW` and `DESCRIBE`: small tables made from definitions and settings.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use kymo_kernel::alert::{AlertDef, SilenceDef};
use kymo_kernel::continuous::ContinuousDef;
use kymo_kernel::message::SessionContext;
use kymo_kernel::plugin::PluginDef;
use kymo_kernel::schema::{ColumnKind, TableDef};
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Code, Error, Result};

use super::allow::{HIDDEN, sees};
use super::catalog::{table_names, user_schemas};
use super::command::{PartialName, Show};
use super::text::nearest;
use super::{ddl, guc, pgtypes, system};

/// Computes the answer.
///
/// # Errors
/// `table_not_found`, `database_not_found`, `setting_not_found`.
pub(super) fn rows(
    show: &Show,
    session: &SessionContext,
    snapshot: &Snapshot,
) -> Result<RecordBatch> {
    match show {
        Show::Databases => {
            let names = snapshot.databases.iter().map(|name| vec![Some(name.clone())]);
            table(&["database_name"], names.collect())
        }
        Show::Schemas => {
            let mut names = user_schemas(snapshot, &session.database);
            names.extend([system::SCHEMA, "information_schema", "pg_catalog"].map(str::to_owned));
            table(&["schema_name"], names.into_iter().map(|name| vec![Some(name)]).collect())
        }
        Show::Tables { database, like } => {
            tables(database.as_deref(), like.as_deref(), session, snapshot)
        }
        Show::Columns(name) => columns(name, session, snapshot),
        Show::CreateTable(name) => {
            let def = find(name, session, snapshot)?;
            let own = snapshot.retentions.tables.get(&def.id).copied();
            let text = ddl::create_statement(&def.name.table, &def.schema, &def.options, own);
            table(
                &["table_name", "create_table"],
                vec![vec![Some(def.name.table.clone()), Some(text)]],
            )
        }
        Show::Plugins => {
            let row = |plugin: &Arc<PluginDef>| {
                let version = plugin.active_version();
                let reason = plugin.suspended.as_ref();
                vec![
                    Some(plugin.name.clone()),
                    version.map(|version| version.version.clone()),
                    Some(plugin.state().to_owned()),
                    reason.map(|suspension| suspension.reason.clone()),
                    version.map(|version| version.digest.to_string()),
                ]
            };
            let rows = snapshot.plugins.values().map(row).collect();
            table(&["plugin", "version", "state", "reason", "digest"], rows)
        }
        Show::ContinuousQueries => {
            let queries = snapshot.continuous.values();
            let own = queries.filter(|query| query.name.database == session.database);
            let row = |query: &Arc<ContinuousDef>| {
                vec![
                    Some(query.name.name.clone()),
                    Some(query.target.to_string()),
                    query.every_ns.map(system::length),
                    query.lateness_ns.map(system::length),
                    Some(query.state().to_owned()),
                    query.paused.as_ref().map(|pause| pause.reason.clone()),
                    Some(shown_text(query, session)),
                ]
            };
            let names = ["name", "target", "every", "allowed_lateness", "state", "reason", "query"];
            table(&names, own.map(row).collect())
        }
        Show::DownsamplingPolicies => {
            let queries = snapshot.continuous.values();
            let own = queries.filter(|query| query.name.database == session.database);
            let row = |query: &Arc<ContinuousDef>| {
                let policy = query.policy.as_ref()?;
                Some(vec![
                    Some(query.name.name.clone()),
                    Some(policy.table.to_string()),
                    Some(system::length(policy.after_ns)),
                    Some(system::length(policy.width_ns)),
                    Some(query.target.to_string()),
                    Some(query.state().to_owned()),
                    Some(shown_text(query, session)),
                ])
            };
            let names = ["name", "table", "after", "to", "target", "state", "query"];
            table(&names, own.filter_map(row).collect())
        }
        Show::Alerts => {
            let rows = snapshot.alerts.values().map(|alert| alert_row(alert)).collect();
            let names =
                ["alert", "state", "every", "query", "condition", "for", "notify", "origin"];
            table(&names, rows)
        }
        Show::Silences => {
            let rows = snapshot.silences.values().map(|silence| silence_row(silence)).collect();
            table(&["silence", "alerts", "from", "until", "by", "comment"], rows)
        }
        Show::All => {
            let rows = guc::all(session).into_iter();
            let rows = rows.map(|(name, value, about)| vec![Some(name), Some(value), Some(about)]);
            table(&["name", "setting", "description"], rows.collect())
        }
        Show::Setting(name) => {
            let value = guc::show(session, name)?;
            table(&[&shown_name(name)], vec![vec![Some(value)]])
        }
    }
}

fn shown_text(query: &ContinuousDef, session: &SessionContext) -> String {
    if sees(session, &query.user) { query.text.clone() } else { HIDDEN.to_owned() }
}

fn alert_row(alert: &AlertDef) -> Vec<Option<String>> {
    vec![
        Some(alert.name.clone()),
        Some(if alert.paused { "paused" } else { "active" }.to_owned()),
        alert.every_ns.map(system::length),
        Some(alert.query.clone()),
        alert.condition.clone(),
        Some(system::length(alert.hold_ns)),
        Some(alert.channels.join(", ")),
        alert.origin.as_ref().map(ToString::to_string),
    ]
}

fn silence_row(silence: &SilenceDef) -> Vec<Option<String>> {
    let time =
        |ns| Some(DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::Millis, true));
    vec![
        Some(silence.id.to_string()),
        Some(silence.matcher.to_string()),
        time(silence.starts_ns),
        time(silence.ends_ns),
        Some(silence.author.clone()),
        Some(silence.comment.clone()),
    ]
}

/// PostgreSQL spells a few names with capitals in the answer.
fn shown_name(name: &str) -> String {
    match name {
        "timezone" => "TimeZone".to_owned(),
        "datestyle" => "DateStyle".to_owned(),
        "intervalstyle" => "IntervalStyle".to_owned(),
        other => other.to_owned(),
    }
}

fn table(names: &[&str], rows: Vec<Vec<Option<String>>>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    let columns = (0..names.len()).map(|at| -> ArrayRef {
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row[at].as_deref())))
    });
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())
        .map_err(|error| Error::internal(format!("show: {error}")))
}

fn tables(
    database: Option<&str>,
    like: Option<&str>,
    session: &SessionContext,
    snapshot: &Snapshot,
) -> Result<RecordBatch> {
    let database = database.unwrap_or(&session.database);
    check_database(database, snapshot)?;
    let mut rows = Vec::new();
    for schema in user_schemas(snapshot, database) {
        for name in table_names(snapshot, database, &schema) {
            if like.is_none_or(|pattern| matches(pattern, &name)) {
                rows.push(vec![Some(schema.clone()), Some(name)]);
            }
        }
    }
    table(&["table_schema", "table_name"], rows)
}

/// Refuses a database that does not exist.
pub(super) fn check_database(name: &str, snapshot: &Snapshot) -> Result<()> {
    if snapshot.databases.contains(name) {
        return Ok(());
    }
    Err(Error::new(Code::DatabaseNotFound, format!("database \"{name}\" does not exist"))
        .with_hint("SHOW DATABASES lists what there is"))
}

fn columns(
    name: &PartialName,
    session: &SessionContext,
    snapshot: &Snapshot,
) -> Result<RecordBatch> {
    let names = ["column_name", "data_type", "is_nullable", "kind"];
    let full = name.resolve(&session.database, &session.schema);
    if full.schema == system::SCHEMA
        && let Some(schema) = system::schema(&full.table)
    {
        let rows = schema.fields().iter().map(|field| {
            vec![
                Some(field.name().clone()),
                Some(pgtypes::name(field.data_type()).to_owned()),
                Some("YES".to_owned()),
                Some("field".to_owned()),
            ]
        });
        return table(&names, rows.collect());
    }
    let def = find(name, session, snapshot)?;
    let rows = def.schema.columns.iter().map(|column| {
        let nullable = if column.kind == ColumnKind::Time { "NO" } else { "YES" };
        vec![
            Some(column.name.clone()),
            Some(pgtypes::name(column.arrow().data_type()).to_owned()),
            Some(nullable.to_owned()),
            Some(column.kind.as_str().to_owned()),
        ]
    });
    table(&names, rows.collect())
}

/// The table of a name.
pub(super) fn find(
    name: &PartialName,
    session: &SessionContext,
    snapshot: &Snapshot,
) -> Result<Arc<TableDef>> {
    let full = name.resolve(&session.database, &session.schema);
    if let Some(meta) = snapshot.table(&full) {
        return Ok(meta.def.clone());
    }
    check_database(&full.database, snapshot)?;
    let names = table_names(snapshot, &full.database, &full.schema);
    let error = Error::new(Code::TableNotFound, format!("table \"{name}\" does not exist"));
    Err(match nearest(&full.table, names.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
        None => error.with_hint("SHOW TABLES lists what there is"),
    })
}

/// `LIKE` with `%` and `_`.
fn matches(pattern: &str, text: &str) -> bool {
    fn at(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|skip| at(rest, &text[skip..])),
            ['_', rest @ ..] => !text.is_empty() && at(rest, &text[1..]),
            [first, rest @ ..] => text.first() == Some(first) && at(rest, &text[1..]),
        }
    }
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    // More wildcards than any name needs would make matching slow.
    pattern.iter().filter(|c| **c == '%').count() <= 8 && at(&pattern, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_knows_both_wildcards() {
        for (pattern, text, expected) in [
            ("cpu", "cpu", true),
            ("c%", "cpu", true),
            ("%u", "cpu", true),
            ("c_u", "cpu", true),
            ("c_", "cpu", false),
            ("", "cpu", false),
            ("%", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
