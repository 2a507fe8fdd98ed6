//! The query that a downsampling policy stands for: all tags of a table, and for each numeric
//! field a few aggregates over windows of time.

use kymo_kernel::schema::{Column, ColumnKind, FieldType, TIME, TableDef};
use kymo_kernel::{Code, Error, Result};

use super::super::system::length;

/// What a policy keeps of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aggregate {
    Avg,
    Min,
    Max,
    Count,
    Sum,
    First,
    Last,
    Stddev,
}

impl Aggregate {
    const ALL: [Aggregate; 8] = [
        Aggregate::Avg,
        Aggregate::Min,
        Aggregate::Max,
        Aggregate::Count,
        Aggregate::Sum,
        Aggregate::First,
        Aggregate::Last,
        Aggregate::Stddev,
    ];

    /// What is kept where nobody says otherwise: enough for averages, extremes and rates over
    /// larger windows later.
    const DEFAULT: [Aggregate; 4] =
        [Aggregate::Avg, Aggregate::Min, Aggregate::Max, Aggregate::Count];

    fn word(self) -> &'static str {
        match self {
            Aggregate::Avg => "avg",
            Aggregate::Min => "min",
            Aggregate::Max => "max",
            Aggregate::Count => "count",
            Aggregate::Sum => "sum",
            Aggregate::First => "first",
            Aggregate::Last => "last",
            Aggregate::Stddev => "stddev",
        }
    }

    /// The meaning of a word of SQL.
    pub(super) fn from_word(word: &str) -> Option<Aggregate> {
        Self::ALL.into_iter().find(|each| each.word().eq_ignore_ascii_case(word))
    }

    /// All words, for hints.
    pub(super) fn words() -> String {
        Self::ALL.map(Aggregate::word).join(", ")
    }

    /// `avg("usage") AS "usage_avg"`.
    fn of(self, field: &str, time: &str) -> String {
        let word = self.word();
        let (column, name) = (quoted(field), quoted(&format!("{field}_{word}")));
        match self {
            Aggregate::First | Aggregate::Last => {
                format!("{word}({column}, {}) AS {name}", quoted(time))
            }
            _ => format!("{word}({column}) AS {name}"),
        }
    }
}

/// The text of the query.
///
/// # Errors
/// `invalid_input` for a table without numeric fields.
pub(super) fn query(table: &TableDef, width_ns: i64, aggregates: &[Aggregate]) -> Result<String> {
    let chosen = if aggregates.is_empty() { &Aggregate::DEFAULT[..] } else { aggregates };
    let time = &table.schema.time()?.name;
    let numeric = |column: &&Column| {
        let number =
            matches!(column.field_type, FieldType::Float64 | FieldType::Int64 | FieldType::UInt64);
        column.kind == ColumnKind::Field && number
    };
    let fields: Vec<&Column> = table.schema.columns.iter().filter(numeric).collect();
    if fields.is_empty() {
        return Err(Error::new(
            Code::InvalidInput,
            format!("table {} has no numeric fields to downsample", table.name),
        )
        .with_hint("use CREATE CONTINUOUS QUERY to say what to keep of it"));
    }
    let window =
        format!("time_bucket('{}', {}) AS {}", length(width_ns), quoted(time), quoted(TIME));
    let tags: Vec<String> = table.schema.tags().map(|tag| quoted(&tag.name)).collect();
    let kept = fields.iter().flat_map(|field| chosen.iter().map(|each| each.of(&field.name, time)));
    let columns: Vec<String> =
        [window].into_iter().chain(tags.iter().cloned()).chain(kept).collect();
    let groups: Vec<String> = (1..=tags.len() + 1).map(|place| place.to_string()).collect();
    let name = [&table.name.database, &table.name.schema, &table.name.table];
    let from = name.map(|part| quoted(part)).join(".");
    Ok(format!("SELECT {} FROM {from} GROUP BY {}", columns.join(", "), groups.join(", ")))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use kymo_kernel::ids::{ColumnId, TableId};
    use kymo_kernel::schema::{TableName, TableOptions, TableSchema};

    use super::*;

    fn table(columns: &[(&str, ColumnKind, FieldType)]) -> TableDef {
        let column = |(name, kind, field_type): &(&str, ColumnKind, FieldType)| Column {
            id: ColumnId(0),
            name: (*name).to_owned(),
            kind: *kind,
            field_type: *field_type,
        };
        TableDef {
            id: TableId(1),
            name: TableName::new("kymo", "c\"pu"),
            schema: TableSchema { version: 1, columns: columns.iter().map(column).collect() },
            options: TableOptions::default(),
        }
    }

    #[test]
    fn tags_are_kept_and_numeric_fields_aggregated() {
        let def = table(&[
            ("host", ColumnKind::Tag, FieldType::Text),
            ("ts", ColumnKind::Time, FieldType::Timestamp),
            ("up", ColumnKind::Field, FieldType::Bool),
            ("use", ColumnKind::Field, FieldType::Float64),
        ]);
        let text = query(&def, 60_000_000_000, &[Aggregate::Max, Aggregate::Last]).unwrap();
        assert_eq!(
            text,
            "SELECT time_bucket('1m', \"ts\") AS \"time\", \"host\", \
             max(\"use\") AS \"use_max\", last(\"use\", \"ts\") AS \"use_last\" \
             FROM \"kymo\".\"public\".\"c\"\"pu\" GROUP BY 1, 2"
        );
        let default = query(&def, 1, &[]).unwrap();
        for word in ["avg", "min", "max", "count"] {
            assert!(default.contains(&format!("\"use_{word}\"")), "{default}");
        }
        let none = table(&[("ts", ColumnKind::Time, FieldType::Timestamp)]);
        assert_eq!(query(&none, 1, &[]).unwrap_err().code(), Code::InvalidInput);
    }
}
