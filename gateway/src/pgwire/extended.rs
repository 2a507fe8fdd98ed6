//! The extended protocol: statements prepared, portals bound, rows executed in portions.

use std::sync::Arc;

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::data::{NoData, ParameterDescription};
use ::pgwire::messages::extendedquery::{
    BindComplete, CloseComplete, ParseComplete, PortalSuspended,
};
use ::pgwire::messages::response::EmptyQueryResponse;
use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use kymo_kernel::message::{Outcome, Prepared, Runnable};
use kymo_kernel::{Code, Error, Result};

use super::connection::{Connection, no_statement, tag};
use super::copy::{self, Copy};
use super::decode;
use super::encode::Format;
use super::frontend::Bind;
use super::rows::{self, Rows, Sent, Stop};
use super::types;
use super::wire::protocol;

/// A prepared statement.
pub(super) struct Stored {
    what: What,
    bytes: usize,
}

enum What {
    /// No SQL at all.
    Empty,
    /// A statement of the session, with the PostgreSQL types of its parameters.
    Sql { prepared: Arc<Prepared>, oids: Vec<u32> },
    /// Handled here, not by the session.
    Copy(Box<Copy>),
}

impl Stored {
    fn oids(&self) -> &[u32] {
        match &self.what {
            What::Sql { oids, .. } => oids,
            What::Empty | What::Copy(_) => &[],
        }
    }

    fn columns(&self) -> Option<&SchemaRef> {
        match &self.what {
            What::Sql { prepared, .. } => prepared.columns.as_ref(),
            What::Empty | What::Copy(_) => None,
        }
    }

    fn verb(&self) -> &str {
        match &self.what {
            What::Sql { prepared, .. } => &prepared.statement.verb,
            What::Empty | What::Copy(_) => "",
        }
    }
}

/// A statement with its parameters, running or about to run.
pub(super) struct Portal {
    statement: Arc<Stored>,
    parameters: Vec<ArrayRef>,
    /// As many as the result has columns.
    formats: Vec<Format>,
    state: State,
}

enum State {
    Bound,
    Running(Rows),
    Done,
}

impl Connection {
    pub(super) async fn parse(
        &mut self,
        name: String,
        sql: String,
        types: Vec<u32>,
    ) -> Result<(), Stop> {
        if name.is_empty() {
            self.statements.remove("");
        } else if self.statements.contains_key(&name) {
            return Err(Stop::Failed(Error::new(
                Code::StatementExists,
                format!("prepared statement \"{name}\" already exists"),
            )));
        }
        self.check_length(&sql)?;
        self.check_room(&sql)?;
        let bytes = sql.len();
        let what = self.read(sql, &types).await?;
        self.statements.insert(name, Arc::new(Stored { what, bytes }));
        self.wire.put(&PgWireBackendMessage::ParseComplete(ParseComplete::new()));
        Ok(())
    }

    /// Keeps the number and the bytes of a connection's statements within their limits.
    fn check_room(&self, sql: &str) -> Result<()> {
        let limits = &self.gate.settings.pg;
        let bytes: usize = self.statements.values().map(|stored| stored.bytes).sum();
        let bytes = u64::try_from(bytes + sql.len()).unwrap_or(u64::MAX);
        if self.statements.len() >= limits.max_statements {
            return Err(Error::new(
                Code::TooLarge,
                format!("more than {} prepared statements", limits.max_statements),
            )
            .with_hint("close some, or raise pg.max_statements"));
        }
        if bytes > limits.max_statement_bytes {
            return Err(Error::new(
                Code::TooLarge,
                format!("prepared statements hold more than {} bytes", limits.max_statement_bytes),
            )
            .with_hint("close some, or raise pg.max_statement_bytes"));
        }
        Ok(())
    }

