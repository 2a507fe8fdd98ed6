//! The line 0.1 of the interface, with the preview interfaces that go with it: which of them a
//! component exports, and its calls in terms of Arrow.

use std::collections::BTreeSet;

use arrow::array::ArrayRef;
use arrow::datatypes::Field;
use kymo_kernel::{Code, Error, Result};
use wasmtime::Store;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker, ResourceAny};

use super::{Argument, Bound, CallError, Called, Emit, Grouped, Line, Start, Target, Transformed};
use crate::description::{Description, Kind};
use crate::instance::HostState;
use crate::log::Level;

mod accept;
mod lend;
mod types;

#[allow(clippy::all, dead_code, reason = "generated")]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: ["../wit/since-0.1", "../wit/kymo-udf-preview"],
        inline: "
            package kymo:plugins;

            world everything {
                import kymo:udf/host@0.1.0;
                export kymo:udf/catalog@0.1.0;
                export kymo:udf/scalar@0.1.0;
                export kymo:udf/aggregate@0.1.0;
                export kymo:udf-preview/window@0.0.1;
                export kymo:udf-preview/table@0.0.1;
                export kymo:udf-preview/transform@0.0.1;
            }
        ",
        world: "kymo:plugins/everything",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

use bindings::exports::kymo::udf::{aggregate, catalog, scalar};
use bindings::exports::kymo::udf_preview::{table, transform, window};
use bindings::kymo::udf::{host, types as wire};
use bindings::kymo::udf_preview::batches;

impl host::Host for HostState {
    fn log(&mut self, level: host::Level, message: String) {
        let level = match level {
            host::Level::Debug => Level::Debug,
            host::Level::Info => Level::Info,
            host::Level::Warn => Level::Warn,
            host::Level::Error => Level::Error,
        };
        self.logger.line(level, message);
    }
}

impl wire::Host for HostState {}
impl batches::Host for HostState {}

/// A component that exports `catalog` of this line, linked.
pub(crate) struct Since01 {
    pre: InstancePre<HostState>,
    kinds: BTreeSet<Kind>,
    catalog: catalog::GuestIndices,
    scalar: Option<scalar::GuestIndices>,
    aggregate: Option<aggregate::GuestIndices>,
    window: Option<window::GuestIndices>,
    table: Option<table::GuestIndices>,
    transform: Option<transform::GuestIndices>,
}

impl Since01 {
    /// Links a component and looks which interfaces it has.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] if it has no `catalog` of this line or imports what is not there.
    pub(super) fn bind(engine: &wasmtime::Engine, component: &Component) -> Result<Since01> {
        let refuse = |error: wasmtime::Error| {
            Error::new(Code::InvalidInput, format!("not a plugin of a known line: {error:#}"))
                .with_hint("build it against the interface kymo:udf 0.1")
        };
        let mut linker = Linker::new(engine);
        host::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state).map_err(refuse)?;
        wire::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state).map_err(refuse)?;
        batches::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)
            .map_err(refuse)?;
        let pre = linker.instantiate_pre(component).map_err(refuse)?;
        let catalog = catalog::GuestIndices::new(&pre).map_err(refuse)?;
        let mut bound = Since01 {
            kinds: BTreeSet::new(),
            catalog,
            scalar: scalar::GuestIndices::new(&pre).ok(),
            aggregate: aggregate::GuestIndices::new(&pre).ok(),
            window: window::GuestIndices::new(&pre).ok(),
            table: table::GuestIndices::new(&pre).ok(),
            transform: transform::GuestIndices::new(&pre).ok(),
            pre,
        };
        let found = [
            (Kind::Scalar, bound.scalar.is_some()),
            (Kind::Aggregate, bound.aggregate.is_some()),
            (Kind::Window, bound.window.is_some()),
            (Kind::Table, bound.table.is_some()),
            (Kind::Transform, bound.transform.is_some()),
        ];
        bound.kinds = found.into_iter().filter_map(|(kind, there)| there.then_some(kind)).collect();
        Ok(bound)
    }
}

impl Line for Since01 {
    fn kinds(&self) -> &BTreeSet<Kind> {
        &self.kinds
    }

    fn instantiate(&self, store: &mut Store<HostState>) -> Called<Box<dyn Bound>> {
        let instance = self.pre.instantiate(&mut *store)?;
        macro_rules! load {
            ($indices:expr) => {
                match &$indices {
                    Some(indices) => Some(indices.load(&mut *store, &instance)?),
                    None => None,
                }
            };
        }
        Ok(Box::new(Instance01 {
            catalog: self.catalog.load(&mut *store, &instance)?,
            scalar: load!(self.scalar),
            aggregate: load!(self.aggregate),
            window: load!(self.window),
            table: load!(self.table),
            transform: load!(self.transform),
        }))
    }
}

