//! How credentials are written in an HTTP request: `Bearer T`, `Token T`, `Token user:pass`,
//! `Basic base64(user:pass)`, or `?u=&p=`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kymo_kernel::{Code, Error, Result};

/// What a client brings to prove who it is. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// An API token.
    Token(String),
    /// A name with a password, or with a token in the password's place.
    Password {
        /// Log-in name.
        user: String,
        /// What proves it.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Token(_) => out.write_str("Token(…)"),
            Credentials::Password { user, .. } => write!(out, "Password({user:?}, …)"),
        }
    }
}

impl Credentials {
    /// Reads the value of an `Authorization` header.
    ///
    /// # Errors
    /// `invalid_input` for a header of no known form; its content is not repeated.
    pub fn from_header(value: &[u8]) -> Result<Credentials> {
        let text = std::str::from_utf8(value).map_err(|_| malformed())?.trim();
        let (scheme, rest) = text.split_once(' ').ok_or_else(malformed)?;
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(malformed());
        }
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => Ok(Credentials::Token(rest.to_owned())),
            "token" => Ok(Self::pair(rest).unwrap_or_else(|| Credentials::Token(rest.to_owned()))),
            "basic" => {
                let bytes = STANDARD.decode(rest).map_err(|_| malformed())?;
                let text = String::from_utf8(bytes).map_err(|_| malformed())?;
                Self::pair(&text).ok_or_else(malformed)
            }
            _ => Err(malformed()),
        }
    }

    /// Reads the parameters `u` and `p` of InfluxDB 1 clients; `p` alone is a token.
    #[must_use]
    pub fn from_parameters(user: Option<&str>, password: Option<&str>) -> Option<Credentials> {
        match (user, password) {
            (Some(user), Some(password)) if !user.is_empty() => {
                Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
            }
            (_, Some(password)) if !password.is_empty() => {
                Some(Credentials::Token(password.to_owned()))
            }
            _ => None,
        }
    }

    fn pair(text: &str) -> Option<Credentials> {
        let (user, password) = text.split_once(':')?;
        if user.is_empty() {
            return Some(Credentials::Token(password.to_owned()));
        }
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }
}

fn malformed() -> Error {
    Error::new(Code::InvalidInput, "malformed Authorization header")
        .with_hint("send `Bearer TOKEN`, `Token TOKEN`, or `Basic` with base64 of user:password")
}