    async fn read(&mut self, sql: String, types: &[u32]) -> Result<What, Stop> {
        if let Some(copy) = copy::parse(&sql)? {
            return Ok(What::Copy(Box::new(copy)));
        }
        let mut statements = self.session.parse(sql).await?;
        let Some(statement) = statements.pop() else { return Ok(What::Empty) };
        if !statements.is_empty() {
            return Err(Stop::Failed(Error::new(
                Code::Syntax,
                "cannot insert multiple commands into a prepared statement",
            )));
        }
        self.admit(&statement.verb)?;
        let hints = types.iter().map(|oid| types::to_arrow(*oid)).collect();
        let prepared = self.session.prepare(statement, hints).await?;
        let oids = prepared
            .parameters
            .iter()
            .enumerate()
            .map(|(index, found)| match types.get(index).copied() {
                None | Some(0 | types::oid::UNKNOWN) => types::of_arrow(found),
                Some(oid) => oid,
            })
            .collect();
        Ok(What::Sql { prepared, oids })
    }

    pub(super) fn bind(&mut self, bind: Bind) -> Result<(), Stop> {
        let statement = self
            .statements
            .get(&bind.statement)
            .cloned()
            .ok_or_else(|| no_statement(&bind.statement))?;
        self.admit_stored(&statement)?;
        if bind.portal.is_empty() {
            self.portals.remove("");
        } else if self.portals.contains_key(&bind.portal) {
            return Err(Stop::Failed(Error::new(
                Code::AlreadyExists,
                format!("cursor \"{}\" already exists", bind.portal),
            )));
        }
        if self.portals.len() >= self.gate.settings.pg.max_statements {
            return Err(Stop::Failed(
                Error::new(Code::TooLarge, "too many open portals")
                    .with_hint("close some, or raise pg.max_statements"),
            ));
        }
        let parameters = parameters(&statement, &bind)?;
        let columns = statement.columns().map_or(0, |columns| columns.fields().len());
        let formats = if columns == 0 && bind.result_formats.len() <= 1 {
            Vec::new()
        } else {
            rows::formats(&bind.result_formats, columns)?
        };
        let portal = Portal { statement, parameters, formats, state: State::Bound };
        self.portals.insert(bind.portal, portal);
        self.wire.put(&PgWireBackendMessage::BindComplete(BindComplete::new()));
        Ok(())
    }

    fn admit_stored(&self, statement: &Stored) -> Result<()> {
        match statement.what {
            What::Empty => Ok(()),
            _ => self.admit(statement.verb()),
        }
    }

    pub(super) fn describe_statement(&mut self, name: &str) -> Result<(), Stop> {
        let statement = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
        let types = ParameterDescription::new(statement.oids().to_vec());
        self.wire.put(&PgWireBackendMessage::ParameterDescription(types));
        self.describe(statement.columns(), &[]);
        Ok(())
    }

    pub(super) async fn describe_portal(&mut self, name: &str) -> Result<(), Stop> {
        if let Some(portal) = self.portals.get(name) {
            let columns = portal.statement.columns().cloned();
            let formats = portal.formats.clone();
            self.describe(columns.as_ref(), &formats);
            return Ok(());
        }
        // A cursor made by DECLARE is a portal too, one that the session keeps.
        let columns = self.cursor_columns(name).await.map_err(|_| no_portal(name))?;
        self.describe(Some(&columns), &[]);
        Ok(())
    }

    async fn cursor_columns(&mut self, name: &str) -> Result<SchemaRef> {
        let fetch = format!("FETCH 0 FROM \"{}\"", name.replace('"', "\"\""));
        let mut statements = self.session.parse(fetch).await?;
        let statement = statements.pop().ok_or_else(|| no_portal(name))?;
        let prepared = self.session.prepare(statement, Vec::new()).await?;
        prepared.columns.clone().ok_or_else(|| no_portal(name))
    }

    fn describe(&mut self, columns: Option<&SchemaRef>, formats: &[Format]) {
        let message = match columns {
            Some(columns) => rows::description(columns, formats),
            None => PgWireBackendMessage::NoData(NoData::new()),
        };
        self.wire.put(&message);
    }

