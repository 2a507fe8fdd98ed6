//! An aggregate at work: the states of all groups of one aggregate in one partition, in an
//! instance of its own.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array, new_empty_array};
use arrow::compute::{and, filter, is_not_null, prep_null_mask_filter};
use kymo_kernel::{Code, Error, Result};
use wasmtime::component::ResourceAny;

use crate::description::{Kind, Nulls, Overload};
use crate::instance::{CallSite, Failure, Instance};
use crate::line::{Bound, Called, Emit, Grouped, Target, bytes_of};
use crate::query::{QueryPlugins, decode};
use crate::version::PluginFunction;

/// The states of all groups of one aggregate.
///
/// Its memory is the instance's, charged to the query's account as it grows.
pub struct Accumulator {
    query: Arc<QueryPlugins>,
    function: PluginFunction,
    overload: usize,
    instance: Instance,
    resource: ResourceAny,
    /// Groups that the caller knows of.
    total: u32,
    /// Groups that the plugin has been told of.
    told: u32,
}

/// A method that takes grouped rows.
type Method = fn(
    &mut dyn Bound,
    &mut wasmtime::Store<crate::instance::HostState>,
    ResourceAny,
    &Grouped<'_>,
) -> Called<()>;

impl Accumulator {
    /// An accumulator without groups.
    ///
    /// # Errors
    /// [`Code::Internal`] if the function is no aggregate; what opening it fails with.
    pub fn open(
        query: &Arc<QueryPlugins>,
        function: &PluginFunction,
        overload: usize,
    ) -> Result<Accumulator> {
        let (target, _) = function.overload(overload)?;
        if function.function().kind != Kind::Aggregate {
            let text = format!("{} is not an aggregate", function.function().name);
            return Err(Error::internal(text));
        }
        let mut instance = query.instance(function.version())?;
        let resource = open(&mut instance, &function.function().name, target)
            .map_err(|failure| query.host().failed(function.version(), failure))?;
        Ok(Accumulator {
            query: query.clone(),
            function: function.clone(),
            overload,
            instance,
            resource,
            total: 0,
            told: 0,
        })
    }

