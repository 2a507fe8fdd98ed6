//! The plugins of one query: its instances, one a worker, made when they are needed and gone
//! with the query, so that no state leaks from one query or user to another.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, new_empty_array, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, Field};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;

use crate::description::{Nulls, Volatility};
use crate::host::PluginHost;
use crate::instance::{Birth, CallSite, Failure, Instance, QueryContext};
use crate::line::{Argument, Target, bytes_of};
use crate::permits::Permit;
use crate::version::{PluginFunction, PluginVersion};

/// The plugins of one query. Shared by its workers; calls block their thread.
pub struct QueryPlugins {
    host: Arc<PluginHost>,
    context: Arc<QueryContext>,
    idle: Mutex<HashMap<usize, Vec<Instance>>>,
}

/// Which signature of a function is called, resolved once.
struct Callee<'a> {
    function: &'a PluginFunction,
    target: Target,
    returns: &'a Field,
}

impl QueryPlugins {
    /// Nothing is instantiated yet.
    #[must_use]
    pub fn new(host: Arc<PluginHost>, context: QueryContext) -> Arc<QueryPlugins> {
        Arc::new(QueryPlugins { host, context: Arc::new(context), idle: Mutex::default() })
    }

    /// What the calls know of their query.
    #[must_use]
    pub fn context(&self) -> &QueryContext {
        &self.context
    }

    /// Calls a scalar function on a batch of `rows` rows. Arguments have the types of the
    /// overload's parameters, or are dictionaries of them.
    ///
    /// An immutable function that skips nulls, of one dictionary column, is called on the
    /// values of the dictionary. Batches beyond the plugin's limits are split.
    ///
    /// # Errors
    /// What the plugin reports; [`Code::PluginFailed`], [`Code::OutOfMemory`] or
    /// [`Code::Deadline`] if it fails; [`Code::Busy`] if no instance is free;
    /// [`Code::Cancelled`] and [`Code::Deadline`] when the query has to end.
    pub fn scalar(
        &self,
        function: &PluginFunction,
        overload: usize,
        arguments: &[Argument],
        rows: usize,
    ) -> Result<ArrayRef> {
        let (target, signature) = function.overload(overload)?;
        let callee = Callee { function, target, returns: signature.result()? };
        check_arguments(function, overload, arguments, rows)?;
        if let Some(result) = self.by_dictionary(&callee, overload, arguments)? {
            return Ok(result);
        }
        let arguments = plain(arguments)?;
        match function.function().nulls {
            Nulls::Pass => self.split(&callee, &arguments, rows),
            Nulls::Skip => self.skipping(&callee, &arguments, rows),
        }
    }

