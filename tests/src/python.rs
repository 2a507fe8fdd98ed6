//! Python for tests that compare with other programs: a virtual environment made once in
//! the target folder by `tests/clients/setup`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A Python interpreter with the packages of `tests/clients/requirements.txt`.
///
/// `KYMO_TEST_VENV` names a ready environment; `tests/run` sets it. Without it the set-up
/// script is run, which returns at once where its work is done.
#[must_use]
pub fn python() -> PathBuf {
    let environment = match std::env::var_os("KYMO_TEST_VENV") {
        Some(path) => PathBuf::from(path),
        None => {
            let output = Command::new(folder().join("clients/setup"))
                .output()
                .expect("tests/clients/setup runs");
            assert!(output.status.success(), "tests/clients/setup: {}", both(&output));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            PathBuf::from(text.lines().last().expect("the path of the environment").trim())
        }
    };
    environment.join("bin/python")
}

/// Runs a script of `tests/` and returns what it printed; a failing script fails the test.
#[must_use]
pub fn run(script: &str, arguments: &[&str]) -> String {
    let output = Command::new(python())
        .arg(folder().join(script))
        .args(arguments)
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{script} {arguments:?}: {}", both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The folder of the tests' sources.
#[must_use]
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn both(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
