//! From a statement to a plan: through the engine's planner, under a session, with the limits
//! on what a plan may do.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{LogicalPlan, Statement as EngineStatement};
use datafusion::sql::parser::Statement as EngineTree;
use datafusion::sql::sqlparser::ast::{self, Ident};
use datafusion::sql::sqlparser::tokenizer::Location;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::Statement;
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Code, Error, Result};

use super::command::{Command, Parsed, Planned};
use super::error::{from_engine, missing_table};
use super::names::rename;
use super::params;
use super::parse::relative;
use super::plugin::unbound;
use super::provider::KymoTable;
use super::rewrite::bind_literals;
use super::system::Rejected;
use super::text::{nearest, position};

/// What a prepared statement keeps.
pub(super) enum Plan {
    /// A plan with parameters in it.
    Logical {
        plan: Box<LogicalPlan>,
        /// The tables it was made for, at their versions.
        tables: Vec<(TableName, TableId, u32)>,
        /// The session it was made under: names are looked up there.
        scope: (String, String),
    },
    /// Planned again with each set of values.
    Late,
    /// Nothing to plan.
    None,
}

impl Plan {
    /// The plan without the instances of plugins that it was planned with.
    ///
    /// # Errors
    /// `internal`.
    pub(super) fn at_rest(self) -> Result<Plan> {
        Ok(match self {
            Plan::Logical { plan, tables, scope } => {
                Plan::Logical { plan: Box::new(unbound(*plan)?), tables, scope }
            }
            other => other,
        })
    }
}

/// The parsed form inside of a statement.
///
/// # Errors
/// `internal` for a statement that the query actor did not make.
pub(super) fn parsed(statement: &Statement) -> Result<&Parsed> {
    statement
        .tree
        .downcast_ref::<Parsed>()
        .ok_or_else(|| Error::internal("a statement that was parsed elsewhere"))
}

/// Plans a tree.
async fn logical(
    state: &SessionState,
    tree: ast::Statement,
) -> Result<LogicalPlan, DataFusionError> {
    let plan = state.statement_to_plan(EngineTree::Statement(Box::new(tree))).await?;
    // A tree wrapped in PREPARE carried the types of its parameters; it is not wanted itself.
    Ok(match plan {
        LogicalPlan::Statement(EngineStatement::Prepare(prepare)) => {
            Arc::unwrap_or_clone(prepare.input)
        }
        other => other,
    })
}

/// Refuses plans that do more than read and insert.
fn check(plan: LogicalPlan) -> Result<LogicalPlan> {
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(true)
        .with_allow_statements(false)
        .verify_plan(&plan)
        .map_err(|error| Error::new(Code::Unsupported, from_engine(error).message().to_owned()))?;
    Ok(plan)
}

/// Plans a statement without parameters, or with parameters of unknown type.
pub(super) async fn plan(
    state: &SessionState,
    snapshot: &Snapshot,
    statement: &Statement,
    planned: &Planned,
) -> Result<LogicalPlan> {
    let plan = logical(state, planned.tree.clone()).await;
    plan.map_err(|error| explain(error, statement, state, snapshot)).and_then(check)
}

/// A statement with its parameters, ready to be bound.
pub(super) struct Typed {
    pub(super) plan: Plan,
    pub(super) parameters: Vec<DataType>,
    pub(super) columns: Option<SchemaRef>,
}

