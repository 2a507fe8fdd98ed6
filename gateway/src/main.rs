//! The `kymo` binary: the command line decides, the library works.

use std::process::ExitCode;

fn main() -> ExitCode {
    kymo::process::prepare();
    kymo::cli::run()
}
