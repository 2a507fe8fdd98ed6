//! The compiling process alone, for tests and benches of this crate: what the server's binary
//! is under its hidden subcommand.

use std::process::ExitCode;

use kymo_plugins::compile;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(compile::SUBCOMMAND) => compile::child(arguments.next().as_deref()),
        _ => ExitCode::FAILURE,
    }
}
