//! The command line as people use it: the real binary with arguments, and what it says.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::server::{self, Server};
use crate::{ADMIN, PASSWORD};

/// A command that finds this server, logged in as its administrator.
#[must_use]
pub fn kymo(server: &Server, arguments: &[&str]) -> Command {
    let mut command = offline(arguments);
    command.env("KYMO_URL", server.url("")).env("KYMO_USER", ADMIN).env("KYMO_PASSWORD", PASSWORD);
    command
}

/// A command that finds no server.
#[must_use]
pub fn offline(arguments: &[&str]) -> Command {
    let mut command = Command::new(server::binary());
    command
        .args(arguments)
        .env_remove("KYMO_TOKEN")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env("XDG_DATA_HOME", "/nonexistent");
    command
}

/// Runs a command with this on its standard input.
pub fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the kymo binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A command that refuses its arguments does not read.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("its output")
}

/// Runs a command that must succeed; what it printed.
pub fn succeeds(command: &mut Command, input: &str) -> String {
    let output = run(command, input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that must fail; what it complained.
pub fn fails(command: &mut Command, input: &str) -> String {
    let output = run(command, input);
    assert_eq!(output.status.code(), Some(1), "{command:?}");
    String::from_utf8(output.stderr).expect("text")
}
