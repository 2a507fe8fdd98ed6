//! The one place that builds an engine session: functions, settings, memory, spilling.
//!
//! Every statement is planned and run with a state made here, so a function that exists for
//! one client exists for all, and nothing can be switched on by SQL that was left out here.
//! No object store is registered: SQL cannot reach a file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use datafusion::catalog::CatalogProviderList;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, config::SqlParserOptions};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::{Expr, LogicalPlan, ScalarUDF};
use datafusion::prelude::{SessionConfig, SessionContext as EngineContext};
use datafusion_pg_catalog::pg_catalog::oid_type_planner::PgOidTypePlanner;
use datafusion_pg_catalog::pg_catalog::{self as compat, PgCatalogStaticTables};
use kymo_config::Settings;
use kymo_kernel::env::{Clock, Env};
use kymo_kernel::message::SessionContext;
use kymo_kernel::{Error, Result};
use object_store::ObjectStore;

use super::analyze::Meaning;
use super::context::Caller;
use super::error::from_engine;
use super::functions::{self, Bounds};
use super::owners::Owners;
use super::params::Lengths;
use super::plugin::{Called, Ordered, Place};
use super::short::ShortDictionaries;

/// Rows in a batch: enough to amortise calls, few enough to stay in the cache.
pub(super) const BATCH_ROWS: usize = 8192;
/// How many of the largest consumers an out-of-memory error names.
const NAMED_CONSUMERS: usize = 3;

/// The folder below the data folder that queries spill to.
pub(super) fn spill_folder(settings: &Settings) -> PathBuf {
    settings.server.data_dir.join("tmp")
}

/// What SQL may reach by URL: nothing.
#[derive(Debug)]
struct NoStores;

impl ObjectStoreRegistry for NoStores {
    fn register_store(
        &self,
        _url: &url::Url,
        _store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &url::Url) -> datafusion::common::Result<Arc<dyn ObjectStore>> {
        Err(DataFusionError::NotImplemented(format!("SQL cannot reach {url}: no files, no URLs")))
    }
}

/// The memory and the spill space that all queries share. Empties the spill folder.
///
/// # Errors
/// `io_error` where the folder cannot be made.
pub(super) fn runtime(settings: &Settings, env: &Env) -> Result<Arc<RuntimeEnv>> {
    let folder = spill_folder(settings);
    if env.disk.exists(&folder).map_err(|error| Error::io("look for the spill folder", error))? {
        clear(env, &folder)?;
    }
    env.disk
        .create_dir_all(&folder)
        .map_err(|error| Error::io(format!("make {}", folder.display()), error))?;
    // The engine writes spill files itself. On a simulated disk there is no such folder.
    let mode = if folder.is_dir() {
        DiskManagerMode::Directories(vec![folder])
    } else {
        DiskManagerMode::Disabled
    };
    let disk = DiskManagerBuilder::default()
        .with_mode(mode)
        .with_max_temp_directory_size(settings.query.spill_bytes);
    let bytes = usize::try_from(settings.query.memory_bytes).unwrap_or(usize::MAX);
    let named = std::num::NonZeroUsize::new(NAMED_CONSUMERS).unwrap_or(std::num::NonZeroUsize::MIN);
    let memory = TrackConsumersPool::new(FairSpillPool::new(bytes), named);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(memory))
        .with_disk_manager_builder(disk)
        .with_object_store_registry(Arc::new(NoStores))
        .build_arc()
        .map_err(from_engine)
}

