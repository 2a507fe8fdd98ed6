//! `CALL`: work on stored data that is done in the background anyway, now. The one procedure
//! there is merges the segments of a table: `CALL compact('db.schema.table' [, from [, to]])`.
//!
//! Each merge is a row of the answer, sent once it is done, so that a client sees how far it is.
//! Whoever stops reading stops the work; merges that are done stay done.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampNanosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use futures::StreamExt;
use futures::future::BoxFuture;
use kymo_kernel::cancel::{CancelOnDrop, CancelToken};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::{Compact, Compaction, Outcome, SessionContext};
use kymo_kernel::schema::time_type;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::mpsc;

use super::allow::{administrator, writable};
use super::command::{Command, PartialName};
use super::continuous::{Moment, moment};
use super::engine::Engine;
use super::error::from_engine;
use super::parse::{DIALECT, Failure, unsupported};
use super::running::Limits;
use super::utility::{end, name, table_name, take};
use super::{guc, show, system};

/// Merges that may be done before the first one is read.
const AHEAD: usize = 16;

/// `CALL compact(…)`.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The table, as written.
    table: PartialName,
    /// The first instant of the windows, if not all that come before are meant.
    from: Option<Moment>,
    /// The instant after the last, likewise.
    to: Option<Moment>,
}

/// Reads a `CALL`; `None` if it is something else.
pub(super) fn read(parser: &mut Parser) -> Result<Option<(&'static str, Command)>, Failure> {
    if !take(parser, "CALL") {
        return Ok(None);
    }
    let procedure = name(parser)?;
    if procedure != "compact" {
        let text = format!("procedure {procedure:?} does not exist");
        let error = Error::new(Code::FunctionNotFound, text);
        return Err(error.with_hint("CALL compact('table') is what there is").into());
    }
    parser.expect_token(&Token::LParen)?;
    // The parser would take a name for a text, too, and so lose how it is quoted.
    let token = parser.next_token();
    let text = match token.token {
        Token::SingleQuotedString(text) => text,
        _ => return Ok(parser.expected("the name of a table in single quotes", token)?),
    };
    let table = named(&text)?;
    let next = |parser: &mut Parser| match parser.consume_token(&Token::Comma) {
        true => moment(parser).map(Some),
        false => Ok(None),
    };
    let (from, to) = (next(parser)?, next(parser)?);
    parser.expect_token(&Token::RParen)?;
    end(parser)?;
    Ok(Some(("CALL", Command::Call(Call { table, from, to }))))
}

/// The table that a text names, read as an identifier would be.
fn named(text: &str) -> Result<PartialName> {
    let read = || -> Result<PartialName, Failure> {
        let mut parser = Parser::new(&DIALECT).try_with_sql(text)?;
        let table = table_name(&mut parser)?;
        end(&parser)?;
        Ok(table)
    };
    read().map_err(|_| {
        Error::new(Code::Syntax, format!("{text:?} is no name of a table"))
            .with_hint("CALL compact('table') or CALL compact('database.schema.table')")
    })
}

/// The shape of the answer: a row for each merge.
pub(super) fn answer_schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        Field::new("window", time_type(), true),
        number("inputs"),
        number("outputs"),
        number("rows_before"),
        number("rows_after"),
        number("bytes_before"),
        number("bytes_after"),
        number("ms"),
    ]))
}

fn row(done: &Compaction) -> Result<RecordBatch> {
    let number = |value: u64| -> ArrayRef {
        Arc::new(Int64Array::from(vec![i64::try_from(value).unwrap_or(i64::MAX)]))
    };
    let window = TimestampNanosecondArray::from(vec![done.window]).with_data_type(time_type());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(window),
        number(done.inputs),
        number(done.outputs),
        number(done.rows_in),
        number(done.rows_out),
        number(done.bytes_in),
        number(done.bytes_out),
        number(u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX)),
    ];
    RecordBatch::try_new(answer_schema(), columns).map_err(|error| from_engine(error.into()))
}

