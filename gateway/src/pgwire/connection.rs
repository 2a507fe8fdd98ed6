//! One connection after log-in: the message loop, the simple protocol, and transaction status.

use std::sync::Arc;
use std::time::Duration;

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::response::{
    CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus,
};
use arrow::array::ArrayRef;
use hashbrown::HashMap;
use kymo_kernel::message::{BatchStream, Outcome, Runnable, SessionContext, Statement};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result, span};
use tracing::{Instrument, Span};

use super::backend::{Conversation, Transaction};
use super::cancel::Registered;
use super::copy;
use super::encode::Style;
use super::extended::{Portal, Stored};
use super::failure;
use super::frontend::{Message, is_extended};
use super::listener::Gate;
use super::parameters::{self, Reported};
use super::rows::{self, Rows, Sent, Stop};
use super::startup::Admitted;
use super::wire::{Broken, Frame, Wire, protocol};
use crate::auth::Identity;
use crate::error::ends_session;

/// A client that is logged in.
pub(super) struct Connection {
    pub(super) gate: Arc<Gate>,
    pub(super) wire: Wire,
    pub(super) session: Box<dyn Conversation>,
    pub(super) statements: HashMap<String, Arc<Stored>>,
    pub(super) portals: HashMap<String, Portal>,
    pub(super) style: Style,
    identity: Identity,
    /// Kept for its drop: it takes the connection out of the registry.
    _registered: Registered,
    context: Arc<SessionContext>,
    reported: Reported,
    /// Whether the open transaction failed by an error that the session has not seen, such as
    /// one in the middle of the rows or in a message.
    failed: bool,
    /// Whether messages are skipped until the next Sync.
    skipping: bool,
}

/// Whether the connection goes on.
enum Next {
    Go,
    End,
}

impl Connection {
    pub(super) fn new(gate: Arc<Gate>, admitted: Admitted) -> Self {
        let Admitted { wire, identity, session, registered } = admitted;
        let context = session.context();
        Connection {
            gate,
            wire,
            style: parameters::style(&context),
            session,
            statements: HashMap::new(),
            portals: HashMap::new(),
            identity,
            _registered: registered,
            context,
            reported: Reported::default(),
            failed: false,
            skipping: false,
        }
    }

    /// Serves messages until the client leaves or the server stops.
    pub(super) async fn serve(&mut self) -> Result<(), Broken> {
        self.reported.refresh(&self.context, self.identity.admin, &mut self.wire);
        self.ready().await?;
        let gate = Arc::clone(&self.gate);
        loop {
            let frame = tokio::select! {
                biased;
                () = gate.stop.cancelled() => {
                    return Err(self.leave(Error::new(
                        Code::ShuttingDown,
                        "terminating connection due to administrator command",
                    )).await);
                }
                frame = self.wire.frame() => frame,
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(Broken::Refused(error)) => return Err(self.leave(error).await),
                Err(gone) => return Err(gone),
            };
            match Box::pin(self.message(frame)).await {
                Ok(Next::Go) => {}
                Ok(Next::End) => return Ok(()),
                Err(Broken::Refused(error)) => return Err(self.leave(error).await),
                Err(gone) => return Err(gone),
            }
        }
    }

    /// Says why and closes.
    async fn leave(&mut self, error: Error) -> Broken {
        self.wire.put(&failure::fatal(&error));
        self.wire.close().await;
        Broken::Refused(error)
    }

    async fn message(&mut self, frame: Frame) -> Result<Next, Broken> {
        let kind = frame.kind;
        if self.skipping && !matches!(kind, b'S' | b'X') {
            return Ok(Next::Go);
        }
        if !b"QPBDCEHSXdcf".contains(&kind) {
            return Err(Broken::Refused(protocol(format!("invalid frontend message type {kind}"))));
        }
        count(kind);
        let done = match Message::read(frame) {
            Ok(Message::Terminate) => return Ok(Next::End),
            Ok(message) => {
                let step = step(kind);
                self.handle(message).instrument(step).await
            }
            Err(error) => Err(Stop::Failed(error)),
        };
        match done {
            Ok(()) => {}
            Err(Stop::Gone(error)) => return Err(Broken::Gone(error)),
            Err(Stop::Failed(error)) if ends_session(error.code()) => {
                return Err(Broken::Refused(error));
            }
            Err(Stop::Failed(error)) => {
                self.fail(&error);
                self.skipping = is_extended(kind);
                // A client that sent Flush waits for this before it sends Sync.
                self.wire.flush().await?;
            }
        }
        if matches!(kind, b'Q' | b'S') {
            self.ready().await?;
        }
        self.wire.relieve().await?;
        Ok(Next::Go)
    }

