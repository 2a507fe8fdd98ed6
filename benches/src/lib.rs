//! What benches and comparisons share: generators of data that a seed repeats.

pub mod load;
pub mod rows;
pub mod server;
pub mod tsbs;
