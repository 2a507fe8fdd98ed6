//! `kymo repl`: SQL over several lines until a semicolon, rows as a table, and how long it
//! took. History survives in the user's data folder.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use kymo_kernel::Result;
use reedline::{
    FileBackedHistory, Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal,
    ValidationResult, Validator,
};

use super::client::{Client, Target};
use super::credentials::{folder, make_folder};
use super::stopwatch::Stopwatch;
use super::{complain, misuse, print, table};
use crate::sql_text::{name_at_start, skip_blank, statement_end};

/// How many statements the history keeps.
const HISTORY: usize = 10_000;

const HELP: &str = "\
SQL ends with a semicolon and may take several lines.
  \\d            tables
  \\d TABLE      columns of a table
  \\dt           tables
  \\l            databases
  \\c DATABASE   use another database
  \\timing       show or hide how long a statement took
  \\q            leave (or Ctrl-D)
";

/// Type SQL, see rows.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
}

/// Runs the command until the user leaves.
///
/// # Errors
/// The server cannot be reached at the start, or the terminal cannot be used.
pub fn run(arguments: &Arguments) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let mut session = Session { client, timing: true, settings: Vec::new() };
    if !io::stdin().is_terminal() {
        session.timing = false;
        return session.script(io::stdin().lock());
    }
    session.client.run("SELECT 1")?;
    print(&format!("connected to {}; \\? for help\n", session.client.url()))?;
    let mut editor = Reedline::create().with_validator(Box::new(UntilSemicolon));
    if let Some(history) = history() {
        editor = editor.with_history(Box::new(history));
    }
    loop {
        let prompt = Question { database: session.client.database.clone() };
        match editor.read_line(&prompt) {
            Ok(Signal::Success(text)) => match session.take(&text) {
                Ok((Next::Go, _)) => {}
                Ok((Next::Leave, _)) => return Ok(()),
                Err(error) => complain(&error),
            },
            Ok(Signal::CtrlC) => {}
            Ok(Signal::CtrlD) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                return Err(misuse(
                    format!("the terminal cannot be used: {error}"),
                    "pipe statements in, or use `kymo query`",
                ));
            }
        }
    }
}

fn history() -> Option<FileBackedHistory> {
    let dir = folder("XDG_DATA_HOME", ".local/share")?;
    make_folder(&dir).ok()?;
    FileBackedHistory::with_file(HISTORY, dir.join("history.txt")).ok()
}

enum Next {
    Go,
    Leave,
}

