//! `kymo status`: the answer of `/stats` as tables.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use kymo_kernel::{Error, Result};
use serde_json::Value;

use super::client::{Client, Target};
use super::print;

/// Show what a server is doing.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the JSON as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Runs the command.
///
/// # Errors
/// No connection, or what the server says is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    let stats = Client::find(&arguments.target)?.get("/stats")?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&stats)
            .map_err(|error| Error::internal(error.to_string()))?;
        return print(&(text + "\n"));
    }
    print(&render(&stats))
}

/// Single values first, then a table for every list of objects, however deep it lies.
fn render(stats: &Value) -> String {
    let mut singles = Vec::new();
    let mut lists = Vec::new();
    sort_out("", stats, &mut singles, &mut lists);
    let mut text = String::new();
    if !singles.is_empty() {
        let mut table = empty();
        for (name, value) in &singles {
            table.add_row([name, value]);
        }
        right_align(&mut table, 1);
        text.push_str(&format!("{table}\n"));
    }
    for (name, rows) in lists {
        text.push_str(&format!("\n{name}\n{}\n", list(name_columns(&name, rows), rows)));
    }
    text
}

fn sort_out<'a>(
    name: &str,
    value: &'a Value,
    singles: &mut Vec<(String, String)>,
    lists: &mut Vec<(String, &'a [Value])>,
) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                sort_out(&name, member, singles, lists);
            }
        }
        Value::Array(rows) if rows.first().is_some_and(Value::is_object) => {
            lists.push((name.to_owned(), rows));
        }
        other => singles.push((name.to_owned(), cell(name, other))),
    }
}

/// What a terminal has room for of a port; `--json` and `system.ports` have the rest.
const PORT_COLUMNS: [&str; 6] =
    ["name", "accepted", "queued", "queued_bytes", "peak_bytes", "rejected_busy"];

/// The columns to show of a list: all keys in order of appearance, but for the wide ones.
fn name_columns<'a>(list: &str, rows: &'a [Value]) -> Vec<&'a str> {
    let mut columns: Vec<&str> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    if list == "ports" {
        columns.retain(|key| PORT_COLUMNS.contains(key));
    }
    columns
}

/// A list of objects as a table with a column for every key.
pub fn table(rows: &[Value]) -> String {
    format!("{}\n", list(name_columns("", rows), rows))
}

fn list(columns: Vec<&str>, rows: &[Value]) -> Table {
    let mut table = empty();
    table.set_header(&columns);
    for row in rows {
        table.add_row(columns.iter().map(|key| cell(key, &row[*key])));
    }
    for (index, key) in columns.iter().enumerate() {
        if rows.iter().any(|row| row[*key].is_number()) {
            right_align(&mut table, index);
        }
    }
    table
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    table
}

fn right_align(table: &mut Table, index: usize) {
    if let Some(column) = table.column_mut(index) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// A value as text; sizes in units that people read.
fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if name.ends_with("bytes") => {
            number.as_u64().map_or_else(|| number.to_string(), bytes)
        }
        other => other.to_string(),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_and_lists_both_show() {
        let shown = render(&json!({
            "version": "0.1.0",
            "journal": {"bytes": 1536, "poisoned": false},
            "tables": [{"name": "cpu", "rows": 12}, {"name": "mem", "rows": 7, "bytes": 10}],
        }));
        for part in ["version", "journal.bytes", "1.5 KiB", "tables", "cpu", "12", "10 B"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }
}
