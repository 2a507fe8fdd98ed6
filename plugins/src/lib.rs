//! Plugins: functions, aggregates and transforms as WebAssembly components.
//!
//! What lives here knows Arrow and WebAssembly, not SQL. [`identity`] says what a plugin is
//! called everywhere else: by name and content, never by where its file lies.

pub mod identity;

pub use identity::{Digest, PluginRef};
