//! What a change of definitions means: a pure function from the metadata as it is and a
//! [`Ddl`] to the operations of an edit.
//!
//! Creating what exists is merged where the caller allows it, so that two agents that send
//! the first rows of one table at the same moment both succeed.

use std::collections::HashSet;

use kymo_kernel::ids::{ColumnId, TableId};
use kymo_kernel::message::{Ddl, Kept};
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, SYSTEM_SCHEMA, TableDef, TableName, TableOptions, TableSchema,
    check_name, check_space,
};
use kymo_kernel::storage::meta::retention::RetentionOf;
use kymo_kernel::storage::meta::{Op, Snapshot};
use kymo_kernel::{Code, Error, Result};

use crate::ingest::check::conflict;

pub(crate) mod alerts;
mod alter;
mod channels;
pub(crate) mod continuous;
mod mentions;
pub(crate) mod plugins;

/// How much may be defined.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tables of one database.
    pub max_tables: usize,
    /// Tag and field columns of one table.
    pub max_columns: usize,
    /// Plugins.
    pub max_plugins: usize,
    /// Versions of one plugin.
    pub max_versions: usize,
    /// Transforms of one table.
    pub max_transforms: usize,
    /// Continuous queries.
    pub max_continuous: usize,
    /// Alert rules.
    pub max_alerts: usize,
    /// Silences that have not ended.
    pub max_silences: usize,
    /// Channels of alerts.
    pub max_channels: usize,
}

/// What a change of definitions comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The operations; empty where nothing changes.
    pub ops: Vec<Op>,
    /// The table concerned, where it still exists afterwards.
    pub table: Option<TableId>,
    /// Tables that cease to exist.
    pub dropped: Vec<TableId>,
}

/// Plans one change against a snapshot.
///
/// # Errors
/// `already_exists`, `table_not_found` or `database_not_found` where names are taken or
/// missing; `invalid_input` for a definition that no table can have; `type_conflict` for a
/// column that exists differently; `limit_reached` for one table or column too many.
pub fn plan(snapshot: &Snapshot, ddl: &Ddl, limits: Limits) -> Result<Plan> {
    match ddl {
        Ddl::CreateDatabase { name, if_not_exists } => {
            create_database(snapshot, name, *if_not_exists)
        }
        Ddl::DropDatabase { name, if_exists } => drop_database(snapshot, name, *if_exists),
        Ddl::CreateTable {
            name,
            schema,
            options,
            if_not_exists,
            create_database,
            retention_ns,
        } => {
            if let Some(existing) = snapshot.table(name) {
                if *if_not_exists {
                    return Ok(Plan { table: Some(existing.def.id), ..Plan::default() });
                }
                return Err(Error::new(Code::AlreadyExists, format!("table {name} exists"))
                    .with_hint("use CREATE TABLE IF NOT EXISTS, or another name"));
            }
            let mut plan = create_table(snapshot, name, schema, options, *create_database, limits)?;
            if let (Some(table), Some(retention_ns)) = (plan.table, *retention_ns) {
                check_retention(retention_ns)?;
                let of = RetentionOf::Table(table);
                plan.ops.push(Op::SetRetention { of, retention_ns: Some(retention_ns) });
            }
            Ok(plan)
        }
        Ddl::SetRetention { of, retention_ns } => set_retention(snapshot, of, *retention_ns),
        Ddl::AddColumns { table, schema } => add_columns(snapshot, *table, schema, limits),
        Ddl::AlterTable { name, if_exists, changes } => {
            alter::plan(snapshot, name, *if_exists, changes, limits)
        }
        Ddl::DropTable { name, if_exists } => drop_table(snapshot, name, *if_exists),
        Ddl::PutUser(user) => {
            check_name("user", &user.name)?;
            Ok(Plan { ops: vec![Op::PutUser { user: user.clone() }], ..Plan::default() })
        }
        Ddl::Plugin(change) => plugins::plan(snapshot, change, limits),
        Ddl::Continuous(change) => continuous::plan(snapshot, change, limits),
        Ddl::Alert(change) => alerts::plan(snapshot, change, limits),
    }
}

