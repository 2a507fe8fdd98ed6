//! Channels: where alerts go, as settings and statements define them.

use std::fmt;

use crate::error::{Code, Error, Result};

/// How a channel is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// A request for each alert, in the form of Alertmanager's webhooks.
    Webhook,
    /// Alertmanager's own interface, told again and again what fires.
    Alertmanager,
    /// Lines in the server's log.
    Log,
}

impl ChannelKind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelKind::Webhook => "webhook",
            ChannelKind::Alertmanager => "alertmanager",
            ChannelKind::Log => "log",
        }
    }

    /// The kind of a word.
    ///
    /// # Errors
    /// `invalid_input`.
    pub fn from_word(word: &str) -> Result<ChannelKind> {
        [ChannelKind::Webhook, ChannelKind::Alertmanager, ChannelKind::Log]
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .ok_or_else(|| {
                Error::new(Code::InvalidInput, format!("there is no type of channel {word:?}"))
                    .with_hint("use webhook, alertmanager or log")
            })
    }
}

/// A channel.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelDef {
    /// The name that `NOTIFY` uses.
    pub name: String,
    /// How it is spoken to.
    pub kind: ChannelKind,
    /// Where requests go; empty for the log.
    pub url: String,
    /// What requests are signed with; empty where they are not.
    pub secret: String,
}

impl ChannelDef {
    /// The address without what may be a secret: account, path and parameters.
    #[must_use]
    pub fn shown_url(&self) -> String {
        let Some((scheme, rest)) = self.url.split_once("://") else { return String::new() };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let more = if path.trim_start_matches('/').is_empty() { "" } else { "/…" };
        format!("{scheme}://{host}{more}")
    }
}

/// The error for a channel that does not exist.
#[must_use]
pub fn no_channel(name: &str) -> Error {
    Error::new(Code::AlertNotFound, format!("channel {name:?} does not exist"))
        .with_hint("SHOW ALERT CHANNELS lists those that do")
}

/// Never with its secrets.
impl fmt::Debug for ChannelDef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.name, self.kind.as_str(), self.shown_url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_channel_has_no_secret() {
        for (url, shown) in [
            ("https://hooks.example.org/T0/B1/x", "https://hooks.example.org/…"),
            ("http://ada:pw@localhost:9093/", "http://localhost:9093"),
            ("http://localhost?token=x", "http://localhost/…"),
            ("http://a:1#x/@b", "http://a:1/…"),
            ("", ""),
        ] {
            let kind = ChannelKind::Webhook;
            let (name, secret) = ("ops".to_owned(), "sesame".to_owned());
            let channel = ChannelDef { name, kind, url: url.to_owned(), secret };
            assert_eq!(channel.shown_url(), shown);
            assert!(!format!("{channel:?}").contains("sesame"));
        }
        assert_eq!(ChannelKind::from_word("log").unwrap(), ChannelKind::Log);
        assert_eq!(ChannelKind::from_word("pigeon").unwrap_err().code(), Code::InvalidInput);
    }
}
