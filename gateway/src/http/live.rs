//! Live data over HTTP: the WebSocket at `/ws` and event streams at `/api/v1/subscribe`.
//!
//! Both carry the same messages ([`encode`]); `docs/websocket.md` explains them to clients. A
//! connection takes from its subscriptions only what it can send, so a client that stops
//! reading makes its own subscriptions lag behind and costs nobody else anything.

pub mod alerts;
pub mod conversation;
pub mod encode;
pub mod origin;
pub mod request;
pub mod socket;
pub mod stream;

use std::sync::Arc;

use kymo_actors::live::{Ask, Token};
use kymo_kernel::message::SessionContext;
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use serde_json::Value;

use super::App;
use super::statement::bind;
use crate::limits::Place;

/// A place among the connections for live data, given back when dropped.
pub struct Seat(#[expect(dead_code, reason = "held for its drop")] Place);

impl Seat {
    /// Takes one.
    ///
    /// # Errors
    /// `limit_reached`.
    pub fn take(app: &App) -> Result<Seat> {
        let place = app.live.admit().inspect_err(|error| {
            metrics().live.refused.with_label_values(&[error.code().as_str()]).inc();
        })?;
        metrics().live.connections.inc();
        Ok(Seat(place))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        metrics().live.connections.dec();
    }
}

/// What a client wants to follow.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// A query, or `SUBSCRIBE TO` one.
    pub sql: String,
    /// Values for `$1`, `$2` … (an array) or `$name` … (an object).
    pub parameters: Option<Value>,
    /// Whether rows that are there already come first.
    pub snapshot: Option<bool>,
    /// Where to go on.
    pub resume: Option<String>,
}

/// Parses a wish.
///
/// # Errors
/// Those of parsing; `invalid_input` for more than one statement or a bad token.
pub async fn ask(app: &App, session: Arc<SessionContext>, wish: Wish) -> Result<Ask> {
    let resume = wish.resume.as_deref().filter(|text| !text.is_empty());
    let resume = resume.map(str::parse::<Token>).transpose()?;
    let (sql, parameters) = bind(wish.sql, wish.parameters)?;
    let mut statements = app.backend.parse(sql).await?;
    if statements.len() > 1 {
        return Err(Error::new(Code::InvalidInput, "a subscription has one query")
            .with_hint("subscribe to each query by itself"));
    }
    let statement = statements.pop().ok_or_else(|| {
        Error::new(Code::Syntax, "no query to follow").with_hint("send SQL: SELECT … FROM table")
    })?;
    Ok(Ask { statement, parameters, session, snapshot: wish.snapshot, resume })
}
