//! What an instance knows of the query it serves, and its voice in the server's log.

use std::sync::OnceLock;

use crate::bindings::exports::kymo::udf::catalog;
pub use crate::bindings::kymo::udf::host::Level;

/// What the server says when an instance starts: the query's time and zone, a seed, settings.
pub type Context = catalog::Context;

static CONTEXT: OnceLock<Context> = OnceLock::new();

/// The query that this instance serves. There is no other clock and no other randomness.
///
/// Outside of a server, as in tests, everything in it is empty or zero.
pub fn context() -> &'static Context {
    CONTEXT.get_or_init(|| Context {
        query_time: 0,
        timezone: "UTC".to_owned(),
        seed: 0,
        settings: Vec::new(),
    })
}

/// Says something in the server's log and in `system.plugin_log`, 64 lines an instance.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::kymo::udf::host::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Takes the context, and sends panics to the log: what a trap says would otherwise be only
/// where it happened.
pub(crate) fn start(context: Context) {
    listen_to_panics();
    // A second start of the same instance would be the server's fault, and changes nothing.
    let _ = CONTEXT.set(context);
}

pub(crate) fn listen_to_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}
