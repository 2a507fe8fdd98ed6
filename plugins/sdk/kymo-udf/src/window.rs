//! Window functions: one whole partition in its order, one value a row.
//!
//! The interface may still change: the server loads a plugin that exports a window function only
//! where `plugins.preview = true`.
//!
//! `#[window]` over a function whose parameters are [`Arg`](crate::Arg)s, and, where it wants to
//! know how many rows there are or which of them are peers, a [`Partition`]. The answer is a
//! `Vec` with one entry a row; an entry of type `Option<T>` may be NULL.
//!
//! ```
//! use kymo_udf::{Arg, Partition, plugin, window};
//!
//! /// The mean of all values up to this one.
//! #[window]
//! fn running_mean(x: Arg<f64>, partition: Partition) -> Vec<Option<f64>> {
//!     let (mut sum, mut count) = (0.0, 0.0);
//!     (0..partition.rows())
//!         .map(|row| {
//!             if let Some(x) = x.option(row) {
//!                 sum += x;
//!                 count += 1.0;
//!             }
//!             (count > 0.0).then(|| sum / count)
//!         })
//!         .collect()
//! }
//!
//! plugin! { name: "running", windows: [running_mean] }
//! ```

use crate::bindings::exports::kymo::udf::catalog::Volatility;
use crate::bindings::kymo::udf::types::{Argument, Column, Error, Field};
use crate::column::Results;
use crate::value::Answer;

/// The rows of one window partition, in the order of its ORDER BY.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    rows: usize,
    peers: &'a [u32],
}

impl<'a> Partition<'a> {
    /// A partition of so many rows. `peers`: the end of each row's group of rows that are equal
    /// in the order.
    ///
    /// # Errors
    /// There is not one end a row, or one beyond the last row: a fault of the server.
    pub fn new(rows: usize, peers: &'a [u32]) -> Result<Self, Error> {
        if peers.len() != rows || peers.iter().any(|end| *end as usize > rows) {
            return Err(Error::internal("the server sent peers of another partition"));
        }
        Ok(Partition { rows, peers })
    }

    /// How many rows it has.
    #[must_use]
    pub fn rows(self) -> usize {
        self.rows
    }

    /// The row behind the last one that is equal to this one in the order.
    #[must_use]
    pub fn peers_end(self, row: usize) -> usize {
        self.peers[row] as usize
    }
}

/// A window function with what the server has to know about it; `#[window]` implements it.
pub trait WindowFunction {
    /// SQL name.
    const NAME: &'static str;
    /// Markdown for `system.functions`.
    const DESCRIPTION: &'static str;
    /// What its results depend on.
    const VOLATILITY: Volatility;
    /// Its parameters, in order.
    fn parameters() -> Vec<Field>;
    /// Its result.
    fn returns() -> Field;
    /// One partition.
    ///
    /// # Errors
    /// The function's own, or arguments that are not of the declared types.
    fn call(args: &[Argument], partition: Partition<'_>) -> Result<Column, Error>;
}

/// The column of these answers.
///
/// # Errors
/// There is not one a row; or one of them is an error.
#[doc(hidden)]
pub fn column<A: Answer>(answers: Vec<A>, rows: usize) -> Result<Column, Error> {
    if answers.len() != rows {
        let text = format!("{} answers for the {rows} rows of a partition", answers.len());
        return Err(Error::internal(text));
    }
    let mut results = Results::<A>::with_capacity(rows);
    answers.into_iter().try_for_each(|answer| results.push(answer))?;
    Ok(results.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::kymo::udf::types::Values;

    #[test]
    fn a_partition_has_one_answer_and_one_end_of_peers_a_row() {
        let partition = Partition::new(3, &[2, 2, 3]).unwrap();
        assert_eq!([0, 1, 2].map(|row| partition.peers_end(row)), [2, 2, 3]);
        assert!(Partition::new(3, &[2, 2]).is_err());
        assert!(Partition::new(1, &[2]).is_err());
        let found = column(vec![Some(1.0), None], 2).unwrap();
        assert_eq!(found.values, Values::Float64(vec![1.0, 0.0]));
        assert_eq!(found.validity, Some(vec![0b01]));
        assert!(column(vec![1.0], 2).unwrap_err().message.contains("1 answers for the 2 rows"));
    }
}
