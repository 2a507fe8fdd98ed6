//! An aggregate of one group: without `GROUP BY`, and in windows.
//!
//! A window has as many of these as partitions, most of them at rest, and asks each for its
//! result again and again. So an accumulator of the plugin is held only from the first row
//! after a result to the next result; at rest there is only the state, as columns.

use std::fmt;

use datafusion::arrow::array::{Array, ArrayRef, new_empty_array};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;
use kymo_plugins::{Accumulator as Guest, Emit};
use parking_lot::Mutex;

use super::aggregate::Work;
use super::scalar::scalar;

/// The group.
pub(super) struct Single {
    work: Work,
    sliding: bool,
    /// At work. In a lock that nobody contends for: the engine wants to share what it holds.
    guest: Mutex<Option<Guest>>,
    /// At rest.
    state: Option<Vec<ArrayRef>>,
}

impl Single {
    pub(super) fn new(work: Work, sliding: bool) -> Self {
        Single { work, sliding, guest: Mutex::new(None), state: None }
    }

    /// Makes a call on the accumulator. After a failed one there is none.
    fn with<T>(&mut self, call: impl FnOnce(&mut Guest) -> kymo_kernel::Result<T>) -> Result<T> {
        let Single { work, guest, state, .. } = self;
        work.attempt(|| {
            let mut held = match guest.get_mut().take() {
                Some(held) => held,
                None => awake(work, state)?,
            };
            let found = call(&mut held)?;
            *guest.get_mut() = Some(held);
            Ok(found)
        })
    }

    /// Puts the group at rest in this state.
    fn rest(&mut self, state: Vec<ArrayRef>) {
        if let Some(guest) = self.guest.get_mut().take() {
            self.work.give_back(guest);
        }
        self.state = Some(state);
    }
}

/// An accumulator with one group in the state at rest.
fn awake(work: &Work, state: &mut Option<Vec<ArrayRef>>) -> kymo_kernel::Result<Guest> {
    let mut guest = work.lease()?;
    match state.take() {
        Some(state) => guest.merge(&state, None, 1)?,
        None => {
            let parameters = work.signature().parameters.iter();
            let nothing: Vec<ArrayRef> =
                parameters.map(|field| new_empty_array(field.data_type())).collect();
            guest.update(&nothing, None, 1, None)?;
        }
    }
    Ok(guest)
}

impl fmt::Debug for Single {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Single")
    }
}

impl Accumulator for Single {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.with(|guest| guest.update(values, None, 1, None))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.with(|guest| guest.merge(states, None, 1))
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.with(|guest| guest.retract(values, None, None))
    }

    fn supports_retract_batch(&self) -> bool {
        self.sliding
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let (state, value) = self.with(|guest| {
            // A plugin forgets what it has handed out, and a window goes on.
            let state = guest.state(Emit::All)?;
            guest.merge(&state, None, 1)?;
            Ok((state, scalar(&guest.evaluate(Emit::All)?)?))
        })?;
        self.rest(state);
        Ok(value)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let state = self.with(|guest| guest.state(Emit::All))?;
        let values = state.iter().map(scalar).collect::<kymo_kernel::Result<_>>();
        self.rest(state);
        values.map_err(super::foreign)
    }

    /// The instance's memory is charged as it grows.
    fn size(&self) -> usize {
        let state = self.state.iter().flatten().map(|each| each.get_array_memory_size());
        size_of_val(self) + state.sum::<usize>()
    }
}
