//! The durable store, as a plain library: no actors, no SQL.

pub mod committer;
pub mod compact;
pub mod frame;
pub mod interner;
pub mod journal;
pub mod key;
pub mod late;
pub mod log;
pub mod memtable;
pub mod merge;
pub mod meta;
pub mod metalog;
pub mod overlap;
pub mod poison;
pub mod segment;
pub mod sort;
pub mod version;
