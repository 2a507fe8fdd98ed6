//! Alerts as they begin and end: which ones a client wants, and the messages about them.

use kymo_actors::notify::payload::{fingerprint, time};
use kymo_actors::notify::{Feed, FeedEvent};
use kymo_kernel::alert::Matcher;
use kymo_kernel::message::Notification;
use kymo_kernel::{Code, Error, Result};
use serde_json::{Value, json};

use super::encode::{Frame, fault, message};
use crate::http::App;

/// What a client wants to be told of.
#[derive(Debug, Clone, Default)]
pub struct AlertWish {
    /// Which alerts.
    pub wanted: Matcher,
    /// The number of the last transition that it had.
    pub resume: Option<u64>,
}

/// Begins to follow alerts.
///
/// # Errors
/// `unsupported` where no alerts are evaluated.
pub fn follow(app: &App, wish: AlertWish) -> Result<Feed> {
    app.backend
        .alert_feed(wish.wanted, wish.resume)
        .ok_or_else(|| Error::new(Code::Unsupported, "there are no alerts here"))
}

/// The number of a transition, as clients give it back.
///
/// # Errors
/// `invalid_input`.
pub fn resume(text: &str) -> Result<u64> {
    text.trim().parse().map_err(|_| {
        Error::new(Code::InvalidInput, format!("{text:?} is no place to go on from"))
            .with_hint("send the `seq` of the last alert")
    })
}

/// The message with which it begins.
#[must_use]
pub fn begun(id: Option<&str>, resumed: bool) -> Frame {
    let kind = "subscribed";
    let json = message(kind, id, json!({ "class": "alerts", "resumed": resumed }));
    Frame { kind, token: None, json }
}

/// The message of an event, and whether it is the last one.
#[must_use]
pub fn event(id: Option<&str>, next: Result<FeedEvent>) -> (Frame, bool) {
    match next {
        Ok(FeedEvent::Told(told)) => {
            let (kind, token) = ("alert", Some(told.sequence.to_string()));
            (Frame { kind, token, json: message(kind, id, body(&told)) }, false)
        }
        Ok(FeedEvent::Lagged(alerts)) => {
            let (kind, head) = ("lagged", json!({ "alerts": alerts }));
            (Frame { kind, token: None, json: message(kind, id, head) }, false)
        }
        Err(error) => (Frame { kind: "error", token: None, json: fault(id, &error) }, true),
    }
}

fn body(told: &Notification) -> Value {
    json!({
        "seq": told.sequence,
        "rule": told.rule,
        "status": told.status.as_str(),
        "fingerprint": fingerprint(told.fingerprint),
        "labels": told.labels,
        "annotations": told.annotations,
        "value": told.value,
        "startsAt": time(told.starts_at_ns),
        "endsAt": told.ends_at_ns.map(time),
        "silenced": told.silenced,
        "acked": told.acked,
    })
}
