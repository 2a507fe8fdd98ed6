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
    let mut session = Session { client: Client::find(&arguments.target)?, timing: true };
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
                Ok(Next::Go) => {}
                Ok(Next::Leave) => return Ok(()),
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

struct Session {
    client: Client,
    timing: bool,
}

impl Session {
    /// Runs what is piped in, statement by statement, until the first that fails.
    fn script(&mut self, input: impl io::BufRead) -> Result<()> {
        let mut text = String::new();
        for line in input.lines() {
            let line = line.map_err(|error| kymo_kernel::Error::io("read statements", error))?;
            text.push_str(&line);
            text.push('\n');
            if complete(&text) {
                if let Next::Leave = self.take(&text)? {
                    return Ok(());
                }
                text.clear();
            }
        }
        self.take(&text).map(|_| ())
    }

    fn take(&mut self, text: &str) -> Result<Next> {
        let text = text.trim();
        match text.strip_prefix('\\') {
            Some(command) => self.command(command.trim_end_matches(';').trim()),
            None if text.trim_end_matches(';').trim().is_empty() => Ok(Next::Go),
            None if matches!(text.trim_end_matches(';'), "exit" | "quit") => Ok(Next::Leave),
            None if text.trim_end_matches(';') == "help" => print(HELP).map(|()| Next::Go),
            None => self.sql(text).map(|()| Next::Go),
        }
    }

    fn command(&mut self, command: &str) -> Result<Next> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("q", _) => return Ok(Next::Leave),
            ("?" | "h" | "help", _) => print(HELP)?,
            ("dt", _) | ("d", "") => self.sql("SHOW TABLES")?,
            ("d", table) => self.sql(&format!("DESCRIBE {table}"))?,
            ("l", _) => self.sql("SHOW DATABASES")?,
            ("c", "") => print(&format!("database {}\n", self.client.database))?,
            ("c", database) => database.clone_into(&mut self.client.database),
            ("timing", _) => {
                self.timing = !self.timing;
                print(if self.timing { "timing is on\n" } else { "timing is off\n" })?;
            }
            _ => return Err(misuse(format!("there is no command \\{name}"), "\\? lists them")),
        }
        Ok(Next::Go)
    }

    fn sql(&self, sql: &str) -> Result<()> {
        let watch = Stopwatch::start();
        let answer = self.client.run(sql)?;
        let took = watch.elapsed();
        print(&table::format(&answer)?)?;
        if self.timing {
            print(&format!("{:.1} ms\n", took.as_secs_f64() * 1000.0))?;
        }
        Ok(())
    }
}

/// Whether Enter sends: a command, nothing at all, or SQL up to its semicolon.
fn complete(text: &str) -> bool {
    let text = text.trim();
    if text.is_empty() || text.starts_with('\\') || matches!(text, "exit" | "quit" | "help") {
        return true;
    }
    let mut quote = None;
    let mut characters = text.chars().peekable();
    let mut last = ' ';
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => continue,
            (None, '\'' | '"') => quote = Some(c),
            (None, '-') if characters.peek() == Some(&'-') => {
                for skipped in characters.by_ref() {
                    if skipped == '\n' {
                        break;
                    }
                }
                continue;
            }
            (None, _) => {}
        }
        if !c.is_whitespace() {
            last = c;
        }
    }
    quote.is_none() && last == ';'
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
    use super::complete;

    #[test]
    fn a_statement_ends_with_a_semicolon_outside_of_quotes_and_comments() {
        for whole in ["", "\\d cpu", "SELECT 1;", "SELECT ';';", "SELECT 1; -- done", "quit"] {
            assert!(complete(whole), "{whole}");
        }
        for open in ["SELECT 1", "SELECT ';", "SELECT 1 -- ;", "SELECT \"a;\n"] {
            assert!(!complete(open), "{open}");
        }
    }
}
