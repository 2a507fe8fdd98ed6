//! What changes of continuous queries mean.
//!
//! A target belongs to one query, because that query removes from it what it does not find in
//! its own result any more; and queries must not feed themselves, directly or through others.
//! Both are checked here, where changes are planned one after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use kymo_kernel::continuous::{ContinuousDef, Downsampling, QueryName};
use kymo_kernel::message::ContinuousDdl;
use kymo_kernel::schema::{
    Column, ColumnKind, SYSTEM_SCHEMA, TableName, TableOptions, TableSchema, check_name,
};
use kymo_kernel::storage::meta::retention::RetentionOf;
use kymo_kernel::storage::meta::{Op, Snapshot, TableMeta};
use kymo_kernel::{Code, Error, Result};
use uuid::Uuid;

use super::{Limits, Plan, add_columns, create_table};

/// Plans one change.
///
/// # Errors
/// `query_not_found` and `table_not_found` where a name is missing, `already_exists` where one
/// is taken, `in_use` for a target that another query fills, `invalid_input` for a cycle,
/// `type_conflict` for a target with another schema, `limit_reached` for one query too many.
pub(super) fn plan(snapshot: &Snapshot, change: &ContinuousDdl, limits: Limits) -> Result<Plan> {
    match change {
        ContinuousDdl::Create { query, columns, marks, if_not_exists } => {
            if snapshot.continuous.contains_key(&query.name) {
                return if *if_not_exists { Ok(Plan::default()) } else { Err(exists(&query.name)) };
            }
            check(snapshot, query, limits)?;
            let mut plan = target(snapshot, &query.target, columns, limits)?;
            let (query, marks) = (query.as_ref().clone(), marks.clone());
            plan.ops.push(Op::PutContinuous { query, marks });
            Ok(plan)
        }
        ContinuousDdl::Drop { name, if_exists, policy } => {
            match snapshot.continuous.get(name).filter(|query| !policy || query.policy.is_some()) {
                Some(_) => Ok(only(Op::DropContinuous { name: name.clone() })),
                None if *if_exists => Ok(Plan::default()),
                None if *policy => Err(no_policy(name)),
                None => Err(no_query(name)),
            }
        }
        ContinuousDdl::Pause { name, only, pause } => {
            let known = find(snapshot, name)?;
            let meant = only.is_none_or(|only| only == (known.id, known.revision));
            // Who stopped it first gave the reason.
            if !meant || known.paused.is_some() {
                return Ok(Plan::default());
            }
            Ok(changed(known, |query| query.paused = Some(pause.clone())))
        }
        ContinuousDdl::Resume { name, columns } => {
            let known = find(snapshot, name)?;
            if known.paused.is_none() {
                return Ok(Plan::default());
            }
            let mut plan = target(snapshot, &known.target, columns, limits)?;
            plan.ops.extend(changed(known, |query| query.paused = None).ops);
            Ok(plan)
        }
        ContinuousDdl::Retain { name, id } => Ok(retain(snapshot, name, *id)),
        ContinuousDdl::Advance(advances) => {
            let known = advances.iter().filter(|each| snapshot.cursors.contains_key(&each.id));
            let advances: Vec<_> = known.cloned().collect();
            if advances.is_empty() {
                return Ok(Plan::default());
            }
            Ok(only(Op::AdvanceContinuous { advances }))
        }
    }
}

fn only(op: Op) -> Plan {
    Plan { ops: vec![op], ..Plan::default() }
}

fn changed(known: &ContinuousDef, change: impl FnOnce(&mut ContinuousDef)) -> Plan {
    let mut query = known.clone();
    change(&mut query);
    query.revision += 1;
    only(Op::PutContinuous { query, marks: std::collections::BTreeMap::new() })
}

/// The retention of a policy's table. Where the table keeps its rows for a shorter time already,
/// that stays.
fn retain(snapshot: &Snapshot, name: &QueryName, id: Uuid) -> Plan {
    let Some(known) = snapshot.continuous.get(name).filter(|known| known.id == id) else {
        return Plan::default();
    };
    let Some(policy) = known.policy.as_ref().filter(|policy| !policy.retained) else {
        return Plan::default();
    };
    let table = snapshot.table(&policy.table);
    let longer = |table: &&Arc<TableMeta>| {
        snapshot.retention_ns(&table.def.name).is_none_or(|now| now > policy.after_ns)
    };
    let retention = table.filter(longer).map(|table| Op::SetRetention {
        of: RetentionOf::Table(table.def.id),
        retention_ns: Some(policy.after_ns),
    });
    let policy = Some(Downsampling { retained: true, ..policy.clone() });
    let mut plan = changed(known, |query| query.policy = policy);
    plan.ops.extend(retention);
    plan
}

