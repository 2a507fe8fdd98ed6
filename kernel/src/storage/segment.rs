//! Segments: immutable Parquet files, each of one table and one time window, sorted by tags
//! and time.
//!
//! [`write`](mod@write) makes them, [`read`] reads them, [`index`] finds the rows of a series in them,
//! [`encoding`] chooses how columns are encoded, and [`store`] is where their bytes lie.
//! Nothing in them is private: any Parquet reader opens one and sees plain columns with
//! plain types; the index from series to rows is an extra that other readers pass over.

pub mod blocks;
pub mod cache;
pub mod encoding;
mod groups;
pub mod index;
pub mod read;
pub mod runs;
mod stats;
pub mod store;
pub mod write;

pub use cache::Readers;
pub use encoding::Encoding;
pub use index::{SeriesIndex, TagFilter};
pub use read::{Scan, SegmentReader};
pub use store::{LocalSegments, SegmentBytes, SegmentStore, Upload};
pub use write::{Origin, SegmentWriter, Target, flush};

#[cfg(test)]
mod tests;
