//! States of aggregates: what a group has seen so far, and its form as columns, in which it
//! travels to other instances, other machines and the disk.
//!
//! A struct of numbers derives [`State`]: one column a member. A state of variable size says
//! how it is written as bytes ([`BytesState`]). [`Samples`] keeps all values with their times,
//! for what cannot be computed without having seen all of them.

use crate::bindings::kymo::udf::types::{Column, DataType, Error, Field};
use crate::column::{Arg, column};
use crate::value::{BytesBuilder, Fixed};

/// What a group has seen so far.
pub trait State: Default + 'static {
    /// The columns of the state.
    fn fields() -> Vec<Field>;
    /// States as columns, one row each.
    fn encode(states: &[Self]) -> Vec<Column>;
    /// States from columns.
    ///
    /// # Errors
    /// The columns are not what [`encode`](Self::encode) wrote.
    fn decode(columns: &[Column], rows: usize) -> Result<Vec<Self>, Error>;
    /// Bytes held outside of the value itself.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// A state of variable size, as bytes.
pub trait BytesState: Default + 'static {
    /// Appends the state.
    fn write(&self, to: &mut Vec<u8>);
    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// The bytes are nothing that it writes.
    fn read(from: &[u8]) -> Result<Self, Error>;
    /// Bytes held outside of the value itself.
    fn heap_bytes(&self) -> usize;
}

impl<T: BytesState> State for T {
    fn fields() -> Vec<Field> {
        vec![Field { name: "state".to_owned(), data_type: DataType::Binary, nullable: false }]
    }

    fn encode(states: &[Self]) -> Vec<Column> {
        let mut builder = BytesBuilder::with_capacity(states.len());
        for state in states {
            state.write(builder.data());
            builder.end_row();
        }
        vec![column(builder.finish())]
    }

    fn decode(columns: &[Column], rows: usize) -> Result<Vec<Self>, Error> {
        let [only] = crate::column::exactly(columns)?;
        let bytes = Arg::<&[u8]>::column(only, rows)?;
        (0..rows).map(|row| T::read(bytes.get(row))).collect()
    }

    fn heap_bytes(&self) -> usize {
        BytesState::heap_bytes(self)
    }
}

/// One member of many states as a column; used by `#[derive(State)]`.
#[doc(hidden)]
pub fn member<S, T: Fixed>(states: &[S], get: impl Fn(&S) -> T) -> Column {
    column(T::values(states.iter().map(get).collect()))
}

/// The column of a member; used by `#[derive(State)]`.
#[doc(hidden)]
pub fn member_field<T: Fixed>(name: &str) -> Field {
    Field { name: name.to_owned(), data_type: T::data_type(), nullable: false }
}

/// All values of a group with their times, in order of time once [`sorted`](Self::sorted).
///
/// What depends on the order of rows (rates of counters, forecasts) must not depend on the
/// order in which partitions arrive; keeping the samples is how it does not. 16 bytes a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    rows: Vec<(i64, f64)>,
    unsorted: bool,
}

impl Samples {
    /// One more value. Values that arrive in order of time cost nothing to sort.
    #[inline]
    pub fn push(&mut self, time: i64, value: f64) {
        self.unsorted |= self.rows.last().is_some_and(|(last, _)| *last > time);
        self.rows.push((time, value));
    }

    /// Takes the values of another group in.
    pub fn append(&mut self, other: &Samples) {
        let in_order = match (self.rows.last(), other.rows.first()) {
            (Some((last, _)), Some((first, _))) => last <= first,
            _ => true,
        };
        self.unsorted |= other.unsorted || !in_order;
        self.rows.extend_from_slice(&other.rows);
    }

    /// The values in order of time; equal times in order of value, so that the result does not
    /// depend on who came first.
    #[must_use]
    pub fn sorted(&self) -> Vec<(i64, f64)> {
        let mut rows = self.rows.clone();
        if self.unsorted || rows.windows(2).any(|two| two[0].0 == two[1].0) {
            rows.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        }
        rows
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl BytesState for Samples {
    fn write(&self, to: &mut Vec<u8>) {
        to.reserve(self.rows.len() * 16);
        for (time, value) in &self.rows {
            to.extend_from_slice(&time.to_le_bytes());
            to.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn read(from: &[u8]) -> Result<Self, Error> {
        let (rows, rest) = from.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(Error::internal("a state of samples that breaks off"));
        }
        let mut samples = Samples { rows: Vec::with_capacity(rows.len()), unsorted: false };
        for [t0, t1, t2, t3, t4, t5, t6, t7, value @ ..] in rows {
            let time = i64::from_le_bytes([*t0, *t1, *t2, *t3, *t4, *t5, *t6, *t7]);
            samples.push(time, f64::from_le_bytes(*value));
        }
        Ok(samples)
    }

    fn heap_bytes(&self) -> usize {
        self.rows.capacity() * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_survive_their_bytes_and_any_order_of_arrival() {
        let mut early = Samples::default();
        early.push(1, 1.0);
        early.push(2, 2.0);
        let mut late = Samples::default();
        late.push(4, 4.0);
        late.push(3, 3.0);
        let travelled = Samples::decode(&Samples::encode(&[late.clone()]), 1).unwrap();
        assert_eq!(travelled, [late.clone()]);
        let mut one = early.clone();
        one.append(&late);
        let mut other = late;
        other.append(&early);
        let want = vec![(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)];
        assert_eq!((one.sorted(), other.sorted()), (want.clone(), want));
        assert!(Samples::read(&[0; 17]).is_err());
    }
}
