//! A socket cut into messages: reads within a byte budget, writes through one buffer.
//!
//! The budget is small until a client has proven who it is, so that nobody unknown can make
//! the server hold more than that. Memory grows with the bytes that have arrived, never with
//! the length that a message claims.

use std::io;

use ::pgwire::messages::PgWireBackendMessage;
use bytes::{Buf, Bytes, BytesMut};
use kymo_kernel::{Code, Error};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a message may hold before its sender is known.
pub(super) const UNKNOWN_SENDER_BYTES: usize = 16 * 1024;
/// Bytes of output that are gathered before they go to the socket.
pub(super) const FULL: usize = 64 * 1024;
const READ_BYTES: usize = 8 * 1024;

/// A byte stream: TCP, TLS, or a pipe in tests.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A message as it came.
#[derive(Debug)]
pub(super) struct Frame {
    /// Its type byte.
    pub(super) kind: u8,
    /// What follows its length.
    pub(super) body: Bytes,
}

/// Why no message came.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection is gone, or was closed by the client.
    Gone(io::Error),
    /// What came is no message that may come here; the client is told and let go.
    Refused(Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Broken::Gone(error)
    }
}

/// A socket and its buffers.
pub(super) struct Wire {
    io: Box<dyn Io>,
    input: BytesMut,
    budget: usize,
    /// What waits to be sent; rows are encoded straight into it.
    pub(super) output: BytesMut,
}

impl Wire {
    /// A connection of which these bytes have been read already.
    pub(super) fn with_input(io: Box<dyn Io>, read: &[u8]) -> Self {
        Wire {
            io,
            input: BytesMut::from(read),
            budget: UNKNOWN_SENDER_BYTES,
            output: BytesMut::new(),
        }
    }

    /// Sets how many bytes one message may have.
    pub(super) fn set_budget(&mut self, bytes: u64) {
        self.budget = usize::try_from(bytes).unwrap_or(usize::MAX);
    }

    /// The next message. Cancel-safe.
    pub(super) async fn frame(&mut self) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    /// The first packet of a connection: like a message, without a type byte.
    pub(super) async fn opening(&mut self) -> Result<Bytes, Broken> {
        loop {
            if let Some(length) = self.length(0, 8)?
                && self.input.len() >= length
            {
                let mut packet = self.input.split_to(length).freeze();
                packet.advance(4);
                return Ok(packet);
            }
            self.read().await?;
        }
    }

    fn buffered(&mut self) -> Result<Option<Frame>, Broken> {
        let Some(length) = self.length(1, 4)? else { return Ok(None) };
        if self.input.len() < 1 + length {
            return Ok(None);
        }
        let mut message = self.input.split_to(1 + length).freeze();
        let kind = message.first().copied().unwrap_or_default();
        message.advance(5);
        Ok(Some(Frame { kind, body: message }))
    }

    /// The length that stands at an offset, once it has arrived.
    fn length(&self, offset: usize, least: usize) -> Result<Option<usize>, Broken> {
        let Some(bytes) = self.input.get(offset..offset + 4) else { return Ok(None) };
        let length = bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        if length < least {
            return Err(Broken::Refused(protocol(format!("invalid message length {length}"))));
        }
        if length > self.budget {
            return Err(Broken::Refused(
                Error::new(
                    Code::TooLarge,
                    format!("message of {length} bytes, more than the {} allowed", self.budget),
                )
                .with_hint("after log-in the limit is pg.max_message_bytes"),
            ));
        }
        Ok(Some(length))
    }

    async fn read(&mut self) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        match self.io.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Completes when the client hangs up; reads ahead within the budget meanwhile.
    pub(super) async fn hung_up(&mut self) -> io::Error {
        while self.input.len() < self.budget {
            if let Err(error) = self.read().await {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Completes when the client leaves: hangs up, or says that it will.
    pub(super) async fn left(&mut self) -> io::Error {
        while !self.says_goodbye() {
            if self.input.len() >= self.budget {
                return std::future::pending().await;
            }
            if let Err(error) = self.read().await {
                return error;
            }
        }
        io::ErrorKind::ConnectionAborted.into()
    }

    /// Whether one of the messages that wait is Terminate.
    fn says_goodbye(&self) -> bool {
        let mut at = 0;
        while let (Some(kind), Ok(Some(length))) = (self.input.get(at), self.length(at + 1, 4)) {
            if *kind == b'X' {
                return true;
            }
            at += 1 + length;
        }
        false
    }

    /// Queues a message.
    pub(super) fn put(&mut self, message: &PgWireBackendMessage) {
        let start = self.output.len();
        if message.encode(&mut self.output).is_err() {
            // Only a message beyond the protocol's own limits: nothing half is ever sent.
            self.output.truncate(start);
        }
    }

    /// Sends what is queued once there is enough of it.
    pub(super) async fn relieve(&mut self) -> io::Result<()> {
        if self.output.len() >= FULL { self.flush().await } else { Ok(()) }
    }

    /// Sends what is queued.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.io.write_all(&self.output).await?;
            self.output.clear();
            if self.output.capacity() > 4 * FULL {
                self.output = BytesMut::new();
            }
        }
        self.io.flush().await
    }

    /// Sends what is queued and closes the sending side.
    pub(super) async fn close(&mut self) {
        if self.flush().await.is_ok() {
            // The client may be gone already; there is nobody left to tell.
            let _gone = self.io.shutdown().await;
        }
    }
}

/// A violation of the protocol (SQLSTATE 08P01).
pub(super) fn protocol(context: impl Into<String>) -> Error {
    Error::new(Code::Protocol, context)
}
