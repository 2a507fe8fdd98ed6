//! The command line: one file a command, one way to say what went wrong.
//!
//! `start` and `demo` run a server in this process; `check`, `repair` and `restore` work on a
//! data folder that no server uses. The others talk to one over HTTP by [`client`], which finds
//! address and credentials in flags, in the environment, or where the last `kymo start` or
//! `kymo demo` on this machine left them ([`credentials`]).

mod backup;
mod check;
pub(crate) mod client;
mod credentials;
mod demo;
mod ingest;
mod place;
mod plugin;
mod query;
mod repair;
mod repl;
mod restore;
mod serve;
mod snapshot;
mod start;
mod status;
mod stopwatch;
mod subscribe;
mod table;
mod wal;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::compile;

/// A time-series database in one binary.
#[derive(Debug, Parser)]
#[command(name = "kymo", version, about, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Start(start::Arguments),
    /// Run a server that watches this machine, with a table to play with
    Demo(demo::Arguments),
    /// Run SQL and print the rows
    Query(query::Arguments),
    /// Print rows as they are committed
    Subscribe(subscribe::Arguments),
    /// Type SQL, see rows
    Repl(repl::Arguments),
    /// Send a file of line protocol or CSV
    Ingest(ingest::Arguments),
    /// Write, build and install functions as WebAssembly components
    Plugin(plugin::Arguments),
    /// Show what a server is doing
    Status(status::Arguments),
    /// Copy everything that a server has, while it goes on
    Backup(backup::Arguments),
    /// Keep this moment of a server in its data folder, in an instant
    Snapshot(snapshot::Arguments),
    /// Make a data folder of a backup
    Restore(restore::Arguments),
    /// Print what was committed, in order, as it is committed
    #[command(subcommand)]
    Wal(wal::Command),
    /// Verify everything in a data folder
    Check(check::Arguments),
    /// Save what can be saved of a damaged data folder
    Repair(repair::Arguments),
}

/// Runs the command of this process's arguments; returns its exit code. A server compiles
/// plugins in a process of its own, which is this binary with a command that no one types.
#[must_use]
pub fn run() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(compile::SUBCOMMAND) {
        return compile::child(words.next().as_deref());
    }
    let outcome = match CommandLine::parse().command {
        Command::Start(arguments) => start::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Query(arguments) => query::run(&arguments),
        Command::Subscribe(arguments) => subscribe::run(&arguments),
        Command::Repl(arguments) => repl::run(&arguments),
        Command::Ingest(arguments) => ingest::run(&arguments),
        Command::Plugin(arguments) => plugin::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Snapshot(arguments) => snapshot::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Wal(command) => wal::run(&command),
        Command::Check(arguments) => return finish(check::run(&arguments)),
        Command::Repair(arguments) => return finish(repair::run(&arguments)),
    };
    finish(outcome.map(|()| ExitCode::SUCCESS))
}

fn finish(outcome: Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The message, and the way out where one is known.
fn complain(error: &Error) {
    eprintln!("error: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
}

/// Prints to standard output. A reader that has gone, as in `kymo query … | head`, ends the
/// process quietly as it does for other tools.
///
/// # Errors
/// Standard output cannot be written for another reason.
fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// As [`print`], for what need not be text.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io("write to standard output", error)),
    }
}

/// A mistake in how a command was called.
fn misuse(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, message).with_hint(hint)
}
