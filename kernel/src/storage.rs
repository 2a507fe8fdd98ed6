//! The durable store, as a plain library: no actors, no SQL.

pub mod meta;