/// One instance with its exports.
struct Instance01 {
    catalog: catalog::Guest,
    scalar: Option<scalar::Guest>,
    aggregate: Option<aggregate::Guest>,
    window: Option<window::Guest>,
    table: Option<table::Guest>,
    transform: Option<transform::Guest>,
}

/// An export that the description promises: its absence was refused when it was loaded.
fn there<'a, T>(export: &'a Option<T>, name: &str) -> Called<&'a T> {
    export.as_ref().ok_or_else(|| CallError::Broken(format!("it does not export {name}")))
}

/// The plugin's own error, in our words.
fn reported(error: wire::Error) -> CallError {
    let code = match error.code {
        wire::ErrorCode::InvalidArgument => Code::InvalidInput,
        wire::ErrorCode::OutOfRange => Code::OutOfRange,
        wire::ErrorCode::Unsupported => Code::Unsupported,
        wire::ErrorCode::ResourceExhausted => Code::OutOfMemory,
        wire::ErrorCode::Internal => Code::PluginFailed,
    };
    CallError::Reported { code, message: error.message, row: error.row }
}

fn emit(emit: Emit) -> aggregate::EmitTo {
    match emit {
        Emit::All => aggregate::EmitTo::All,
        Emit::First(groups) => aggregate::EmitTo::First(groups),
    }
}

/// The one column of a result, checked.
fn column(found: wire::ColumnResult, field: &Field, rows: usize) -> Called<ArrayRef> {
    accept::column(found, field, rows).map_err(CallError::Broken)
}

/// The columns of a result, checked.
fn columns(found: Vec<wire::ColumnResult>, fields: &[Field], rows: usize) -> Called<Vec<ArrayRef>> {
    if found.len() != fields.len() {
        let text = format!("{} columns instead of {}", found.len(), fields.len());
        return Err(CallError::Broken(text));
    }
    found.into_iter().zip(fields).map(|(each, field)| column(each, field, rows)).collect()
}

fn number(rows: usize) -> Called<u32> {
    u32::try_from(rows)
        .map_err(|_| CallError::Host(Error::internal(format!("a plugin call of {rows} rows"))))
}

impl Bound for Instance01 {
    fn describe(&mut self, store: &mut Store<HostState>) -> Called<Description> {
        let described = self.catalog.call_describe(store)?;
        types::description(described).map_err(CallError::Broken)
    }

    fn start(&mut self, store: &mut Store<HostState>, start: &Start<'_>) -> Called<()> {
        let settings: Vec<(&str, &str)> =
            start.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let context = catalog::Context {
            query_time: start.query_time_ns,
            timezone: start.timezone,
            seed: start.seed,
            settings: &settings,
        };
        self.catalog.call_start(store, context)?.map_err(reported)
    }

    fn scalar(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
        arguments: &[Argument],
        rows: usize,
        returns: &Field,
    ) -> Called<ArrayRef> {
        let scalar = there(&self.scalar, "scalar")?;
        let lent = lend::arguments(arguments)?;
        let arguments = lend::as_arguments(&lent);
        let rows32 = number(rows)?;
        let found =
            scalar.call_call(store, target.function, target.overload, &arguments, rows32)?;
        column(found.map_err(reported)?, returns, rows)
    }

    fn window(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
        arguments: &[Argument],
        peers: &[u32],
        rows: usize,
        returns: &Field,
    ) -> Called<ArrayRef> {
        let window = there(&self.window, "window")?;
        let lent = lend::arguments(arguments)?;
        let arguments = lend::as_arguments(&lent);
        let rows32 = number(rows)?;
        let Target { function, overload } = target;
        let found = window.call_call(store, function, overload, &arguments, peers, rows32)?;
        column(found.map_err(reported)?, returns, rows)
    }

