//! Sessions: one actor a connection, with its settings, transaction status and cursors.
//!
//! The actor owns what a connection has chosen and passes statements on to the query actor,
//! and those that follow a query to live data.
//! A [`Session`] is the connection's handle on it; a [`Canceller`] reaches the statement that
//! runs from another connection, which is how PostgreSQL clients cancel.

mod cursor;
mod machine;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use futures::Stream;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::message::{
    BatchStream, Message, Outcome, Parse, Prepare, Prepared, Query, Runnable, SessionContext,
    Statement,
};
use kymo_kernel::pools::Group;
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::supervise::{Running, Spec, Supervisor};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;

use crate::live::{self, Ask, Live};
use crate::query::{Command, Cursor as CursorCommand, Parsed, Scope, Subscribe, cancelled};
use cursor::{Cursor, Taking};
use machine::Machine;

/// Statements that may wait for one session: clients send them one at a time, pipelines more.
const QUEUE: usize = 256;
/// Cursors that one session may have open.
const MAX_CURSORS: usize = 64;

/// Where a connection stands with respect to transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Outside of a block.
    Idle,
    /// Inside of a block.
    InBlock,
    /// Inside of a block that failed: nothing runs until it ends.
    Failed,
}

/// The ports that sessions need.
#[derive(Clone)]
pub struct QueryPorts {
    /// Splits and parses.
    pub parse: Port<Parse>,
    /// Plans.
    pub prepare: Port<Prepare>,
    /// Runs.
    pub query: Port<Query>,
}

/// What the handle reads without asking the actor.
struct Shared {
    context: ArcSwap<SessionContext>,
    status: AtomicU8,
    /// The statement under way.
    current: Mutex<CancelToken>,
}

impl Shared {
    fn status(&self) -> Status {
        match self.status.load(Ordering::Acquire) {
            0 => Status::Idle,
            1 => Status::InBlock,
            _ => Status::Failed,
        }
    }

    fn publish(&self, machine: &Machine) {
        self.status.store(machine.status() as u8, Ordering::Release);
        self.context.store(machine.context().clone());
    }
}

/// Stops the statement that runs on a session.
#[derive(Clone)]
pub struct Canceller(Arc<Shared>);

impl Canceller {
    /// Stops it; does nothing where none runs.
    pub fn cancel(&self) {
        self.0.current.lock().cancel();
    }
}

/// A connection's handle on its session. Dropping it ends the session and its cursors.
pub struct Session {
    shared: Arc<Shared>,
    ports: QueryPorts,
    execute: Port<Execute>,
    describe: Port<Describe>,
    running: Running<SessionActor>,
}

impl Session {
    /// Starts a session; without `live` it cannot follow queries.
    #[must_use]
    pub fn start(
        supervisor: &Supervisor,
        ports: QueryPorts,
        live: Option<Live>,
        context: SessionContext,
    ) -> Session {
        let machine = Machine::new(context);
        let shared = Arc::new(Shared {
            context: ArcSwap::new(machine.context().clone()),
            status: AtomicU8::new(Status::Idle as u8),
            current: Mutex::new(CancelToken::new()),
        });
        let actor = SessionActor {
            machine,
            cursors: HashMap::new(),
            shared: shared.clone(),
            query: ports.query.clone(),
            live,
        };
        let spec = Spec::new("session", "session").on(Group::Sessions);
        let running = supervisor.start_once(spec, move || actor);
        Session {
            shared,
            ports,
            execute: running.port(Budget::count(QUEUE)),
            describe: running.port(Budget::count(QUEUE)),
            running,
        }
    }

    /// Splits and parses SQL text.
    ///
    /// # Errors
    /// `syntax_error` with the place, `unsupported`, `too_large`.
    pub async fn parse(&self, sql: impl Into<String>) -> Result<Vec<Arc<Statement>>> {
        let parsed = self.ports.parse.call(Parse { sql: sql.into() }).await;
        if parsed.is_err() {
            self.fail().await;
        }
        parsed
    }

