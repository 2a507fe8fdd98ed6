//! A table function at work: batches, one after the other, from an instance of its own.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};
use kymo_kernel::{Code, Error, Result};
use wasmtime::component::ResourceAny;

use crate::description::Kind;
use crate::instance::{CallSite, Instance};
use crate::query::QueryPlugins;
use crate::version::PluginFunction;

/// One run of a table function.
pub struct Cursor {
    query: Arc<QueryPlugins>,
    function: PluginFunction,
    fields: Vec<Field>,
    schema: SchemaRef,
    instance: Instance,
    resource: ResourceAny,
    ended: bool,
}

impl Cursor {
    /// Opens a cursor with arguments of one row each.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn open(
        query: &Arc<QueryPlugins>,
        function: &PluginFunction,
        overload: usize,
        arguments: &[ArrayRef],
    ) -> Result<Cursor> {
        let (target, signature) = function.overload(overload)?;
        let name = &function.function().name;
        if function.function().kind != Kind::Table {
            return Err(Error::internal(format!("{name} is not a table function")));
        }
        if !signature.takes(arguments.len()) || arguments.iter().any(|each| each.len() != 1) {
            let text = format!("{name} does not take these {} arguments", arguments.len());
            return Err(Error::new(Code::FunctionNotFound, text));
        }
        let mut instance = query.instance(function.version())?;
        let place = format!("{name}.open");
        let opened = instance
            .call(CallSite::of(&place), |bound, store| bound.cursor_open(store, target, arguments));
        let resource =
            opened.map_err(|failure| query.host().failed(function.version(), failure))?;
        Ok(Cursor {
            query: query.clone(),
            function: function.clone(),
            fields: signature.returns.clone(),
            schema: Arc::new(Schema::new(signature.returns.clone())),
            instance,
            resource,
            ended: false,
        })
    }

    /// The columns of its batches.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next batch, of at most so many rows; `None` at the end.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn next(&mut self, max_rows: usize) -> Result<Option<RecordBatch>> {
        if self.ended || self.instance.poisoned() {
            return Ok(None);
        }
        let limits = self.function.version().limits();
        let most = u32::try_from(max_rows.min(limits.batch_rows)).unwrap_or(u32::MAX);
        let name = format!("{}.next", self.function.function().name);
        let (resource, fields) = (self.resource, &self.fields);
        let found = self.instance.call(CallSite::of(&name), |bound, store| {
            bound.cursor_next(store, resource, most, fields)
        });
        let version = self.function.version();
        match found.map_err(|failure| self.query.host().failed(version, failure))? {
            None => {
                self.ended = true;
                Ok(None)
            }
            Some((columns, rows)) => {
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
                    .map(Some)
                    .map_err(|error| Error::internal(format!("batch of {name}: {error}")))
            }
        }
    }
}
