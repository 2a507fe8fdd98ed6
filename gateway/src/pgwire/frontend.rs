//! The messages of a client, read with every length checked and every text as UTF-8.
//!
//! The crate's own decoder panics on messages that end early and replaces bytes that are not
//! UTF-8 by `�`; here the first is a violation of the protocol and the second is refused with
//! SQLSTATE 22021, as PostgreSQL does.

use bytes::{Buf, Bytes};
use kymo_kernel::{Code, Error, Result};

use super::wire::{Frame, protocol};

/// A message of a client after start-up.
#[derive(Debug)]
pub(super) enum Message {
    Query(String),
    Parse { name: String, sql: String, types: Vec<u32> },
    Bind(Bind),
    DescribeStatement(String),
    DescribePortal(String),
    Execute { portal: String, max_rows: i32 },
    CloseStatement(String),
    ClosePortal(String),
    Flush,
    Sync,
    CopyData(Bytes),
    CopyDone,
    CopyFail(String),
    Terminate,
}

/// Parameters for a prepared statement.
#[derive(Debug)]
pub(super) struct Bind {
    pub(super) portal: String,
    pub(super) statement: String,
    pub(super) parameter_formats: Vec<i16>,
    pub(super) parameters: Vec<Option<Bytes>>,
    pub(super) result_formats: Vec<i16>,
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// `protocol` for an unknown type or a body of the wrong length, `invalid_encoding` for
    /// text that is not UTF-8.
    pub(super) fn read(frame: Frame) -> Result<Message> {
        let mut body = Body(frame.body);
        let message = match frame.kind {
            b'Q' => Message::Query(body.text()?),
            b'P' => parse(&mut body)?,
            b'B' => Message::Bind(bind(&mut body)?),
            b'D' => match body.u8()? {
                b'S' => Message::DescribeStatement(body.text()?),
                b'P' => Message::DescribePortal(body.text()?),
                other => return Err(subtype("Describe", other)),
            },
            b'C' => match body.u8()? {
                b'S' => Message::CloseStatement(body.text()?),
                b'P' => Message::ClosePortal(body.text()?),
                other => return Err(subtype("Close", other)),
            },
            b'E' => Message::Execute { portal: body.text()?, max_rows: body.i32()? },
            b'H' => Message::Flush,
            b'S' => Message::Sync,
            b'X' => Message::Terminate,
            b'd' => return Ok(Message::CopyData(body.0)),
            b'c' => Message::CopyDone,
            b'f' => Message::CopyFail(body.text()?),
            other => return Err(protocol(format!("invalid frontend message type {other}"))),
        };
        if !body.0.is_empty() {
            return Err(protocol("message is longer than its content"));
        }
        Ok(message)
    }
}

/// Whether a message belongs to the extended protocol, so that after an error everything up
/// to the next Sync is skipped.
pub(super) fn is_extended(kind: u8) -> bool {
    matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C' | b'H')
}

fn subtype(what: &str, byte: u8) -> Error {
    protocol(format!("invalid {what} message subtype {byte}"))
}

fn parse(body: &mut Body) -> Result<Message> {
    let (name, sql) = (body.text()?, body.text()?);
    let types = body.list(4, Body::u32)?;
    Ok(Message::Parse { name, sql, types })
}

fn bind(body: &mut Body) -> Result<Bind> {
    Ok(Bind {
        portal: body.text()?,
        statement: body.text()?,
        parameter_formats: body.list(2, Body::i16)?,
        parameters: body.list(4, Body::value)?,
        result_formats: body.list(2, Body::i16)?,
    })
}

/// What is left of a message.
pub(super) struct Body(pub(super) Bytes);