    /// Takes rows in. `groups` names the group of each row, below `total_groups`; without it
    /// every row belongs to group 0. Rows that the filter does not pass, and, where the
    /// function skips nulls, rows with a null argument, are left out.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn update(
        &mut self,
        arguments: &[ArrayRef],
        groups: Option<&[u32]>,
        total_groups: u32,
        passes: Option<&BooleanArray>,
    ) -> Result<()> {
        self.total = self.total.max(total_groups);
        let Some(kept) = self.kept(arguments, groups, passes)? else { return Ok(()) };
        self.hand_over("update", kept.borrow(groups), |bound, store, it, input| {
            bound.accumulator_update(store, it, input)
        })
    }

    /// Takes rows out again. As [`Accumulator::update`], for retractable functions.
    ///
    /// # Errors
    /// [`Code::Unsupported`] if the function cannot; else as [`QueryPlugins::scalar`].
    pub fn retract(
        &mut self,
        arguments: &[ArrayRef],
        groups: Option<&[u32]>,
        passes: Option<&BooleanArray>,
    ) -> Result<()> {
        if !self.function.function().retractable {
            let text = format!("{} cannot take rows out again", self.function.function().name);
            return Err(Error::new(Code::Unsupported, text));
        }
        let Some(kept) = self.kept(arguments, groups, passes)? else { return Ok(()) };
        self.hand_over("retract", kept.borrow(groups), |bound, store, it, input| {
            bound.accumulator_retract(store, it, input)
        })
    }

    /// Takes intermediate states in, each row into the group of the same row.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn merge(
        &mut self,
        states: &[ArrayRef],
        groups: Option<&[u32]>,
        total_groups: u32,
    ) -> Result<()> {
        self.total = self.total.max(total_groups);
        if states.first().is_none_or(|column| column.is_empty()) {
            return Ok(());
        }
        self.hand_over("merge", (states, groups), |bound, store, it, input| {
            bound.accumulator_merge(store, it, input)
        })
    }

    /// Hands out, and forgets, the intermediate states of some groups: one row a group.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn state(&mut self, emit: Emit) -> Result<Vec<ArrayRef>> {
        let rows = self.emitted(emit)?;
        self.tell()?;
        let resource = self.resource;
        let function = self.function.clone();
        let (_, signature) = function.overload(self.overload)?;
        let columns = self.call("state", rows, |bound, store| {
            bound.accumulator_state(store, resource, emit, rows, &signature.state)
        })?;
        self.forget(emit);
        Ok(columns)
    }

    /// Hands out, and forgets, the results of some groups: one row a group.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn evaluate(&mut self, emit: Emit) -> Result<ArrayRef> {
        let rows = self.emitted(emit)?;
        self.tell()?;
        let resource = self.resource;
        let function = self.function.clone();
        let returns = function.overload(self.overload)?.1.result()?;
        let column = self.call("evaluate", rows, |bound, store| {
            bound.accumulator_evaluate(store, resource, emit, rows, returns)
        })?;
        self.forget(emit);
        Ok(column)
    }

    /// Bytes that the plugin says it holds; never more than the memory of its instance.
    ///
    /// # Errors
    /// As [`QueryPlugins::scalar`].
    pub fn size(&mut self) -> Result<usize> {
        let resource = self.resource;
        let said = self.call("size", 0, |bound, store| bound.accumulator_size(store, resource))?;
        Ok(usize::try_from(said).unwrap_or(usize::MAX).min(self.instance.memory()))
    }

    /// Bytes of memory of the instance, which the query's account has been charged with.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.instance.memory()
    }

    /// Groups that it knows of.
    #[must_use]
    pub fn groups(&self) -> u32 {
        self.total
    }

    /// How many rows an emission has.
    fn emitted(&self, emit: Emit) -> Result<usize> {
        match emit {
            Emit::All => Ok(self.total as usize),
            Emit::First(groups) if groups <= self.total => Ok(groups as usize),
            Emit::First(groups) => {
                Err(Error::internal(format!("the first {groups} of {} groups", self.total)))
            }
        }
    }

    fn forget(&mut self, emit: Emit) {
        let left = match emit {
            Emit::All => 0,
            Emit::First(groups) => self.total - groups,
        };
        (self.total, self.told) = (left, left);
    }

    /// Tells the plugin of groups that no row of has reached it.
    fn tell(&mut self) -> Result<()> {
        if self.told >= self.total {
            return Ok(());
        }
        let empty: Vec<ArrayRef> = {
            let (_, signature) = self.function.overload(self.overload)?;
            signature.parameters.iter().map(|field| new_empty_array(field.data_type())).collect()
        };
        self.hand_over("update", (&empty, Some(&[])), |bound, store, it, input| {
            bound.accumulator_update(store, it, input)
        })
    }

    /// Hands rows over, as many at a time as the plugin's limits have room for.
    fn hand_over(
        &mut self,
        name: &str,
        (columns, groups): (&[ArrayRef], Option<&[u32]>),
        method: Method,
    ) -> Result<()> {
        let rows = columns.first().map_or(0, |column| column.len());
        let limits = self.function.version().limits();
        let by_memory = bytes_of(columns).div_ceil((limits.memory_bytes / 4).max(1));
        let calls = rows.div_ceil(limits.batch_rows).max(by_memory).max(1);
        let most = rows.div_ceil(calls).max(1);
        let mut first = 0;
        loop {
            let length = most.min(rows - first);
            let part: Vec<ArrayRef>;
            let columns = match length == rows {
                true => columns,
                false => {
                    part = columns.iter().map(|each| each.slice(first, length)).collect();
                    &part
                }
            };
            let input = Grouped {
                columns,
                groups: groups.map(|groups| &groups[first..first + length]),
                total_groups: self.total.max(1),
                rows: u32::try_from(length).unwrap_or(u32::MAX),
            };
            let resource = self.resource;
            self.call(name, length, |bound, store| method(bound, store, resource, &input))?;
            first += length;
            if first >= rows {
                self.told = self.total;
                return Ok(());
            }
        }
    }

    fn call<T>(
        &mut self,
        method: &str,
        rows: usize,
        body: impl FnOnce(&mut dyn Bound, &mut wasmtime::Store<crate::instance::HostState>) -> Called<T>,
    ) -> Result<T> {
        if self.instance.poisoned() {
            let text = format!("{} failed before in this query", self.function.function().name);
            return Err(Error::new(Code::PluginFailed, text));
        }
        let name = format!("{}.{method}", self.function.function().name);
        // Results grow with the number of groups, and so does what they may take.
        let bytes = 16 * (self.total as usize + rows);
        let site = CallSite { name: &name, rows, bytes, first_row: 0 };
        let result = self.instance.call(site, body);
        let version = self.function.version();
        result.map_err(|failure| self.query.host().failed(version, failure))
    }

    /// The rows that reach the plugin; `None` if none does.
    fn kept(
        &self,
        arguments: &[ArrayRef],
        groups: Option<&[u32]>,
        passes: Option<&BooleanArray>,
    ) -> Result<Option<Kept>> {
        let (_, signature) = self.function.overload(self.overload)?;
        check(&self.function.function().name, signature, arguments, groups)?;
        let arguments: Vec<ArrayRef> = arguments.iter().map(decode).collect::<Result<_>>()?;
        let mut mask = passes.map(|passes| match passes.null_count() {
            0 => passes.clone(),
            _ => prep_null_mask_filter(passes),
        });
        if self.function.function().nulls == Nulls::Skip {
            for argument in arguments.iter().filter(|each| each.null_count() > 0) {
                let present = is_not_null(argument).map_err(failed)?;
                mask = Some(match mask {
                    None => present,
                    Some(mask) => and(&mask, &present).map_err(failed)?,
                });
            }
        }
        let rows = arguments.first().map_or(0, |column| column.len());
        let Some(mask) = mask.filter(|mask| mask.true_count() < rows) else {
            return Ok((rows > 0).then_some(Kept { arguments, groups: None }));
        };
        if mask.true_count() == 0 {
            return Ok(None);
        }
        Ok(Some(Kept::filtered(&arguments, groups, &mask)?))
    }
}