fn create_database(snapshot: &Snapshot, name: &str, if_not_exists: bool) -> Result<Plan> {
    check_space("database", name)?;
    if !snapshot.databases.contains(name) {
        let ops = vec![Op::CreateDatabase { name: name.to_owned() }];
        return Ok(Plan { ops, ..Plan::default() });
    }
    if if_not_exists {
        return Ok(Plan::default());
    }
    Err(Error::new(Code::AlreadyExists, format!("database {name:?} exists"))
        .with_hint("use CREATE DATABASE IF NOT EXISTS, or another name"))
}

fn drop_database(snapshot: &Snapshot, name: &str, if_exists: bool) -> Result<Plan> {
    if !snapshot.databases.contains(name) {
        return if if_exists { Ok(Plan::default()) } else { Err(no_database(name)) };
    }
    let dropped = in_database(snapshot, name).collect();
    Ok(Plan { ops: vec![Op::DropDatabase { name: name.to_owned() }], table: None, dropped })
}

/// The tables of a database; names are ordered by it first.
fn in_database<'a>(
    snapshot: &'a Snapshot,
    database: &'a str,
) -> impl Iterator<Item = TableId> + 'a {
    let first = TableName { schema: String::new(), ..TableName::new(database, "") };
    snapshot
        .names
        .range(first..)
        .take_while(move |(name, _)| name.database == database)
        .map(|(_, id)| *id)
}

fn drop_table(snapshot: &Snapshot, name: &TableName, if_exists: bool) -> Result<Plan> {
    match snapshot.table(name) {
        Some(table) => {
            let id = table.def.id;
            Ok(Plan { ops: vec![Op::DropTable { table: id }], table: None, dropped: vec![id] })
        }
        None if if_exists => Ok(Plan::default()),
        None => Err(no_table(name)),
    }
}

fn no_table(name: &TableName) -> Error {
    Error::new(Code::TableNotFound, format!("table {name} does not exist"))
        .with_hint("SHOW TABLES lists the tables that do")
}

fn create_table(
    snapshot: &Snapshot,
    name: &TableName,
    schema: &TableSchema,
    options: &TableOptions,
    create_database: bool,
    limits: Limits,
) -> Result<Plan> {
    name.check()?;
    check_schema(name, schema)?;
    check_columns(name, &schema.columns, limits)?;
    if options.window_ns < 1_000_000_000 {
        return Err(Error::new(
            Code::InvalidInput,
            format!("table {name}: a time window is at least one second"),
        ));
    }
    let mut ops = Vec::new();
    if !snapshot.databases.contains(&name.database) {
        if !create_database {
            return Err(no_database(&name.database));
        }
        ops.push(Op::CreateDatabase { name: name.database.clone() });
    }
    let siblings = in_database(snapshot, &name.database).count();
    if siblings >= limits.max_tables {
        return Err(Error::new(
            Code::LimitReached,
            format!("database {:?} has {siblings} tables, as many as it may have", name.database),
        )
        .with_hint("drop tables, or raise ingest.max_tables"));
    }
    let id = snapshot.next_table;
    let columns = number(schema.columns.iter().cloned(), 1);
    ops.push(Op::PutTable {
        def: TableDef {
            id,
            name: name.clone(),
            schema: TableSchema { version: 1, columns },
            options: options.clone(),
        },
    });
    Ok(Plan { ops, table: Some(id), dropped: Vec::new() })
}

fn set_retention(snapshot: &Snapshot, of: &Kept, retention_ns: Option<i64>) -> Result<Plan> {
    retention_ns.map_or(Ok(()), check_retention)?;
    let of = match of {
        Kept::Database(name) if snapshot.databases.contains(name) => {
            RetentionOf::Database(name.clone())
        }
        Kept::Database(name) => return Err(no_database(name)),
        Kept::Table(name) if name.schema == SYSTEM_SCHEMA => {
            let text = format!("table {name} is one of Kymo's own and has no retention");
            return Err(Error::new(Code::InvalidInput, text));
        }
        Kept::Table(name) => {
            let table = snapshot.table(name).ok_or_else(|| no_table(name))?;
            RetentionOf::Table(table.def.id)
        }
    };
    Ok(Plan { ops: vec![Op::SetRetention { of, retention_ns }], ..Plan::default() })
}

fn check_retention(retention_ns: i64) -> Result<()> {
    if retention_ns == 0 || retention_ns >= 1_000_000_000 {
        return Ok(());
    }
    Err(Error::new(Code::InvalidInput, "a retention is at least one second"))
}

