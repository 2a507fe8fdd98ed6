//! Typed settings in layers: built-in defaults, a file, the environment, flags.
//!
//! [`settings`] says what can be set and what it means by default.

pub mod settings;

pub use settings::Settings;
