//! Following a query: what is asked of the query actor once, and what it gives to evaluate
//! every commit with.
//!
//! There are two ways. A [`Followed`] query has rows that follow from the rows of each commit
//! alone (class `rows`). A [`Windowed`] one has a result that changes as rows arrive: commits
//! only tell it which windows of time to look at again, and its owner takes these windows when
//! it likes (classes `windows` and `rerun`).

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::ids::{Position, TimeRange};
use crate::message::{BatchStream, Committed, Message, SessionContext, Statement};
use crate::schema::TableDef;
use crate::storage::version::Version;

/// Plans a query to be followed: a `SUBSCRIBE TO …`, or the query alone. Subscription → query.
#[derive(Debug)]
pub struct Follow {
    /// The statement.
    pub statement: Arc<Statement>,
    /// The values of `$1`, `$2` …, each an array of one element.
    pub parameters: Vec<ArrayRef>,
    /// For whom.
    pub session: Arc<SessionContext>,
}

impl Message for Follow {
    type Reply = Following;
}

/// A query that can be followed, and how its statement wants it.
pub struct Following {
    /// The query.
    pub query: Arc<dyn Followed>,
    /// What the statement says about rows that are there already: whether to send them first;
    /// `None` where it says nothing.
    pub snapshot: Option<bool>,
}

impl fmt::Debug for Following {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Following({})", self.query.table().name)
    }
}

/// A query over one table whose rows follow from the rows of each commit alone. Planned once;
/// Arrow from the commit to the subscriber.
pub trait Followed: Send + Sync {
    /// The table, as it was when the query was planned.
    fn table(&self) -> &Arc<TableDef>;

    /// The text of the query.
    fn text(&self) -> &str;

    /// How it is evaluated, in a word.
    fn class(&self) -> &'static str;

    /// The shape of its rows.
    fn schema(&self) -> &SchemaRef;

    /// What the query makes of committed rows of its table; they may hold any of its columns.
    /// Takes computing, so it belongs on the query runtime.
    ///
    /// # Errors
    /// Those of evaluating the query's expressions.
    fn changes(&self, rows: &RecordBatch) -> Result<RecordBatch>;

    /// The rows of the query over the table as it was at a version. A query like any other:
    /// admitted, limited in time and memory, and shown in `system.queries`.
    fn snapshot(&self, version: Arc<Version>) -> BoxFuture<'static, Result<BatchStream>>;
}

/// Plans a query whose result is kept up to date: a `SUBSCRIBE TO …`, or the query alone. Any
/// query that reads tables can be kept; those that can be followed commit by commit are better
/// asked for with [`Follow`]. Subscription, continuous query → query.
///
/// Who keeps a query plans it, enters itself into the feed for the [`Windowed::tables`], and
/// only then takes or invalidates anything: what is read then has everything that was committed
/// before, the feed brings what comes after, and commits that both have do no harm.
#[derive(Debug)]
pub struct Keep {
    /// The statement.
    pub statement: Arc<Statement>,
    /// The values of `$1`, `$2` …, each an array of one element.
    pub parameters: Vec<ArrayRef>,
    /// For whom.
    pub session: Arc<SessionContext>,
}

impl Message for Keep {
    type Reply = Keeping;
}

/// A query that is kept, and how its statement wants it.
pub struct Keeping {
    /// The query.
    pub query: Box<dyn Windowed>,
    /// What the statement says about rows that are there already; `None` where it says nothing.
    pub snapshot: Option<bool>,
}

impl fmt::Debug for Keeping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Keeping({}, {})", self.query.class(), self.query.why())
    }
}

/// Windows of equal width whose starts lie equally far apart: side by side, as the values of
/// `time_bucket` or `date_bin`, or overlapping, as those of `time_hops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowSpec {
    /// The place of the window's start among the columns of the result; its values are
    /// timestamps in nanoseconds and never NULL.
    pub column: usize,
    /// The width in nanoseconds, above zero.
    pub width: i64,
    /// From one start to the next in nanoseconds: above zero, and no more than the width, to
    /// which it is equal where windows lie side by side.
    pub hop: i64,
    /// An instant at which a window begins, in nanoseconds since 1970.
    pub origin: i64,
}

