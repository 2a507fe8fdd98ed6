//! The policies: one file or folder an actor.
//!
//! [`boot`] starts everything and gives the [`System`]. Below it, [`engine`] wires the write
//! side: [`ingest`] checks rows with the help of the [`catalog`], a [`writer`] per table makes
//! them durable and visible, the [`feed`] tells who follows, the [`flusher`] and the
//! [`compactor`] turn them into segments, the [`deleter`] takes rows out again,
//! [`retention`] lets expired ones go, the [`mover`] takes old ones to a second place, the
//! [`keeper`] cleans up, and [`memory`] keeps the
//! account. [`live`] pushes what is committed to subscribers, [`continuous`] keeps tables of
//! results up to date, [`alert`] evaluates rules, and [`notify`] carries what they say to
//! people. [`plugin_manager`] keeps plugins. [`backup`] pins moments of the store for those who
//! copy it. [`cluster`] says who owns what: today one node everything.

pub mod alert;
pub mod backup;
pub mod boot;
pub mod catalog;
pub mod cluster;
pub mod compactor;
pub mod continuous;
pub mod database;
pub mod deleter;
pub mod engine;
pub mod feed;
pub mod flusher;
pub mod ingest;
pub mod keeper;
#[cfg(test)]
mod kit;
pub mod live;
pub mod memory;
pub mod mover;
pub mod notify;
pub mod plugin_manager;
pub mod plugin_types;
pub mod query;
pub mod retention;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod writer;

pub use boot::System;
pub use database::Database;

#[cfg(test)]
#[path = "../../tests/fuzz/mutate.rs"]
mod fuzz;
