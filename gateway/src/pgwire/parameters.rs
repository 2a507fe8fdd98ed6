//! Run-time parameters as the protocol sees them: what a client gives at start-up, what the
//! server reports, and what the settings of a session mean for its output.

use std::collections::BTreeMap;
use std::time::Duration;

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::startup::ParameterStatus;
use kymo_kernel::message::SessionContext;
use kymo_kernel::{Code, Error, Result};

use super::encode::Style;
use super::wire::Wire;

/// The version of PostgreSQL whose behaviour clients may expect.
pub const SERVER_VERSION: &str = "16.6";

/// The parameters that are reported at start-up and whenever they change, with their
/// defaults. The names are spelled as PostgreSQL reports them.
const REPORTED: &[(&str, &str)] = &[
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", SERVER_VERSION),
    ("session_authorization", ""),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "UTC"),
];

/// What the client has been told.
#[derive(Default)]
pub(super) struct Reported(Vec<String>);

impl Reported {
    /// Tells the client every value that is new to it.
    pub(super) fn refresh(&mut self, context: &SessionContext, admin: bool, wire: &mut Wire) {
        let now: Vec<String> =
            REPORTED.iter().map(|(name, default)| current(name, default, context, admin)).collect();
        for (index, ((name, _), value)) in REPORTED.iter().zip(&now).enumerate() {
            if self.0.get(index) != Some(value) {
                let status = ParameterStatus::new((*name).to_owned(), value.clone());
                wire.put(&PgWireBackendMessage::ParameterStatus(status));
            }
        }
        self.0 = now;
    }
}

fn current(name: &str, default: &str, context: &SessionContext, admin: bool) -> String {
    match name {
        "is_superuser" => (if admin { "on" } else { "off" }).to_owned(),
        "session_authorization" => context.user.clone(),
        // Dates, intervals and text leave in one form whatever was asked for.
        "DateStyle" | "IntervalStyle" | "client_encoding" => default.to_owned(),
        _ => setting(context, name).unwrap_or(default).to_owned(),
    }
}

fn setting<'a>(context: &'a SessionContext, name: &str) -> Option<&'a str> {
    context.settings.get(&name.to_ascii_lowercase()).map(String::as_str)
}

/// What the session's settings mean for text output.
pub(super) fn style(context: &SessionContext) -> Style {
    let zone = setting(context, "TimeZone")
        .filter(|zone| !zone.eq_ignore_ascii_case("utc"))
        .and_then(|zone| zone.parse().ok());
    Style { zone }
}

/// The session's `statement_timeout`: milliseconds unless a unit follows; 0 means none.
pub(super) fn statement_timeout(context: &SessionContext) -> Option<Duration> {
    let text = setting(context, "statement_timeout")?.trim();
    let split = text.find(|each: char| each.is_ascii_alphabetic()).unwrap_or(text.len());
    let (count, unit) = text.split_at(split);
    let count: u64 = count.trim().parse().ok()?;
    let ms = match unit {
        "us" => count / 1000,
        "s" => count.saturating_mul(1000),
        "min" => count.saturating_mul(60_000),
        "h" => count.saturating_mul(3_600_000),
        "d" => count.saturating_mul(86_400_000),
        _ => count,
    };
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// What a start-up packet asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) user: String,
    pub(super) database: Option<String>,
    pub(super) settings: BTreeMap<String, String>,
    /// Protocol options (`_pq_.…`), none of which is known here.
    pub(super) unknown_options: Vec<String>,
}

impl Wanted {
    /// Reads the names and values of a start-up packet.
    ///
    /// # Errors
    /// `not_authenticated` without a user, `unsupported` for replication and for an encoding
    /// other than UTF-8.
    pub(super) fn read(pairs: Vec<(String, String)>) -> Result<Wanted> {
        let mut wanted = Wanted {
            user: String::new(),
            database: None,
            settings: BTreeMap::new(),
            unknown_options: Vec::new(),
        };
        for (name, value) in pairs {
            match name.as_str() {
                "user" => wanted.user = value,
                "database" => wanted.database = Some(value).filter(|name| !name.is_empty()),
                "options" => wanted.settings.extend(options(&value)),
                "replication" if !matches!(value.as_str(), "false" | "off" | "no" | "0") => {
                    return Err(Error::new(Code::Unsupported, "replication is not supported"));
                }
                "replication" => {}
                _ if name.starts_with("_pq_.") => wanted.unknown_options.push(name),
                _ => {
                    wanted.settings.insert(name.to_ascii_lowercase(), value);
                }
            }
        }
        if wanted.user.is_empty() {
            return Err(Error::new(
                Code::NotAuthenticated,
                "no PostgreSQL user name specified in startup packet",
            ));
        }
        if let Some(encoding) = wanted.settings.remove("client_encoding") {
            check_encoding(&encoding)?;
        }
        Ok(wanted)
    }
}

fn check_encoding(name: &str) -> Result<()> {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.to_ascii_lowercase().as_str() {
        // SQL_ASCII means "whatever it is"; it is UTF-8.
        "utf8" | "unicode" | "sqlascii" => Ok(()),
        _ => Err(Error::new(Code::Unsupported, format!("client encoding {name} is not supported"))
            .with_hint("set client_encoding (or PGCLIENTENCODING) to UTF8")),
    }
}

/// `-c name=value` and `--name=value`, with backslashes before blanks within a value.
fn options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let Some(last) = words.last_mut() else { break };
        match letter {
            '\\' => last.extend(letters.next()),
            _ if letter.is_whitespace() => words.push(String::new()),
            _ => last.push(letter),
        }
    }
    let mut found = Vec::new();
    for word in words {
        let word = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(&word);
        if let Some((name, value)) = word.split_once('=') {
            found.push((name.trim().replace('-', "_").to_ascii_lowercase(), value.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_start_up_packet_is_read_with_its_options() {
        let wanted = Wanted::read(pairs(&[
            ("user", "ann"),
            ("database", "kymo"),
            ("options", r"-c statement_timeout=5s --application-name=a\ b -csearch_path=x"),
            ("TimeZone", "UTC"),
            ("client_encoding", "'utf-8'"),
            ("_pq_.x", "1"),
        ]))
        .unwrap();
        assert_eq!(wanted.user, "ann");
        assert_eq!(wanted.settings["statement_timeout"], "5s");
        assert_eq!(wanted.settings["application_name"], "a b");
        assert_eq!(wanted.settings["search_path"], "x");
        assert_eq!(wanted.settings["timezone"], "UTC");
        assert_eq!(wanted.unknown_options, ["_pq_.x"]);
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        assert!(Wanted::read(pairs(&[("database", "x")])).is_err());
        assert!(Wanted::read(pairs(&[("user", "a"), ("replication", "database")])).is_err());
        assert!(Wanted::read(pairs(&[("user", "a"), ("client_encoding", "LATIN1")])).is_err());
    }

    #[test]
    fn timeouts_have_units() {
        let timeout = |text: &str| {
            let settings = [("statement_timeout".to_owned(), text.to_owned())].into();
            statement_timeout(&SessionContext {
                user: String::new(),
                admin: false,
                database: String::new(),
                schema: String::new(),
                settings,
                read_only: false,
            })
        };
        assert_eq!(timeout("500"), Some(Duration::from_millis(500)));
        assert_eq!(timeout("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(timeout("2 s"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("0"), None);
    }
}