fn find<'a>(snapshot: &'a Snapshot, name: &QueryName) -> Result<&'a ContinuousDef> {
    snapshot.continuous.get(name).map(AsRef::as_ref).ok_or_else(|| no_query(name))
}

/// The error for a continuous query that does not exist.
pub(crate) fn no_query(name: &QueryName) -> Error {
    Error::new(Code::QueryNotFound, format!("continuous query {:?} does not exist", name.name))
        .with_hint("SHOW CONTINUOUS QUERIES lists those that do")
}

fn no_policy(name: &QueryName) -> Error {
    Error::new(Code::QueryNotFound, format!("downsampling policy {:?} does not exist", name.name))
        .with_hint("SHOW DOWNSAMPLING POLICIES lists those that do")
}

fn exists(name: &QueryName) -> Error {
    Error::new(Code::AlreadyExists, format!("continuous query {:?} exists", name.name))
        .with_hint("use IF NOT EXISTS, another name, or drop it first")
}

fn check(snapshot: &Snapshot, query: &ContinuousDef, limits: Limits) -> Result<()> {
    check_name("continuous query", &query.name.name)?;
    let count = snapshot.continuous.len();
    if count >= limits.max_continuous {
        return Err(Error::new(
            Code::LimitReached,
            format!("there are {count} continuous queries, as many as there may be"),
        )
        .with_hint("drop one, or raise continuous.max_queries"));
    }
    if let Some(other) = snapshot.continuous_into(&query.target) {
        return Err(Error::new(
            Code::InUse,
            format!("table {} is filled by continuous query {:?}", query.target, other.name.name),
        )
        .with_hint("a table is the target of one query; choose another one"));
    }
    check_cycle(snapshot, query)
}

/// Refuses a query whose target reaches one of its sources.
fn check_cycle(snapshot: &Snapshot, query: &ContinuousDef) -> Result<()> {
    let mut seen: BTreeSet<&TableName> = BTreeSet::new();
    let mut reached = vec![(&query.target, vec![query.name.name.as_str()])];
    while let Some((table, path)) = reached.pop() {
        if query.sources.contains(table) {
            return Err(Error::new(
                Code::InvalidInput,
                format!(
                    "continuous query {:?} would feed itself: {} leads to {table}, which it reads",
                    query.name.name,
                    path.join(" → ")
                ),
            )
            .with_hint("choose a target that nothing on the way to its sources is made from"));
        }
        if !seen.insert(table) {
            continue;
        }
        for next in snapshot.continuous.values().filter(|next| next.sources.contains(table)) {
            let path = path.iter().copied().chain([next.name.name.as_str()]).collect();
            reached.push((&next.target, path));
        }
    }
    Ok(())
}

/// Makes the target, or adds what it lacks.
fn target(
    snapshot: &Snapshot,
    name: &TableName,
    columns: &[Column],
    limits: Limits,
) -> Result<Plan> {
    if name.schema == SYSTEM_SCHEMA {
        let text = format!("table {name} takes no results: it is one of Kymo's own");
        return Err(Error::new(Code::InvalidInput, text).with_hint("choose another schema"));
    }
    let schema = TableSchema { version: 0, columns: columns.to_vec() };
    let Some(known) = snapshot.table(name) else {
        return create_table(snapshot, name, &schema, &TableOptions::default(), false, limits);
    };
    fits(known, columns)?;
    let named = columns.iter().filter(|column| column.kind != ColumnKind::Time).cloned();
    let schema = TableSchema { version: 0, columns: named.collect() };
    add_columns(snapshot, known.def.id, &schema, limits)
}

