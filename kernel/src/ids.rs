//! Identifiers and positions as types of their own, so that no bare integer crosses a file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::error::{Code, Error, Result};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, out)
            }
        }
    };
}

number!(
    /// A log partition: the unit of ownership and of sequencing. Today there is only
    /// [`PartitionId::ONLY`].
    PartitionId(u16)
);
number!(
    /// One of [`SLOTS`] fixed virtual slots that series hash into; partitions own ranges of them.
    Slot(u16)
);
number!(
    /// Counts the owners a partition has had; a larger epoch fences a smaller one.
    Epoch(u64)
);
number!(
    /// Place of a record within one (partition, epoch); starts at 1 and has no gap (W3).
    Seq(u64)
);
number!(
    /// Number of the last metadata edit that a snapshot contains.
    MetaVersion(u64)
);
number!(
    /// A table for its whole life; never reused, so a dropped name can come back.
    TableId(u64)
);
number!(
    /// A column for its whole life within its table; written to Parquet as `field_id`.
    ColumnId(u32)
);

/// How many virtual slots series are spread over. Fixed for ever: it is part of the data.
pub const SLOTS: u16 = 1024;

impl PartitionId {
    /// The single partition of a store that has not been split.
    pub const ONLY: PartitionId = PartitionId(0);
}

impl Slot {
    /// The slot of an encoded series key.
    #[must_use]
    pub fn of(key: &[u8]) -> Slot {
        let hash = xxhash_rust::xxh64::xxh64(key, 0);
        Slot(u16::try_from(hash % u64::from(SLOTS)).unwrap_or_default())
    }
}

/// Where a record lies in the durable log, and what an acknowledgement carries.
///
/// Within one partition "newer" means larger `(epoch, seq)`, which is how this type orders.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The partition that numbered the record.
    pub partition: PartitionId,
    /// The ownership under which it was numbered.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}-{}", self.partition, self.epoch, self.seq)
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Position> {
        let read = || {
            let mut parts = text.trim().splitn(3, '-');
            let mut next = || parts.next()?.parse::<u64>().ok();
            let (partition, epoch, seq) = (next()?, next()?, next()?);
            let partition = PartitionId(u16::try_from(partition).ok()?);
            Some(Position { partition, epoch: Epoch(epoch), seq: Seq(seq) })
        };
        read().ok_or_else(|| {
            Error::new(Code::InvalidInput, format!("{text:?} is no position in the log"))
                .with_hint("a position looks like 0-3-17: partition, epoch and sequence")
        })
    }
}

/// A segment; the name of its file, never reused.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SegmentId(pub Ulid);

impl fmt::Display for SegmentId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, out)
    }
}

/// A closed range of timestamps, in nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimeRange {
    /// The earliest timestamp in the range.
    pub first: i64,
    /// The latest timestamp in the range; not before `first`.
    pub last: i64,
}

impl TimeRange {
    /// Every timestamp there is.
    pub const ALL: TimeRange = TimeRange { first: i64::MIN, last: i64::MAX };

    /// Whether any instant lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &TimeRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn union(&self, other: &TimeRange) -> TimeRange {
        TimeRange { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}