impl Body {
    fn take(&mut self, count: usize) -> Result<Bytes> {
        if self.0.remaining() < count {
            return Err(protocol("insufficient data left in message"));
        }
        Ok(self.0.split_to(count))
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?.get_u8())
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(self.take(2)?.get_u16())
    }

    fn i16(&mut self) -> Result<i16> {
        Ok(self.take(2)?.get_i16())
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        Ok(self.take(4)?.get_i32())
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(self.take(4)?.get_u32())
    }

    /// Text up to a zero byte.
    pub(super) fn text(&mut self) -> Result<String> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| protocol("invalid string in message"))?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        std::str::from_utf8(&text).map(str::to_owned).map_err(|error| {
            let bad = text.get(error.valid_up_to()).copied().unwrap_or_default();
            Error::new(
                Code::InvalidEncoding,
                format!("invalid byte sequence for encoding \"UTF8\": 0x{bad:02x}"),
            )
        })
    }

    /// A length and as many bytes; a negative length is NULL.
    fn value(&mut self) -> Result<Option<Bytes>> {
        match self.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length)
                    .map_err(|_| protocol(format!("invalid value length {length}")))?;
                self.take(length).map(Some)
            }
        }
    }

    /// A count and as many items of at least `least` bytes, so that a false count reserves
    /// nothing.
    fn list<T>(&mut self, least: usize, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = usize::from(self.u16()?);
        if self.0.remaining() < count * least {
            return Err(protocol("insufficient data left in message"));
        }
        (0..count).map(|_| item(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Broken, Wire};
    use super::*;

    fn read(kind: u8, body: &'static [u8]) -> Result<Message> {
        Message::read(Frame { kind, body: Bytes::from_static(body) })
    }

    #[test]
    fn truncated_messages_are_violations_and_never_panics() {
        let whole: &[(u8, &'static [u8])] = &[
            (b'Q', b"SELECT 1\0"),
            (b'P', b"s\0SELECT $1\0\0\x01\0\0\0\x17"),
            (b'B', b"p\0s\0\0\x01\0\x01\0\x01\0\0\0\x04\0\0\0\x05\0\x01\0\0"),
            (b'D', b"Ss\0"),
            (b'C', b"Pp\0"),
            (b'E', b"p\0\0\0\0\0"),
            (b'f', b"why\0"),
        ];
        for (kind, body) in whole {
            assert!(read(*kind, body).is_ok(), "{}", char::from(*kind));
            for end in 0..body.len() {
                let error = read(*kind, &body[..end]).unwrap_err();
                assert_eq!(error.code(), Code::Protocol, "{} to {end}", char::from(*kind));
            }
        }
        assert_eq!(read(b'S', b"x").unwrap_err().code(), Code::Protocol);
        assert_eq!(read(b'?', b"").unwrap_err().code(), Code::Protocol);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        assert_eq!(read(b'Q', b"SELECT '\xff'\0").unwrap_err().code(), Code::InvalidEncoding);
    }

    #[test]
    fn counts_are_checked_before_they_reserve() {
        let error = read(b'B', b"\0\0\xff\xff").unwrap_err();
        assert_eq!(error.code(), Code::Protocol);
    }

    /// Messages as they go over the wire: type, length, body.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[kind], length.as_slice(), body].concat()
    }

    #[test]
    fn mutated_messages_are_read_or_violations() {
        let corpus = [
            message(b'Q', b"SELECT host, usage FROM cpu WHERE time > now() - '5m'\0"),
            message(b'P', b"s1\0INSERT INTO cpu VALUES ($1, $2, $3)\0\0\x03\0\0\0\x19\0\0\x02\xbd\0\0\x04\xa0"),
            message(b'B', b"\0s1\0\0\x02\0\0\0\x01\0\x03\0\0\0\x01a\0\0\0\x08?\xf8\0\0\0\0\0\0\xff\xff\xff\xff\0\x01\0\x01"),
            message(b'D', b"Ss1\0"),
            message(b'D', b"Pportal\0"),
            message(b'E', b"\0\0\0\0\x64"),
            message(b'C', b"Ss1\0"),
            message(b'd', b"a\t1.5\n"),
            message(b'f', b"the client gave up\0"),
            [message(b'H', b""), message(b'S', b""), message(b'c', b""), message(b'X', b"")].concat(),
        ];
        crate::fuzz::fuzz("messages of clients", &corpus, |bytes| {
            let mut left = bytes.len();
            let mut wire = Wire::with_input(Box::new(tokio::io::empty()), bytes);
            loop {
                let frame = match futures::executor::block_on(wire.frame()) {
                    Ok(frame) => frame,
                    Err(Broken::Gone(_)) => break,
                    Err(Broken::Refused(error)) => {
                        assert!(matches!(error.code(), Code::Protocol | Code::TooLarge), "{error}");
                        break;
                    }
                };
                let size = frame.body.len() + 5;
                assert!(size <= left, "a message holds what arrived and no more");
                left -= size;
                match Message::read(frame) {
                    Ok(Message::Bind(bind)) => {
                        let values =
                            bind.parameters.iter().flatten().map(Bytes::len).sum::<usize>();
                        assert!(values + 4 * bind.parameters.len() <= size);
                    }
                    Ok(_) => {}
                    Err(error) => assert!(
                        matches!(error.code(), Code::Protocol | Code::InvalidEncoding),
                        "{error}"
                    ),
                }
            }
        });
    }
}