fn fits(known: &TableMeta, columns: &[Column]) -> Result<()> {
    let def = &known.def;
    if def.options.append_only {
        return Err(Error::new(
            Code::InvalidInput,
            format!("table {} is append-only: each window would be there many times", def.name),
        )
        .with_hint("choose a target without append_only, or let it be created"));
    }
    let time = def.schema.time()?;
    for column in columns.iter().filter(|column| column.kind != ColumnKind::Time) {
        let fits = def
            .schema
            .column(&column.name)
            .is_none_or(|other| other.kind == column.kind && other.field_type == column.field_type);
        if column.name != time.name && fits {
            continue;
        }
        let (kind, of) = (column.kind.as_str(), column.field_type);
        let is = def.schema.column(&column.name).map_or_else(String::new, |other| {
            format!("{} of type {}", other.kind.as_str(), other.field_type)
        });
        return Err(Error::new(
            Code::TypeConflict,
            format!(
                "column {:?} of the result is a {kind} of type {of}, and in the target {} a {is}",
                column.name, def.name
            ),
        )
        .with_hint("name the column otherwise with AS, cast it, or choose another target"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use kymo_kernel::continuous::{Mark, Pause};
    use kymo_kernel::ids::{ColumnId, Epoch, PartitionId, TableId};
    use kymo_kernel::message::Ddl;
    use kymo_kernel::schema::FieldType;
    use kymo_kernel::storage::meta::{Author, Edit};

    const LIMITS: Limits = Limits {
        max_tables: 9,
        max_columns: 9,
        max_plugins: 1,
        max_versions: 1,
        max_transforms: 1,
        max_continuous: 3,
        max_alerts: 0,
        max_silences: 0,
        max_channels: 0,
    };

    fn column(name: &str, kind: ColumnKind, field_type: FieldType) -> Column {
        Column { id: ColumnId(0), name: name.to_owned(), kind, field_type }
    }

    fn columns() -> Vec<Column> {
        vec![
            column("time", ColumnKind::Time, FieldType::Timestamp),
            column("host", ColumnKind::Tag, FieldType::Text),
            column("n", ColumnKind::Field, FieldType::Int64),
        ]
    }

    fn name(name: &str) -> QueryName {
        QueryName { database: "kymo".to_owned(), name: name.to_owned() }
    }

    fn query(called: &str, source: &str, target: &str) -> ContinuousDef {
        ContinuousDef {
            id: Uuid::from_u128(called.bytes().fold(7, |all, byte| all * 31 + u128::from(byte))),
            name: name(called),
            revision: 1,
            text: "SELECT".to_owned(),
            schema: "public".to_owned(),
            user: "ada".to_owned(),
            settings: BTreeMap::new(),
            target: TableName::new("kymo", target),
            sources: vec![TableName::new("kymo", source)],
            every_ns: None,
            lateness_ns: None,
            policy: None,
            created_ns: 0,
            paused: None,
        }
    }

    fn create(query: ContinuousDef) -> ContinuousDdl {
        let (query, columns) = (Box::new(query), columns());
        let marks = BTreeMap::from([(TableId(1), Mark::default())]);
        ContinuousDdl::Create { query, columns, marks, if_not_exists: false }
    }

    fn after(snapshot: &Snapshot, change: &ContinuousDdl) -> Result<Snapshot> {
        apply(snapshot, super::super::plan(snapshot, &Ddl::Continuous(change.clone()), LIMITS)?.ops)
    }

    fn apply(snapshot: &Snapshot, ops: Vec<Op>) -> Result<Snapshot> {
        let by = Author { node: String::new(), partition: PartitionId::ONLY, epoch: Epoch(0) };
        snapshot.apply(&Edit { commit_id: Uuid::nil(), by, ops })
    }

    #[test]
    fn a_query_comes_with_its_target_and_goes_without_it() {
        let empty = Snapshot::default();
        let made = after(&empty, &create(query("a", "cpu", "out"))).unwrap();
        let out = made.table(&TableName::new("kymo", "out")).unwrap();
        assert_eq!(out.def.schema.columns.len(), 3);
        assert_eq!((made.continuous.len(), made.cursors.len()), (1, 1));
        let again = create(query("a", "cpu", "other"));
        assert_eq!(after(&made, &again).unwrap_err().code(), Code::AlreadyExists);
        let ContinuousDdl::Create { query, columns, marks, .. } = again else { unreachable!() };
        let silent = ContinuousDdl::Create { query, columns, marks, if_not_exists: true };
        assert_eq!(after(&made, &silent).unwrap(), made);
        let gone = |if_exists, policy| ContinuousDdl::Drop { name: name("a"), if_exists, policy };
        assert_eq!(after(&made, &gone(false, true)).unwrap_err().code(), Code::QueryNotFound);
        let dropped = after(&made, &gone(false, false)).unwrap();
        assert!(dropped.continuous.is_empty() && dropped.cursors.is_empty());
        assert!(dropped.table(&TableName::new("kymo", "out")).is_some());
        assert_eq!(after(&dropped, &gone(false, false)).unwrap_err().code(), Code::QueryNotFound);
        assert_eq!(after(&dropped, &gone(true, false)).unwrap(), dropped);
    }

    #[test]
    fn a_target_belongs_to_one_query_and_nothing_feeds_itself() {
        let one = after(&Snapshot::default(), &create(query("a", "cpu", "b1"))).unwrap();
        let error = after(&one, &create(query("x", "mem", "b1"))).unwrap_err();
        assert_eq!(error.code(), Code::InUse);
        assert!(error.message().contains("\"a\""), "{error}");
        let two = after(&one, &create(query("b", "b1", "c1"))).unwrap();
        for (source, target) in [("t", "t"), ("c1", "cpu"), ("b1", "cpu")] {
            let error = after(&two, &create(query("z", source, target))).unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput, "{source} → {target}");
            assert!(error.message().contains("feed itself"), "{error}");
        }
        let three = after(&two, &create(query("c", "c1", "d1"))).unwrap();
        let error = after(&three, &create(query("d", "d1", "e1"))).unwrap_err();
        assert_eq!(error.code(), Code::LimitReached);
    }

    #[test]
    fn a_target_that_exists_must_fit() {
        let table = |columns: Vec<Column>, append_only| {
            let options = TableOptions { append_only, ..TableOptions::default() };
            let schema = TableSchema { version: 0, columns };
            let name = TableName::new("kymo", "out");
            let plan = create_table(&Snapshot::default(), &name, &schema, &options, false, LIMITS)
                .unwrap();
            apply(&Snapshot::default(), plan.ops).unwrap()
        };
        let time = column("ts", ColumnKind::Time, FieldType::Timestamp);
        for (other, says) in [
            (column("n", ColumnKind::Field, FieldType::Float64), "\"n\""),
            (column("n", ColumnKind::Tag, FieldType::Text), "\"n\""),
            (column("host", ColumnKind::Field, FieldType::Text), "\"host\""),
        ] {
            let snapshot = table(vec![time.clone(), other], false);
            let error = after(&snapshot, &create(query("a", "cpu", "out"))).unwrap_err();
            assert_eq!(error.code(), Code::TypeConflict);
            assert!(error.message().contains(says) && error.hint().is_some(), "{error}");
        }
        let kept = table(columns(), true);
        let error = after(&kept, &create(query("a", "cpu", "out"))).unwrap_err();
        assert!(error.message().contains("append-only"), "{error}");
        let more = column("more", ColumnKind::Field, FieldType::Bool);
        let made = after(&table(vec![time, more], false), &create(query("a", "cpu", "out")));
        let out = made.unwrap().table(&TableName::new("kymo", "out")).unwrap().def.clone();
        let names: Vec<&str> = out.schema.columns.iter().map(|each| each.name.as_str()).collect();
        assert_eq!(names, ["ts", "more", "host", "n"]);
    }

    #[test]
    fn pausing_keeps_the_first_reason_and_resuming_brings_the_target_back() {
        let policy = Downsampling {
            table: TableName::new("kymo", "cpu"),
            after_ns: 2,
            width_ns: 1,
            retained: false,
        };
        let def = ContinuousDef { policy: Some(policy), ..query("a", "cpu", "out") };
        let made = after(&Snapshot::default(), &create(def)).unwrap();
        let known = made.continuous[&name("a")].clone();
        let pause = |reason: &str, only| ContinuousDdl::Pause {
            name: name("a"),
            only,
            pause: Pause { reason: reason.to_owned(), failed: true, since_ns: 1 },
        };
        let stale = pause("stale", Some((known.id, known.revision + 1)));
        assert_eq!(after(&made, &stale).unwrap(), made);
        let failed = after(&made, &pause("first", Some((known.id, known.revision)))).unwrap();
        assert_eq!(failed.continuous[&name("a")].state(), "failed");
        assert_eq!(after(&failed, &pause("second", None)).unwrap(), failed);
        let out = failed.table(&TableName::new("kymo", "out")).unwrap().def.id;
        let without = apply(&failed, vec![Op::DropTable { table: out }]).unwrap();
        let resume = ContinuousDdl::Resume { name: name("a"), columns: columns() };
        let back = after(&without, &resume).unwrap();
        assert!(back.table(&TableName::new("kymo", "out")).is_some());
        assert_eq!(back.continuous[&name("a")].state(), "running");
        assert_eq!(back.continuous[&name("a")].revision, 3);
        assert_eq!(after(&back, &resume).unwrap(), back);
    }
}
