//! Sends alerts to receivers over HTTP, as all clients of the binary do: trusting the
//! certificates of this machine, by no proxy, following no redirects.
//!
//! A request waits on a thread of its own, as many as channels have a request under way: a
//! receiver that hangs holds up nothing that others need.

use std::fmt::Write;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use futures::FutureExt;
use futures::future::BoxFuture;
use hmac::{Hmac, Mac};
use kymo_actors::notify::{Answer, Post, Request};
use kymo_config::settings::Alerts;
use kymo_kernel::env::Clock;
use kymo_kernel::pools;
use kymo_kernel::{Code, Error, Result};
use sha2::Sha256;
use tokio::sync::oneshot;
use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::http::header::RETRY_AFTER;

use crate::cli::client::{agent, roots};
use crate::http::admin::VERSION;

/// The header with the signature.
pub const SIGNATURE: &str = "x-kymo-signature";
/// Bytes of an answer that are kept where it says why not.
const SAID_BYTES: u64 = 300;

/// A client for receivers of alerts.
pub struct Sender {
    agent: Agent,
    clock: Arc<dyn Clock>,
}

impl Sender {
    /// A client.
    ///
    /// # Errors
    /// The certificates of this machine cannot be used.
    pub fn new(settings: &Alerts, clock: Arc<dyn Clock>) -> Result<Sender> {
        let agent = agent(roots(None)?)
            .timeout_global(Some(Duration::from_millis(settings.send_timeout_ms)))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .new_agent();
        Ok(Sender { agent, clock })
    }
}

impl Post for Sender {
    fn post(&self, request: Request) -> BoxFuture<'static, Result<Answer>> {
        let (agent, clock) = (self.agent.clone(), self.clock.clone());
        let (done, answered) = oneshot::channel();
        let sent = pools::thread("kymo-channel", move || {
            // Nobody waits any more where the channel was closed meanwhile.
            let _ = done.send(send(&agent, &*clock, &request));
        });
        async move {
            sent?;
            let ended = |_| Error::internal("the thread of a request ended without an answer");
            answered.await.map_err(ended)?
        }
        .boxed()
    }
}

fn send(agent: &Agent, clock: &dyn Clock, request: &Request) -> Result<Answer> {
    let mut sent = agent
        .post(&request.url)
        .header("content-type", "application/json")
        .header("user-agent", format!("kymo/{VERSION}"));
    if let Some(key) = &request.key {
        sent = sent.header("idempotency-key", key);
    }
    if let Some(secret) = &request.secret {
        sent = sent.header(SIGNATURE, signature(secret, request.at_s, &request.body));
    }
    let answer = sent.send(&request.body[..]).map_err(|error| match error {
        // It says the address, which may hold a secret.
        ureq::Error::BadUri(_) => Error::new(Code::Unsupported, "the address cannot be used"),
        error => Error::new(Code::Down, format!("no answer: {error}")),
    })?;
    let status = answer.status().as_u16();
    let retry_after = retry_after(answer.headers(), clock.now_ns());
    let mut said = Vec::new();
    if !(200..300).contains(&status) {
        // What does not come is not needed.
        let _ = answer.into_body().into_reader().take(SAID_BYTES).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Answer { status, retry_after, said })
}

/// The signature of a body: `t=<seconds>,v1=<hex of HMAC-SHA256 over "<seconds>.<body>">`. The
/// time is part of what is signed, so that an old request cannot be sent again by others.
#[must_use]
pub fn signature(secret: &str, at_s: i64, body: &[u8]) -> String {
    let mut text = format!("t={at_s},v1=");
    // A key of HMAC may have any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return text };
    mac.update(format!("{at_s}.").as_bytes());
    mac.update(body);
    for byte in mac.finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// How long the receiver asks to be left alone: in seconds, or until a time.
fn retry_after(headers: &HeaderMap, now_ns: i64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(text).ok()?.timestamp_nanos_opt()?;
    Some(Duration::from_nanos(u64::try_from(until.saturating_sub(now_ns)).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hmac, as the documentation does.
    #[test]
    fn signatures_are_those_that_receivers_compute() {
        assert_eq!(
            signature("sesame", 1_700_000_000, br#"{"status":"firing"}"#),
            "t=1700000000,v1=4b28e511929138c6cf2264ba9e475ec07c55ccb4675bac971a11468bec847fbc"
        );
        assert_ne!(signature("a", 1, b"x"), signature("a", 2, b"x"));
    }

    #[test]
    fn receivers_ask_for_a_pause_in_seconds_or_until_a_time() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, 1_700_000_000_000_000_000).map(|pause| pause.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Tue, 14 Nov 2023 22:14:20 GMT"), Some(60));
        assert_eq!(after("Tue, 14 Nov 2023 22:00:00 GMT"), Some(0));
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), 0), None);
    }
}