/// Plans a statement with parameters: once to see which types they have, and again with the
/// types fixed where the client or we know better.
pub(super) async fn prepare(
    state: &SessionState,
    snapshot: &Snapshot,
    statement: &Statement,
    planned: &Planned,
    hints: &[Option<DataType>],
) -> Result<Typed> {
    let count = parsed(statement)?.parameters.max(hints.len());
    let hint = |at: usize| hints.get(at).and_then(Option::clone);
    if planned.late {
        return late(state, snapshot, statement, planned, count, hints).await;
    }
    let first = plan(state, snapshot, statement, planned).await;
    let known = match &first {
        Ok(first) => params::inferred(first)?,
        Err(_) if count > 0 => HashMap::new(),
        Err(error) => return Err(error.clone()),
    };
    let types: Vec<DataType> = (0..count)
        .map(|at| hint(at).or_else(|| known.get(&(at + 1)).cloned()).unwrap_or(DataType::Utf8))
        .collect();
    let plan = if count == 0 {
        first?
    } else {
        let data_types = types.iter().map(params::sql_type).collect::<Result<Vec<_>>>()?;
        let wrapped = ast::Statement::Prepare {
            name: Ident::new("typed"),
            data_types,
            statement: Box::new(planned.tree.clone()),
        };
        match logical(state, wrapped).await {
            Ok(plan) => check(plan)?,
            // The first attempt's complaint is about the client's own text.
            Err(error) => {
                return Err(first
                    .err()
                    .unwrap_or_else(|| explain(error, statement, state, snapshot)));
            }
        }
    };
    let columns = output(state, &plan, planned);
    let tables = tables(&plan)?;
    let catalog = &state.config_options().catalog;
    let scope = (catalog.default_catalog.clone(), catalog.default_schema.clone());
    Ok(Typed {
        plan: Plan::Logical { plan: Box::new(plan), tables, scope },
        parameters: types,
        columns,
    })
}

async fn late(
    state: &SessionState,
    snapshot: &Snapshot,
    statement: &Statement,
    planned: &Planned,
    count: usize,
    hints: &[Option<DataType>],
) -> Result<Typed> {
    let parameters: Vec<DataType> = (0..count)
        .map(|at| hints.get(at).and_then(Option::clone).unwrap_or(DataType::Int64))
        .collect();
    // A value of each type shows the shape of the result; which one does not matter.
    let samples = parameters
        .iter()
        .map(|data_type| {
            datafusion::common::ScalarValue::new_one(data_type)
                .or_else(|_| datafusion::common::ScalarValue::try_from(data_type))
                .map_err(from_engine)
        })
        .collect::<Result<Vec<_>>>()?;
    let plan = plan_with(state, snapshot, statement, planned, &samples).await?;
    let columns = output(state, &plan, planned);
    Ok(Typed { plan: Plan::Late, parameters, columns })
}

/// Plans a statement with values in the place of its parameters.
pub(super) async fn plan_with(
    state: &SessionState,
    snapshot: &Snapshot,
    statement: &Statement,
    planned: &Planned,
    values: &[datafusion::common::ScalarValue],
) -> Result<LogicalPlan> {
    let mut planned = planned.clone();
    let literals = values.iter().map(params::literal).collect::<Result<Vec<_>>>()?;
    bind_literals(&mut planned.tree, &literals)?;
    plan(state, snapshot, statement, &planned).await
}

/// The shape of a statement's rows; `None` for one that returns none.
fn output(state: &SessionState, plan: &LogicalPlan, planned: &Planned) -> Option<SchemaRef> {
    if matches!(plan, LogicalPlan::Dml(_)) {
        return None;
    }
    // Types may only settle in the analyser; where it cannot run yet, the plan's own must do.
    let schema = match state.optimize(plan) {
        Ok(optimized) => Arc::new(optimized.schema().as_arrow().clone()),
        Err(_) => Arc::new(plan.schema().as_arrow().clone()),
    };
    Some(rename(&schema, &planned.names))
}

