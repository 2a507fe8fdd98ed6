//! `COPY … TO STDOUT` and `COPY … FROM STDIN`: the bulk forms that `psql \copy` and drivers use.
//!
//! Rows that come in are written in portions while they arrive. A line that cannot be read
//! ends the command with its number; portions before it stay written, and a second attempt
//! with the same tags and times replaces them.

mod command;
mod input;
mod output;
mod table;

use std::sync::Arc;

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::copy::{CopyDone, CopyInResponse, CopyOutResponse};
use arrow::array::ArrayRef;
use bytes::BytesMut;
use kymo_kernel::message::{Outcome, Runnable, Write};
use kymo_kernel::schema::{TableBatch, TableDef, TableName};
use kymo_kernel::{Code, Error, Result};

use super::connection::{Connection, tag};
use super::frontend::Message;
use super::rows::Stop;
use super::wire::{Broken, protocol};
pub(super) use command::{Copy, parse};
use command::{Direction, Layout, Source};
use input::Records;
use output::Lines;
use table::Portion;

impl Connection {
    /// Runs a COPY to its end.
    pub(super) async fn copy(
        &mut self,
        copy: &Copy,
        parameters: Vec<ArrayRef>,
    ) -> Result<(), Stop> {
        self.admit("COPY")?;
        let rows = match copy.direction {
            Direction::Out => Box::pin(self.copy_out(copy, parameters)).await?,
            Direction::In => Box::pin(self.copy_in(copy)).await?,
        };
        self.complete(&tag("COPY", Some(rows)));
        Ok(())
    }

    async fn copy_out(&mut self, copy: &Copy, parameters: Vec<ArrayRef>) -> Result<u64, Stop> {
        let mut statements = self.session.parse(copy.query()).await?;
        let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
            return Err(Stop::Failed(Error::new(Code::Syntax, "COPY takes one query")));
        };
        let verb = statement.verb.clone();
        let outcome = self.execute(Runnable::Statement(statement), parameters).await?;
        let Outcome::Rows { schema, stream, .. } = outcome else {
            return Err(Stop::Failed(Error::new(Code::Syntax, "COPY query must return rows")));
        };
        let columns = schema.fields().len();
        let format = copy.options.layout.format();
        let code = format.code();
        let count = i16::try_from(columns).unwrap_or(i16::MAX);
        let code_byte = i8::try_from(code).unwrap_or_default();
        let response = CopyOutResponse::new(code_byte, count, vec![code; columns]);
        self.wire.put(&PgWireBackendMessage::CopyOutResponse(response));
        let lines = Lines::new(&copy.options);
        lines.begin(&schema, &mut self.wire.output);
        let mut rows = self.rows(&verb, stream);
        let mut sent = 0;
        while let Some((batch, from)) = rows.next(&mut self.wire).await? {
            let reached = lines.rows(&batch, from, &self.style, &mut self.wire.output)?;
            sent += u64::try_from(reached - from).unwrap_or_default();
            rows.keep(batch, reached);
            self.wire.relieve().await?;
        }
        lines.end(&mut self.wire.output);
        self.wire.put(&PgWireBackendMessage::CopyDone(CopyDone::new()));
        Ok(sent)
    }

    async fn copy_in(&mut self, copy: &Copy) -> Result<u64, Stop> {
        let table = self.target(copy)?;
        let columns = copy.columns();
        let mut portion = Portion::new(Arc::clone(&table), columns)?;
        let limit = self.gate.settings.ingest.max_line_bytes;
        let mut records = Records::new(
            &copy.options,
            portion.oids(),
            usize::try_from(limit).unwrap_or(usize::MAX),
        );
        let code = copy.options.layout.format().code();
        let width = portion.oids().len();
        let count = i16::try_from(width).unwrap_or(i16::MAX);
        let response =
            CopyInResponse::new(i8::try_from(code).unwrap_or_default(), count, vec![code; width]);
        self.wire.put(&PgWireBackendMessage::CopyInResponse(response));
        self.wire.flush().await?;
        let mut written = 0;
        let mut pending = BytesMut::new();
        let mut open = true;
        while open {
            open = self.copy_data(&mut pending).await?;
            while let Some(record) = records.next(&mut pending, !open)? {
                portion.push(record)?;
                if portion.is_full() {
                    written += self.write(&table, &mut portion).await?;
                }
            }
        }
        Ok(written + self.write(&table, &mut portion).await?)
    }

    fn target(&self, copy: &Copy) -> Result<Arc<TableDef>> {
        let Source::Table { name, .. } = &copy.source else {
            return Err(Error::new(Code::Syntax, "COPY FROM takes a table, not a query"));
        };
        let context = self.context();
        let (database, schema, table) = match name.as_slice() {
            [table] => (&context.database, &context.schema, table),
            [schema, table] => (&context.database, schema, table),
            [database, schema, table] => (database, schema, table),
            _ => return Err(Error::new(Code::Syntax, "a table's name has one to three parts")),
        };
        let name =
            TableName { database: database.clone(), schema: schema.clone(), table: table.clone() };
        self.gate.backend.table(&name).ok_or_else(|| {
            Error::new(Code::TableNotFound, format!("relation \"{name}\" does not exist"))
        })
    }

    /// The next data of the client; false once it is done.
    async fn copy_data(&mut self, pending: &mut BytesMut) -> Result<bool, Stop> {
        loop {
            let frame = match self.wire.frame().await {
                Ok(frame) => frame,
                Err(Broken::Gone(error)) => return Err(Stop::Gone(error)),
                Err(Broken::Refused(error)) => return Err(Stop::Failed(error)),
            };
            return match Message::read(frame)? {
                Message::CopyData(data) => {
                    pending.extend_from_slice(&data);
                    Ok(true)
                }
                Message::CopyDone => Ok(false),
                Message::CopyFail(reason) => Err(Stop::Failed(Error::new(
                    Code::Cancelled,
                    format!("COPY from stdin failed: {reason}"),
                ))),
                // Drivers send these right after the Execute that starts the copy.
                Message::Flush | Message::Sync => continue,
                _ => Err(Stop::Failed(protocol("unexpected message type during COPY from stdin"))),
            };
        }
    }

    async fn write(&mut self, table: &TableDef, portion: &mut Portion) -> Result<u64> {
        let Some((batch, lines)) = portion.take()? else { return Ok(0) };
        let batches = vec![TableBatch { table: table.name.clone(), batch, lines }];
        let write = Write { batches, durability: None, create: false, partial: false };
        let acked = self.gate.backend.write(write).await?;
        Ok(acked.rows)
    }
}

impl Layout {
    fn format(self) -> super::encode::Format {
        match self {
            Layout::Binary => super::encode::Format::Binary,
            Layout::Text | Layout::Csv => super::encode::Format::Text,
        }
    }
}

#[cfg(test)]
mod tests;
