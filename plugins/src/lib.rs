//! Plugins: functions, aggregates and transforms as WebAssembly components.
//!
//! What lives here knows Arrow and WebAssembly, not SQL. Read in this order: [`identity`] says
//! what a plugin is called everywhere else, [`description`] what it offers, [`host`] how bytes
//! become a version, [`registry`] which version is in use, [`query`] how it is called.
//!
//! ```text
//! bytes ── host.load ──► PluginVersion ── registry.publish ──► PluginMap (immutable)
//!            │ compile (a process)  describe                        │ a query pins a version
//!            ▼                                                      ▼
//!          cache                            QueryPlugins ── one Instance a worker ── call
//! ```

pub mod accumulator;
pub mod cache;
pub mod compile;
pub mod cursor;
pub mod description;
pub mod engine;
mod health;
pub mod host;
pub mod identity;
mod instance;
pub mod limits;
mod line;
pub mod log;
pub mod memory;
pub mod pack;
mod permits;
pub mod pipeline;
pub mod query;
pub mod registry;
pub mod stats;
pub mod template;
pub mod usage;
pub mod validate;
pub mod version;

pub use accumulator::Accumulator;
pub use compile::Compiler;
pub use cursor::Cursor;
pub use description::{Description, Function, Kind, Nulls, Overload, Volatility};
pub use engine::Engine;
pub use host::{LoadOptions, PluginHost};
pub use identity::{Digest, PluginRef};
pub use instance::QueryContext;
pub use limits::{Limits, OwnLimits};
pub use line::{Argument, Emit, Transformed, coerced};
pub use memory::MemoryAccount;
pub use pipeline::Pipeline;
pub use query::QueryPlugins;
pub use registry::{Canary, Entry, Event, PluginMap, Registry, State, untried};
pub use stats::{Counts, Fault};
pub use version::{PluginFunction, PluginVersion};
