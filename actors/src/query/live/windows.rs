//! Queries whose result is kept up to date: those that no single commit decides.
//!
//! ```text
//! plan ── local ──► by windows of time, or as a whole ── rerun ──► runs again where dirty
//!    └─── shape ──► one aggregate by windows ──── incremental ──► states that take each commit
//!           (again once the plugins that are called have changed: shaped)
//! ```

mod dirty;
mod incremental;
mod keys;
mod local;
mod parts;
mod rerun;
mod shape;
mod shaped;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use kymo_kernel::message::{Keep, Keeping, Windowed};
use kymo_kernel::schema::TableDef;
use kymo_kernel::{Code, Error, Result};

use super::super::engine::Engine;
use super::super::error::from_engine;
use super::super::names::rename;
use super::super::provider::KymoTable;
use super::{planned, wanted};
use incremental::Incremental;
pub(super) use local::of_one_list;
use local::{Local, local};
use rerun::{Rerun, Source};
use shaped::Shaped;

impl Engine {
    /// Plans a query to be kept.
    ///
    /// # Errors
    /// Those of planning; `unsupported` naming what keeps its result from being kept.
    pub(in super::super) async fn keep(self: &Arc<Self>, message: Keep) -> Result<Keeping> {
        let Keep { statement, parameters, session } = message;
        let (statement, snapshot) = wanted(&statement)?;
        let planned = planned(&statement)?;
        if planned.sets {
            return Err(refused("set_config() changes the session"));
        }
        let (state, lending) = self.lend_kept(&session, planned, Arc::default(), None)?;
        let written = self.query_plan(&state, &statement, &parameters).await?;
        let tables = tables(&written)?;
        let moving = moving(&written)?;
        let plan = state.optimize(&written).map_err(from_engine)?;
        let schema = rename(&Arc::new(plan.schema().as_arrow().clone()), &planned.names);
        let local = if moving.is_some() { None } else { local(&plan) };
        let shaped = match &local {
            None => None,
            Some(local) => {
                Some(Shaped::new(&state, &written, (planned, lending))?.and_then(|shaped| {
                    let same = shaped.local.window == local.window;
                    same.then_some(shaped)
                        .ok_or_else(|| "its windows depend on its plan".to_owned())
                }))
            }
        };
        let (shaped, kept_from) = match shaped {
            Some(Ok(shaped)) => (Some(shaped), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let why = why(local.as_ref(), &tables, moving, kept_from);
        let most = usize::try_from(self.settings().live.state_bytes).unwrap_or(usize::MAX);
        let engine = self.clone();
        let source = Source { engine, statement, parameters, session, tables, most };
        let rerun = Rerun::new(source, local, schema, keys::keys(&plan), why);
        let query: Box<dyn Windowed> = match shaped {
            Some(shaped) => Box::new(Incremental::new(rerun, shaped)),
            None => Box::new(rerun),
        };
        Ok(Keeping { query, snapshot })
    }
}

/// How a query runs again, for people.
fn why(
    local: Option<&Local>,
    tables: &[Arc<TableDef>],
    moving: Option<String>,
    kept_from: Option<String>,
) -> String {
    let list = |tables: &mut dyn Iterator<Item = &Arc<TableDef>>| {
        tables.map(|table| table.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let Some(local) = local else {
        let whole = list(&mut tables.iter());
        let because = match moving {
            Some(function) => format!("{function}() has another value each time"),
            None => "its rows are not bound to windows of time".to_owned(),
        };
        return format!("the query runs again after commits to {whole}: {because}");
    };
    let whole = list(&mut tables.iter().filter(|table| !local.aligned.contains(&table.id)));
    let because = kept_from.map(|reason| format!(": {reason}")).unwrap_or_default();
    let also = match whole.is_empty() {
        true => String::new(),
        false => format!("; commits to {whole} touch all of them"),
    };
    format!("the query runs again for the windows of time that commits touch{also}{because}")
}

fn refused(why: &str) -> Error {
    Error::new(Code::Unsupported, format!("the query cannot be followed: {why}"))
        .with_hint("subscribe to a SELECT over tables")
}

/// The tables that a plan reads, each once.
///
/// # Errors
/// `unsupported` where nothing tells of changes of what it reads.
fn tables(plan: &LogicalPlan) -> Result<Vec<Arc<TableDef>>> {
    let (mut found, mut computed) = (BTreeMap::new(), None);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            match (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>() {
                Some(table) => drop(found.insert(table.def().id, table.def().clone())),
                None => computed = Some(scan.table_name.to_string()),
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(from_engine)?;
    match computed {
        Some(name) => {
            Err(refused(&format!("{name} is computed when it is read; nothing is written to it")))
        }
        None if found.is_empty() => Err(refused("it reads no table")),
        None => Ok(found.into_values().collect()),
    }
}

/// A function of the query whose value is another one when it is called again.
fn moving(plan: &LogicalPlan) -> Result<Option<String>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                let (name, volatility) = match expr {
                    Expr::ScalarFunction(call) => {
                        (call.func.name(), call.func.signature().volatility)
                    }
                    Expr::AggregateFunction(call) => {
                        (call.func.name(), call.func.signature().volatility)
                    }
                    _ => return Ok(TreeNodeRecursion::Continue),
                };
                if volatility == Volatility::Immutable {
                    return Ok(TreeNodeRecursion::Continue);
                }
                found = Some(name.to_owned());
                Ok(TreeNodeRecursion::Stop)
            })
        })
    })
    .map_err(from_engine)?;
    Ok(found)
}