    /// Plans a statement; `types` are those of `$1`, `$2` … that the client has fixed.
    ///
    /// # Errors
    /// Those of planning; `transaction_failed` in a failed block.
    pub async fn prepare(
        &self,
        statement: Arc<Statement>,
        types: Vec<Option<DataType>>,
    ) -> Result<Arc<Prepared>> {
        let shape = self.describe.call(Describe { statement: statement.clone() }).await?;
        let session = self.context();
        // The parameters of a cursor and of a subscription are those of its query.
        let inner = inner(&statement);
        let planned = inner.cloned().unwrap_or_else(|| statement.clone());
        let prepare = Prepare { statement: planned, types, session };
        let mut prepared = self.ports.prepare.call(prepare).await;
        if inner.is_some() {
            prepared = prepared.and_then(|query| around(&statement, &query));
        }
        match (prepared, shape) {
            // Only the session knows the shape of its cursors.
            (Ok(prepared), Some(columns)) => Ok(Arc::new(Prepared {
                statement: prepared.statement.clone(),
                parameters: prepared.parameters.clone(),
                columns: Some(columns),
                plan: prepared.plan.clone(),
            })),
            (Ok(prepared), None) => Ok(prepared),
            (Err(error), _) => {
                self.fail().await;
                Err(error)
            }
        }
    }

    /// Runs a statement. The rows may be read while the next statement is prepared.
    ///
    /// # Errors
    /// Those of running; `transaction_failed` in a failed block.
    pub async fn execute(
        &self,
        run: Runnable,
        parameters: Vec<ArrayRef>,
        timeout: Option<Duration>,
    ) -> Result<Outcome> {
        let cancel = CancelToken::new();
        *self.shared.current.lock() = cancel.clone();
        self.execute.call(Execute { run, parameters, timeout, cancel }).await
    }

    /// Notes that something failed that the session did not see, such as reading a parameter.
    pub async fn fail(&self) {
        if self.transaction() == Status::InBlock {
            let _ = self.describe.call(Describe::failure()).await;
        }
    }

    /// Where the connection stands with respect to transactions.
    #[must_use]
    pub fn transaction(&self) -> Status {
        self.shared.status()
    }

    /// What the connection has chosen.
    #[must_use]
    pub fn context(&self) -> Arc<SessionContext> {
        self.shared.context.load_full()
    }

    /// A way to stop the running statement from elsewhere.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller(self.shared.clone())
    }

    /// Ends the session: the running statement is stopped, cursors close. Dropping it does
    /// the same.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.current.lock().cancel();
        self.running.stop();
    }
}

/// Runs a statement in its session. Handle → session.
struct Execute {
    run: Runnable,
    parameters: Vec<ArrayRef>,
    timeout: Option<Duration>,
    cancel: CancelToken,
}

impl Message for Execute {
    type Reply = Outcome;
}

/// Asks whether a statement may be planned now, and for the shape of a cursor's rows.
struct Describe {
    statement: Arc<Statement>,
}

impl Describe {
    /// A message that only says that something failed.
    fn failure() -> Self {
        let failed: Arc<dyn std::any::Any + Send + Sync> = Arc::new(Failed);
        Describe {
            statement: Arc::new(Statement { text: "".into(), verb: String::new(), tree: failed }),
        }
    }
}

/// Marks a message that says that something failed.
struct Failed;

impl Message for Describe {
    type Reply = Option<arrow::datatypes::SchemaRef>;
}

/// The actor.
struct SessionActor {
    machine: Machine,
    cursors: HashMap<String, Cursor>,
    shared: Arc<Shared>,
    query: Port<Query>,
    live: Option<Live>,
}

impl Actor for SessionActor {
    fn observe(&self) -> serde_json::Value {
        let context = self.machine.context();
        serde_json::json!({
            "user": context.user,
            "database": context.database,
            "status": format!("{:?}", self.machine.status()),
            "cursors": self.cursors.len(),
        })
    }
}

/// The query that a cursor or a subscription is for.
fn inner(statement: &Statement) -> Option<&Arc<Statement>> {
    match command(statement) {
        Ok(Command::Cursor(CursorCommand::Declare { query, .. })) => {
            Some(inner(query).unwrap_or(query))
        }
        Ok(Command::Subscribe(subscribe)) if !subscribe.explain => Some(&subscribe.query),
        _ => None,
    }
}