fn add_columns(
    snapshot: &Snapshot,
    table: TableId,
    schema: &TableSchema,
    limits: Limits,
) -> Result<Plan> {
    let Some(meta) = snapshot.table_by_id(table) else {
        return Err(Error::new(Code::TableNotFound, "the table was dropped"));
    };
    let def = &meta.def;
    let mut new: Vec<Column> = Vec::new();
    let mut columns = def.schema.columns.clone();
    for column in &schema.columns {
        let Some(known) = columns.iter_mut().find(|known| known.name == column.name) else {
            check_name("column", &column.name)?;
            if column.kind == ColumnKind::Time {
                return Err(Error::new(
                    Code::InvalidInput,
                    format!("table {} has a time column already", def.name),
                ));
            }
            if new.iter().all(|other| other.name != column.name) {
                new.push(column.clone());
            }
            continue;
        };
        let same = known.kind == column.kind && known.field_type == column.field_type;
        if same || widens(def, column, known) {
            continue;
        }
        if !widens(def, known, column) {
            return Err(conflict(&def.name.table, column, known));
        }
        alter::check_unused(snapshot, def, &column.name)?;
        known.field_type = column.field_type;
    }
    if new.is_empty() && columns == def.schema.columns {
        return Ok(Plan { table: Some(table), ..Plan::default() });
    }
    columns.extend(number(new.into_iter(), meta.next_column.0));
    check_columns(&def.name, &columns, limits)?;
    let schema = TableSchema { version: def.schema.version + 1, columns };
    let def = TableDef { schema, ..TableDef::clone(def) };
    Ok(Plan { ops: vec![Op::PutTable { def }], table: Some(table), dropped: Vec::new() })
}

/// Whether a field's values may be kept as those of another one, in a table that allows it.
fn widens(def: &TableDef, from: &Column, to: &Column) -> bool {
    let fields = from.kind == ColumnKind::Field && to.kind == ColumnKind::Field;
    def.options.widen_integers && fields && from.field_type.widens_to(to.field_type)
}

/// Gives columns their ids, which grow with every column that a table ever gets.
fn number(columns: impl Iterator<Item = Column>, first: u32) -> Vec<Column> {
    columns.zip(first..).map(|(column, id)| Column { id: ColumnId(id), ..column }).collect()
}

fn check_schema(name: &TableName, schema: &TableSchema) -> Result<()> {
    let invalid = |what: String| Error::new(Code::InvalidInput, format!("table {name}: {what}"));
    let mut seen = HashSet::new();
    let mut times = 0;
    for column in &schema.columns {
        check_name("column", &column.name)?;
        if !seen.insert(column.name.as_str()) {
            return Err(invalid(format!("column {:?} appears twice", column.name)));
        }
        match (column.kind, column.field_type) {
            (ColumnKind::Time, FieldType::Timestamp) => times += 1,
            (ColumnKind::Time, _) => {
                return Err(invalid(format!("time column {:?} is no timestamp", column.name)));
            }
            (ColumnKind::Tag, FieldType::Text) | (ColumnKind::Field, _) => {}
            (ColumnKind::Tag, _) => {
                return Err(invalid(format!("tag {:?} is no text", column.name)));
            }
        }
    }
    if times != 1 {
        return Err(invalid(format!("it has {times} time columns"))
            .with_hint("give the table exactly one timestamp column as its time index"));
    }
    Ok(())
}

fn check_columns(name: &TableName, columns: &[Column], limits: Limits) -> Result<()> {
    let count = columns.iter().filter(|column| column.kind != ColumnKind::Time).count();
    if count <= limits.max_columns {
        return Ok(());
    }
    Err(Error::new(
        Code::LimitReached,
        format!("table {name} would have {count} columns, and may have {}", limits.max_columns),
    )
    .with_hint("use tags for what varies instead of column names, or raise ingest.max_columns"))
}

