//! Aggregates: many rows in, one value a group out.
//!
//! An aggregate says what one row does to a group's state, how two states become one, and what
//! a state comes to. Everything else (groups, columns, partial states of other machines) is
//! done for it: all groups of a partition are one vector of states.
//!
//! ```
//! use kymo_udf::{State, aggregate, plugin};
//!
//! #[derive(Debug, Clone, Default, State)]
//! struct Welford {
//!     count: f64,
//!     mean: f64,
//!     m2: f64,
//! }
//!
//! struct Spread;
//!
//! /// Standard deviation of a sample; NULL for fewer than two values.
//! #[aggregate(name = "spread")]
//! impl Aggregate for Spread {
//!     type State = Welford;
//!
//!     fn update(state: &mut Welford, x: f64) {
//!         state.count += 1.0;
//!         let delta = x - state.mean;
//!         state.mean += delta / state.count;
//!         state.m2 += delta * (x - state.mean);
//!     }
//!
//!     fn merge(state: &mut Welford, other: &Welford) {
//!         let count = state.count + other.count;
//!         if count == 0.0 {
//!             return;
//!         }
//!         let delta = other.mean - state.mean;
//!         state.mean += delta * other.count / count;
//!         state.m2 += other.m2 + delta * delta * state.count * other.count / count;
//!         state.count = count;
//!     }
//!
//!     fn evaluate(state: &Welford) -> Option<f64> {
//!         (state.count > 1.0).then(|| (state.m2 / (state.count - 1.0)).sqrt())
//!     }
//! }
//!
//! plugin! { name: "statistics", aggregates: [Spread] }
//!
//! let mut state = Welford::default();
//! [2.0, 4.0].into_iter().for_each(|x| Spread::update(&mut state, x));
//! assert_eq!(Spread::evaluate(&state), Some(2f64.sqrt()));
//! ```
//!
//! `fn retract(state, …)` undoes `update` and makes the aggregate fit for sliding windows.
//! `merge` must not depend on the order of its calls: partitions arrive as they finish.
//! `#[aggregate(state_version = 2)]` says that states written before are no longer understood.

use crate::bindings::exports::kymo::udf::aggregate::EmitTo;
use crate::bindings::exports::kymo::udf::catalog::NullHandling;
use crate::bindings::kymo::udf::types::{Column, Error, Field};
use crate::state::State;

/// An aggregate with what the server has to know about it; `#[aggregate]` implements it.
pub trait AggregateFunction: 'static {
    /// A group's state.
    type State: State;
    /// SQL name.
    const NAME: &'static str;
    /// Markdown for `system.functions`.
    const DESCRIPTION: &'static str;
    /// Who deals with nulls.
    const NULLS: NullHandling;
    /// States are merged with states of the same version only.
    const STATE_VERSION: u32;
    /// Whether [`retract_rows`](Self::retract_rows) works.
    const RETRACTABLE: bool;
    /// Its parameters, in order.
    fn parameters() -> Vec<Field>;
    /// Its result.
    fn returns() -> Field;
    /// Adds rows to the states of their groups.
    ///
    /// # Errors
    /// The function's own, or arguments that are not of the declared types.
    fn update_rows(
        states: &mut [Self::State],
        args: &[Column],
        groups: Option<&[u32]>,
        rows: usize,
    ) -> Result<(), Error>;
    /// Takes rows out of the states of their groups.
    ///
    /// # Errors
    /// The function's own, or that it cannot.
    fn retract_rows(
        states: &mut [Self::State],
        args: &[Column],
        groups: Option<&[u32]>,
        rows: usize,
    ) -> Result<(), Error>;
    /// Takes a state in.
    ///
    /// # Errors
    /// The function's own.
    fn merge_one(into: &mut Self::State, other: &Self::State) -> Result<(), Error>;
    /// What states come to, one row each.
    ///
    /// # Errors
    /// The function's own.
    fn evaluate_all(states: &[Self::State]) -> Result<Column, Error>;
}