/// A statement as its query was planned.
fn around(statement: &Arc<Statement>, query: &Prepared) -> Result<Arc<Prepared>> {
    let columns = match (command(statement)?, &query.columns) {
        (Command::Subscribe(_), Some(columns)) => Some(live::shape(columns)?),
        _ => None,
    };
    Ok(Arc::new(Prepared {
        statement: statement.clone(),
        parameters: query.parameters.clone(),
        columns,
        plan: query.plan.clone(),
    }))
}

fn command(statement: &Statement) -> Result<&Command> {
    let parsed = statement.tree.downcast_ref::<Parsed>();
    parsed
        .map(|parsed| &parsed.command)
        .ok_or_else(|| Error::internal("a statement parsed elsewhere"))
}

impl Handle<Describe> for SessionActor {
    fn handle(&mut self, message: Describe, reply: Reply<Describe>, _cx: &mut Cx<Self>) {
        self.catch_up();
        if message.statement.tree.is::<Failed>() {
            self.failed();
            reply.ok(None);
            return;
        }
        let shape = command(&message.statement).and_then(|command| {
            self.machine.admit(command)?;
            match command {
                Command::Cursor(CursorCommand::Fetch { name, skip: false, .. }) => {
                    self.cursor(name).map(|cursor| Some(cursor.schema.clone()))
                }
                _ => Ok(None),
            }
        });
        if shape.is_err() {
            self.failed();
        }
        reply.send(shape);
    }
}

impl Handle<Execute> for SessionActor {
    fn handle(&mut self, message: Execute, reply: Reply<Execute>, cx: &mut Cx<Self>) {
        self.catch_up();
        let statement = match &message.run {
            Runnable::Statement(statement) => statement.clone(),
            Runnable::Prepared(prepared) => prepared.statement.clone(),
        };
        let outcome = match command(&statement) {
            Ok(command) => match self.machine.admit(command) {
                Ok(()) => self.run(command, message, reply, cx),
                Err(error) => Some((reply, Err(error))),
            },
            Err(error) => Some((reply, Err(error))),
        };
        if let Some((reply, outcome)) = outcome {
            self.answer(reply, outcome);
        }
    }
}

/// An answer that is known at once; `None` where it follows later.
type Now = Option<(Reply<Execute>, Result<Outcome>)>;

impl SessionActor {
    fn run(
        &mut self,
        command: &Command,
        message: Execute,
        reply: Reply<Execute>,
        cx: &mut Cx<Self>,
    ) -> Now {
        match command {
            Command::Transaction(change) => {
                let tag = self.machine.transaction(change);
                if self.machine.status() == Status::Idle {
                    self.cursors.retain(|_, cursor| cursor.hold);
                }
                Some((reply, tag.map(done)))
            }
            Command::Cursor(CursorCommand::Declare { name, hold, query }) => {
                let query = match &message.run {
                    Runnable::Statement(_) => Runnable::Statement(query.clone()),
                    Runnable::Prepared(prepared) => Runnable::Prepared(Arc::new(Prepared {
                        statement: query.clone(),
                        parameters: prepared.parameters.clone(),
                        columns: None,
                        plan: prepared.plan.clone(),
                    })),
                };
                self.declare(name.clone(), *hold, query, message, reply, cx)
            }
            Command::Cursor(CursorCommand::Fetch { name, count, skip, timeout }) => {
                let (count, patience) = (*count, *timeout);
                let taking = Taking { count, patience, cancel: message.cancel };
                self.fetch(name, taking, *skip, reply, cx)
            }
            Command::Subscribe(subscribe) if !subscribe.explain && self.live.is_some() => {
                let cancel = message.cancel.clone();
                let begun = self.subscribe(subscribe, message);
                cx.then(begun, move |actor, begun, _| {
                    let outcome = begun.map(|rows| Outcome::Rows {
                        schema: rows.schema().clone(),
                        stream: rows.stream(cancel),
                        settings: Vec::new(),
                    });
                    actor.answer(reply, outcome);
                });
                None
            }
            Command::Cursor(CursorCommand::Close(name)) => {
                let closed = match name {
                    None => {
                        self.cursors.clear();
                        Ok(done("CLOSE CURSOR ALL"))
                    }
                    Some(name) => match self.cursors.remove(name) {
                        Some(_) => Ok(done("CLOSE CURSOR")),
                        None => Err(no_cursor(name)),
                    },
                };
                Some((reply, closed))
            }
            other => {
                let scope = match other {
                    Command::Set(_, scope) => *scope,
                    _ => Scope::Session,
                };
                if matches!(other, Command::ResetAll("DISCARD ALL")) {
                    self.cursors.clear();
                }
                let query = self.query(message);
                let call = self.query.clone();
                cx.then(async move { call.call(query).await }, move |actor, outcome, _| {
                    let outcome = outcome.map(|outcome| actor.settle(outcome, scope));
                    actor.answer(reply, outcome);
                });
                None
            }
        }
    }