impl Engine {
    /// Has a table merged. The time limit of the server does not hold: a large table takes its
    /// time.
    ///
    /// # Errors
    /// `not_authorized`, `table_not_found`, `unsupported` for Kymo's own tables.
    pub(super) fn call(
        &self,
        call: &Call,
        verb: &str,
        session: &SessionContext,
        limits: &Limits,
    ) -> Result<Outcome> {
        writable(session, verb)?;
        administrator(session, verb)?;
        let now = self.env().clock.now_ns();
        let first = call.from.map_or(i64::MIN, |from| from.resolve(now));
        let last = call.to.map_or(i64::MAX, |to| to.resolve(now).saturating_sub(1));
        if first > last {
            return Err(Error::new(Code::InvalidInput, "the range of compact is empty")
                .with_hint("name the first instant, then the one after the last"));
        }
        let def = show::find(&call.table, session, &self.tables().catalog())?;
        if def.name.schema == system::SCHEMA {
            return Err(unsupported("merging tables of the schema system")
                .with_hint("they are merged in the background, as all tables are"));
        }
        let ((reports, received), cancel) = (mpsc::channel(AHEAD), CancelToken::new());
        let times = TimeRange { first, last };
        let stop = CancelOnDrop(cancel.clone());
        let done = self.changes().compact(Compact { table: def.id, times, reports, cancel });
        let clock = limits.clock.clone();
        let deadline = guc::statement_timeout(session).map(|limit| clock.monotonic() + limit);
        let limits = Limits { cancel: limits.cancel.clone(), deadline, clock };
        let merging = Merging { received, done, ended: None, limits, _stop: stop };
        let next = |merging: Option<Merging>| async move { merging?.next().await };
        let stream = futures::stream::unfold(Some(merging), next).boxed();
        Ok(Outcome::Rows { schema: answer_schema(), stream, settings: Vec::new() })
    }
}

/// A table that is being merged; dropping it stops that.
struct Merging {
    received: mpsc::Receiver<Compaction>,
    done: BoxFuture<'static, Result<()>>,
    /// What `done` came to.
    ended: Option<Result<()>>,
    limits: Limits,
    _stop: CancelOnDrop,
}

impl Merging {
    /// The next row of the answer.
    async fn next(mut self) -> Option<(Result<RecordBatch>, Option<Merging>)> {
        loop {
            if self.is_read()
                && let Some(ended) = self.ended.take()
            {
                return ended.err().map(|error| (Err(error), None));
            }
            tokio::select! {
                biased;
                error = self.limits.reached() => return Some((Err(error), None)),
                report = self.received.recv(), if !self.is_read() => {
                    if let Some(done) = report {
                        return Some((row(&done), Some(self)));
                    }
                }
                ended = &mut self.done, if self.ended.is_none() => self.ended = Some(ended),
            }
        }
    }

    /// Whether no report is left and none will come.
    fn is_read(&self) -> bool {
        self.received.is_closed() && self.received.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::Parsed;
    use super::super::parse::parse;
    use super::super::rewrite::Rewriter;
    use super::*;

    fn read_one(sql: &str) -> Result<Call> {
        let statements = parse(sql, &Rewriter::new())?;
        let parsed = statements[0].tree.downcast_ref::<Parsed>().unwrap();
        match &parsed.command {
            Command::Call(call) => Ok(call.clone()),
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn a_call_names_a_table_and_times() {
        let call = read_one("call COMPACT('Cpu')").unwrap();
        assert_eq!((call.table.to_string().as_str(), call.from, call.to), ("cpu", None, None));
        let call = read_one("CALL compact('db.s.\"Cpu\"', '2024-01-01', now() - '1d');").unwrap();
        assert_eq!(call.table.to_string(), "db.s.Cpu");
        assert_eq!(call.from, Some(Moment::At(1_704_067_200_000_000_000)));
        assert_eq!(call.to, Some(Moment::Ago(86_400_000_000_000)));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for (sql, code) in [
            ("CALL vacuum('t')", Code::FunctionNotFound),
            ("CALL compact(t)", Code::Syntax),
            ("CALL compact(\"T\")", Code::Syntax),
            ("CALL compact()", Code::Syntax),
            ("CALL compact('a b')", Code::Syntax),
            ("CALL compact('a.b.c.d')", Code::Syntax),
            ("CALL compact('')", Code::Syntax),
            ("CALL compact('t', 'then')", Code::InvalidCast),
            ("CALL compact('t', '2024-01-01', now(), now())", Code::Syntax),
            ("CALL compact('t') SELECT", Code::Syntax),
        ] {
            assert_eq!(read_one(sql).unwrap_err().code(), code, "{sql}");
        }
    }
}