    fn accumulator_open(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
    ) -> Called<ResourceAny> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        let open = aggregate.accumulator();
        open.call_open(store, target.function, target.overload)?.map_err(reported)
    }

    fn accumulator_update(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        input: &Grouped<'_>,
    ) -> Called<()> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        let lent = lend::columns(input.columns)?;
        let columns = lend::as_columns(&lent);
        aggregate
            .accumulator()
            .call_update(
                store,
                accumulator,
                &columns,
                input.groups,
                input.total_groups,
                input.rows,
            )?
            .map_err(reported)
    }

    fn accumulator_retract(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        input: &Grouped<'_>,
    ) -> Called<()> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        let lent = lend::columns(input.columns)?;
        let columns = lend::as_columns(&lent);
        aggregate
            .accumulator()
            .call_retract(store, accumulator, &columns, input.groups, input.rows)?
            .map_err(reported)
    }

    fn accumulator_merge(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        input: &Grouped<'_>,
    ) -> Called<()> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        let lent = lend::columns(input.columns)?;
        let columns = lend::as_columns(&lent);
        aggregate
            .accumulator()
            .call_merge(store, accumulator, &columns, input.groups, input.total_groups, input.rows)?
            .map_err(reported)
    }

    fn accumulator_state(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        which: Emit,
        rows: usize,
        state: &[Field],
    ) -> Called<Vec<ArrayRef>> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        let found = aggregate.accumulator().call_state(store, accumulator, emit(which))?;
        columns(found.map_err(reported)?, state, rows)
    }

    fn accumulator_evaluate(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        which: Emit,
        rows: usize,
        returns: &Field,
    ) -> Called<ArrayRef> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        let found = aggregate.accumulator().call_evaluate(store, accumulator, emit(which))?;
        column(found.map_err(reported)?, returns, rows)
    }

    fn accumulator_size(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
    ) -> Called<u64> {
        let aggregate = there(&self.aggregate, "aggregate")?;
        Ok(aggregate.accumulator().call_size(store, accumulator)?)
    }

    fn cursor_open(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
        arguments: &[ArrayRef],
    ) -> Called<ResourceAny> {
        let table = there(&self.table, "table")?;
        let lent = lend::columns(arguments)?;
        let columns = lend::as_columns(&lent);
        let open = table.cursor();
        open.call_open(store, target.function, target.overload, &columns)?.map_err(reported)
    }

    fn cursor_next(
        &mut self,
        store: &mut Store<HostState>,
        cursor: ResourceAny,
        max_rows: u32,
        returns: &[Field],
    ) -> Called<Option<(Vec<ArrayRef>, usize)>> {
        let table = there(&self.table, "table")?;
        let found = table.cursor().call_next(store, cursor, max_rows)?.map_err(reported)?;
        let Some(batch) = found else { return Ok(None) };
        if batch.rows > max_rows {
            let text = format!("{} rows where {max_rows} were asked for", batch.rows);
            return Err(CallError::Broken(text));
        }
        let rows = batch.rows as usize;
        Ok(Some((columns(batch.columns, returns, rows)?, rows)))
    }

    fn pipeline_open(
        &mut self,
        store: &mut Store<HostState>,
        function: u32,
        settings: &[(String, String)],
        input: &[Field],
    ) -> Called<ResourceAny> {
        let transform = there(&self.transform, "transform")?;
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let schemas = types::schemas(input)?;
        let fields = types::as_fields(input, &schemas);
        let open = transform.pipeline();
        open.call_open(store, function, &settings, &fields)?.map_err(reported)
    }

    fn pipeline_schema(
        &mut self,
        store: &mut Store<HostState>,
        pipeline: ResourceAny,
    ) -> Called<Vec<Field>> {
        let transform = there(&self.transform, "transform")?;
        let found = transform.pipeline().call_schema(store, pipeline)?;
        found.into_iter().map(types::field).collect::<Result<_, _>>().map_err(CallError::Broken)
    }

    fn pipeline_apply(
        &mut self,
        store: &mut Store<HostState>,
        pipeline: ResourceAny,
        input: &[ArrayRef],
        rows: usize,
        schema: &[Field],
    ) -> Called<Transformed> {
        let transform = there(&self.transform, "transform")?;
        let lent = lend::columns(input)?;
        let lent = lend::as_columns(&lent);
        let batch = batches::BatchParam { rows: number(rows)?, columns: &lent };
        let found = transform.pipeline().call_apply(store, pipeline, batch)?.map_err(reported)?;
        let out = found.batch.rows as usize;
        if let Some(bad) = found.rejected.iter().find(|each| each.row as usize >= rows) {
            let text = format!("row {} of {rows} is rejected", bad.row);
            return Err(CallError::Broken(text));
        }
        let mut rejected: Vec<(u32, String)> =
            found.rejected.into_iter().map(|each| (each.row, each.reason)).collect();
        rejected.sort_by_key(|(row, _)| *row);
        if let Some(twice) = rejected.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(CallError::Broken(format!("row {} is rejected twice", twice[0].0)));
        }
        Ok(Transformed { columns: columns(found.batch.columns, schema, out)?, rows: out, rejected })
    }
}