/// Rows for the plugin, compacted.
struct Kept {
    arguments: Vec<ArrayRef>,
    groups: Option<UInt32Array>,
}

impl Kept {
    fn filtered(
        arguments: &[ArrayRef],
        groups: Option<&[u32]>,
        mask: &BooleanArray,
    ) -> Result<Kept> {
        let keep = |array: &dyn Array| filter(array, mask).map_err(failed);
        let arguments = arguments.iter().map(|each| keep(each)).collect::<Result<_>>()?;
        let groups = match groups {
            None => None,
            Some(groups) => {
                let groups = UInt32Array::from(groups.to_vec());
                let kept = keep(&groups)?;
                Some(UInt32Array::from(kept.to_data()))
            }
        };
        Ok(Kept { arguments, groups })
    }

    fn borrow<'a>(&'a self, groups: Option<&'a [u32]>) -> (&'a [ArrayRef], Option<&'a [u32]>) {
        let kept = self.groups.as_ref().map(|groups| groups.values().as_ref());
        (&self.arguments, kept.or(groups))
    }
}

fn failed(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("prepare rows for an aggregate: {error}"))
}

fn open(
    instance: &mut Instance,
    name: &str,
    target: Target,
) -> std::result::Result<ResourceAny, Failure> {
    let name = format!("{name}.open");
    instance.call(CallSite::of(&name), |bound, store| bound.accumulator_open(store, target))
}

/// Refuses rows that do not fit the signature: a fault of the caller.
fn check(
    name: &str,
    signature: &Overload,
    arguments: &[ArrayRef],
    groups: Option<&[u32]>,
) -> Result<()> {
    if !signature.takes(arguments.len()) || arguments.is_empty() {
        let text = format!("{name} does not take {} arguments", arguments.len());
        return Err(Error::new(Code::FunctionNotFound, text));
    }
    let rows = arguments[0].len();
    let same = arguments.iter().all(|each| each.len() == rows);
    if !same || groups.is_some_and(|groups| groups.len() != rows) {
        return Err(Error::internal(format!("arguments of {name} differ in length")));
    }
    Ok(())
}
