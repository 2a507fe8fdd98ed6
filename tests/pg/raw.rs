//! A PostgreSQL client that sends exactly the bytes it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A message: its type and what follows its length.
pub type Message = (u8, Vec<u8>);

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `SSLRequest`.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A connection without any knowledge of its own, over TCP or anything like it.
pub struct Raw<S = TcpStream>(pub S);

impl Raw<TcpStream> {
    pub fn connect(address: SocketAddr) -> Raw {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw(socket)
    }

    /// A connection that is let in without a proof.
    pub fn trusted(address: SocketAddr) -> Raw {
        let mut raw = Raw::connect(address);
        raw.startup("admin", "kymo");
        raw.until_ready();
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    /// Sends bytes; the server may have hung up, which the next read tells.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
        let _ = self.0.flush();
    }

    pub fn startup(&mut self, user: &str, database: &str) {
        self.bytes(&startup(user, database));
    }

    pub fn send(&mut self, kind: u8, body: &[u8]) {
        let mut message = vec![kind];
        message.extend_from_slice(&(u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.bytes(&message);
    }

    pub fn query(&mut self, sql: &str) {
        self.send(b'Q', format!("{sql}\0").as_bytes());
    }

    /// Parse, Bind, Execute and Sync of one statement without parameters.
    pub fn extended(&mut self, sql: &str, formats: &[i16], max_rows: i32) {
        self.send(b'P', format!("\0{sql}\0\0\0").as_bytes());
        let mut bind = b"\0\0\0\0\0\0".to_vec();
        bind.extend_from_slice(&u16::try_from(formats.len()).unwrap().to_be_bytes());
        bind.extend(formats.iter().flat_map(|code| code.to_be_bytes()));
        self.send(b'B', &bind);
        let mut execute = b"\0".to_vec();
        execute.extend_from_slice(&max_rows.to_be_bytes());
        self.send(b'E', &execute);
        self.send(b'S', b"");
    }

    pub fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte).ok().map(|()| byte[0])
    }

    /// The next message; `None` where the server has hung up.
    pub fn message(&mut self) -> Option<Message> {
        let kind = self.byte()?;
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
        self.0.read_exact(&mut body).ok()?;
        Some((kind, body))
    }

    pub fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.message();
            let message = message.unwrap_or_else(|| panic!("hung up after {}", kinds(&messages)));
            let ready = message.0 == b'Z';
            messages.push(message);
            if ready {
                return messages;
            }
        }
    }

    /// The SQLSTATE of a FATAL error, after which nothing but the end comes.
    pub fn fatal(&mut self) -> String {
        let (kind, body) = self.message().expect("an error before the end");
        assert_eq!((kind, field(&body, b'S').as_str()), (b'E', "FATAL"));
        assert!(self.message().is_none(), "the connection goes on after a FATAL error");
        field(&body, b'C')
    }
}

pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let mut packet = (u32::try_from(body.len()).unwrap() + 4).to_be_bytes().to_vec();
    packet.extend_from_slice(&body);
    packet
}

pub fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|(kind, _)| char::from(*kind)).collect()
}

/// A field of an error or a notice.
pub fn field(body: &[u8], name: u8) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let found = fields.find(|field| field.first() == Some(&name)).expect("the field");
    String::from_utf8_lossy(&found[1..]).into_owned()
}

/// The SQLSTATE of the first error among messages.
pub fn code(messages: &[Message]) -> String {
    let error = messages.iter().find(|(kind, _)| *kind == b'E');
    let (_, body) = error.unwrap_or_else(|| panic!("no error in {}", kinds(messages)));
    field(body, b'C')
}
