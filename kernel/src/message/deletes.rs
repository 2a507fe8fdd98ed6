//! Removing rows of a table: what any part of the system may ask of the deleter.
//!
//! A deletion works on the rows that were acknowledged before it began, as a reader sees them:
//! of rows of the same tags and time the one that the later writes made. Rows that are written
//! while it runs are left alone. What it removes goes for all readers at one moment, and comes
//! back after no crash.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::cancel::CancelToken;
use crate::error::Result;
use crate::ids::{Position, TableId, TimeRange};
use crate::message::Message;
use crate::storage::delete::{Part, Predicate, RowSet};
use crate::storage::version::Version;

/// Removes rows of one table. Query, continuous queries → deleter.
#[derive(Debug)]
pub struct Delete {
    /// The table.
    pub table: TableId,
    /// Rows outside of these times stay.
    pub times: TimeRange,
    /// Which of the rows within the times go.
    pub rows: Doomed,
    /// Whether the number of rows matters. Without it, rows that all go are not even read.
    pub count: bool,
    /// Stops it. Once its edit of the metadata is under way it is too late: the deletion is
    /// answered as done then.
    pub cancel: CancelToken,
}

impl Message for Delete {
    type Reply = Deleted;
}

/// Which rows go.
#[derive(Clone)]
pub enum Doomed {
    /// All.
    All,
    /// Those that a function of their columns chooses, such as [`keys`] does.
    ///
    /// [`keys`]: crate::storage::delete::keys
    Where(Predicate),
    /// Those that somebody else finds out, who can read any table for it.
    Chosen(Arc<dyn Choose>),
}

impl fmt::Debug for Doomed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Doomed::All => "All",
            Doomed::Where(_) => "Where",
            Doomed::Chosen(_) => "Chosen",
        })
    }
}

/// Finds out which rows of a version go.
pub trait Choose: Send + Sync {
    /// The parts of the version that hold such rows, each once, with the numbers of the rows.
    fn choose(&self, version: Arc<Version>) -> BoxFuture<'static, Result<Vec<(Part, RowSet)>>>;
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// How many rows went, as a reader counts them; those stored where nobody wanted to know.
    pub rows: u64,
    /// The position that [`Committed::deleted`] was published at; `None` where no row went.
    ///
    /// [`Committed::deleted`]: crate::message::Committed::deleted
    pub position: Option<Position>,
}
