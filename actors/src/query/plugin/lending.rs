//! What one statement holds of the plugins: the versions in use when it was planned, and the
//! instances that its calls run in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};
use kymo_kernel::message::SessionContext;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::memory::Unlimited;
use kymo_plugins::usage::Spent;
use kymo_plugins::{
    Accumulator, Kind, PluginFunction, PluginHost, PluginMap, QueryContext, QueryPlugins,
};
use parking_lot::Mutex;

use super::super::build::has_function;
use super::super::error::from_engine;
use super::account::Account;
use super::aggregate::PluginAggregate;
use super::calls::{Called, Place};
use super::meant;
use super::scalar::{PluginScalar, same};
use super::table::PluginTableFunction;
use super::window::PluginWindow;
use crate::plugin_manager::publish::loading;

/// What ends the calls of a statement, and what they may know.
pub(in super::super) struct Terms {
    /// Raised when nobody waits for the statement any more.
    pub(in super::super) cancel: Arc<AtomicBool>,
    /// On the monotonic clock; `None` for no limit.
    pub(in super::super) deadline: Option<Duration>,
    /// Decides which trials of versions the statement takes part in, and seeds its instances.
    pub(in super::super) seed: u64,
    /// `now()` of the statement.
    pub(in super::super) time_ns: i64,
}

/// The plugins of one statement. Dropping it ends its instances.
pub(in super::super) struct Lending {
    plugins: Arc<PluginMap>,
    catalog: Arc<Snapshot>,
    seed: u64,
    /// Instances whose memory is charged as it grows.
    charged: Arc<QueryPlugins>,
    /// Instances whose memory their operator charges, batch by batch, and can spill.
    uncharged: Arc<QueryPlugins>,
    /// Accumulators that have handed out all they had, by function and signature.
    empty: Mutex<HashMap<(usize, usize), Vec<Accumulator>>>,
    doom: Mutex<Option<Error>>,
}

impl Lending {
    /// Takes the plugins as they are now.
    pub(in super::super) fn new(
        host: &Arc<PluginHost>,
        state: &SessionState,
        session: &SessionContext,
        catalog: Arc<Snapshot>,
        terms: Terms,
    ) -> Arc<Lending> {
        let zone = session.settings.get("timezone").map_or("UTC", String::as_str);
        let charged = QueryContext {
            cancel: terms.cancel,
            deadline: terms.deadline,
            time_ns: terms.time_ns,
            timezone: zone.to_owned(),
            seed: terms.seed,
            memory: Arc::new(Account::new(&state.runtime_env().memory_pool)),
            usage: Arc::default(),
        };
        let uncharged = QueryContext { memory: Arc::new(Unlimited), ..charged.clone() };
        Arc::new(Lending {
            plugins: host.registry().snapshot(),
            catalog,
            seed: terms.seed,
            charged: host.query(charged),
            uncharged: host.query(uncharged),
            empty: Mutex::default(),
            doom: Mutex::default(),
        })
    }

    /// Puts the functions of plugins that a statement calls into its state. Names that no
    /// plugin has are left for the planner to complain about.
    ///
    /// # Errors
    /// `plugin_unavailable` with the reason; `function_not_found`.
    pub(in super::super) fn register(
        self: &Arc<Self>,
        state: &mut SessionState,
        calls: &[Called],
    ) -> Result<()> {
        for called in calls {
            if has_function(state, called) {
                continue;
            }
            let found = self.resolve(called);
            let hinted = |error: Error| match error.code() {
                Code::FunctionNotFound => meant::hinted(error, called, &self.plugins, self.seed),
                _ => error,
            };
            let Some(function) = found.map_err(hinted)? else { continue };
            let kind = function.function().kind;
            match kind {
                _ if (kind == Kind::Table) != (called.place == Place::From) => {
                    return Err(misplaced(called, kind));
                }
                Kind::Scalar => {
                    let scalar = PluginScalar::new(called.clone(), function, self.clone());
                    state.register_udf(Arc::new(ScalarUDF::from(scalar))).map_err(from_engine)?;
                }
                Kind::Aggregate => {
                    let aggregate = PluginAggregate::new(called.clone(), function, self.clone());
                    let aggregate = Arc::new(AggregateUDF::from(aggregate));
                    state.register_udaf(aggregate).map_err(from_engine)?;
                }
                Kind::Window => {
                    let window = PluginWindow::new(called.clone(), function, self.clone());
                    state.register_udwf(Arc::new(WindowUDF::from(window))).map_err(from_engine)?;
                }
                Kind::Table => {
                    let table = PluginTableFunction::new(called.clone(), function, self.clone());
                    state.register_udtf(&called.key, Arc::new(table));
                }
                Kind::Transform => return Err(misplaced(called, kind)),
            }
        }
        Ok(())
    }

