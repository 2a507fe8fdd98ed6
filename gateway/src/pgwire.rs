//! The PostgreSQL wire protocol: its own accept loop over the message definitions of the
//! `pgwire` crate.
//!
//! What comes from a client is cut into messages here, with a budget ([`wire`]), and read
//! with every length checked ([`frontend`]); what goes back is written by `pgwire`'s message
//! types and, for rows, by [`encode`]. A connection opens ([`negotiate`], [`startup`],
//! [`scram`]), and then serves the simple and the extended protocol ([`connection`],
//! [`extended`], [`copy`]) over one SQL session of its own ([`backend`]).

pub mod backend;
mod cancel;
mod connection;
mod copy;
pub mod decode;
pub mod encode;
mod extended;
mod failure;
mod frontend;
mod listener;
mod negotiate;
mod parameters;
mod rows;
mod scram;
mod startup;
pub mod types;
mod wire;

pub use listener::{Gate, serve};

#[cfg(test)]
mod tests;