/// Calls `f` with the state of each row's group.
///
/// # Errors
/// The first of `f`, with its row; or a group that the server did not announce.
#[doc(hidden)]
#[inline(always)]
pub fn each_row<S: State>(
    states: &mut [S],
    groups: Option<&[u32]>,
    rows: usize,
    mut f: impl FnMut(&mut S, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let unknown = || Error::internal("the server named a group that it had not announced");
    let Some(groups) = groups else {
        let slot = states.first_mut().ok_or_else(unknown)?;
        // A local value, so that it can stay in registers from row to row.
        let mut state = std::mem::take(slot);
        let done = (0..rows).try_for_each(|row| f(&mut state, row).map_err(|error| error.at(row)));
        *slot = state;
        return done;
    };
    if groups.len() < rows {
        return Err(Error::internal("the server sent fewer groups than rows"));
    }
    for (row, group) in groups[..rows].iter().enumerate() {
        let state = states.get_mut(*group as usize).ok_or_else(unknown)?;
        f(state, row).map_err(|error| error.at(row))?;
    }
    Ok(())
}

/// The states of all groups of one aggregate in one partition.
#[doc(hidden)]
pub trait Groups {
    fn update(
        &mut self,
        args: &[Column],
        groups: Option<&[u32]>,
        total: usize,
        rows: usize,
    ) -> Result<(), Error>;
    fn retract(
        &mut self,
        args: &[Column],
        groups: Option<&[u32]>,
        rows: usize,
    ) -> Result<(), Error>;
    fn merge(
        &mut self,
        state: &[Column],
        groups: Option<&[u32]>,
        total: usize,
        rows: usize,
    ) -> Result<(), Error>;
    fn state(&mut self, emit: EmitTo) -> Result<Vec<Column>, Error>;
    fn evaluate(&mut self, emit: EmitTo) -> Result<Column, Error>;
    fn size(&self) -> usize;
}

/// A vector of states: one array of structs is twice as fast as an array a member.
pub(crate) struct States<A: AggregateFunction>(Vec<A::State>);

impl<A: AggregateFunction> States<A> {
    pub(crate) fn new() -> Self {
        States(Vec::new())
    }

    /// `groups: none` means group 0, even where the server announced no group.
    fn grow(&mut self, total: usize, groups: Option<&[u32]>) {
        let total = if groups.is_none() { total.max(1) } else { total };
        if self.0.len() < total {
            self.0.resize_with(total, A::State::default);
        }
    }

    fn take(&mut self, emit: EmitTo) -> Vec<A::State> {
        match emit {
            EmitTo::All => std::mem::take(&mut self.0),
            EmitTo::First(count) => {
                let count = (count as usize).min(self.0.len());
                self.0.drain(..count).collect()
            }
        }
    }
}

impl<A: AggregateFunction> Groups for States<A> {
    fn update(
        &mut self,
        args: &[Column],
        groups: Option<&[u32]>,
        total: usize,
        rows: usize,
    ) -> Result<(), Error> {
        self.grow(total, groups);
        A::update_rows(&mut self.0, args, groups, rows)
    }

    fn retract(
        &mut self,
        args: &[Column],
        groups: Option<&[u32]>,
        rows: usize,
    ) -> Result<(), Error> {
        self.grow(0, groups);
        A::retract_rows(&mut self.0, args, groups, rows)
    }

    fn merge(
        &mut self,
        state: &[Column],
        groups: Option<&[u32]>,
        total: usize,
        rows: usize,
    ) -> Result<(), Error> {
        self.grow(total, groups);
        let others = A::State::decode(state, rows)?;
        each_row(&mut self.0, groups, others.len(), |state, row| A::merge_one(state, &others[row]))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<Column>, Error> {
        Ok(A::State::encode(&self.take(emit)))
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<Column, Error> {
        A::evaluate_all(&self.take(emit))
    }

    fn size(&self) -> usize {
        let heap: usize = self.0.iter().map(State::heap_bytes).sum();
        self.0.capacity() * size_of::<A::State>() + heap
    }
}
