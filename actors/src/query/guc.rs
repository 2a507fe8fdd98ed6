//! Run-time parameters of a session, under PostgreSQL's names and rules.
//!
//! Most exist so that drivers find what they ask for; those with an effect say so. The values
//! live in the session's own [`SessionContext`], so one client's `SET` never reaches another.

use std::time::Duration;

use kymo_kernel::message::SessionContext;
use kymo_kernel::{Code, Error, Result};

use super::duration::Span;
use super::text::nearest;

/// The PostgreSQL version whose behaviour clients are told to expect.
pub(crate) const PG_VERSION: &str = "16.6";
/// The same as a number.
const PG_VERSION_NUM: &str = "160006";

/// How a parameter may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Any text.
    Free,
    /// `on` or `off`.
    Switch,
    /// A whole number, or a length of time that is kept in milliseconds.
    Millis,
    /// Only these values, without case.
    OneOf(&'static [&'static str]),
    /// A time zone; only UTC has an effect on answers, others on how clients show them.
    Zone,
    /// Not at all.
    Fixed,
}

struct Parameter {
    name: &'static str,
    default: &'static str,
    change: Change,
    about: &'static str,
}

macro_rules! parameters {
    ($($name:literal = $default:expr, $change:expr, $about:literal;)*) => {
        &[$(Parameter { name: $name, default: $default, change: $change, about: $about }),*]
    };
}

/// Sorted by name.
static PARAMETERS: &[Parameter] = parameters! {
    "application_name" = "", Change::Free, "name of the client program";
    "array_nulls" = "on", Change::Switch, "accepted without effect";
    "backslash_quote" = "safe_encoding", Change::Free, "accepted without effect";
    "bytea_output" = "hex", Change::OneOf(&["hex"]), "form of binary values";
    "check_function_bodies" = "on", Change::Switch, "accepted without effect";
    "client_encoding" = "UTF8", Change::OneOf(&["utf8", "utf-8", "unicode", "sql_ascii"]), "text is UTF-8";
    "client_min_messages" = "notice", Change::Free, "accepted without effect";
    "cursor_tuple_fraction" = "0.1", Change::Free, "accepted without effect";
    "datestyle" = "ISO, MDY", Change::Free, "dates are shown as ISO";
    "default_tablespace" = "", Change::Free, "accepted without effect";
    "default_transaction_deferrable" = "off", Change::Switch, "accepted without effect";
    "default_transaction_isolation" = "read committed", Change::Free, "accepted without effect";
    "default_transaction_read_only" = "off", Change::Switch, "accepted without effect";
    "escape_string_warning" = "on", Change::Switch, "accepted without effect";
    "extra_float_digits" = "1", Change::Free, "floats always show all of their digits";
    "geqo" = "on", Change::Switch, "accepted without effect";
    "idle_in_transaction_session_timeout" = "0", Change::Millis, "accepted without effect";
    "idle_session_timeout" = "0", Change::Millis, "accepted without effect";
    "in_hot_standby" = "off", Change::Fixed, "there are no standbys";
    "integer_datetimes" = "on", Change::Fixed, "timestamps are integers";
    "intervalstyle" = "postgres", Change::Free, "form of intervals";
    "is_superuser" = "on", Change::Fixed, "whether the user is an administrator";
    "jit" = "off", Change::Switch, "accepted without effect";
    "lc_collate" = "C", Change::Fixed, "text is ordered by its bytes";
    "lc_ctype" = "C.UTF-8", Change::Fixed, "classes of characters";
    "lc_messages" = "C", Change::Free, "accepted without effect";
    "lc_monetary" = "C", Change::Free, "accepted without effect";
    "lc_numeric" = "C", Change::Free, "accepted without effect";
    "lc_time" = "C", Change::Free, "accepted without effect";
    "lock_timeout" = "0", Change::Millis, "accepted without effect";
    "log_statement" = "none", Change::Free, "accepted without effect";
    "max_connections" = "1000", Change::Fixed, "see server.max_connections";
    "max_identifier_length" = "255", Change::Fixed, "bytes of a name";
    "max_index_keys" = "32", Change::Fixed, "columns of a key";
    "password_encryption" = "scram-sha-256", Change::Fixed, "how passwords are verified";
    "plan_cache_mode" = "auto", Change::Free, "accepted without effect";
    "quote_all_identifiers" = "off", Change::Switch, "accepted without effect";
    "role" = "none", Change::Free, "accepted without effect";
    "row_security" = "on", Change::Switch, "accepted without effect";
    "search_path" = "public", Change::Free, "the schema that unqualified names are looked up in";
    "server_encoding" = "UTF8", Change::Fixed, "text is UTF-8";
    "server_version" = PG_VERSION, Change::Fixed, "the PostgreSQL version to expect";
    "server_version_num" = PG_VERSION_NUM, Change::Fixed, "the PostgreSQL version to expect";
    "session_authorization" = "", Change::Fixed, "the user";
    "standard_conforming_strings" = "on", Change::OneOf(&["on", "true", "1", "yes"]), "backslashes in strings are plain";
    "statement_timeout" = "0", Change::Millis, "milliseconds that a statement may take; 0 for the server's limit";
    "synchronize_seqscans" = "on", Change::Switch, "accepted without effect";
    "synchronous_commit" = "on", Change::Free, "see journal.durability";
    "temp_buffers" = "1024", Change::Free, "accepted without effect";
    "timezone" = "UTC", Change::Zone, "the zone that clients show times in; stored times are UTC";
    "transaction_deferrable" = "off", Change::Switch, "accepted without effect";
    "transaction_isolation" = "read committed", Change::Free, "each statement sees what was acknowledged before it";
    "transaction_read_only" = "off", Change::Switch, "accepted without effect";
    "work_mem" = "4096", Change::Free, "see query.memory_bytes";
    "xmloption" = "content", Change::Free, "accepted without effect";
};

