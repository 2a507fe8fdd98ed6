//! `kymo wal tail`: what was committed, in the order of the journal, from a server, or from a
//! data folder that no server uses.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

use kymo_kernel::env::real;
use kymo_kernel::storage::changes::{Changes, From};
use kymo_kernel::{Code, Error, Result};
use serde::Deserialize;

use super::client::{Client, Response, Target};
use super::print_bytes;
use super::stopwatch::pause;
use crate::changes::{self, Format};

/// How long to wait until a server that went away is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes that are handed on at a time.
const PIECE: usize = 256 << 10;

/// What can be done with the journal.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print committed batches
    Tail(Arguments),
}

/// Print committed batches.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// One table only: TABLE, DATABASE.TABLE or DATABASE.SCHEMA.TABLE
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// The position to begin at, `oldest` or `now`; the `next` of a batch goes on behind it
    #[arg(long, value_name = "POSITION", default_value = "oldest")]
    from: String,
    /// Go on with what is committed later, until interrupted
    #[arg(long, short = 'F')]
    follow: bool,
    /// How to print batches
    #[arg(long, short, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Read this data folder, which no server uses, instead of asking a server
    #[arg(long, value_name = "DIR", conflicts_with = "follow")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// Runs the command.
///
/// # Errors
/// No connection, what the server says is wrong, a position that is gone, or damage.
pub fn run(command: &Command) -> Result<()> {
    let Command::Tail(arguments) = command;
    arguments.from.parse::<From>()?;
    match &arguments.data_dir {
        Some(folder) => closed(arguments, folder),
        None => served(arguments),
    }
}

fn closed(arguments: &Arguments, folder: &std::path::Path) -> Result<()> {
    let named = arguments.table.as_deref();
    let table = named.map(|text| changes::table(text, &arguments.target.database)).transpose()?;
    let mut changes =
        Changes::closed(real::env(), folder, table.as_ref(), arguments.from.parse()?)?;
    let mut piece = Vec::new();
    while let Some(change) = changes.read()? {
        arguments.format.write(&change, &mut piece)?;
        if piece.len() >= PIECE {
            print_bytes(&piece)?;
            piece.clear();
        }
    }
    print_bytes(&piece)
}

/// A line, as far as it matters here.
#[derive(Deserialize)]
struct Head {
    kind: String,
    next: Option<String>,
    code: Option<String>,
    message: Option<String>,
    hint: Option<String>,
}

/// Why a stream ended.
enum End {
    /// There was no more.
    Whole,
    /// The server went away.
    Broken,
}

fn served(arguments: &Arguments) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let mut from = arguments.from.clone();
    let mut answer = ask(&client, arguments, &from)?;
    if arguments.format == Format::Arrow {
        return pass(answer);
    }
    loop {
        match lines(answer, &mut from)? {
            // A stream that follows has no end of its own.
            End::Whole | End::Broken if arguments.follow => {
                answer = reconnect(&client, arguments, &from)?;
            }
            End::Whole => return Ok(()),
            End::Broken => {
                return Err(Error::new(Code::Down, "the connection broke off")
                    .with_hint(format!("go on with --from {from}")));
            }
        }
    }
}

fn ask(client: &Client, arguments: &Arguments, from: &str) -> Result<Response> {
    let follow = if arguments.follow { "true" } else { "false" };
    let mut parameters = vec![
        ("from", from),
        ("follow", follow),
        ("format", arguments.format.name()),
        ("db", client.database.as_str()),
    ];
    parameters.extend(arguments.table.as_deref().map(|table| ("table", table)));
    client.tail(&parameters)
}

/// Asks again until the server is back.
fn reconnect(client: &Client, arguments: &Arguments, from: &str) -> Result<Response> {
    eprintln!("the connection broke off: asking again from {from}");
    loop {
        pause(PAUSE);
        match ask(client, arguments, from) {
            Err(error) if matches!(error.code(), Code::Down | Code::Busy) => {}
            outcome => return outcome,
        }
    }
}

/// Hands on whole lines, and remembers where to go on.
fn lines(answer: Response, from: &mut String) -> Result<End> {
    let mut reader = BufReader::with_capacity(PIECE, answer.into_body().into_reader());
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(End::Whole),
            Ok(_) if line.ends_with('\n') => {}
            // What came of a line that is not whole comes again.
            _ => return Ok(End::Broken),
        }
        if line.trim().is_empty() {
            continue;
        }
        let head: Head = serde_json::from_str(&line)
            .map_err(|error| Error::internal(format!("a line is not JSON: {error}")))?;
        if head.kind == "error" {
            return refused(head);
        }
        print_bytes(line.as_bytes())?;
        if let Some(next) = head.next {
            *from = next;
        }
    }
}

fn refused(head: Head) -> Result<End> {
    let code = head.code.unwrap_or_default();
    if code == Code::ShuttingDown.as_str() {
        return Ok(End::Broken);
    }
    let error = Error::new(Code::InvalidInput, head.message.unwrap_or(code));
    Err(match head.hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}

/// Hands on bytes as they come.
fn pass(answer: Response) -> Result<()> {
    let mut reader = answer.into_body().into_reader();
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => print_bytes(&piece[..count])?,
            Err(error) => {
                return Err(Error::new(Code::Down, format!("the stream broke off: {error}"))
                    .with_hint("go on with the kymo.next of the last whole batch as --from"));
            }
        }
    }
}
