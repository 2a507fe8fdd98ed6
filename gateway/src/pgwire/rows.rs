//! The rows of a statement on their way to the socket: streamed, counted, suspended, stopped.

use std::io;
use std::task::Poll;

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::data::{FieldDescription, RowDescription};
use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use futures::StreamExt;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::message::BatchStream;
use kymo_kernel::{Code, Error};

use super::encode::{self, Format, Style};
use super::types;
use super::wire::{FULL, Wire, protocol};

/// Why a statement did not end well.
#[derive(Debug)]
pub(super) enum Stop {
    /// It failed; the client is told.
    Failed(Error),
    /// The client is gone.
    Gone(io::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Gone(error)
    }
}

/// How far sending has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Up to the last row.
    All(u64),
    /// Up to the limit; there may be more.
    Limit,
}

/// The rows of a statement that runs.
pub(super) struct Rows {
    stream: BatchStream,
    current: Option<(RecordBatch, usize)>,
    end: End,
    /// When the server stops.
    stop: CancelToken,
}

/// What ends the rows of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its last row: a server that stops lets it come.
    Last,
    /// What the statement waits for, but also the server's stop: there may be long to wait.
    Wait,
    /// Nothing of its own.
    Never,
}

/// What is next of the rows.
enum Next {
    /// A batch and where to go on in it.
    Rows(RecordBatch, usize),
    /// Nothing yet.
    Later,
    /// Nothing more.
    Nothing,
}

impl Rows {
    /// The rows of a statement with this verb.
    pub(super) fn new(verb: &str, stream: BatchStream, stop: &CancelToken) -> Self {
        let end = match verb {
            "SUBSCRIBE" => End::Never,
            "FETCH" => End::Wait,
            _ => End::Last,
        };
        Rows { stream, current: None, end, stop: stop.clone() }
    }

    /// The next rows that are not sent yet: a batch and where to go on in it.
    ///
    /// While the statement computes, what is queued goes out, and a client that hangs up
    /// stops it.
    pub(super) async fn next(
        &mut self,
        wire: &mut Wire,
    ) -> Result<Option<(RecordBatch, usize)>, Stop> {
        match self.step(wire, true).await? {
            Next::Rows(batch, from) => Ok(Some((batch, from))),
            Next::Later | Next::Nothing => Ok(None),
        }
    }

    /// As [`Rows::next`]; waits only where told to.
    async fn step(&mut self, wire: &mut Wire, wait: bool) -> Result<Next, Stop> {
        loop {
            if let Some((batch, from)) = self.current.take()
                && from < batch.num_rows()
            {
                return Ok(Next::Rows(batch, from));
            }
            let item = match futures::poll!(self.stream.next()) {
                Poll::Ready(item) => item,
                Poll::Pending if !wait => return Ok(Next::Later),
                Poll::Pending => {
                    self.pass_on(wire.flush()).await?;
                    self.wait(wire).await?
                }
            };
            match item {
                Some(Ok(batch)) => self.current = Some((batch, 0)),
                Some(Err(error)) => return Err(Stop::Failed(error)),
                None => return Ok(Next::Nothing),
            }
        }
    }

    async fn wait(&mut self, wire: &mut Wire) -> Result<Option<Result<RecordBatch, Error>>, Stop> {
        let (end, stop) = (self.end, &self.stop);
        let left = async {
            match end {
                End::Never => wire.left().await,
                End::Last | End::Wait => wire.hung_up().await,
            }
        };
        tokio::select! {
            item = self.stream.next() => Ok(item),
            error = left => Err(Stop::Gone(error)),
            () = stop.cancelled(), if end != End::Last => Err(Stop::Failed(Error::new(
                Code::ShuttingDown,
                "terminating connection due to administrator command",
            ))),
        }
    }

    /// Sends, and of rows without an end no longer than until the server stops: their client
    /// may have stopped reading.
    async fn pass_on(&mut self, sending: impl Future<Output = io::Result<()>>) -> Result<(), Stop> {
        tokio::select! {
            biased;
            sent = sending => Ok(sent?),
            () = self.stop.cancelled(), if self.end == End::Never => {
                Err(Stop::Gone(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Keeps what is left of a batch for the next call.
    pub(super) fn keep(&mut self, batch: RecordBatch, from: usize) {
        self.current = Some((batch, from));
    }

    /// Sends up to `limit` rows as DataRow messages. With a limit, rows without an end do not
    /// wait until it is reached: who has some can make use of them.
    pub(super) async fn send(
        &mut self,
        wire: &mut Wire,
        formats: &[Format],
        style: &Style,
        limit: Option<u64>,
    ) -> Result<Sent, Stop> {
        let mut sent = 0_u64;
        loop {
            let left = limit
                .map_or(usize::MAX, |limit| usize::try_from(limit - sent).unwrap_or(usize::MAX));
            if left == 0 {
                return Ok(Sent::Limit);
            }
            let wait = limit.is_none() || sent == 0 || self.end != End::Never;
            let (batch, from) = match self.step(wire, wait).await? {
                Next::Rows(batch, from) => (batch, from),
                Next::Later => return Ok(Sent::Limit),
                Next::Nothing => return Ok(Sent::All(sent)),
            };
            let to = batch.num_rows().min(from.saturating_add(left));
            let out = &mut wire.output;
            let reached = encode::data_rows(&batch, formats, style, from..to, FULL, out)?;
            sent += u64::try_from(reached - from).unwrap_or_default();
            self.keep(batch, reached);
            self.pass_on(wire.relieve()).await?;
        }
    }
}

/// The formats of a result's columns from the codes of a Bind: none, one for all, or one each.
///
/// # Errors
/// `protocol` for another count or an unknown code.
pub(super) fn formats(codes: &[i16], columns: usize) -> Result<Vec<Format>, Error> {
    let of = |code: &i16| {
        Format::of_code(*code).ok_or_else(|| protocol(format!("unsupported format code: {code}")))
    };
    match codes {
        [] => Ok(vec![Format::Text; columns]),
        [one] => Ok(vec![of(one)?; columns]),
        all if all.len() == columns => all.iter().map(of).collect(),
        all => Err(protocol(format!(
            "bind message has {} result formats but query has {columns} columns",
            all.len()
        ))),
    }
}

/// Describes the columns of a result.
pub(super) fn description(schema: &Schema, formats: &[Format]) -> PgWireBackendMessage {
    let fields = schema.fields().iter().enumerate().map(|(index, field)| {
        let oid = types::of_arrow(field.data_type());
        let format = formats.get(index).copied().unwrap_or(Format::Text);
        FieldDescription::new(
            field.name().replace('\0', "\u{fffd}"),
            0,
            0,
            oid,
            types::width(oid),
            -1,
            format.code(),
        )
    });
    PgWireBackendMessage::RowDescription(RowDescription::new(fields.collect()))
}

/// Whether two shapes look the same to a client.
pub(super) fn same_shape(described: &Schema, actual: &Schema) -> bool {
    let types = |schema: &Schema| {
        schema.fields().iter().map(|field| types::of_arrow(field.data_type())).collect::<Vec<_>>()
    };
    types(described) == types(actual)
}