fn find(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|each| each.name == name)
}

/// The value that `SHOW name` answers.
///
/// # Errors
/// `setting_not_found` for names that nobody knows.
pub(crate) fn show(session: &SessionContext, name: &str) -> Result<String> {
    let name = name.to_lowercase();
    match name.as_str() {
        "search_path" => return Ok(session.schema.clone()),
        "session_authorization" => return Ok(session.user.clone()),
        "database" => return Ok(session.database.clone()),
        "schema" => return Ok(session.schema.clone()),
        "is_superuser" => return Ok(if session.admin { "on" } else { "off" }.to_owned()),
        _ => {}
    }
    if let Some(value) = session.settings.get(&name) {
        return Ok(value.clone());
    }
    find(&name).map(|each| each.default.to_owned()).ok_or_else(|| missing(&name))
}

fn missing(name: &str) -> Error {
    let error = Error::new(
        Code::SettingNotFound,
        format!("unrecognized configuration parameter \"{name}\""),
    );
    match nearest(name, PARAMETERS.iter().map(|each| each.name)) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"? SHOW ALL lists all")),
        None => error.with_hint("SHOW ALL lists all parameters"),
    }
}

/// Name, value and description of every parameter, for `SHOW ALL`.
pub(crate) fn all(session: &SessionContext) -> Vec<(String, String, String)> {
    let custom = session.settings.iter().filter(|(name, _)| find(name).is_none());
    let mut rows: Vec<_> = PARAMETERS
        .iter()
        .map(|each| {
            let value = show(session, each.name).unwrap_or_default();
            (each.name.to_owned(), value, each.about.to_owned())
        })
        .chain(custom.map(|(name, value)| (name.clone(), value.clone(), String::new())))
        .collect();
    rows.sort();
    rows
}

/// Checks a change and brings it into the form that is kept: the session's key and its value.
///
/// # Errors
/// `setting_not_found`, or `invalid_parameter` for a value that does not fit.
pub(crate) fn check(name: &str, value: Option<&str>) -> Result<(String, Option<String>)> {
    let name = name.to_lowercase();
    match name.as_str() {
        // The first schema of a search path is the one that counts.
        "search_path" => return Ok(("schema".to_owned(), value.and_then(first_schema))),
        "database" | "schema" => return Ok((name, value.map(str::to_owned))),
        _ => {}
    }
    let Some(parameter) = find(&name) else {
        // Names with a dot belong to programs and extensions: anything goes, as in PostgreSQL.
        if name.contains('.') && !name.starts_with("datafusion.") {
            return Ok((name, value.map(str::to_owned)));
        }
        return Err(missing(&name));
    };
    let Some(value) = value else { return Ok((name, None)) };
    let kept = match parameter.change {
        Change::Free => value.to_owned(),
        Change::Switch => switch(&name, value)?.to_owned(),
        Change::Millis => millis(&name, value)?.to_string(),
        Change::Zone => zone(value)?,
        Change::OneOf(allowed) => {
            if !allowed.iter().any(|each| each.eq_ignore_ascii_case(value)) {
                return Err(
                    invalid(&name, value).with_hint(format!("use {}", allowed.join(" or ")))
                );
            }
            match name.as_str() {
                "client_encoding" => "UTF8".to_owned(),
                "standard_conforming_strings" => "on".to_owned(),
                _ => value.to_owned(),
            }
        }
        Change::Fixed => {
            if value.eq_ignore_ascii_case(parameter.default) {
                return Ok((name, None));
            }
            return Err(Error::new(
                Code::InvalidParameter,
                format!("parameter \"{name}\" cannot be changed"),
            ));
        }
    };
    Ok((name, Some(kept)))
}

