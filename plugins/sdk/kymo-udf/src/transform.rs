//! Ingest transforms: batches of one table on their way in, changed, thinned out or rejected.
//!
//! The interface may still change: the server loads a plugin that exports a transform only
//! where `plugins.preview = true`. A transform lives longer than a query, until the plugin or
//! the table changes or the server renews it; what it remembers between batches may be lost
//! at any time and must never be the only copy of anything.
//!
//! ```
//! use kymo_udf::{Batch, Error, Field, Output, Settings, Transform, plugin, transform};
//!
//! /// Lets every second row pass.
//! struct Half {
//!     input: Vec<Field>,
//!     odd: bool,
//! }
//!
//! #[transform(name = "half")]
//! impl Transform for Half {
//!     fn open(_: &Settings, input: &[Field]) -> Result<Self, Error> {
//!         Ok(Half { input: input.to_vec(), odd: false })
//!     }
//!
//!     fn schema(&self) -> Vec<Field> {
//!         self.input.clone()
//!     }
//!
//!     fn apply(&mut self, batch: Batch) -> Result<Output, Error> {
//!         let keep: Vec<bool> = (0..batch.rows).map(|_| {
//!             self.odd = !self.odd;
//!             self.odd
//!         }).collect();
//!         Ok(Output::kept(batch.filter(&keep)))
//!     }
//! }
//!
//! plugin! { name: "sampling", transforms: [Half] }
//! ```

use crate::bindings::exports::kymo::udf_preview::transform as generated;
pub use crate::bindings::exports::kymo::udf_preview::transform::{Output, RejectedRow};
use crate::bindings::kymo::udf::types::{Column, Error, Field, Values};
pub use crate::bindings::kymo::udf_preview::batches::Batch;
use crate::column::{BitBuilder, Bits};
use crate::value::BytesBuilder;

/// The settings with which a transform was attached to its table.
#[derive(Debug, Clone, Default)]
pub struct Settings(pub Vec<(String, String)>);

impl Settings {
    /// A setting's text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(each, _)| each == name).map(|(_, text)| text.as_str())
    }

    /// A setting that has to be there.
    ///
    /// # Errors
    /// `invalid-argument` where it is missing.
    pub fn require(&self, name: &str) -> Result<&str, Error> {
        self.get(name).ok_or_else(|| Error::invalid(format!("the setting {name} is missing")))
    }

    /// A number that has to be there.
    ///
    /// # Errors
    /// `invalid-argument` where it is missing or no finite number.
    pub fn number(&self, name: &str) -> Result<f64, Error> {
        let text = self.require(name)?;
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| Error::invalid(format!("the setting {name} is {text:?}: no number")))
    }
}

/// A transform of one table.
pub trait Transform: Sized + 'static {
    /// Called once for a table and its columns.
    ///
    /// # Errors
    /// Settings or columns that it does not accept.
    fn open(settings: &Settings, input: &[Field]) -> Result<Self, Error>;
    /// The columns that come out.
    fn schema(&self) -> Vec<Field>;
    /// One batch.
    ///
    /// # Errors
    /// What the batch as a whole fails by; single rows are rejected in the output instead.
    fn apply(&mut self, batch: Batch) -> Result<Output, Error>;
}

/// What the server has to know of a transform; `#[transform]` implements it.
pub trait TransformFunction: Transform {
    /// SQL name.
    const NAME: &'static str;
    /// Markdown for `system.functions`.
    const DESCRIPTION: &'static str;
}

impl Output {
    /// A batch of which nothing was rejected.
    #[must_use]
    pub fn kept(batch: Batch) -> Self {
        Output { batch, rejected: Vec::new() }
    }
}