    /// Learns of a failure among rows that were still on their way when the turn ended.
    fn catch_up(&mut self) {
        if self.shared.status() == Status::Failed {
            self.machine.failed();
        }
    }

    fn query(&self, message: Execute) -> Query {
        Query {
            run: message.run,
            parameters: message.parameters,
            session: self.machine.context().clone(),
            timeout: message.timeout,
            cancel: message.cancel,
        }
    }

    /// Begins to follow a query. How long that goes on, the client decides: no timeout ends it.
    fn subscribe(
        &self,
        subscribe: &Subscribe,
        message: Execute,
    ) -> impl Future<Output = Result<live::Rows>> + Send + 'static {
        let Execute { run, parameters, cancel, .. } = message;
        let statement = match run {
            Runnable::Statement(statement) => statement,
            Runnable::Prepared(prepared) => prepared.statement.clone(),
        };
        let session = self.machine.context().clone();
        let ask = Ask { statement, parameters, session, snapshot: None, resume: None };
        let (live, progress) = (self.live.clone(), subscribe.progress);
        async move {
            let live = live.ok_or_else(|| Error::internal("a session without live data"))?;
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(cancelled()),
                begun = live.rows(ask, progress) => begun,
            }
        }
    }

    /// Keeps what a statement changed, and watches rows for a failure.
    fn settle(&mut self, outcome: Outcome, scope: Scope) -> Outcome {
        match outcome {
            Outcome::Done { verb, rows, settings } => {
                if !settings.is_empty() {
                    self.machine.set(settings.clone(), scope);
                }
                Outcome::Done { verb, rows, settings }
            }
            Outcome::Rows { schema, stream, settings } => {
                for change in &settings {
                    let scope = if change.local { Scope::Transaction } else { Scope::Session };
                    self.machine.set(vec![(change.name.clone(), change.value.clone())], scope);
                }
                Outcome::Rows { schema, stream, settings }
            }
        }
    }

    fn answer(&mut self, reply: Reply<Execute>, outcome: Result<Outcome>) {
        match outcome {
            Ok(Outcome::Rows { schema, stream, settings }) => {
                self.shared.publish(&self.machine);
                let watched = Watched { stream, shared: self.shared.clone() };
                reply.ok(Outcome::Rows { schema, stream: Box::pin(watched), settings });
            }
            Ok(done) => {
                self.shared.publish(&self.machine);
                reply.ok(done);
            }
            Err(error) => {
                self.failed();
                reply.fail(error);
            }
        }
    }

    fn failed(&mut self) {
        self.machine.failed();
        self.shared.publish(&self.machine);
    }

    fn cursor(&self, name: &str) -> Result<&Cursor> {
        self.cursors.get(name).ok_or_else(|| no_cursor(name))
    }

    fn declare(
        &mut self,
        name: String,
        hold: bool,
        query: Runnable,
        mut message: Execute,
        reply: Reply<Execute>,
        cx: &mut Cx<Self>,
    ) -> Now {
        let refused = if self.cursors.contains_key(&name) {
            Some(Error::new(Code::AlreadyExists, format!("cursor \"{name}\" already exists")))
        } else if self.machine.status() == Status::Idle && !hold {
            Some(Error::new(
                Code::NoTransaction,
                "DECLARE CURSOR can only be used in transaction blocks",
            ))
        } else if self.cursors.len() >= MAX_CURSORS {
            Some(Error::new(Code::LimitReached, format!("{MAX_CURSORS} cursors are open already")))
        } else {
            None
        };
        if let Some(error) = refused {
            return Some((reply, Err(error)));
        }
        message.run = query;
        if let (Some(subscribe), true) = (followed(&message.run), self.live.is_some()) {
            let begun = self.subscribe(&subscribe, message);
            cx.then(begun, move |actor, begun, _| {
                let declared = begun.map(|rows| {
                    actor.cursors.insert(name, Cursor::live(rows, hold));
                    done("DECLARE CURSOR")
                });
                actor.answer(reply, declared);
            });
            return None;
        }
        let cancel = message.cancel.clone();
        let query = self.query(message);
        let call = self.query.clone();
        cx.then(async move { call.call(query).await }, move |actor, outcome, _| {
            let outcome = outcome.map(|outcome| actor.settle(outcome, Scope::Session));
            let outcome = outcome.and_then(|outcome| match outcome {
                Outcome::Rows { schema, stream, .. } => {
                    actor.cursors.insert(name, Cursor::new(schema, stream, hold, cancel));
                    Ok(done("DECLARE CURSOR"))
                }
                Outcome::Done { .. } => {
                    Err(Error::new(Code::InvalidInput, "a cursor is declared for a query"))
                }
            });
            actor.answer(reply, outcome);
        });
        None
    }

    fn fetch(
        &mut self,
        name: &str,
        taking: Taking,
        skip: bool,
        reply: Reply<Execute>,
        cx: &mut Cx<Self>,
    ) -> Now {
        let cursor = match self.cursor(name) {
            Ok(cursor) => cursor,
            Err(error) => return Some((reply, Err(error))),
        };
        if let Some(query) = &cursor.query {
            if taking.patience.is_some() {
                return Some((reply, Err(no_patience(name))));
            }
            *self.shared.current.lock() = query.clone();
        }
        let stream = cursor.fetch(taking);
        if !skip {
            let schema = cursor.schema.clone();
            let settings = Vec::new();
            return Some((reply, Ok(Outcome::Rows { schema, stream, settings })));
        }
        cx.then(Cursor::skip(stream), move |actor, skipped, _| {
            let outcome = skipped.map(|rows| Outcome::Done {
                verb: "MOVE".to_owned(),
                rows: Some(rows),
                settings: Vec::new(),
            });
            actor.answer(reply, outcome);
        });
        None
    }
}

