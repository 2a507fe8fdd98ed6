//! Messages of WebSocket clients.

use kymo_kernel::alert::Matcher;
use kymo_kernel::message::Labels;
use kymo_kernel::{Code, Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::Wish;
use super::alerts::{self, AlertWish};
use crate::auth::Credentials;

/// The longest name that a client may give to a request.
const MAX_ID_BYTES: usize = 255;

/// What a client wants.
#[derive(Debug)]
pub enum Request {
    /// To prove who it is.
    Auth(Option<String>, Credentials),
    /// An answer to statements, in several messages.
    Sql(String, String, Option<Value>),
    /// An answer to statements that were sent as plain text, in one message.
    Text(String),
    /// To follow a query.
    Subscribe(String, Wish),
    /// To be told of alerts.
    Alerts(String, AlertWish),
    /// To follow it no longer.
    Unsubscribe(String),
    /// A sign of life.
    Ping(Option<String>),
}

/// A message as it is written. Unknown keys are refused: they are mostly misspelt ones.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Written {
    Auth {
        id: Option<Id>,
        user: Option<String>,
        password: Option<String>,
        token: Option<String>,
    },
    Sql {
        id: Id,
        sql: String,
        params: Option<Value>,
    },
    Subscribe {
        id: Id,
        sql: String,
        params: Option<Value>,
        snapshot: Option<bool>,
        resume: Option<String>,
    },
    Alerts {
        id: Id,
        rule: Option<String>,
        #[serde(default)]
        labels: Labels,
        resume: Option<Id>,
    },
    Unsubscribe {
        id: Id,
    },
    Ping {
        id: Option<Id>,
    },
}

/// Clients count, or give names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    fn text(self) -> String {
        match self {
            Id::Number(number) => number.to_string(),
            Id::Text(text) => text,
        }
    }
}

/// A message that cannot be read, with the id that it has.
#[derive(Debug)]
pub struct Misread {
    /// The id, where there is one.
    pub id: Option<String>,
    /// What is wrong.
    pub error: Error,
}

/// Reads a message. What does not begin with a brace is SQL.
///
/// # Errors
/// `invalid_input` for anything that is no message of ours.
pub fn read(text: &str) -> Result<Request, Misread> {
    let trimmed = text.trim();
    if !trimmed.starts_with('{') {
        return Ok(Request::Text(trimmed.to_owned()));
    }
    let misread = |id: Option<String>, error: Error| Misread { id, error };
    let value: Value = serde_json::from_str(trimmed).map_err(|error| {
        let error = Error::new(Code::InvalidInput, format!("the message is not JSON: {error}"));
        misread(None, error.with_hint("docs/websocket.md lists the messages"))
    })?;
    let id = serde_json::from_value::<Id>(value["id"].clone()).ok().map(Id::text);
    let written: Written = serde_json::from_value(value).map_err(|error| {
        let error = Error::new(Code::InvalidInput, format!("no message of ours: {error}"));
        misread(id.clone(), error.with_hint("docs/websocket.md lists the messages"))
    })?;
    if id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
        let error = Error::new(Code::TooLarge, format!("an id has at most {MAX_ID_BYTES} bytes"));
        return Err(misread(None, error));
    }
    understood(written).map_err(|error| misread(id, error))
}

fn understood(written: Written) -> Result<Request> {
    Ok(match written {
        Written::Auth { id, user, password, token } => {
            let credentials = match (user, password, token) {
                (None, None, Some(token)) => Credentials::Token(token),
                (Some(user), Some(password), None) => Credentials::Password { user, password },
                _ => {
                    return Err(Error::new(
                        Code::InvalidInput,
                        "auth needs either a token or user and password",
                    ));
                }
            };
            Request::Auth(id.map(Id::text), credentials)
        }
        Written::Sql { id, sql, params } => Request::Sql(id.text(), sql, params),
        Written::Subscribe { id, sql, params, snapshot, resume } => {
            Request::Subscribe(id.text(), Wish { sql, parameters: params, snapshot, resume })
        }
        Written::Alerts { id, rule, labels, resume } => {
            let resume = resume.map(|place| alerts::resume(&place.text())).transpose()?;
            Request::Alerts(id.text(), AlertWish { wanted: Matcher { rule, labels }, resume })
        }
        Written::Unsubscribe { id } => Request::Unsubscribe(id.text()),
        Written::Ping { id } => Request::Ping(id.map(Id::text)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        assert!(matches!(read(" SELECT 1 "), Ok(Request::Text(sql)) if sql == "SELECT 1"));
        assert!(
            matches!(read(r#"{"type":"sql","id":7,"sql":"x"}"#), Ok(Request::Sql(id, ..)) if id == "7")
        );
        let subscribe = r#"{"type":"subscribe","id":"a","sql":"x","snapshot":false,"resume":"t"}"#;
        let Ok(Request::Subscribe(id, wish)) = read(subscribe) else { panic!("{subscribe}") };
        assert_eq!(
            (id.as_str(), wish.snapshot, wish.resume.as_deref()),
            ("a", Some(false), Some("t"))
        );
        let alerts = r#"{"type":"alerts","id":1,"rule":"hot","labels":{"host":"a"},"resume":41}"#;
        let Ok(Request::Alerts(_, wish)) = read(alerts) else { panic!("{alerts}") };
        assert_eq!((wish.wanted.rule.as_deref(), wish.resume), (Some("hot"), Some(41)));
        assert_eq!(wish.wanted.labels["host"], "a");
        let Ok(Request::Alerts(_, wish)) = read(r#"{"type":"alerts","id":1}"#) else { panic!() };
        assert_eq!((wish.wanted, wish.resume), (Matcher::default(), None));
        assert!(matches!(read(r#"{"type":"ping"}"#), Ok(Request::Ping(None))));
        let auth = r#"{"type":"auth","user":"ada","password":"x"}"#;
        assert!(matches!(read(auth), Ok(Request::Auth(None, Credentials::Password { .. }))));
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_id() {
        for (text, id) in [
            ("{", None),
            ("{}", None),
            (r#"{"type":"dance","id":"a"}"#, Some("a")),
            (r#"{"type":"sql","id":"a"}"#, Some("a")),
            (r#"{"type":"alerts","id":"a","labels":{"host":1}}"#, Some("a")),
            (r#"{"type":"alerts","id":"a","resume":"7.1.2"}"#, Some("a")),
            (r#"{"type":"alerts","id":"a","resume":-1}"#, Some("a")),
            (r#"{"type":"sql","sql":"x"}"#, None),
            (r#"{"type":"subscribe","id":3,"sql":"x","snapshots":true}"#, Some("3")),
            (r#"{"type":"auth","id":3,"user":"ada"}"#, Some("3")),
            (r#"{"type":"sql","id":[1],"sql":"x"}"#, None),
        ] {
            let misread = read(text).unwrap_err();
            assert_eq!(misread.id.as_deref(), id, "{text}");
            assert_eq!(misread.error.code(), Code::InvalidInput, "{text}");
        }
        let long = format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(300));
        assert_eq!(read(&long).unwrap_err().error.code(), Code::TooLarge);
    }
}
