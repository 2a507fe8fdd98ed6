//! The durable store, as a plain library: no actors, no SQL.

pub mod interner;
pub mod key;
pub mod late;
pub mod memtable;
pub mod meta;
pub mod overlap;
pub mod segment;
pub mod sort;
pub mod version;
