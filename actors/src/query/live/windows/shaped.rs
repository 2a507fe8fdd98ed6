//! A shape together with what it is good for: the windows that it was read for, and the plugins
//! that its expressions call.
//!
//! A shape calls one version of each plugin. Between two calls it holds none of their instances,
//! so that a query that waits for rows keeps nothing from others; once a name means something
//! else, the shape and the states that were made with it are void.

use std::sync::Arc;

use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use kymo_kernel::Result;

use super::local::{Local, local};
use super::shape::{Shape, shape};
use crate::query::command::Planned;
use crate::query::engine::Engine;
use crate::query::error::from_engine;
use crate::query::plugin::Lending;

/// The rule that makes two aggregates of `count(DISTINCT …)`: here it is one state.
const DISTINCT_APART: &str = "single_distinct_aggregation_to_group_by";

/// A query of class `windows` as its names are meant now.
pub(super) struct Shaped {
    pub(super) shape: Arc<Shape>,
    pub(super) local: Local,
    lending: Option<Arc<Lending>>,
}

impl Shaped {
    /// What a plan that was not optimised yet comes to, or what keeps it from being kept as
    /// states, for people.
    ///
    /// # Errors
    /// Those of the engine.
    pub(super) fn new(
        state: &SessionState,
        plan: &LogicalPlan,
        (planned, lending): (&Planned, Option<Arc<Lending>>),
    ) -> Result<Result<Shaped, String>> {
        let plan = optimized(state, plan)?;
        let Some(local) = local(&plan) else {
            return Ok(Err("its rows are not bound to windows of time".to_owned()));
        };
        let shape = shape(state, &plan, &local)?;
        let lending = lending.filter(|lending| lending.lends(&planned.calls));
        let shaped = shape.map(|shape| Shaped { shape: Arc::new(shape), local, lending });
        if let Ok(shaped) = &shaped {
            shaped.rest();
        }
        Ok(shaped)
    }

    /// Whether it still means what its query means.
    pub(super) fn holds(&self, engine: &Engine, planned: &Planned) -> bool {
        self.lending.as_ref().is_none_or(|lending| engine.still_lent(lending, planned))
    }

    /// Whether plugins are called.
    pub(super) fn calls_plugins(&self) -> bool {
        self.lending.is_some()
    }

    /// Lets go of instances of plugins.
    pub(super) fn rest(&self) {
        if let Some(lending) = &self.lending {
            lending.rest();
        }
    }
}

fn optimized(state: &SessionState, plan: &LogicalPlan) -> Result<LogicalPlan> {
    let rules = state.optimizers().iter().filter(|rule| rule.name() != DISTINCT_APART);
    let rules = rules.cloned().collect();
    let state = SessionStateBuilder::new_from_existing(state.clone()).with_optimizer_rules(rules);
    state.build().optimize(plan).map_err(from_engine)
}
