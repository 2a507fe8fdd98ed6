//! An ingest transform at work: an instance that is kept from batch to batch, and replaced
//! after many calls, after some minutes, when it has grown, and when it has failed.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::concat;
use arrow::datatypes::Field;
use kymo_kernel::{Code, Error, Result};
use wasmtime::component::ResourceAny;

use crate::description::Kind;
use crate::host::PluginHost;
use crate::instance::{Birth, CallSite, Failure, Instance, QueryContext};
use crate::line::{Transformed, bytes_of};
use crate::version::PluginFunction;

/// One ingest transform on one table, for one worker.
pub struct Pipeline {
    host: Arc<PluginHost>,
    function: PluginFunction,
    context: QueryContext,
    settings: Vec<(String, String)>,
    input: Vec<Field>,
    schema: Vec<Field>,
    running: Option<Running>,
    replaced: u64,
}

struct Running {
    instance: Instance,
    resource: ResourceAny,
}

impl Pipeline {
    /// Opens a transform for rows of these columns. `context` says who pays for its memory and
    /// what cancels it; it has no deadline of its own.
    ///
    /// # Errors
    /// As [`crate::QueryPlugins::scalar`].
    pub fn open(
        host: &Arc<PluginHost>,
        function: &PluginFunction,
        context: QueryContext,
        settings: Vec<(String, String)>,
        input: Vec<Field>,
    ) -> Result<Pipeline> {
        if function.function().kind != Kind::Transform {
            let text = format!("{} is not a transform", function.function().name);
            return Err(Error::internal(text));
        }
        let mut pipeline = Pipeline {
            host: host.clone(),
            function: function.clone(),
            context,
            settings,
            input,
            schema: Vec::new(),
            running: None,
            replaced: 0,
        };
        let (running, schema) = pipeline.start()?;
        pipeline.schema = schema;
        pipeline.running = Some(running);
        Ok(pipeline)
    }

    /// The transform.
    #[must_use]
    pub fn function(&self) -> &PluginFunction {
        &self.function
    }

    /// The columns of the rows that it hands back.
    #[must_use]
    pub fn schema(&self) -> &[Field] {
        &self.schema
    }

    /// How often its instance was replaced.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Transforms a batch, with no more rows and bytes a call than the plugin's limits have room
    /// for. After an error the next call gets a fresh instance.
    ///
    /// # Errors
    /// As [`crate::QueryPlugins::scalar`]; [`Code::PluginFailed`] if a fresh instance answers with
    /// other columns than the first one.
    pub fn apply(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Transformed> {
        if columns.len() != self.input.len() || columns.iter().any(|each| each.len() != rows) {
            let text = format!("{} columns of {rows} rows", columns.len());
            return Err(Error::internal(format!("{text} for {}", self.function.function().name)));
        }
        let limits = self.function.version().limits();
        let by_memory = bytes_of(columns).div_ceil((limits.memory_bytes / 4).max(1));
        let calls = rows.div_ceil(limits.batch_rows).max(by_memory);
        if calls <= 1 || rows <= 1 {
            return self.call(columns, 0, rows);
        }
        let most = rows.div_ceil(calls.min(rows));
        let mut parts = Vec::with_capacity(calls);
        for first in (0..rows).step_by(most) {
            let length = most.min(rows - first);
            let slices: Vec<ArrayRef> =
                columns.iter().map(|each| each.slice(first, length)).collect();
            parts.push((first, self.call(&slices, first, length)?));
        }
        joined(parts)
    }

    /// One call; `first_row` is where these rows begin in the batch.
    fn call(&mut self, columns: &[ArrayRef], first_row: usize, rows: usize) -> Result<Transformed> {
        let mut running = self.current()?;
        let name = format!("{}.apply", self.function.function().name);
        let site = CallSite { name: &name, rows, bytes: bytes_of(columns), first_row };
        let (resource, schema) = (running.resource, &self.schema);
        let result = running.instance.call(site, |bound, store| {
            bound.pipeline_apply(store, resource, columns, rows, schema)
        });
        if !running.instance.poisoned() {
            self.running = Some(running);
        }
        let failed = matches!(&result, Err(Failure { fault: Some(_), .. }));
        let version = self.function.version();
        let result = result.map_err(|failure| self.host.failed(version, failure));
        self.host.registry().transformed(version, failed);
        result
    }

    /// The instance for the next call.
    fn current(&mut self) -> Result<Running> {
        if let Some(running) = self.running.take().filter(|running| !self.worn(&running.instance)) {
            return Ok(running);
        }
        self.replaced += 1;
        let (running, schema) = self.start()?;
        if schema != self.schema {
            let name = &self.function.function().name;
            let text = format!("transform {name} answers with other columns than before");
            return Err(Error::new(Code::PluginFailed, text));
        }
        Ok(running)
    }

    /// Whether an instance has done enough.
    fn worn(&self, instance: &Instance) -> bool {
        let limits = self.function.version().limits();
        instance.calls() >= limits.recycle_calls
            || instance.age() >= limits.recycle_age
            || instance.memory() > limits.memory_bytes / 2
    }

    fn start(&self) -> Result<(Running, Vec<Field>)> {
        let version = self.function.version();
        let engine = self.host.engine();
        let clock = engine.env().clock.clone();
        let context = QueryContext { time_ns: clock.now_ns(), ..self.context.clone() };
        let permit = engine.permits().take(|| context.check(clock.as_ref()))?;
        let context = Arc::new(context);
        let birth = Birth { engine, log: self.host.log(), context: &context };
        let started = Instance::start(&birth, version, permit).and_then(|mut instance| {
            let (resource, schema) = self.set_up(&mut instance)?;
            Ok((Running { instance, resource }, schema))
        });
        started.map_err(|failure| self.host.failed(version, failure))
    }

    fn set_up(
        &self,
        instance: &mut Instance,
    ) -> std::result::Result<(ResourceAny, Vec<Field>), Failure> {
        let name = &self.function.function().name;
        let place = format!("{name}.open");
        let resource = instance.call(CallSite::of(&place), |bound, store| {
            bound.pipeline_open(store, self.function.index(), &self.settings, &self.input)
        })?;
        let place = format!("{name}.schema");
        let schema = instance
            .call(CallSite::of(&place), |bound, store| bound.pipeline_schema(store, resource))?;
        Ok((resource, schema))
    }
}

/// The results of several calls as one; rows that were rejected count from the first call's.
fn joined(parts: Vec<(usize, Transformed)>) -> Result<Transformed> {
    let bad = |error| Error::internal(format!("join the batches of a transform: {error}"));
    let width = parts.first().map_or(0, |(_, part)| part.columns.len());
    let mut columns = Vec::with_capacity(width);
    for at in 0..width {
        let arrays: Vec<&dyn Array> =
            parts.iter().map(|(_, part)| part.columns[at].as_ref()).collect();
        columns.push(concat(&arrays).map_err(bad)?);
    }
    let rows = parts.iter().map(|(_, part)| part.rows).sum();
    let mut rejected = Vec::new();
    for (first, part) in parts {
        let first = u32::try_from(first)
            .map_err(|_| Error::internal("a batch of a transform has too many rows"))?;
        rejected.extend(part.rejected.into_iter().map(|(row, why)| (first + row, why)));
    }
    Ok(Transformed { columns, rows, rejected })
}