fn first_schema(path: &str) -> Option<String> {
    path.split(',')
        .map(|part| part.trim().trim_matches('"').to_owned())
        .find(|part| !part.is_empty() && part != "$user" && part != "pg_catalog")
}

fn invalid(name: &str, value: &str) -> Error {
    Error::new(
        Code::InvalidParameter,
        format!("invalid value for parameter \"{name}\": \"{value}\""),
    )
}

fn switch(name: &str, value: &str) -> Result<&'static str> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Ok("on"),
        "off" | "false" | "no" | "0" | "f" | "n" => Ok("off"),
        _ => Err(invalid(name, value).with_hint("use on or off")),
    }
}

fn millis(name: &str, value: &str) -> Result<u64> {
    if let Ok(number) = value.trim().parse::<u64>() {
        return Ok(number);
    }
    Span::read(value)?
        .and_then(Span::fixed_nanos)
        .and_then(|nanos| u64::try_from(nanos).ok())
        .map(|nanos| nanos.div_ceil(1_000_000))
        .ok_or_else(|| invalid(name, value).with_hint("use milliseconds, or a time such as '5s'"))
}

fn zone(value: &str) -> Result<String> {
    let plain = value.trim();
    if ["utc", "gmt", "z", "etc/utc", "default", "local"]
        .contains(&plain.to_ascii_lowercase().as_str())
    {
        return Ok("UTC".to_owned());
    }
    let known = plain.parse::<datafusion::arrow::array::timezone::Tz>().is_ok()
        || plain.parse::<f64>().is_ok_and(|hours| hours.abs() <= 15.0);
    if known { Ok(plain.to_owned()) } else { Err(invalid("TimeZone", value)) }
}

/// The session's `statement_timeout`, where it set one.
pub(crate) fn statement_timeout(session: &SessionContext) -> Option<Duration> {
    let millis = session.settings.get("statement_timeout")?.parse::<u64>().ok()?;
    (millis > 0).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionContext {
        SessionContext {
            user: "ada".into(),
            admin: true,
            database: "kymo".into(),
            schema: "public".into(),
            settings: Default::default(),
            read_only: false,
        }
    }

    #[test]
    fn the_table_is_sorted_and_shows_its_defaults() {
        assert!(PARAMETERS.is_sorted_by_key(|each| each.name));
        let session = session();
        for (name, value) in [
            ("server_version", "16.6"),
            ("TRANSACTION_ISOLATION", "read committed"),
            ("standard_conforming_strings", "on"),
            ("search_path", "public"),
            ("session_authorization", "ada"),
            ("jit", "off"),
        ] {
            assert_eq!(show(&session, name).unwrap(), value, "{name}");
        }
        let error = show(&session, "statement_timeut").unwrap_err();
        assert_eq!(error.code(), Code::SettingNotFound);
        assert!(error.hint().unwrap().contains("statement_timeout"));
        assert_eq!(all(&session).len(), PARAMETERS.len());
    }

    #[test]
    fn changes_are_checked_and_brought_into_one_form() {
        let kept = |name: &str, value: &str| {
            check(name, Some(value)).map(|(name, value)| (name, value.unwrap_or_default()))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(kept("Statement_Timeout", "500ms").unwrap(), pair("statement_timeout", "500"));
        assert_eq!(kept("statement_timeout", "1500").unwrap(), pair("statement_timeout", "1500"));
        assert_eq!(kept("search_path", "\"$user\", metrics").unwrap(), pair("schema", "metrics"));
        assert_eq!(kept("timezone", "utc").unwrap(), pair("timezone", "UTC"));
        assert_eq!(kept("jit", "FALSE").unwrap(), pair("jit", "off"));
        assert_eq!(kept("myapp.tenant", "x").unwrap(), pair("myapp.tenant", "x"));
        for (name, value) in [
            ("datafusion.execution.batch_size", "1"),
            ("nonsense", "1"),
            ("statement_timeout", "soon"),
            ("server_version", "9"),
            ("client_encoding", "LATIN1"),
            ("jit", "perhaps"),
            ("timezone", "Mars/Olympus"),
        ] {
            assert!(check(name, Some(value)).is_err(), "{name}");
        }
    }
}
