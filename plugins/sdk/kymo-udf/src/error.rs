//! Errors of a function: what the reader of the SQL error needs to know, and the row.

use std::fmt;

use crate::bindings::kymo::udf::types::{Error, ErrorCode};

impl Error {
    /// An argument that the function does not accept (SQLSTATE 22023).
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// A result that does not fit its type (SQLSTATE 22003).
    pub fn out_of_range(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::OutOfRange, message)
    }

    /// Something this plugin does not do (SQLSTATE 0A000).
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// A bug in the plugin (SQLSTATE 38000).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// An error with a code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), row: None }
    }

    /// The same error, to blame on one row of the batch. The attributes do this by themselves
    /// for functions of single rows.
    #[must_use]
    pub fn at(mut self, row: usize) -> Self {
        self.row = self.row.or(u32::try_from(row).ok());
        self
    }

    /// The same error in a batch that has these rows before those that its row counts.
    #[must_use]
    pub(crate) fn after(mut self, rows: usize) -> Self {
        self.row = self.row.and_then(|row| u32::try_from(rows).ok()?.checked_add(row));
        self
    }
}

impl From<fmt::Error> for Error {
    fn from(_: fmt::Error) -> Self {
        Error::internal("a text could not be written")
    }
}

/// What an update may answer: nothing, or that it failed.
pub trait Outcome {
    /// As a result.
    ///
    /// # Errors
    /// The function's own.
    fn outcome(self) -> Result<(), Error>;
}

impl Outcome for () {
    #[inline(always)]
    fn outcome(self) -> Result<(), Error> {
        Ok(())
    }
}

impl Outcome for Result<(), Error> {
    #[inline(always)]
    fn outcome(self) -> Result<(), Error> {
        self
    }
}
