//! What `ALTER TABLE` means: columns that come, go and get other names.
//!
//! A column that goes or changes its name must not be missed by anything that was defined over
//! it. Definitions are kept as text, so [`super::mentions`] says whether one may mean a column.

use std::sync::Arc;

use kymo_kernel::ids::ColumnId;
use kymo_kernel::message::TableChange;
use kymo_kernel::schema::{
    Column, ColumnKind, SYSTEM_SCHEMA, TableDef, TableName, TableOptions, TableSchema, check_name,
};
use kymo_kernel::storage::meta::{Op, Snapshot, TableMeta};
use kymo_kernel::{Code, Error, Result};

use super::mentions::{may_mean, mentions};
use super::{Limits, Plan, check_columns, no_table};

/// Plans the changes of one statement.
///
/// # Errors
/// `table_not_found`, `column_not_found` and `already_exists` for names that are missing or
/// taken; `invalid_input` for what cannot be changed; `in_use` naming what needs a column as it
/// is; `limit_reached` for one column too many.
pub(super) fn plan(
    snapshot: &Snapshot,
    name: &TableName,
    if_exists: bool,
    changes: &[TableChange],
    limits: Limits,
) -> Result<Plan> {
    if name.schema == SYSTEM_SCHEMA {
        let text = format!("table {name} is one of Kymo's own and is not altered");
        return Err(Error::new(Code::InvalidInput, text));
    }
    let Some(table) = snapshot.table(name) else {
        return if if_exists { Ok(Plan::default()) } else { Err(no_table(name)) };
    };
    let mut draft = Draft::of(snapshot, table);
    changes.iter().try_for_each(|change| draft.apply(change))?;
    let Draft { columns, options, .. } = draft;
    let (id, known) = (table.def.id, &table.def.schema);
    if columns == known.columns && options == table.def.options {
        return Ok(Plan { table: Some(id), ..Plan::default() });
    }
    check_columns(name, &columns, limits)?;
    let schema = TableSchema { version: known.version + 1, columns };
    let def = TableDef { schema, options, ..TableDef::clone(&table.def) };
    Ok(Plan { ops: vec![Op::PutTable { def }], table: Some(id), dropped: Vec::new() })
}

/// A definition on its way.
struct Draft<'a> {
    snapshot: &'a Snapshot,
    def: &'a TableDef,
    columns: Vec<Column>,
    options: TableOptions,
    next: ColumnId,
}

impl<'a> Draft<'a> {
    fn of(snapshot: &'a Snapshot, table: &'a Arc<TableMeta>) -> Self {
        let (def, next) = (table.def.as_ref(), table.next_column);
        let (columns, options) = (def.schema.columns.clone(), def.options.clone());
        Draft { snapshot, def, columns, options, next }
    }

    fn apply(&mut self, change: &TableChange) -> Result<()> {
        match change {
            TableChange::AddColumn { column, if_not_exists } => self.add(column, *if_not_exists),
            TableChange::DropColumn { name, if_exists } => self.drop(name, *if_exists),
            TableChange::RenameColumn { from, to } => self.rename(from, to),
            TableChange::WidenIntegers(widen) => {
                self.options.widen_integers = *widen;
                Ok(())
            }
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    fn add(&mut self, column: &Column, if_not_exists: bool) -> Result<()> {
        if self.find(&column.name).is_some() {
            return if if_not_exists { Ok(()) } else { Err(self.taken(&column.name)) };
        }
        check_name("column", &column.name)?;
        if column.kind == ColumnKind::Time {
            let text = format!("table {} has a time column already", self.def.name);
            return Err(Error::new(Code::InvalidInput, text));
        }
        self.columns.push(Column { id: self.next, ..column.clone() });
        self.next = ColumnId(self.next.0 + 1);
        Ok(())
    }

    fn drop(&mut self, name: &str, if_exists: bool) -> Result<()> {
        let Some(at) = self.find(name) else {
            return if if_exists { Ok(()) } else { Err(self.missing(name)) };
        };
        let table = &self.def.name;
        match self.columns[at].kind {
            ColumnKind::Field => {}
            ColumnKind::Tag => {
                let text = format!("column {name:?} of table {table} is a tag and stays");
                return Err(Error::new(Code::InvalidInput, text).with_hint(
                    "tags are a row's identity: without one, rows would replace each other; \
                     write the rows that you want to keep into another table",
                ));
            }
            ColumnKind::Time => {
                let text = format!("column {name:?} is the time of table {table} and stays");
                return Err(Error::new(Code::InvalidInput, text)
                    .with_hint("RENAME COLUMN gives it another name; DROP TABLE removes all"));
            }
        }
        check_unused(self.snapshot, self.def, name)?;
        self.columns.remove(at);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let Some(at) = self.find(from) else { return Err(self.missing(from)) };
        if from == to {
            return Ok(());
        }
        if self.find(to).is_some() {
            return Err(self.taken(to));
        }
        check_name("column", to)?;
        check_unused(self.snapshot, self.def, from)?;
        to.clone_into(&mut self.columns[at].name);
        Ok(())
    }

    fn taken(&self, name: &str) -> Error {
        let text = format!("column {name:?} of table {} exists", self.def.name);
        Error::new(Code::AlreadyExists, text)
            .with_hint("use another name, or ADD COLUMN IF NOT EXISTS")
    }

    fn missing(&self, name: &str) -> Error {
        let text = format!("column {name:?} of table {} does not exist", self.def.name);
        Error::new(Code::ColumnNotFound, text)
            .with_hint(format!("SHOW COLUMNS FROM {} lists those that do", self.def.name.table))
    }
}

/// Refuses to take a column away from what was defined over it.
///
/// # Errors
/// `in_use`, naming it.
pub(super) fn check_unused(snapshot: &Snapshot, def: &TableDef, column: &str) -> Result<()> {
    let table = &def.name;
    let in_use = |what: String| {
        let text = format!("column {column:?} of table {table} is used by {what}");
        Err(Error::new(Code::InUse, text).with_hint(
            "drop what uses it first, alter the table, and create it again with the new columns",
        ))
    };
    for query in snapshot.continuous.values() {
        let word = if query.policy.is_some() { "downsampling policy" } else { "continuous query" };
        let reads = query.sources.contains(table) && may_mean(&query.text, column);
        if reads || query.target == *table {
            return in_use(format!("{word} {:?}", query.name.name));
        }
    }
    for alert in snapshot.alerts.values() {
        let condition = alert.condition.as_deref().unwrap_or_default();
        let means = may_mean(&alert.query, column) || mentions(condition, column);
        if mentions(&alert.query, &table.table) && means {
            return in_use(format!("alert rule {:?}", alert.name));
        }
    }
    for transform in snapshot.transforms.get(&def.id).iter().flat_map(|chain| chain.iter()) {
        if transform.settings.values().any(|value| mentions(value, column)) {
            return in_use(format!("transform {:?} of {:?}", transform.function, transform.plugin));
        }
    }
    Ok(())
}