impl WindowSpec {
    /// Whether instants fall into more than one window.
    #[must_use]
    pub fn overlaps(&self) -> bool {
        self.hop < self.width
    }

    /// The start of the last window that an instant falls into. The first window there can be
    /// is cut at the earliest instant.
    #[must_use]
    pub fn start(&self, time: i64) -> i64 {
        // Both remainders are smaller than the hop, so nothing overflows.
        let into =
            (time.rem_euclid(self.hop) - self.origin.rem_euclid(self.hop)).rem_euclid(self.hop);
        time.saturating_sub(into)
    }

    /// The start of the first window that an instant falls into.
    #[must_use]
    pub fn first_start(&self, time: i64) -> i64 {
        match self.overlaps() {
            true => self.next(self.start(time.saturating_sub(self.width))),
            false => self.start(time),
        }
    }

    /// The start after a start.
    #[must_use]
    pub fn next(&self, start: i64) -> i64 {
        start.saturating_add(self.hop)
    }

    /// How many windows start within a range that begins with one.
    #[must_use]
    pub fn count(&self, starts: TimeRange) -> i128 {
        (i128::from(starts.last) - i128::from(starts.first)) / i128::from(self.hop) + 1
    }

    /// The instants of the windows that start within `starts`.
    #[must_use]
    pub fn times(&self, starts: TimeRange) -> TimeRange {
        let first = self.start(starts.first);
        let inside = first == starts.first || first == i64::MIN;
        TimeRange {
            first: if inside { first } else { self.next(first) },
            last: self.start(starts.last).saturating_add(self.width - 1),
        }
    }

    /// The starts of the windows that have any of these instants.
    #[must_use]
    pub fn starts(&self, times: TimeRange) -> TimeRange {
        if times == TimeRange::ALL {
            return times;
        }
        TimeRange { first: self.first_start(times.first), last: self.start(times.last) }
    }
}

/// Rows of a result, as they are up to a commit.
#[derive(Debug)]
pub struct Taken {
    /// The rows of the windows that were asked for, all of them and no others, in no order.
    pub rows: Vec<RecordBatch>,
    /// Every commit to a table of the query up to here is part of them, and of later ones at
    /// least those that [`Windowed::apply`] was given. With several tables the one that was
    /// written to least decides.
    pub upto: Position,
}

/// The bytes of rows, without what their buffers have room for or share with other rows.
#[must_use]
pub fn row_bytes(rows: &RecordBatch) -> usize {
    let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size();
    rows.columns().iter().map(|column| bytes(column).unwrap_or_default()).sum()
}

/// A query whose result is kept by windows of time. One owner; not shared.
///
/// ```text
/// feed ── apply(commit) ──► states; which windows are dirty
/// owner ── dirty() ──► ranges of starts ── take(range) ──► the rows of these windows now
/// ```
///
/// At first nothing is known and nothing is dirty: an owner takes everything, or invalidates
/// what it has missed.
///
/// The owner's position: where it has applied everything the feed brought up to a commit, and
/// has taken all that was dirty then, what it took stands for that commit (and perhaps later
/// ones). A window that has no rows (any more) is taken as no rows: what the owner had of it
/// is gone.
pub trait Windowed: Send {
    /// How it is evaluated, in a word: `windows` for states that follow each commit, `rerun`
    /// for a query that runs again.
    fn class(&self) -> &'static str;

    /// Why it is of this class, for people.
    fn why(&self) -> &str;

    /// The text of the query.
    fn text(&self) -> &str;

    /// The tables whose commits it wants, as they were when the query was planned.
    fn tables(&self) -> &[Arc<TableDef>];

    /// The shape of its rows.
    fn schema(&self) -> &SchemaRef;

    /// The windows of its result; `None` where it has none, so that it changes as a whole.
    fn window(&self) -> Option<WindowSpec>;

    /// The columns of the result that identify a row: the window and what else it is grouped
    /// by; no column at all where there is one row at most. `None` where nothing does: then
    /// equal rows can come more than once.
    fn keys(&self) -> Option<&[usize]>;

    /// The time columns' values that its tables span now, as starts of windows; `None` where
    /// they are empty. For going through everything piece by piece.
    fn extent(&self) -> Option<TimeRange>;