/// The error for a database that does not exist; the text is InfluxDB's, which agents look for.
#[must_use]
pub fn no_database(name: &str) -> Error {
    Error::new(Code::DatabaseNotFound, format!("database not found: {name:?}"))
        .with_hint("CREATE DATABASE makes it; SHOW DATABASES lists those that exist")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kymo_kernel::ids::{Epoch, PartitionId};
    use kymo_kernel::message::TableChange;
    use kymo_kernel::storage::meta::{Author, Edit};
    use uuid::Uuid;

    use super::*;

    const LIMITS: Limits = Limits {
        max_tables: 2,
        max_columns: 3,
        max_plugins: 1,
        max_versions: 1,
        max_transforms: 1,
        max_continuous: 2,
        max_alerts: 1,
        max_silences: 1,
        max_channels: 1,
    };

    fn column(name: &str, kind: ColumnKind, field_type: FieldType) -> Column {
        Column { id: ColumnId(0), name: name.to_owned(), kind, field_type }
    }

    fn schema(extra: &[Column]) -> TableSchema {
        let mut columns = vec![
            column("host", ColumnKind::Tag, FieldType::Text),
            column("time", ColumnKind::Time, FieldType::Timestamp),
        ];
        columns.extend_from_slice(extra);
        TableSchema { version: 0, columns }
    }

    fn create(table: &str, if_not_exists: bool) -> Ddl {
        Ddl::CreateTable {
            name: TableName::new("kymo", table),
            schema: schema(&[]),
            options: TableOptions::default(),
            if_not_exists,
            create_database: false,
            retention_ns: None,
        }
    }

    fn after(snapshot: &Snapshot, ddl: &Ddl) -> Snapshot {
        let plan = plan(snapshot, ddl, LIMITS).unwrap();
        let by = Author { node: "n".to_owned(), partition: PartitionId::ONLY, epoch: Epoch(0) };
        snapshot.apply(&Edit { commit_id: Uuid::nil(), by, ops: plan.ops }).unwrap()
    }

    #[test]
    fn creating_numbers_columns_and_merges_on_request() {
        let snapshot = after(&Snapshot::default(), &create("cpu", false));
        let def = &snapshot.table(&TableName::new("kymo", "cpu")).unwrap().def;
        let ids: Vec<_> = def.schema.columns.iter().map(|column| column.id.0).collect();
        assert_eq!((def.schema.version, ids), (1, vec![1, 2]));
        let again = plan(&snapshot, &create("cpu", true), LIMITS).unwrap();
        assert_eq!(again, Plan { table: Some(def.id), ..Plan::default() });
        let refused = plan(&snapshot, &create("cpu", false), LIMITS).unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
    }

    #[test]
    fn a_retention_is_set_with_its_table_or_later() {
        let mut ddl = create("cpu", false);
        if let Ddl::CreateTable { retention_ns, .. } = &mut ddl {
            *retention_ns = Some(5_000_000_000);
        }
        let snapshot = after(&Snapshot::default(), &ddl);
        let cpu = TableName::new("kymo", "cpu");
        assert_eq!(snapshot.retention_ns(&cpu), Some(5_000_000_000));
        let set = |of, retention_ns| Ddl::SetRetention { of, retention_ns };
        let (table, all) = (Kept::Table(cpu.clone()), Kept::Database("kymo".to_owned()));
        let snapshot = after(&snapshot, &set(table.clone(), None));
        assert_eq!(snapshot.retention_ns(&cpu), None);
        let snapshot = after(&snapshot, &set(all, Some(7_000_000_000)));
        assert_eq!(snapshot.retention_ns(&cpu), Some(7_000_000_000));
        assert_eq!(snapshot.retention_ns(&TableName::new("kymo", "new")), Some(7_000_000_000));
        let code = |ddl| plan(&snapshot, &ddl, LIMITS).unwrap_err().code();
        assert_eq!(code(set(table, Some(5))), Code::InvalidInput);
        assert_eq!(code(set(Kept::Database("d".to_owned()), None)), Code::DatabaseNotFound);
        let nothing = Kept::Table(TableName::new("kymo", "nothing"));
        assert_eq!(code(set(nothing, None)), Code::TableNotFound);
        let own = TableName { schema: SYSTEM_SCHEMA.to_owned(), ..cpu };
        assert_eq!(code(set(Kept::Table(own), None)), Code::InvalidInput);
    }

    #[test]
    fn columns_merge_by_name_and_conflict_by_type() {
        let snapshot = after(&Snapshot::default(), &create("cpu", false));
        let table = snapshot.table(&TableName::new("kymo", "cpu")).unwrap().def.id;
        let add = |columns: &[Column]| Ddl::AddColumns {
            table,
            schema: TableSchema { version: 0, columns: columns.to_vec() },
        };
        let usage = column("usage", ColumnKind::Field, FieldType::Float64);
        let snapshot = after(&snapshot, &add(std::slice::from_ref(&usage)));
        let def = &snapshot.table_by_id(table).unwrap().def;
        assert_eq!(def.schema.version, 2);
        assert_eq!(def.schema.column("usage").unwrap().id, ColumnId(3));
        let same = plan(&snapshot, &add(std::slice::from_ref(&usage)), LIMITS).unwrap();
        assert!(same.ops.is_empty());
        let integer = column("usage", ColumnKind::Field, FieldType::Int64);
        let error = plan(&snapshot, &add(&[integer]), LIMITS).unwrap_err();
        assert_eq!(error.code(), Code::TypeConflict);
    }

    #[test]
    fn altering_keeps_ids_and_never_gives_one_twice() {
        let cpu = TableName::new("kymo", "cpu");
        let snapshot = after(&Snapshot::default(), &create("cpu", false));
        let alter = |changes: &[TableChange]| Ddl::AlterTable {
            name: cpu.clone(),
            if_exists: false,
            changes: changes.to_vec(),
        };
        let usage = column("usage", ColumnKind::Field, FieldType::Float64);
        let add = |if_not_exists| TableChange::AddColumn { column: usage.clone(), if_not_exists };
        let drop = |name: &str| TableChange::DropColumn { name: name.to_owned(), if_exists: false };
        let rename = |from: &str, to: &str| TableChange::RenameColumn {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let shape = |snapshot: &Snapshot| -> Vec<String> {
            let columns = snapshot.table(&cpu).unwrap().def.schema.columns.clone();
            columns.iter().map(|column| format!("{} {}", column.id, column.name)).collect()
        };
        let snapshot = after(&snapshot, &alter(&[add(false), rename("host", "node")]));
        assert_eq!(shape(&snapshot), ["1 node", "2 time", "3 usage"]);
        let snapshot = after(&snapshot, &alter(&[drop("usage"), rename("time", "ts")]));
        let snapshot = after(&snapshot, &alter(&[add(true), add(true)]));
        assert_eq!(shape(&snapshot), ["1 node", "2 ts", "4 usage"]);
        let table = snapshot.table(&cpu).unwrap();
        assert_eq!((table.def.schema.version, table.next_column), (4, ColumnId(5)));
        let code = |change| plan(&snapshot, &alter(&[change]), LIMITS).unwrap_err().code();
        assert_eq!(code(add(false)), Code::AlreadyExists);
        assert_eq!(code(drop("nothing")), Code::ColumnNotFound);
        assert_eq!(code(drop("node")), Code::InvalidInput);
        assert_eq!(code(drop("ts")), Code::InvalidInput);
        assert_eq!(code(rename("usage", "ts")), Code::AlreadyExists);
        assert_eq!(code(rename("usage", "")), Code::InvalidInput);
        let time = Column {
            field_type: FieldType::Timestamp,
            ..column("t", ColumnKind::Time, FieldType::Timestamp)
        };
        let time = TableChange::AddColumn { column: time, if_not_exists: false };
        assert_eq!(code(time), Code::InvalidInput);
        let wide: Vec<_> = ["x", "y"]
            .map(|name| TableChange::AddColumn {
                column: column(name, ColumnKind::Field, FieldType::Int64),
                if_not_exists: false,
            })
            .to_vec();
        let refused = plan(&snapshot, &alter(&wide), LIMITS).unwrap_err();
        assert!(refused.hint().unwrap().contains("ingest.max_columns"));
        let nothing = TableName::new("kymo", "nothing");
        let gone =
            |if_exists| Ddl::AlterTable { name: nothing.clone(), if_exists, changes: vec![] };
        assert_eq!(plan(&snapshot, &gone(true), LIMITS).unwrap(), Plan::default());
        assert_eq!(plan(&snapshot, &gone(false), LIMITS).unwrap_err().code(), Code::TableNotFound);
    }

    #[test]
    fn integers_widen_where_the_table_says_so() {
        let cpu = TableName::new("kymo", "cpu");
        let snapshot = after(&Snapshot::default(), &create("cpu", false));
        let table = snapshot.table(&cpu).unwrap().def.id;
        let add = |field_type| Ddl::AddColumns {
            table,
            schema: TableSchema {
                version: 0,
                columns: vec![column("n", ColumnKind::Field, field_type)],
            },
        };
        let snapshot = after(&snapshot, &add(FieldType::Int64));
        let refused = plan(&snapshot, &add(FieldType::Float64), LIMITS).unwrap_err();
        assert_eq!(refused.code(), Code::TypeConflict);
        assert!(refused.hint().unwrap().contains("widen_integers"), "{refused:?}");
        let set = |widen| Ddl::AlterTable {
            name: cpu.clone(),
            if_exists: false,
            changes: vec![TableChange::WidenIntegers(widen)],
        };
        let snapshot = after(&snapshot, &set(true));
        let wide = after(&snapshot, &add(FieldType::Float64));
        let n = wide.table(&cpu).unwrap().def.schema.column("n").unwrap().clone();
        assert_eq!((n.id, n.field_type), (ColumnId(3), FieldType::Float64));
        // The other order: whoever comes with integers now has nothing to change.
        assert!(plan(&wide, &add(FieldType::Int64), LIMITS).unwrap().ops.is_empty());
        assert!(plan(&wide, &set(true), LIMITS).unwrap().ops.is_empty());
        let text = plan(&snapshot, &add(FieldType::Text), LIMITS).unwrap_err();
        assert_eq!(text.code(), Code::TypeConflict);
        let narrow = after(&snapshot, &set(false));
        assert!(plan(&narrow, &add(FieldType::Float64), LIMITS).is_err());
    }

    #[test]
    fn limits_name_the_setting_that_raises_them() {
        let one = after(&Snapshot::default(), &create("a", false));
        let two = after(&one, &create("b", false));
        let error = plan(&two, &create("c", false), LIMITS).unwrap_err();
        assert_eq!(error.code(), Code::LimitReached);
        assert!(error.hint().unwrap().contains("ingest.max_tables"));
        let table = two.table(&TableName::new("kymo", "a")).unwrap().def.id;
        let many: Vec<_> =
            ["x", "y", "z"].map(|name| column(name, ColumnKind::Field, FieldType::Int64)).to_vec();
        let add = Ddl::AddColumns { table, schema: TableSchema { version: 0, columns: many } };
        let error = plan(&two, &add, LIMITS).unwrap_err();
        assert!(error.hint().unwrap().contains("ingest.max_columns"));
    }

    #[test]
    fn definitions_that_no_table_can_have_are_refused() {
        let bad: Vec<Vec<Column>> = vec![
            vec![column("v", ColumnKind::Field, FieldType::Int64)],
            vec![column("time", ColumnKind::Time, FieldType::Int64)],
            schema(&[column("host", ColumnKind::Field, FieldType::Int64)]).columns,
            schema(&[column("t2", ColumnKind::Time, FieldType::Timestamp)]).columns,
            schema(&[column("n", ColumnKind::Tag, FieldType::Int64)]).columns,
            schema(&[column("", ColumnKind::Field, FieldType::Int64)]).columns,
        ];
        for columns in bad {
            let ddl = Ddl::CreateTable {
                name: TableName::new("kymo", "t"),
                schema: TableSchema { version: 0, columns: columns.clone() },
                options: TableOptions::default(),
                if_not_exists: false,
                create_database: false,
                retention_ns: None,
            };
            let error = plan(&Snapshot::default(), &ddl, LIMITS).unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput, "{columns:?}");
        }
    }

    #[test]
    fn a_database_goes_with_its_tables() {
        let snapshot = after(&Snapshot::default(), &create("cpu", false));
        let ddl = Ddl::DropDatabase { name: "kymo".to_owned(), if_exists: false };
        let plan = plan(&snapshot, &ddl, LIMITS).unwrap();
        assert_eq!(plan.dropped.len(), 1);
        assert_eq!(*after(&snapshot, &ddl).databases, BTreeSet::new());
    }

    #[test]
    fn a_missing_database_is_made_only_on_request() {
        let mut ddl = create("cpu", false);
        if let Ddl::CreateTable { name, .. } = &mut ddl {
            name.database = "other".to_owned();
        }
        let error = plan(&Snapshot::default(), &ddl, LIMITS).unwrap_err();
        assert_eq!(error.message(), "database not found: \"other\"");
        if let Ddl::CreateTable { create_database, .. } = &mut ddl {
            *create_database = true;
        }
        assert!(after(&Snapshot::default(), &ddl).databases.contains("other"));
    }
}