    pub(super) async fn execute_portal(&mut self, name: &str, max_rows: i32) -> Result<(), Stop> {
        let limit = match u64::try_from(max_rows) {
            Ok(0) => None,
            Ok(rows) => Some(rows),
            Err(_) => return Err(Stop::Failed(protocol(format!("invalid row limit {max_rows}")))),
        };
        // Out of the map while it runs: an error leaves it gone, as in PostgreSQL.
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        self.run(&mut portal, limit).await?;
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    async fn run(&mut self, portal: &mut Portal, limit: Option<u64>) -> Result<(), Stop> {
        let statement = Arc::clone(&portal.statement);
        if matches!(portal.state, State::Bound) {
            match &statement.what {
                What::Empty => {
                    self.wire
                        .put(&PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new()));
                    return Ok(());
                }
                What::Copy(copy) => {
                    portal.state = State::Done;
                    return self.copy(copy, std::mem::take(&mut portal.parameters)).await;
                }
                What::Sql { prepared, .. } => {
                    let run = Runnable::Prepared(Arc::clone(prepared));
                    let parameters = portal.parameters.clone();
                    match self.execute(run, parameters).await? {
                        Outcome::Rows { schema, stream, .. } => {
                            fit(portal, &schema)?;
                            portal.state = State::Running(self.rows(statement.verb(), stream));
                        }
                        Outcome::Done { verb, rows, .. } => {
                            portal.state = State::Done;
                            self.complete(&tag(&verb, rows));
                            return Ok(());
                        }
                    }
                }
            }
        }
        let State::Running(rows) = &mut portal.state else {
            self.complete(&tag(statement.verb(), Some(0)));
            return Ok(());
        };
        match rows.send(&mut self.wire, &portal.formats, &self.style, limit).await? {
            Sent::All(count) => {
                portal.state = State::Done;
                self.complete(&tag(statement.verb(), Some(count)));
            }
            Sent::Limit => {
                self.wire.put(&PgWireBackendMessage::PortalSuspended(PortalSuspended::new()));
            }
        }
        Ok(())
    }

    pub(super) fn close_statement(&mut self, name: &str) {
        self.statements.remove(name);
        self.wire.put(&PgWireBackendMessage::CloseComplete(CloseComplete::new()));
    }

    pub(super) fn close_portal(&mut self, name: &str) {
        self.portals.remove(name);
        self.wire.put(&PgWireBackendMessage::CloseComplete(CloseComplete::new()));
    }
}

/// What was described must be what comes: a client has chosen its readers by it.
fn fit(portal: &mut Portal, actual: &SchemaRef) -> Result<()> {
    match portal.statement.columns() {
        Some(described) if rows::same_shape(described, actual) => Ok(()),
        Some(_) => Err(Error::new(Code::Unsupported, "cached plan must not change result type")
            .with_hint("prepare the statement again")),
        None => {
            portal.formats = rows::formats(&[], actual.fields().len())?;
            Ok(())
        }
    }
}

/// Reads the parameters of a Bind.
fn parameters(statement: &Stored, bind: &Bind) -> Result<Vec<ArrayRef>> {
    let (prepared, oids) = match &statement.what {
        What::Sql { prepared, oids } => (Some(prepared), oids.as_slice()),
        What::Empty | What::Copy(_) => (None, &[][..]),
    };
    if bind.parameters.len() != oids.len() {
        return Err(protocol(format!(
            "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
            bind.parameters.len(),
            bind.statement,
            oids.len()
        )));
    }
    let count = bind.parameter_formats.len();
    if count > 1 && count != oids.len() {
        return Err(protocol(format!(
            "bind message has {count} parameter formats but {} parameters",
            oids.len()
        )));
    }
    let formats = match bind.parameter_formats.as_slice() {
        [one] => rows::formats(&[*one], oids.len())?,
        codes => rows::formats(codes, oids.len())?,
    };
    let targets = prepared.map_or(&[][..], |prepared| prepared.parameters.as_slice());
    let values = bind.parameters.iter().zip(oids).zip(targets).zip(formats);
    values
        .enumerate()
        .map(|(index, (((value, oid), target), format))| {
            decode::parameter(index + 1, *oid, format, value.as_deref(), target)
        })
        .collect()
}

fn no_portal(name: &str) -> Error {
    Error::new(Code::CursorNotFound, format!("portal \"{name}\" does not exist"))
}