    /// Takes a commit: updates states and marks windows as dirty. Computing only; commits to
    /// other tables, and commits that it knew already, change nothing.
    ///
    /// # Errors
    /// Those of evaluating the query's expressions. The windows concerned are dirty then, and
    /// are read again, so that the error comes back from [`Windowed::take`] if it stays.
    fn apply(&mut self, committed: &Committed) -> Result<()>;

    /// Forgets what it knows of the windows that start within a range, which are dirty from now
    /// on.
    fn reopen(&mut self, starts: TimeRange);

    /// Forgets what it knows of the windows with these instants, which are dirty from now on:
    /// after commits that were missed, rows that were deleted, or a restart.
    fn invalidate(&mut self, times: TimeRange) {
        if times.first <= times.last {
            self.reopen(self.window().map_or(TimeRange::ALL, |window| window.starts(times)));
        }
    }

    /// The starts of windows that may have changed since they were taken last, as closed ranges
    /// that ascend and do not touch. A query without windows, and one of which anything may
    /// have changed, answers [`TimeRange::ALL`]; where that has windows, go through
    /// [`Windowed::extent`] in pieces.
    fn dirty(&self) -> Vec<TimeRange>;

    /// The rows of the windows that start within a range, dirty or not; they are not dirty any
    /// more. What the states do not have is read from the tables, by a query like any other:
    /// admitted, limited in time and memory, shown in `system.queries`. A query without windows
    /// is taken with [`TimeRange::ALL`].
    ///
    /// # Errors
    /// Those of queries; `limit_reached` where the rows or a state take more memory than
    /// `live.state_bytes`: ask for fewer windows at a time. What was dirty stays dirty.
    fn take(&mut self, starts: TimeRange) -> BoxFuture<'_, Result<Taken>>;

    /// Bytes of its states.
    fn memory(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(width: i64, origin: i64) -> WindowSpec {
        WindowSpec { column: 0, width, hop: width, origin }
    }

    #[test]
    fn windows_lie_side_by_side_on_both_sides_of_their_origin() {
        let windows = spec(10, 3);
        let starts = [(3, 3), (12, 3), (13, 13), (2, -7), (-7, -7), (-8, -17)];
        for (time, start) in starts {
            assert_eq!(windows.start(time), start, "{time}");
        }
        assert_eq!(windows.start(i64::MIN), i64::MIN);
        assert_eq!(spec(10, 1_000_003).start(12), 3);
    }

    #[test]
    fn ranges_of_starts_and_of_instants_belong_together() {
        let windows = spec(10, 0);
        let range = |first, last| TimeRange { first, last };
        assert_eq!(windows.times(range(10, 20)), range(10, 29));
        assert_eq!(windows.times(range(5, 27)), range(10, 29));
        assert_eq!(windows.starts(range(15, 20)), range(10, 20));
        assert_eq!(windows.starts(TimeRange::ALL), TimeRange::ALL);
        assert_eq!(windows.times(TimeRange::ALL), TimeRange::ALL);
    }

    #[test]
    fn windows_that_overlap_share_their_instants() {
        let windows = WindowSpec { column: 0, width: 10, hop: 4, origin: 1 };
        // Every start is tried: an instant is in the windows that it is said to be in.
        for time in -30..30 {
            let all: Vec<i64> = (-50..50)
                .filter(|start| (start - 1_i64).rem_euclid(4) == 0)
                .filter(|start| *start <= time && time < start + 10)
                .collect();
            let (first, last) = (all[0], all[all.len() - 1]);
            assert_eq!((windows.first_start(time), windows.start(time)), (first, last), "{time}");
            let starts = windows.starts(TimeRange { first: time, last: time });
            assert_eq!(starts, TimeRange { first, last });
            assert_eq!(windows.count(starts), all.len() as i128);
        }
        let range = |first, last| TimeRange { first, last };
        assert_eq!(windows.times(range(1, 9)), range(1, 18));
        assert_eq!(windows.times(range(2, 12)), range(5, 18));
        assert_eq!(windows.starts(TimeRange::ALL), TimeRange::ALL);
    }
}