/// The tables of a plan, to see later whether they are still what they were.
fn tables(plan: &LogicalPlan) -> Result<Vec<(TableName, TableId, u32)>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        let source = match node {
            LogicalPlan::TableScan(scan) => Some(&scan.source),
            LogicalPlan::Dml(dml) => Some(&dml.target),
            _ => None,
        };
        if let Some(source) = source
            && let Ok(provider) = source_as_provider(source)
        {
            let provider = provider.as_ref() as &dyn std::any::Any;
            if let Some(table) = provider.downcast_ref::<KymoTable>() {
                let def = table.def();
                found.push((def.name.clone(), def.id, def.schema.version));
            } else if let Some(rejected) = provider.downcast_ref::<Rejected>() {
                found.push(rejected.identity());
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(from_engine)?;
    Ok(found)
}

/// Whether every table is still there as it was, or still not there ([`Rejected::identity`]).
pub(super) fn still_valid(snapshot: &Snapshot, tables: &[(TableName, TableId, u32)]) -> bool {
    tables.iter().all(|(name, id, version)| match snapshot.table(name) {
        Some(meta) => meta.def.id == *id && meta.def.schema.version == *version,
        None => *id == TableId::default(),
    })
}

/// An error of planning with its place and, for a table that does not exist, what may be meant.
fn explain(
    error: DataFusionError,
    statement: &Statement,
    state: &SessionState,
    snapshot: &Snapshot,
) -> Error {
    let place = error.diagnostic().and_then(|each| each.span).map(|span| span.start);
    let missing = missing_table(&error.to_string());
    let mut ours = from_engine(error);
    if ours.code() == Code::TableNotFound
        && let Some(full) = missing
    {
        ours = table_missing(&full, statement, state, snapshot);
    }
    let Ok(parsed) = parsed(statement) else { return ours };
    match place {
        Some(at) if at.line > 0 && ours.position().is_none() => {
            let from = Location { line: parsed.start.0, column: parsed.start.1 };
            let to = Location { line: at.line, column: at.column };
            let byte = relative(from, to, &statement.text);
            ours.with_position(parsed.offset + position(&statement.text, byte))
        }
        _ => ours,
    }
}

fn table_missing(
    full: &str,
    statement: &Statement,
    state: &SessionState,
    snapshot: &Snapshot,
) -> Error {
    let catalog = &state.config_options().catalog;
    let defaults = [catalog.default_catalog.as_str(), catalog.default_schema.as_str()];
    let parts = written(statement, full, defaults);
    let parts = parts.unwrap_or_else(|| full.split('.').map(str::to_owned).collect());
    let from_the_end = |back: usize, default: &str| {
        let at = parts.len().checked_sub(back);
        at.and_then(|at| parts.get(at)).cloned().unwrap_or_else(|| default.to_owned())
    };
    let [database, schema] = [from_the_end(3, defaults[0]), from_the_end(2, defaults[1])];
    let names = super::catalog::table_names(snapshot, &database, &schema);
    let shown = parts.join(".");
    let error = Error::new(Code::TableNotFound, format!("table \"{shown}\" does not exist"));
    match nearest(&from_the_end(1, ""), names.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
        None => error.with_hint("SHOW TABLES lists what there is"),
    }
}

/// The parts of a table's name as the statement has them, found by the name in full.
fn written(statement: &Statement, full: &str, defaults: [&str; 2]) -> Option<Vec<String>> {
    let Command::Plan(planned) = &parsed(statement).ok()?.command else { return None };
    let found = ast::visit_relations(&planned.tree, |name| {
        let part = |part: &ast::ObjectNamePart| {
            part.as_ident().map(|ident| match ident.quote_style {
                Some(_) => ident.value.clone(),
                None => ident.value.to_lowercase(),
            })
        };
        let Some(parts) = name.0.iter().map(part).collect::<Option<Vec<_>>>() else {
            return ControlFlow::Continue(());
        };
        let missing = defaults.iter().take(3_usize.saturating_sub(parts.len()));
        let all: Vec<&str> = missing.copied().chain(parts.iter().map(String::as_str)).collect();
        if all.join(".") == full { ControlFlow::Break(parts) } else { ControlFlow::Continue(()) }
    });
    match found {
        ControlFlow::Break(parts) => Some(parts),
        ControlFlow::Continue(()) => None,
    }
}
