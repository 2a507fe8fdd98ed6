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

/// Rows that [`each_dense`] takes at a time: the compiler unrolls them, and between two rounds
/// lies what every loop of a guest pays for being stoppable.
const TOGETHER: usize = 8;

/// Calls `f` with the state of each row's group, the columns around the row and its place in
/// them; no row is null. `part` cuts columns. Not inlined: the loop of a function of its own
/// finds all that it needs in registers.
///
/// # Errors
/// As [`each_row`].
#[doc(hidden)]
#[inline(never)]
pub fn each_dense<S: State, C: Copy>(
    states: &mut [S],
    groups: Option<&[u32]>,
    rows: usize,
    columns: C,
    part: impl Fn(C, usize, usize) -> C,
    f: impl Fn(&mut S, C, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(groups) = groups else {
        let columns = part(columns, 0, rows);
        return each_row(states, None, rows, |state, row| f(state, columns, row));
    };
    if groups.len() < rows {
        return Err(Error::internal("the server sent fewer groups than rows"));
    }
    let (whole, rest) = groups[..rows].as_chunks::<TOGETHER>();
    let mut from = 0;
    for groups in whole {
        let columns = part(columns, from, TOGETHER);
        each_row(states, Some(groups), TOGETHER, |state, row| f(state, columns, row))
            .map_err(|error| error.after(from))?;
        from += TOGETHER;
    }
    let columns = part(columns, from, rest.len());
    each_row(states, Some(rest), rest.len(), |state, row| f(state, columns, row))
        .map_err(|error| error.after(from))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::kymo::udf::types::{Values, VarBytes};
    use crate::column::{Bits, Strings};
    use crate::state::Samples;
    use crate::value::Read;

    /// Adds rows of three columns to seven groups, or to one, and fails at a row.
    fn run(rows: usize, grouped: bool, fail: Option<usize>) -> Result<Vec<Samples>, Error> {
        let numbers: Vec<i64> = (0..rows as i64).collect();
        let bits: Vec<u8> = vec![0b0101_0101; rows.div_ceil(8)];
        let text = Values::Bytes(VarBytes {
            offsets: (0..=rows as u32).collect(),
            data: (0..rows).map(|row| b'a' + (row % 26) as u8).collect(),
        });
        let texts = Strings::open(&text).unwrap();
        let groups: Vec<u32> = (0..rows as u32).map(|row| row * 5 % 7).collect();
        let mut states = vec![Samples::default(); 7];
        each_dense(
            &mut states,
            grouped.then_some(&groups),
            rows,
            (&numbers[..], Bits(&bits), texts),
            |(numbers, bits, texts), from, count| {
                (
                    <i64 as Read>::part(numbers, from, count),
                    <bool as Read>::part(bits, from, count),
                    <&str as Read>::part(texts, from, count),
                )
            },
            |state, (numbers, bits, texts), row| {
                let number = numbers[row];
                assert_eq!(bits.get(row), number % 2 == 0);
                assert_eq!(texts.get(row).as_bytes(), [b'a' + (number % 26) as u8]);
                if fail == usize::try_from(number).ok() {
                    return Err(Error::invalid("no"));
                }
                state.push(number, 0.0);
                Ok(())
            },
        )?;
        Ok(states)
    }

    #[test]
    fn every_row_of_a_dense_batch_reaches_its_group_once() {
        for rows in [0, 1, 7, 8, 9, 16, 37] {
            for grouped in [true, false] {
                let states = run(rows, grouped, None).unwrap();
                for (group, state) in states.iter().enumerate() {
                    let of = |row: &i64| if grouped { row * 5 % 7 } else { 0 } == group as i64;
                    let wanted: Vec<i64> = (0..rows as i64).filter(of).collect();
                    let times: Vec<i64> = state.sorted().into_iter().map(|each| each.0).collect();
                    assert_eq!(times, wanted, "{rows} rows, group {group}");
                }
            }
        }
    }

    #[test]
    fn an_error_names_its_row() {
        for row in [0, 7, 8, 21, 36] {
            for grouped in [true, false] {
                assert_eq!(run(37, grouped, Some(row)).unwrap_err().row, Some(row as u32));
            }
        }
    }
}
