//! The first bytes of a connection: encryption, cancellation, or start-up.
//!
//! A request for encryption is read as exactly eight bytes. Bytes that came with it were sent
//! before the client could know the answer: an attacker in the middle puts them there so that
//! they run inside the encrypted session (CVE-2021-23214), so the connection is closed.

use std::io;

use bytes::{Buf, Bytes};
use kymo_kernel::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::wire::{Broken, Io, Wire, protocol};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
const CANCEL: i32 = 80_877_102;
/// SSL and GSS, each once.
const MAX_REQUESTS: usize = 2;

/// What a client wants.
pub(super) enum Opening {
    /// To log in: protocol version and the rest of the start-up packet.
    Startup {
        /// The connection.
        wire: Wire,
        /// The minor version of protocol 3.
        minor: u16,
        /// Names and values.
        parameters: Bytes,
    },
    /// To stop what another connection runs.
    Cancel {
        /// The number of that connection.
        pid: i32,
        /// The proof that the client may.
        secret: Bytes,
    },
}

/// Talks until the client has said what it wants.
pub(super) async fn open(
    mut socket: TcpStream,
    tls: Option<&TlsAcceptor>,
) -> Result<Opening, Broken> {
    for _ in 0..=MAX_REQUESTS {
        let mut head = [0; 8];
        socket.read_exact(&mut head).await?;
        if head != SSL_REQUEST && head != GSS_REQUEST {
            return first_packet(Wire::with_input(Box::new(socket), &head)).await;
        }
        if something_follows(&socket)? {
            return Err(Broken::Refused(protocol(
                "received unencrypted data after an encryption request",
            )));
        }
        if head == SSL_REQUEST
            && let Some(tls) = tls
        {
            socket.write_all(b"S").await?;
            let stream: Box<dyn Io> = Box::new(tls.accept(socket).await?);
            return first_packet(Wire::with_input(stream, &[])).await;
        }
        socket.write_all(b"N").await?;
    }
    Err(Broken::Refused(protocol("encryption was asked for more than once")))
}

fn something_follows(socket: &TcpStream) -> io::Result<bool> {
    let mut byte = [0];
    match socket.try_read(&mut byte) {
        Ok(count) => Ok(count > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

async fn first_packet(mut wire: Wire) -> Result<Opening, Broken> {
    let mut packet = match wire.opening().await {
        Ok(packet) => packet,
        Err(Broken::Refused(error)) => return Err(tell(wire, error).await),
        Err(gone) => return Err(gone),
    };
    let code = packet.get_i32();
    if code == CANCEL {
        if packet.len() < 8 {
            return Err(Broken::Refused(protocol("invalid length of cancel request")));
        }
        return Ok(Opening::Cancel { pid: packet.get_i32(), secret: packet });
    }
    let (major, minor) = (code >> 16, code & 0xffff);
    if major != 3 {
        let error = protocol(format!("unsupported frontend protocol {major}.{minor}"));
        return Err(tell(wire, error.with_hint("use a client that speaks version 3")).await);
    }
    let minor = u16::try_from(minor).unwrap_or_default();
    Ok(Opening::Startup { wire, minor, parameters: packet })
}

/// Sends the reason before the connection is closed.
async fn tell(mut wire: Wire, error: Error) -> Broken {
    wire.put(&super::failure::fatal(&error));
    wire.close().await;
    Broken::Refused(error)
}