    /// Calls a window function on one whole partition in its order. `peers` holds the end
    /// (exclusive) of each row's peer group.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn window(
        &self,
        function: &PluginFunction,
        overload: usize,
        arguments: &[Argument],
        peers: &[u32],
        rows: usize,
    ) -> Result<ArrayRef> {
        let (target, signature) = function.overload(overload)?;
        let returns = signature.result()?;
        check_arguments(function, overload, arguments, rows)?;
        let arguments = plain(arguments)?;
        if peers.len() != rows {
            return Err(Error::internal(format!("{} peers of {rows} rows", peers.len())));
        }
        let site = CallSite {
            name: &function.function().name,
            rows,
            bytes: bytes_of(arguments.iter().map(Argument::array)) + 4 * rows,
            first_row: 0,
        };
        self.with_instance(function.version(), |instance| {
            instance.call(site, |bound, store| {
                bound.window(store, target, &arguments, peers, rows, returns)
            })
        })
    }

    /// One call per distinct value where that answers the same.
    fn by_dictionary(
        &self,
        callee: &Callee<'_>,
        overload: usize,
        arguments: &[Argument],
    ) -> Result<Option<ArrayRef>> {
        let function = callee.function.function();
        if function.volatility != Volatility::Immutable || function.nulls != Nulls::Skip {
            return Ok(None);
        }
        let mut columns = arguments.iter().filter(|each| matches!(each, Argument::Column(_)));
        let (Some(Argument::Column(column)), None) = (columns.next(), columns.next()) else {
            return Ok(None);
        };
        let Some(dictionary) = column.as_any_dictionary_opt() else { return Ok(None) };
        let values = dictionary.values();
        if values.len() > column.len() {
            return Ok(None);
        }
        let on_values = |each: &Argument| match each {
            Argument::Column(_) => Argument::Column(values.clone()),
            constant => constant.clone(),
        };
        let arguments: Vec<Argument> = arguments.iter().map(on_values).collect();
        let results = self.scalar(callee.function, overload, &arguments, values.len())?;
        let spread = take(&results, dictionary.keys(), None);
        Ok(Some(spread.map_err(|error| Error::internal(format!("spread results: {error}")))?))
    }

    /// The host looks at the nulls: the plugin sees none, and its result is null where an
    /// argument is.
    fn skipping(
        &self,
        callee: &Callee<'_>,
        arguments: &[Argument],
        rows: usize,
    ) -> Result<ArrayRef> {
        let data_type = callee.returns.data_type();
        let mut nulls: Option<NullBuffer> = None;
        let mut valid = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let array = argument.array();
            match (argument, array.logical_nulls()) {
                (Argument::Constant(_), Some(found)) if found.null_count() > 0 => {
                    return Ok(new_null_array(data_type, rows));
                }
                (Argument::Column(_), Some(found)) => {
                    nulls = NullBuffer::union(nulls.as_ref(), Some(&found));
                }
                _ => {}
            }
            valid.push(without_nulls(argument));
        }
        let Some(nulls) = nulls.filter(|nulls| nulls.null_count() > 0) else {
            return self.split(callee, &valid, rows);
        };
        if nulls.null_count() == rows {
            return Ok(new_null_array(data_type, rows));
        }
        let found = self.split(callee, &valid, rows)?;
        let nulls = NullBuffer::union(found.nulls(), Some(&nulls));
        Ok(with_nulls(&found, nulls))
    }

    /// Calls with no more rows and bytes at a time than the plugin's limits have room for.
    fn split(&self, callee: &Callee<'_>, arguments: &[Argument], rows: usize) -> Result<ArrayRef> {
        if rows == 0 {
            return Ok(new_empty_array(callee.returns.data_type()));
        }
        let version = callee.function.version();
        self.with_instance(version, |instance| {
            let limits = version.limits();
            let bytes = bytes_of(arguments.iter().map(Argument::array));
            let by_memory = bytes.div_ceil((limits.memory_bytes / 4).max(1));
            let calls = rows.div_ceil(limits.batch_rows).max(by_memory).clamp(1, rows);
            if calls == 1 {
                return call_scalar(instance, callee, arguments, 0, rows);
            }
            let most = rows.div_ceil(calls);
            let mut parts = Vec::with_capacity(calls);
            for first in (0..rows).step_by(most) {
                let length = most.min(rows - first);
                let slice = |each: &Argument| match each {
                    Argument::Column(array) => Argument::Column(array.slice(first, length)),
                    constant => constant.clone(),
                };
                let part: Vec<Argument> = arguments.iter().map(slice).collect();
                parts.push(call_scalar(instance, callee, &part, first, length)?);
            }
            let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
            let whole = concat(&parts);
            whole.map_err(|error| Error::internal(format!("join results: {error}")).into())
        })
    }

    /// Runs something on an instance: an idle one, or a fresh one. One that failed is not
    /// used again.
    pub(crate) fn with_instance<T>(
        &self,
        version: &Arc<PluginVersion>,
        body: impl FnOnce(&mut Instance) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let slot = Arc::as_ptr(version) as usize;
        let idle = self.idle.lock().get_mut(&slot).and_then(Vec::pop);
        let mut instance = match idle {
            Some(instance) => instance,
            None => self.instance(version)?,
        };
        let result = body(&mut instance);
        if !instance.poisoned() {
            self.idle.lock().entry(slot).or_default().push(instance);
        }
        result.map_err(|failure| self.host.failed(version, failure))
    }

    /// A fresh instance of its own, which is not shared with other calls of the query.
    pub(crate) fn instance(&self, version: &Arc<PluginVersion>) -> Result<Instance> {
        let permit = self.permit()?;
        let birth =
            Birth { engine: self.host.engine(), log: self.host.log(), context: &self.context };
        Instance::start(&birth, version, permit)
            .map_err(|failure| self.host.failed(version, failure))
    }

    /// A permit for one more instance. Where all are out, the query first gives up those that
    /// it has idle, so that two queries never wait for what each other keeps unused.
    fn permit(&self) -> Result<Permit> {
        let permits = self.host.engine().permits();
        if let Some(permit) = permits.try_take() {
            return Ok(permit);
        }
        self.rest();
        let clock = &self.host.engine().env().clock;
        permits.take(|| self.context.check(clock.as_ref()))
    }

    /// Gives up the instances that no call uses.
    pub fn rest(&self) {
        let unused = std::mem::take(&mut *self.idle.lock());
        drop(unused);
    }

    pub(crate) fn host(&self) -> &Arc<PluginHost> {
        &self.host
    }
}

