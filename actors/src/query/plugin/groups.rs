//! All groups of one aggregate in one partition: one accumulator in an instance of its own.
//!
//! Its memory is what [`GroupsAccumulator::size`] says, which the operator charges and spills
//! by. Memory of an instance never shrinks, so once everything was handed out the instance
//! goes, and what comes after gets a fresh one.

use datafusion::arrow::array::{ArrayRef, BooleanArray, new_empty_array};
use datafusion::arrow::datatypes::Field;
use datafusion::common::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use kymo_kernel::{Code, Error};
use kymo_plugins::{Accumulator as Guest, Emit};

use super::aggregate::Work;

/// The groups.
pub(super) struct Groups {
    work: Work,
    guest: Option<Guest>,
    /// The group of each row of the batch at hand.
    numbers: Vec<u32>,
}

impl Groups {
    pub(super) fn new(work: Work) -> Self {
        Groups { work, guest: None, numbers: Vec::new() }
    }

    /// Makes a call on the accumulator, with this many groups.
    fn with<T>(
        &mut self,
        groups: &[usize],
        total: usize,
        call: impl FnOnce(&mut Guest, &[u32], u32) -> kymo_kernel::Result<T>,
    ) -> Result<T> {
        let Groups { work, guest, numbers } = self;
        work.attempt(|| {
            numbers.clear();
            numbers.reserve(groups.len());
            for group in groups {
                numbers.push(number(*group)?);
            }
            let total = number(total)?;
            let guest = match guest {
                Some(guest) => guest,
                None => guest.insert(work.open()?),
            };
            call(guest, numbers, total)
        })
    }

    fn hand_out<T>(
        &mut self,
        emit: EmitTo,
        nothing: impl FnOnce(&Work) -> T,
        call: impl FnOnce(&mut Guest, Emit) -> kymo_kernel::Result<T>,
    ) -> Result<T> {
        let Groups { work, guest, .. } = self;
        let Some(held) = guest else { return Ok(nothing(work)) };
        let found = work.attempt(|| {
            let emit = match emit {
                EmitTo::All => Emit::All,
                EmitTo::First(groups) => Emit::First(number(groups)?),
            };
            call(held, emit)
        })?;
        if emit == EmitTo::All {
            *guest = None;
        }
        Ok(found)
    }
}

fn number(group: usize) -> kymo_kernel::Result<u32> {
    u32::try_from(group).map_err(|_| {
        Error::new(Code::LimitReached, format!("{group} groups of an aggregate of a plugin"))
    })
}

fn empty(field: &Field) -> ArrayRef {
    new_empty_array(field.data_type())
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.with(groups, total, |guest, groups, total| {
            guest.update(values, Some(groups), total, filter)
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.with(groups, total, |guest, groups, total| guest.merge(states, Some(groups), total))
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let nothing = |work: &Work| work.signature().result().map(empty);
        let found = self.hand_out(emit, nothing, |guest, emit| guest.evaluate(emit).map(Ok))?;
        found.map_err(super::foreign)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let nothing = |work: &Work| work.signature().state.iter().map(empty).collect();
        self.hand_out(emit, nothing, |guest, emit| guest.state(emit))
    }

    /// The states of rows that are a group each.
    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.work.attempt(|| {
            let rows = number(values.first().map_or(0, |column| column.len()))?;
            let groups: Vec<u32> = (0..rows).collect();
            let mut guest = self.work.lease()?;
            guest.update(values, Some(&groups), rows, filter)?;
            let states = guest.state(Emit::All)?;
            self.work.give_back(guest);
            Ok(states)
        })
    }

    fn size(&self) -> usize {
        let guest = self.guest.as_ref().map_or(0, Guest::memory);
        size_of_val(self) + guest + self.numbers.capacity() * size_of::<u32>()
    }
}
