//! Typed settings in layers: built-in defaults, a file, the environment, flags.
//!
//! [`settings`] says what can be set and what it means by default, [`load`] reads the
//! layers, [`validate`] refuses what cannot work. Nothing of ours is imported here.

pub mod load;
pub mod settings;
pub mod span;
pub mod validate;

pub use load::{Flag, Problem, Problems, Sources, load, print};
pub use settings::Settings;
pub use span::Span;