impl Batch {
    /// The rows whose entry in `keep` is true, in their order.
    ///
    /// # Panics
    /// Where `keep` is shorter than the batch.
    #[must_use]
    pub fn filter(self, keep: &[bool]) -> Batch {
        let keep = &keep[..self.rows as usize];
        let rows = keep.iter().filter(|keep| **keep).count() as u32;
        if rows == self.rows {
            return self;
        }
        let columns = self.columns.into_iter().map(|column| filter(column, keep)).collect();
        Batch { rows, columns }
    }
}

fn filter(column: Column, keep: &[bool]) -> Column {
    fn fixed<T: Copy>(array: &[T], keep: &[bool]) -> Vec<T> {
        array.iter().zip(keep).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect()
    }
    fn bits(bytes: &[u8], keep: &[bool]) -> Vec<u8> {
        let mut kept = BitBuilder::with_capacity(keep.len());
        for row in (0..keep.len()).filter(|row| keep[*row]) {
            kept.push(Bits(bytes).get(row));
        }
        kept.finish()
    }
    let values = match column.values {
        Values::Bits(bytes) => Values::Bits(bits(&bytes, keep)),
        Values::Int32(array) => Values::Int32(fixed(&array, keep)),
        Values::Int64(array) => Values::Int64(fixed(&array, keep)),
        Values::Uint64(array) => Values::Uint64(fixed(&array, keep)),
        Values::Float32(array) => Values::Float32(fixed(&array, keep)),
        Values::Float64(array) => Values::Float64(fixed(&array, keep)),
        Values::Bytes(bytes) => {
            let mut kept = BytesBuilder::with_capacity(keep.len());
            for row in (0..keep.len()).filter(|row| keep[*row]) {
                let range = bytes.offsets[row] as usize..bytes.offsets[row + 1] as usize;
                kept.push(&bytes.data[range]);
            }
            kept.finish()
        }
        Values::ArrowIpc(_) => panic!("a column of a nested type cannot be filtered here"),
    };
    Column { values, validity: column.validity.map(|bytes| bits(&bytes, keep)) }
}

/// A transform with its type forgotten.
#[doc(hidden)]
pub trait Pipeline {
    fn schema(&self) -> Vec<Field>;
    fn apply(&mut self, batch: Batch) -> Result<generated::Output, Error>;
}

impl<T: Transform> Pipeline for T {
    fn schema(&self) -> Vec<Field> {
        Transform::schema(self)
    }

    fn apply(&mut self, batch: Batch) -> Result<generated::Output, Error> {
        Transform::apply(self, batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::kymo::udf::types::VarBytes;

    #[test]
    fn rows_are_kept_in_every_kind_of_column() {
        let text = VarBytes { offsets: vec![0, 1, 3, 6], data: b"abbccc".to_vec() };
        let batch = Batch {
            rows: 3,
            columns: vec![
                Column {
                    values: Values::Float64(vec![1.0, 2.0, 3.0]),
                    validity: Some(vec![0b101]),
                },
                Column { values: Values::Bytes(text), validity: None },
                Column { values: Values::Bits(vec![0b011]), validity: None },
            ],
        };
        let kept = batch.filter(&[false, true, true]);
        let text = VarBytes { offsets: vec![0, 2, 5], data: b"bbccc".to_vec() };
        assert_eq!(kept.rows, 2);
        assert_eq!(kept.columns[0].values, Values::Float64(vec![2.0, 3.0]));
        assert_eq!(kept.columns[0].validity, Some(vec![0b10]));
        assert_eq!(kept.columns[1].values, Values::Bytes(text));
        assert_eq!(kept.columns[2].values, Values::Bits(vec![0b01]));
    }

    #[test]
    fn settings_say_what_is_wrong_with_them() {
        let settings = Settings(vec![("band".into(), "1e-3".into()), ("bad".into(), "x".into())]);
        assert_eq!(settings.number("band").unwrap(), 1e-3);
        assert!(settings.number("bad").unwrap_err().message.contains("no number"));
        assert!(settings.number("none").unwrap_err().message.contains("missing"));
    }
}