fn call_scalar(
    instance: &mut Instance,
    callee: &Callee<'_>,
    arguments: &[Argument],
    first_row: usize,
    rows: usize,
) -> std::result::Result<ArrayRef, Failure> {
    let site = CallSite {
        name: &callee.function.function().name,
        rows,
        bytes: bytes_of(arguments.iter().map(Argument::array)),
        first_row,
    };
    instance.call(site, |bound, store| {
        bound.scalar(store, callee.target, arguments, rows, callee.returns)
    })
}

/// Refuses calls that do not fit the signature: a fault of the caller, found here and not in
/// the plugin.
fn check_arguments(
    function: &PluginFunction,
    overload: usize,
    arguments: &[Argument],
    rows: usize,
) -> Result<()> {
    let (_, signature) = function.overload(overload)?;
    let name = &function.function().name;
    if !signature.takes(arguments.len()) {
        return Err(Error::new(
            Code::FunctionNotFound,
            format!("{name} does not take {} arguments", arguments.len()),
        ));
    }
    for (index, argument) in arguments.iter().enumerate() {
        let array = argument.array();
        let wanted = signature.parameter(index).map(Field::data_type);
        let found = match array.data_type() {
            DataType::Dictionary(_, values) => values.as_ref(),
            other => other,
        };
        if wanted != Some(found) {
            let text = format!("argument {} of {name} is {found}, not {wanted:?}", index + 1);
            return Err(Error::internal(text));
        }
        let length = if matches!(argument, Argument::Constant(_)) { 1 } else { rows };
        if array.len() != length {
            let text = format!("argument {} of {name} has {} rows", index + 1, array.len());
            return Err(Error::internal(text));
        }
    }
    Ok(())
}

/// Arguments with their dictionaries decoded.
fn plain(arguments: &[Argument]) -> Result<Vec<Argument>> {
    let plain = |argument: &Argument| {
        Ok(match argument {
            Argument::Column(array) => Argument::Column(decode(array)?),
            Argument::Constant(array) => Argument::Constant(decode(array)?),
        })
    };
    arguments.iter().map(plain).collect()
}

/// An array with its dictionary decoded.
pub(crate) fn decode(array: &ArrayRef) -> Result<ArrayRef> {
    match array.as_any_dictionary_opt() {
        None => Ok(array.clone()),
        Some(dictionary) => take(dictionary.values(), dictionary.keys(), None)
            .map_err(|error| Error::internal(format!("decode a dictionary: {error}"))),
    }
}

/// The same values with every row marked as present; types that carry their nulls within are
/// left as they are.
fn without_nulls(argument: &Argument) -> Argument {
    let array = argument.array();
    if array.null_count() == 0 {
        return argument.clone();
    }
    let array = with_nulls(array, None);
    match argument {
        Argument::Column(_) => Argument::Column(array),
        Argument::Constant(_) => Argument::Constant(array),
    }
}

/// The same values with other nulls, of the same length.
fn with_nulls(array: &ArrayRef, nulls: Option<NullBuffer>) -> ArrayRef {
    debug_assert!(nulls.as_ref().is_none_or(|nulls| nulls.len() == array.len()));
    let data = array.to_data().into_builder().nulls(nulls);
    // SAFETY: the array was valid, values under nulls included (they are of the type, and
    // offsets cover them), and the nulls have its length: both come from arrays of one batch.
    arrow::array::make_array(unsafe { data.build_unchecked() })
}
