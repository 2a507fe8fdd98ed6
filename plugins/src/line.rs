//! The published lines of the interface, behind one trait whose types are Arrow's and ours.
//! The newest line is the canonical one; the adapter of an older one converts to it.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, Field};
use kymo_kernel::{Code, Error, Result};
use wasmtime::Store;
use wasmtime::component::{Component, ResourceAny};

use crate::description::{Description, Kind};
use crate::instance::HostState;

pub(crate) mod since_0_1;

/// What a call passes for one parameter.
#[derive(Debug, Clone)]
pub enum Argument {
    /// One value a row.
    Column(ArrayRef),
    /// The same value for every row: an array of one row.
    Constant(ArrayRef),
}

impl Argument {
    /// The array, of one row where it is constant.
    #[must_use]
    pub fn array(&self) -> &ArrayRef {
        match self {
            Argument::Column(array) | Argument::Constant(array) => array,
        }
    }
}

/// Which groups an accumulator hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// All of them.
    All,
    /// The first so many; the others move down.
    First(u32),
}

/// Which function, and which overload of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) function: u32,
    pub(crate) overload: u32,
}

/// What an instance is told when it starts.
#[derive(Debug, Clone)]
pub(crate) struct Start<'a> {
    pub(crate) query_time_ns: i64,
    pub(crate) timezone: &'a str,
    pub(crate) seed: u64,
    pub(crate) settings: &'a [(String, String)],
}

/// Rows that a transform has handed back.
#[derive(Debug, Clone)]
pub struct Transformed {
    /// The rows that go on, in the columns of the pipeline's schema.
    pub columns: Vec<ArrayRef>,
    /// How many they are.
    pub rows: usize,
    /// Rows of the input that are left out, in order and each once, and why.
    pub rejected: Vec<(u32, String)>,
}

/// How a call ended, other than with a result.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The plugin says so itself; its instance stays usable.
    Reported { code: Code, message: String, row: Option<u32> },
    /// It trapped, was stopped or could not be entered.
    Trap(wasmtime::Error),
    /// What it handed back breaks the interface.
    Broken(String),
    /// A fault on our side.
    Host(Error),
}

impl From<wasmtime::Error> for CallError {
    fn from(error: wasmtime::Error) -> Self {
        CallError::Trap(error)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        CallError::Host(error)
    }
}

pub(crate) type Called<T> = std::result::Result<T, CallError>;

/// A loaded component of one line.
pub(crate) trait Line: Send + Sync {
    /// The kinds of functions that it has the interfaces for.
    fn kinds(&self) -> &BTreeSet<Kind>;
    /// A fresh instance in this store.
    fn instantiate(&self, store: &mut Store<HostState>) -> Called<Box<dyn Bound>>;
}

/// An instance of one line. Calls that hand out resources give them as wasmtime's own, which
/// are the same for every line.
pub(crate) trait Bound: Send {
    fn describe(&mut self, store: &mut Store<HostState>) -> Called<Description>;

    fn start(&mut self, store: &mut Store<HostState>, start: &Start<'_>) -> Called<()>;

    fn scalar(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
        arguments: &[Argument],
        rows: usize,
        returns: &Field,
    ) -> Called<ArrayRef>;

    fn window(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
        arguments: &[Argument],
        peers: &[u32],
        rows: usize,
        returns: &Field,
    ) -> Called<ArrayRef>;

    fn accumulator_open(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
    ) -> Called<ResourceAny>;

    fn accumulator_update(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        input: &Grouped<'_>,
    ) -> Called<()>;

    fn accumulator_retract(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        input: &Grouped<'_>,
    ) -> Called<()>;

    fn accumulator_merge(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        input: &Grouped<'_>,
    ) -> Called<()>;

    fn accumulator_state(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        emit: Emit,
        rows: usize,
        state: &[Field],
    ) -> Called<Vec<ArrayRef>>;

    fn accumulator_evaluate(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
        emit: Emit,
        rows: usize,
        returns: &Field,
    ) -> Called<ArrayRef>;

    fn accumulator_size(
        &mut self,
        store: &mut Store<HostState>,
        accumulator: ResourceAny,
    ) -> Called<u64>;

    fn cursor_open(
        &mut self,
        store: &mut Store<HostState>,
        target: Target,
        arguments: &[ArrayRef],
    ) -> Called<ResourceAny>;

    fn cursor_next(
        &mut self,
        store: &mut Store<HostState>,
        cursor: ResourceAny,
        max_rows: u32,
        returns: &[Field],
    ) -> Called<Option<(Vec<ArrayRef>, usize)>>;

    fn pipeline_open(
        &mut self,
        store: &mut Store<HostState>,
        function: u32,
        settings: &[(String, String)],
        input: &[Field],
    ) -> Called<ResourceAny>;

    fn pipeline_schema(
        &mut self,
        store: &mut Store<HostState>,
        pipeline: ResourceAny,
    ) -> Called<Vec<Field>>;

    fn pipeline_apply(
        &mut self,
        store: &mut Store<HostState>,
        pipeline: ResourceAny,
        columns: &[ArrayRef],
        rows: usize,
        schema: &[Field],
    ) -> Called<Transformed>;
}

/// Rows for an accumulator, with the group of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grouped<'a> {
    pub(crate) columns: &'a [ArrayRef],
    pub(crate) groups: Option<&'a [u32]>,
    pub(crate) total_groups: u32,
    pub(crate) rows: u32,
}

/// Binds a compiled component to the newest line that it has the exports of.
///
/// # Errors
/// [`Code::InvalidInput`] if it has those of none, or needs what no line offers.
pub(crate) fn bind(engine: &wasmtime::Engine, component: &Component) -> Result<Box<dyn Line>> {
    Ok(Box::new(since_0_1::Since01::bind(engine, component)?))
}

/// Bytes that arrays hand to a plugin, roughly.
pub(crate) fn bytes_of<'a>(arrays: impl IntoIterator<Item = &'a ArrayRef>) -> usize {
    let size = |array: &ArrayRef| {
        let data = array.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size())
    };
    arrays.into_iter().map(size).sum()
}

/// The type that values of `data_type` have in a plugin's signature: what a caller casts to.
/// Narrow integers widen, views and large texts become plain ones, dictionaries are decoded.
#[must_use]
pub fn coerced(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, values) => coerced(values),
        other => other.clone(),
    }
}