/// Removes what an earlier process spilled.
fn clear(env: &Env, folder: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("empty {}", folder.display()), error);
    for entry in env.disk.list(folder).map_err(failed)? {
        let path = folder.join(&entry.name);
        if entry.is_dir {
            clear(env, &path)?;
            env.disk.remove_dir(&path).map_err(failed)?;
        } else {
            env.disk.remove(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// What functions and rules need from outside.
pub(super) struct Parts {
    /// How large the results of functions may get.
    pub(super) bounds: Bounds,
    /// What sleeping goes by.
    pub(super) clock: Arc<dyn Clock>,
    /// Who owns tables and databases.
    pub(super) owners: Owners,
}

/// The rows that PostgreSQL's catalogs are born with: decoded once, as large as they are, for all
/// databases that the process opens.
///
/// # Errors
/// `internal` where they cannot be decoded, which a test rules out.
pub(super) fn statics() -> Result<Arc<PgCatalogStaticTables>> {
    static DECODED: OnceLock<Arc<PgCatalogStaticTables>> = OnceLock::new();
    if let Some(decoded) = DECODED.get() {
        return Ok(decoded.clone());
    }
    let decoded = Arc::new(PgCatalogStaticTables::try_new().map_err(from_engine)?);
    Ok(DECODED.get_or_init(|| decoded).clone())
}

/// A state with everything but the session: made once.
///
/// # Errors
/// `internal` where the engine refuses a function, which a test rules out.
pub(super) fn base(
    partitions: usize,
    parts: Parts,
    runtime: Arc<RuntimeEnv>,
    catalogs: Arc<dyn CatalogProviderList>,
    statics: &Arc<PgCatalogStaticTables>,
) -> Result<SessionState> {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions.max(1))
        .with_batch_size(BATCH_ROWS)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(false);
    let options = config.options_mut();
    options.execution.time_zone = Some("+00:00".to_owned());
    options.catalog.has_header = false;
    options.optimizer.prefer_existing_sort = true;
    options.sql_parser = SqlParserOptions {
        collect_spans: true,
        // Text stays Utf8 from the writer to the client: one kind of array everywhere.
        map_string_types_to_utf8view: false,
        default_null_ordering: "nulls_max".to_owned(),
        ..options.sql_parser.clone()
    };
    options.sql_parser.parse_float_as_decimal = false;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_catalog_list(catalogs)
        .with_type_planner(Arc::new(PgOidTypePlanner))
        .with_analyzer_rule(Arc::new(Meaning::new(parts.bounds)))
        .with_physical_optimizer_rule(Arc::new(ShortDictionaries))
        .build();
    let context = EngineContext::new_with_state(state);
    register(&context, &parts, statics);
    let mut state = context.state();
    state.register_expr_planner(Arc::new(Lengths)).map_err(from_engine)?;
    state.register_expr_planner(Arc::new(Ordered)).map_err(from_engine)?;
    state.table_factories_mut().clear();
    Ok(state)
}

fn register(context: &EngineContext, parts: &Parts, statics: &Arc<PgCatalogStaticTables>) {
    for function in compatibility() {
        context.register_udf(function);
    }
    context.register_udtf("pg_get_keywords", statics.pg_get_keywords.clone());
    compat::generate_series_arg_coercion::CoerceIntArgsToBigInt::widen(context);
    context.register_udf(parts.owners.function());
    for function in functions::scalars(&parts.clock) {
        context.register_udf(function.as_ref().clone());
    }
    for function in functions::aggregates() {
        context.register_udaf(function.as_ref().clone());
    }
}

/// PostgreSQL functions of `datafusion-pg-catalog`; ours of the same name come after.
fn compatibility() -> Vec<ScalarUDF> {
    vec![
        compat::has_privilege_udf::create_has_privilege_udf("has_table_privilege"),
        compat::has_privilege_udf::create_has_privilege_udf("has_schema_privilege"),
        compat::has_privilege_udf::create_has_privilege_udf("has_database_privilege"),
        compat::has_privilege_udf::create_has_privilege_udf("has_any_column_privilege"),
        compat::create_pg_table_is_visible(),
        compat::format_type::create_format_type_udf(),
        compat::pg_get_expr_udf::create_pg_get_expr_udf(),
        compat::create_pg_get_partkeydef_udf(),
        compat::create_pg_relation_is_publishable_udf(),
        compat::create_pg_get_statisticsobjdef_columns_udf(),
        compat::create_pg_encoding_to_char_udf(),
        compat::create_pg_relation_size_udf(),
        compat::create_pg_total_relation_size_udf(),
        compat::create_pg_stat_get_numscans(),
        compat::create_pg_get_constraintdef(),
        compat::create_pg_get_partition_ancestors_udf(),
        compat::quote_ident_udf::create_quote_ident_udf(),
        compat::quote_ident_udf::create_parse_ident_udf(),
        compat::array_bounds_udf::create_array_upper_udf(),
        compat::array_bounds_udf::create_array_lower_udf(),
    ]
}

/// Whether the engine itself has a function of this name for this place.
pub(super) fn has_function(state: &SessionState, called: &Called) -> bool {
    let name = called.key.as_str();
    if called.place == Place::From {
        return state.table_functions().contains_key(name);
    }
    state.scalar_functions().contains_key(name)
        || state.aggregate_functions().contains_key(name)
        || state.window_functions().contains_key(name)
        || state.higher_order_functions().contains_key(name)
}

/// The state for one statement of a session.
pub(super) fn for_session(base: &SessionState, session: &Arc<SessionContext>) -> SessionState {
    let mut state = base.clone();
    let config = state.config_mut();
    let options = config.options_mut();
    options.catalog.default_catalog = session.database.clone();
    options.catalog.default_schema = session.schema.clone();
    options.extensions.insert(Caller::new(session.clone()));
    state
}

/// The state with batches short enough that a plan's large constants, which are written into
/// each row of a batch, stay within the bound of a batch.
pub(super) fn for_constants(
    mut state: SessionState,
    plan: &LogicalPlan,
    bounds: Bounds,
) -> Result<SessionState, DataFusionError> {
    let free = bounds.batch / BATCH_ROWS as u64;
    let mut bytes = 0_u64;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Literal(value, _) = expr
                    && value.size() as u64 > free
                {
                    bytes = bytes.saturating_add(value.size() as u64);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    if let Some(rows) = bounds.batch.checked_div(bytes) {
        let rows = usize::try_from(rows).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS);
        let config = state.config().clone().with_batch_size(rows);
        *state.config_mut() = config;
    }
    Ok(state)
}
