//! What a dialect asks for: its parameters and their rules.

use axum::http::StatusCode;
use axum::response::Response;
use kymo_kernel::message::Durability;
use kymo_kernel::schema::check_space;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Code, Error};

use super::{Taken, is_about_rows};
use crate::http::parameters::Parameters;
use crate::http::respond::Api;
use crate::line_protocol::Precision;

/// A write of line protocol, as its parameters describe it.
pub(super) struct Request {
    pub api: Api,
    pub database: String,
    pub precision: Precision,
    pub durability: Option<Durability>,
    /// Whether good lines are kept beside bad ones.
    pub partial: bool,
}

impl Request {
    /// Whether the good lines of a body with these bad ones are to be written.
    pub(super) fn keeps_good_lines(&self, taken: &Taken) -> bool {
        if taken.bad_lines == 0 || self.partial {
            // InfluxDB 2 refuses a body with a line that does not parse, but keeps the
            // others beside a type conflict.
            return self.api != Api::V2 || !has_syntax_errors(taken);
        }
        false
    }

    /// Whether an error of the write is to be told as that of its lines.
    pub(super) fn refuses_rows(&self, error: &Error) -> bool {
        is_about_rows(error.code())
    }
}

/// Whether any line is not line protocol at all. Errors that are only counted came after
/// those that are kept, and cannot be told: then the kept ones decide.
pub(super) fn has_syntax_errors(taken: &Taken) -> bool {
    taken.errors.iter().any(|error| error.error.code() != Code::TypeConflict)
}

/// Reads the parameters of a dialect.
pub(super) fn request(
    api: Api,
    parameters: &Parameters,
    catalog: &Snapshot,
) -> Result<Request, Box<Response>> {
    let request = match api {
        Api::V1 => v1(parameters, catalog),
        Api::V2 => v2(parameters, catalog),
        _ => v3(parameters),
    };
    let durability = durability(parameters).map_err(|error| bad(api, error.message()))?;
    Ok(Request { durability, ..request? })
}

/// How durable a request wants to be when it is answered: `durability=MODE`, the same on every
/// endpoint, or `no_sync=true` as InfluxDB 3 has it. What a request asks for is what it gets, be
/// that more or less than the server's own mode; two wishes that differ are refused.
///
/// # Errors
/// `invalid_input` for a mode that does not exist, and for a contradiction.
pub(super) fn durability(parameters: &Parameters) -> Result<Option<Durability>, Error> {
    let unsynced = parameters.flag("no_sync", false).then_some(Durability::OsDefault);
    let Some(text) = parameters.get("durability") else { return Ok(unsynced) };
    let asked = text.parse::<Durability>().map_err(|error| {
        let hint = error.hint().unwrap_or_default();
        Error::new(Code::InvalidInput, format!("{} ({hint})", error.message()))
    })?;
    if unsynced.is_some_and(|unsynced| unsynced != asked) {
        let text = format!("no_sync=true asks for os_default, durability for {text}: choose one");
        return Err(Error::new(Code::InvalidInput, text));
    }
    Ok(Some(asked))
}

fn v1(parameters: &Parameters, catalog: &Snapshot) -> Result<Request, Box<Response>> {
    let database = parameters.get("db").ok_or_else(|| bad(Api::V1, "database is required"))?;
    let precision = match parameters.get("precision").unwrap_or("n") {
        "n" | "ns" => Precision::Nanoseconds,
        "u" | "us" | "µ" => Precision::Microseconds,
        "ms" => Precision::Milliseconds,
        "s" => Precision::Seconds,
        "m" => Precision::Minutes,
        "h" => Precision::Hours,
        other => {
            let text = format!("invalid precision {other:?} (use n, u, ms, s, m or h)");
            return Err(bad(Api::V1, &text));
        }
    };
    if !catalog.databases.contains(database) {
        let error = Error::new(Code::DatabaseNotFound, format!("database not found: {database:?}"));
        return Err(Box::new(Api::V1.refuse_with(StatusCode::NOT_FOUND, &error)));
    }
    if let Some(policy) = parameters.get("rp").filter(|rp| !matches!(*rp, "autogen" | "default")) {
        // The status is InfluxDB's; Telegraf drops such a batch by this text.
        let error = Error::new(Code::Unsupported, format!("retention policy not found: {policy}"));
        return Err(Box::new(Api::V1.refuse_with(StatusCode::INTERNAL_SERVER_ERROR, &error)));
    }
    let database = database.to_owned();
    Ok(Request { api: Api::V1, database, precision, durability: None, partial: true })
}

fn v2(parameters: &Parameters, catalog: &Snapshot) -> Result<Request, Box<Response>> {
    let precision = match parameters.get("precision").unwrap_or("ns") {
        "ns" => Precision::Nanoseconds,
        "us" => Precision::Microseconds,
        "ms" => Precision::Milliseconds,
        "s" => Precision::Seconds,
        other => {
            let text = format!("invalid precision {other:?} (use ns, us, ms or s)");
            return Err(bad(Api::V2, &text));
        }
    };
    // A bucket of a database that came from InfluxDB 1 is called `database/policy`.
    let bucket = parameters.get("bucket").or_else(|| parameters.get("bucketID"));
    let known = bucket.and_then(|bucket| {
        let short = bucket.strip_suffix("/autogen").unwrap_or(bucket);
        [bucket, short].into_iter().find(|name| catalog.databases.contains(*name))
    });
    let Some(database) = known.map(str::to_owned) else {
        let error = match bucket {
            None => Error::new(Code::DatabaseNotFound, "bucket not found"),
            Some(bucket) => {
                Error::new(Code::DatabaseNotFound, format!("bucket {bucket:?} not found"))
            }
        };
        return Err(Box::new(Api::V2.refuse_with(StatusCode::NOT_FOUND, &error)));
    };
    Ok(Request { api: Api::V2, database, precision, durability: None, partial: true })
}

fn v3(parameters: &Parameters) -> Result<Request, Box<Response>> {
    let database =
        parameters.get("db").ok_or_else(|| bad(Api::V3, "missing query parameter `db`"))?;
    if let Err(error) = check_space("database", database) {
        return Err(Box::new(Api::V3.refuse(&error)));
    }
    let precision = match parameters.get("precision").unwrap_or("auto") {
        "auto" => Precision::Auto,
        "s" | "second" | "seconds" => Precision::Seconds,
        "ms" | "millisecond" | "milliseconds" => Precision::Milliseconds,
        "us" | "u" | "microsecond" | "microseconds" => Precision::Microseconds,
        "ns" | "n" | "nanosecond" | "nanoseconds" => Precision::Nanoseconds,
        other => {
            let text = format!("invalid precision {other:?} (use auto, s, ms, us or ns)");
            return Err(bad(Api::V3, &text));
        }
    };
    Ok(Request {
        api: Api::V3,
        database: database.to_owned(),
        precision,
        durability: None,
        partial: parameters.flag("accept_partial", true),
    })
}

fn bad(api: Api, message: &str) -> Box<Response> {
    let error = Error::new(Code::InvalidInput, message);
    Box::new(api.refuse_with(StatusCode::BAD_REQUEST, &error))
}