    /// The function of a plugin that a name means; `None` if it means none.
    ///
    /// # Errors
    /// `plugin_unavailable` with the reason; `function_not_found`.
    pub(super) fn resolve(&self, called: &Called) -> Result<Option<PluginFunction>> {
        resolve(called, &self.plugins, &self.catalog, self.seed)
    }

    /// Whether these names mean the same functions, of the same versions, with the plugins of
    /// another moment, and no call has failed.
    pub(in super::super) fn holds(
        &self,
        calls: &[Called],
        plugins: &PluginMap,
        catalog: &Snapshot,
    ) -> bool {
        let same = |called: &Called| {
            let now = resolve(called, plugins, catalog, self.seed);
            match (self.resolve(called), now) {
                (Ok(Some(then)), Ok(Some(now))) => same(&then, &now),
                (Ok(None), Ok(None)) => true,
                _ => false,
            }
        };
        self.verdict().is_ok() && calls.iter().all(same)
    }

    /// Whether any of these names means a function of a plugin.
    pub(in super::super) fn lends(&self, calls: &[Called]) -> bool {
        calls.iter().any(|called| matches!(self.resolve(called), Ok(Some(_))))
    }

    /// Gives up everything that no call uses; the next one begins with fresh instances.
    pub(in super::super) fn rest(&self) {
        self.empty.lock().clear();
        self.charged.rest();
        self.uncharged.rest();
    }

    /// An error of planning a statement that makes these calls, with a hint where it is about
    /// one of them.
    pub(in super::super) fn explain(&self, error: Error, calls: &[Called]) -> Error {
        meant::explain(error, calls, self)
    }

    /// The plugins as they were when the statement was planned.
    pub(super) fn plugins(&self) -> &PluginMap {
        &self.plugins
    }

    /// Decides which trials of versions the statement takes part in.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The instances for calls whose memory nobody else charges.
    pub(super) fn charged(&self) -> &Arc<QueryPlugins> {
        &self.charged
    }

    /// The instances for accumulators whose operator charges what they hold.
    pub(super) fn uncharged(&self) -> &Arc<QueryPlugins> {
        &self.uncharged
    }

    /// An accumulator without groups: one that has become empty, or a fresh one.
    pub(super) fn accumulator(
        &self,
        function: &PluginFunction,
        overload: usize,
    ) -> Result<Accumulator> {
        let idle = self.empty.lock().get_mut(&slot(function, overload)).and_then(Vec::pop);
        match idle {
            Some(accumulator) => Ok(accumulator),
            None => Accumulator::open(&self.charged, function, overload),
        }
    }

    /// Takes back an accumulator that has handed out everything.
    pub(super) fn give_back(
        &self,
        function: &PluginFunction,
        overload: usize,
        accumulator: Accumulator,
    ) {
        self.empty.lock().entry(slot(function, overload)).or_default().push(accumulator);
    }

    /// Makes a call unless one has failed before: a plugin's failure ends its query, in the
    /// planner, which keeps what it cannot evaluate for later, as in other workers.
    pub(super) fn attempt<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.verdict()?;
        call().inspect_err(|error| {
            let data = [Code::InvalidInput, Code::OutOfRange, Code::Unsupported];
            if !data.contains(&error.code()) {
                self.doom.lock().get_or_insert_with(|| error.clone());
            }
        })
    }

    /// What the calls of this statement have spent so far.
    pub(super) fn spent(&self) -> Vec<Spent> {
        self.charged.context().usage.spent()
    }

    /// # Errors
    /// The failure that ends the query, if there was one.
    pub(in super::super) fn verdict(&self) -> Result<()> {
        match self.doom.lock().as_ref() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// The function of a plugin that a name means; `None` if it means none.
fn resolve(
    called: &Called,
    plugins: &PluginMap,
    catalog: &Snapshot,
    seed: u64,
) -> Result<Option<PluginFunction>> {
    let (plugin, function) = match called.parts.as_slice() {
        [plugin, function] => (plugin.as_str(), function.as_str()),
        [name] => match catalog.functions.get(name) {
            Some(def) => (def.plugin.as_str(), def.function.as_str()),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    if loading(plugins, catalog, plugin) {
        let text = format!("plugin {plugin} is still being loaded");
        return Err(Error::new(Code::Busy, text).with_hint("send the same request again"));
    }
    match plugins.function(plugin, function, seed) {
        Ok(function) => Ok(Some(function)),
        Err(error) if error.code() == Code::PluginNotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A function where another kind of function is wanted.
fn misplaced(called: &Called, kind: Kind) -> Error {
    let text = format!("{} is a {} function and cannot stand here", called.key, kind.as_str());
    let hint = match kind {
        Kind::Table => "call it in FROM",
        Kind::Transform => "it works on rows that are written",
        Kind::Scalar | Kind::Aggregate | Kind::Window => "in FROM stand tables and table functions",
    };
    Error::new(Code::Unsupported, text).with_hint(hint)
}

fn slot(function: &PluginFunction, overload: usize) -> (usize, usize) {
    (std::ptr::from_ref(function.function()) as usize, overload)
}
