//! Which queries can be followed: the plan, read from its top to its table.
//!
//! A query of class `rows` has rows that follow from the rows of each commit alone. Anything
//! that looks at more than one row at a time is refused by the name that its reader wrote.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};
use kymo_kernel::schema::TableDef;

use super::super::provider::KymoTable;

/// How a query is followed.
pub(in super::super) enum Class {
    /// Filter and projection over one table: exact for each commit.
    Rows(Arc<TableDef>),
    /// Not at all so far, because of this part.
    Unsupported(String),
}

impl Class {
    /// The name of [`Class::Rows`].
    pub(in super::super) const ROWS: &str = "rows";
    /// The name of [`Class::Unsupported`].
    pub(super) const UNSUPPORTED: &str = "unsupported";
}

/// Classifies a plan that was not optimised yet, so that it still has the parts that were
/// written.
pub(in super::super) fn classify(plan: &LogicalPlan) -> Class {
    match table(plan) {
        Ok(table) => Class::Rows(table),
        Err(why) => Class::Unsupported(why),
    }
}

fn table(plan: &LogicalPlan) -> Result<Arc<TableDef>, String> {
    let mut node = plan;
    loop {
        alone(node)?;
        node = match node {
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::TableScan(scan) => {
                let provider = source_as_provider(&scan.source).ok();
                let table = provider.as_ref().and_then(|provider| {
                    (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>()
                });
                return match table {
                    Some(table) => Ok(table.def().clone()),
                    None => Err(format!(
                        "{} is computed when it is read; nothing is written to it",
                        scan.table_name
                    )),
                };
            }
            other => return Err(reason(other)),
        };
    }
}

/// What keeps a node from being followed, in the words of SQL.
fn reason(node: &LogicalPlan) -> String {
    let part = match node {
        LogicalPlan::Aggregate(_) => "GROUP BY and aggregate functions look at many rows",
        LogicalPlan::Distinct(Distinct::All(_) | Distinct::On(_)) => {
            "DISTINCT compares each row with all others"
        }
        LogicalPlan::Sort(_) => "ORDER BY: rows come in the order in which they are committed",
        LogicalPlan::Limit(_) => "LIMIT and OFFSET count the rows of the whole result",
        LogicalPlan::Window(_) => "window functions (OVER) look at many rows",
        LogicalPlan::Join(_) => "a join needs the rows of more than one table",
        LogicalPlan::Union(_) => "UNION has more than one query",
        LogicalPlan::Unnest(_) => "unnest makes several rows of one",
        LogicalPlan::RecursiveQuery(_) => "WITH RECURSIVE runs more than once",
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => "it reads no table",
        other => return format!("{} is not followed", other.display()),
    };
    part.to_owned()
}

/// Refuses expressions that read more than the row at hand.
fn alone(node: &LogicalPlan) -> Result<(), String> {
    let mut wrong = None;
    let looked = node.apply_expressions(|expr| {
        expr.apply(|expr| {
            let subquery =
                matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_));
            if !subquery {
                return Ok(TreeNodeRecursion::Continue);
            }
            wrong = Some("a subquery reads more than the rows that were written".to_owned());
            Ok(TreeNodeRecursion::Stop)
        })
    });
    match (looked, wrong) {
        (_, Some(why)) => Err(why),
        (Err(error), None) => Err(error.to_string()),
        (Ok(_), None) => Ok(()),
    }
}