/// What is typed at one time.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// A statement, with or without its semicolon.
    Sql(&'a str),
    /// A command, without its backslash.
    Command(&'a str),
}

/// The first piece of a text that is whole, and what follows it. A command reaches to the end
/// of its line, SQL to its semicolon.
fn first_piece(text: &str) -> Option<(Piece<'_>, &str)> {
    let text = skip_blank(text);
    let (line, after_line) = text.split_once('\n').unwrap_or((text, ""));
    let line = line.trim_end().trim_end_matches(';').trim_end();
    if let Some(command) = line.strip_prefix('\\') {
        return Some((Piece::Command(command), after_line));
    }
    if matches!(line, "exit" | "quit" | "help") {
        return Some((Piece::Command(line), after_line));
    }
    let (sql, rest) = text.split_at(statement_end(text)?);
    Some((Piece::Sql(sql), rest))
}

struct Session {
    client: Client,
    timing: bool,
    /// The statements `SET`, `RESET` and `USE` that hold; every request begins with them,
    /// because over HTTP each is a session of its own.
    settings: Vec<String>,
}

impl Session {
    /// Runs what is piped in, statement by statement, until the first that fails.
    fn script(&mut self, input: impl io::BufRead) -> Result<()> {
        let mut text = String::new();
        for line in input.lines() {
            let line = line.map_err(|error| kymo_kernel::Error::io("read statements", error))?;
            let may_end = text.is_empty() || line.contains(';') || line.contains("*/");
            text.push_str(&line);
            text.push('\n');
            // A long statement is looked through where it may end, not at every line of it.
            if !may_end {
                continue;
            }
            let (next, rest) = self.take(&text)?;
            if let Next::Leave = next {
                return Ok(());
            }
            text = skip_blank(rest).to_owned();
        }
        // The last statement may do without its semicolon.
        match skip_blank(&text) {
            "" => Ok(()),
            sql => self.sql(sql),
        }
    }

    /// Runs the pieces of a text that are whole; what is left of it.
    fn take<'a>(&mut self, text: &'a str) -> Result<(Next, &'a str)> {
        let mut rest = text;
        while let Some((piece, after)) = first_piece(rest) {
            rest = after;
            match piece {
                Piece::Command(command) => {
                    if let Next::Leave = self.command(command)? {
                        return Ok((Next::Leave, rest));
                    }
                }
                Piece::Sql(";") => {}
                Piece::Sql(sql) => self.sql(sql)?,
            }
        }
        Ok((Next::Go, rest))
    }

    fn command(&mut self, command: &str) -> Result<Next> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("q" | "exit" | "quit", _) => return Ok(Next::Leave),
            ("?" | "h" | "help", _) => print(HELP)?,
            ("dt", _) | ("d", "") => self.sql("SHOW TABLES")?,
            ("d", table) => self.sql(&format!("DESCRIBE {table}"))?,
            ("l", _) => self.sql("SHOW DATABASES")?,
            ("c", "") => print(&format!("database {}\n", self.client.database))?,
            ("c", database) => {
                database.clone_into(&mut self.client.database);
                self.settings.retain(|sql| !begins_with(sql, "USE"));
            }
            ("timing", _) => {
                self.timing = !self.timing;
                print(if self.timing { "timing is on\n" } else { "timing is off\n" })?;
            }
            _ => return Err(misuse(format!("there is no command \\{name}"), "\\? lists them")),
        }
        Ok(Next::Go)
    }

    fn sql(&mut self, sql: &str) -> Result<()> {
        let watch = Stopwatch::start();
        let answer = self.client.run(&format!("{}{sql}", self.settings.concat()))?;
        let took = watch.elapsed();
        print(&table::format(&answer)?)?;
        if self.timing {
            print(&format!("{:.1} ms\n", took.as_secs_f64() * 1000.0))?;
        }
        if ["SET", "RESET", "USE"].iter().any(|verb| begins_with(sql, verb)) {
            let sql = format!("{};\n", sql.trim_end().trim_end_matches(';'));
            self.settings.retain(|known| *known != sql);
            self.settings.push(sql);
        }
        Ok(())
    }
}

/// Whether a statement begins with this word.
fn begins_with(sql: &str, verb: &str) -> bool {
    name_at_start(sql).eq_ignore_ascii_case(verb)
}

/// Whether Enter sends: nothing is left that waits for its semicolon.
fn complete(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = first_piece(rest) {
        rest = after;
    }
    skip_blank(rest).is_empty()
}

struct UntilSemicolon;

impl Validator for UntilSemicolon {
    fn validate(&self, line: &str) -> ValidationResult {
        if complete(line) { ValidationResult::Complete } else { ValidationResult::Incomplete }
    }
}

struct Question {
    database: String,
}

impl Prompt for Question {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.database)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("   … ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(history: {}) ", search.term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<Piece<'_>> {
        let mut rest = text;
        std::iter::from_fn(|| {
            let (piece, after) = first_piece(rest)?;
            rest = after;
            Some(piece)
        })
        .collect()
    }

    #[test]
    fn statements_and_commands_may_share_a_line() {
        use Piece::{Command, Sql};
        assert_eq!(pieces("SELECT 1; \\q"), [Sql("SELECT 1;"), Command("q")]);
        assert_eq!(
            pieces("\\d cpu;\n-- two\nSELECT ';'; SELECT\n2;\nquit;\n"),
            [Command("d cpu"), Sql("SELECT ';';"), Sql("SELECT\n2;"), Command("quit")]
        );
        assert_eq!(pieces("SELECT 1; SELECT"), [Sql("SELECT 1;")]);
    }

    #[test]
    fn enter_sends_what_is_whole() {
        for whole in ["", "\\d cpu", "SELECT ';';", "SELECT 1; -- done", "quit", "SELECT 1; \\q"] {
            assert!(complete(whole), "{whole}");
        }
        for open in ["SELECT 1", "SELECT ';", "SELECT 1; SELECT 2", "SELECT \"a;\n", "quits"] {
            assert!(!complete(open), "{open}");
        }
    }
}