    async fn handle(&mut self, message: Message) -> Result<(), Stop> {
        match message {
            Message::Query(sql) => self.simple(sql).await,
            Message::Parse { name, sql, types } => self.parse(name, sql, types).await,
            Message::Bind(bind) => self.bind(bind),
            Message::DescribeStatement(name) => self.describe_statement(&name),
            Message::DescribePortal(name) => self.describe_portal(&name).await,
            Message::Execute { portal, max_rows } => self.execute_portal(&portal, max_rows).await,
            Message::CloseStatement(name) => {
                self.close_statement(&name);
                Ok(())
            }
            Message::ClosePortal(name) => {
                self.close_portal(&name);
                Ok(())
            }
            Message::Flush => Ok(self.wire.flush().await?),
            Message::Sync => {
                self.skipping = false;
                Ok(())
            }
            // What a client still sends after its COPY failed.
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => Ok(()),
            Message::Terminate => Ok(()),
        }
    }

    fn fail(&mut self, error: &Error) {
        self.failed = self.session.transaction() != Transaction::Idle;
        self.wire.put(&failure::error(error));
    }

    /// Tells the client where the transaction stands and that its turn has come.
    async fn ready(&mut self) -> Result<(), Broken> {
        let status = match self.session.transaction() {
            Transaction::Idle => {
                // A portal lives as long as its transaction.
                self.failed = false;
                self.portals.clear();
                TransactionStatus::Idle
            }
            Transaction::InBlock if !self.failed => TransactionStatus::Transaction,
            _ => TransactionStatus::Error,
        };
        self.wire.put(&PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(status)));
        Ok(self.wire.flush().await?)
    }

    /// The simple protocol: each statement runs to its end before the next one begins.
    async fn simple(&mut self, sql: String) -> Result<(), Stop> {
        self.statements.remove("");
        self.portals.remove("");
        self.check_length(&sql)?;
        if let Some(copy) = copy::parse(&sql)? {
            return self.copy(&copy, Vec::new()).await;
        }
        let statements = self.session.parse(sql).await?;
        if statements.is_empty() {
            self.wire.put(&PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        for statement in statements {
            self.run_simple(statement).await?;
        }
        Ok(())
    }

    async fn run_simple(&mut self, statement: Arc<Statement>) -> Result<(), Stop> {
        let verb = statement.verb.clone();
        let outcome = self.execute(Runnable::Statement(statement), Vec::new()).await?;
        match outcome {
            Outcome::Rows { schema, stream, .. } => {
                let formats = rows::formats(&[], schema.fields().len())?;
                self.wire.put(&rows::description(&schema, &formats));
                let mut rows = self.rows(&verb, stream);
                let sent = rows.send(&mut self.wire, &formats, &self.style, None).await?;
                if let Sent::All(count) = sent {
                    self.complete(&tag(&verb, Some(count)));
                }
            }
            Outcome::Done { verb, rows, .. } => self.complete(&tag(&verb, rows)),
        }
        Ok(())
    }

    /// The rows of a statement with this verb.
    pub(super) fn rows(&self, verb: &str, stream: BatchStream) -> Rows {
        Rows::new(verb, stream, &self.gate.stop)
    }

    /// Refuses SQL text that is longer than `query.max_sql_bytes`.
    pub(super) fn check_length(&self, sql: &str) -> Result<()> {
        let limit = self.gate.settings.query.max_sql_bytes;
        if u64::try_from(sql.len()).unwrap_or(u64::MAX) <= limit {
            return Ok(());
        }
        Err(Error::new(
            Code::TooLarge,
            format!("SQL text of {} bytes, more than the {limit} allowed", sql.len()),
        )
        .with_hint("the limit is query.max_sql_bytes"))
    }

    /// Runs a statement through the session and keeps the connection's own state in step.
    pub(super) async fn execute(
        &mut self,
        run: Runnable,
        parameters: Vec<ArrayRef>,
    ) -> Result<Outcome, Stop> {
        let statement = match &run {
            Runnable::Statement(statement) => Arc::clone(statement),
            Runnable::Prepared(prepared) => Arc::clone(&prepared.statement),
        };
        self.admit(&statement.verb)?;
        let rolled_back = self.failed && statement.verb == "COMMIT";
        self.warn(&statement.verb);
        if statement.verb == "DEALLOCATE" {
            self.deallocate(&statement.text)?;
        }
        let timeout = self.timeout();
        // What is queued is rows of earlier statements: the client need not wait for them.
        self.wire.relieve().await?;
        let outcome = tokio::select! {
            biased;
            outcome = self.session.execute(run, parameters, timeout) => outcome?,
            error = self.wire.hung_up() => return Err(Stop::Gone(error)),
        };
        self.follow(&statement.verb);
        Ok(match outcome {
            Outcome::Done { rows, settings, .. } if rolled_back => {
                Outcome::Done { verb: "ROLLBACK".to_owned(), rows, settings }
            }
            outcome => outcome,
        })
    }

    /// In a failed transaction only its end is accepted.
    pub(super) fn admit(&self, verb: &str) -> Result<()> {
        if self.failed && !matches!(verb, "COMMIT" | "ROLLBACK") {
            return Err(Error::new(
                Code::TransactionFailed,
                "current transaction is aborted, commands ignored until end of transaction block",
            )
            .with_hint("ROLLBACK ends it"));
        }
        Ok(())
    }

    fn warn(&mut self, verb: &str) {
        let open = self.session.transaction() != Transaction::Idle;
        let warning = match verb {
            "BEGIN" | "START TRANSACTION" if open => {
                failure::warning("25001", "there is already a transaction in progress")
            }
            "COMMIT" | "ROLLBACK" if !open => {
                failure::warning("25P01", "there is no transaction in progress")
            }
            _ => return,
        };
        self.wire.put(&warning);
    }

    fn timeout(&self) -> Option<Duration> {
        parameters::statement_timeout(&self.context)
    }

    /// Takes over what a statement changed in the session.
    fn follow(&mut self, verb: &str) {
        match verb {
            "DISCARD ALL" => {
                self.statements.clear();
                self.portals.clear();
            }
            "DEALLOCATE ALL" => self.statements.clear(),
            "COMMIT" | "ROLLBACK" => self.failed = false,
            _ => {}
        }
        let context = self.session.context();
        if !Arc::ptr_eq(&context, &self.context) {
            self.reported.refresh(&context, self.identity.admin, &mut self.wire);
            self.style = parameters::style(&context);
            self.context = context;
        }
    }

    /// `DEALLOCATE name` means a statement that was prepared by a message.
    fn deallocate(&mut self, text: &str) -> Result<()> {
        let name = text.trim_end_matches([';', ' ', '\n', '\t']);
        let name = match name.strip_suffix('"') {
            Some(quoted) => quoted.rsplit_once('"').map_or("", |(_, name)| name).to_owned(),
            None => name.rsplit(char::is_whitespace).next().unwrap_or("").to_ascii_lowercase(),
        };
        match self.statements.remove(&name) {
            Some(_) => Ok(()),
            None => Err(no_statement(&name)),
        }
    }

    pub(super) fn complete(&mut self, tag: &str) {
        let complete = CommandComplete::new(tag.to_owned());
        self.wire.put(&PgWireBackendMessage::CommandComplete(complete));
    }

    /// The session's database and schema.
    pub(super) fn context(&self) -> &SessionContext {
        &self.context
    }
}

/// Counts a message by what it is.
fn count(kind: u8) {
    let name = match kind {
        b'Q' => "query",
        b'P' => "parse",
        b'B' => "bind",
        b'D' => "describe",
        b'E' => "execute",
        b'S' => "sync",
        _ => "other",
    };
    metrics().pg.messages.with_label_values(&[name]).inc();
}

/// The error for a name that no prepared statement has.
/// A trace begins with each message that can lead to work elsewhere.
fn step(kind: u8) -> Span {
    let name = match kind {
        b'Q' => "pg query",
        b'P' => "pg parse",
        b'D' => "pg describe",
        b'E' => "pg execute",
        _ => return Span::none(),
    };
    span!("pg", otel.name = name, otel.kind = "server")
}

pub(super) fn no_statement(name: &str) -> Error {
    Error::new(Code::StatementNotFound, format!("prepared statement \"{name}\" does not exist"))
}

/// The command tag of a statement that is done.
pub(super) fn tag(verb: &str, rows: Option<u64>) -> String {
    match (verb, rows) {
        ("INSERT", rows) => format!("INSERT 0 {}", rows.unwrap_or_default()),
        ("SELECT" | "FETCH" | "MOVE" | "COPY" | "UPDATE" | "DELETE" | "SUBSCRIBE", rows) => {
            format!("{verb} {}", rows.unwrap_or_default())
        }
        _ => verb.to_owned(),
    }
}