fn no_cursor(name: &str) -> Error {
    Error::new(Code::CursorNotFound, format!("cursor \"{name}\" does not exist"))
}

fn no_patience(name: &str) -> Error {
    Error::new(
        Code::InvalidInput,
        format!("cursor \"{name}\" is that of a query, whose rows are there without waiting"),
    )
    .with_hint("leave out WITH (timeout = …); it is for DECLARE … CURSOR FOR SUBSCRIBE TO …")
}

/// What a cursor is for, where that is a subscription.
fn followed(run: &Runnable) -> Option<Subscribe> {
    let statement = match run {
        Runnable::Statement(statement) => statement,
        Runnable::Prepared(prepared) => &prepared.statement,
    };
    match command(statement) {
        Ok(Command::Subscribe(subscribe)) => Some(subscribe.clone()),
        _ => None,
    }
}

fn done(verb: &str) -> Outcome {
    Outcome::Done { verb: verb.to_owned(), rows: None, settings: Vec::new() }
}

/// Rows on their way to the client. An error among them fails the open block.
struct Watched {
    stream: BatchStream,
    shared: Arc<Shared>,
}

impl Stream for Watched {
    type Item = Result<arrow::array::RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = std::task::ready!(self.stream.as_mut().poll_next(cx));
        if matches!(item, Some(Err(_))) {
            let (from, to) = (Status::InBlock as u8, Status::Failed as u8);
            let status = &self.shared.status;
            let _ = status.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        }
        Poll::Ready(item)
    }
}
