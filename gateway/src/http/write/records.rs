//! JSON records: the request around them and its answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use kymo_kernel::schema::{DEFAULT_SCHEMA, TableName, check_name};
use kymo_kernel::{Code, Error, Result};
use serde_json::{Value, json};

use super::{add_refused, add_token, line_options, off_the_sockets, receive, write};
use crate::http::App;
use crate::http::parameters::Parameters;
use crate::http::respond::Api;
use crate::json_records::{self, Target};
use crate::line_protocol::Precision;

/// Takes the records of a body.
pub(super) async fn take(
    app: &App,
    place: &str,
    parameters: &Parameters,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response> {
    let target = target(place, parameters)?;
    let partial = parameters.flag("accept_partial", true);
    let precision = precision(parameters)?;
    let durability = super::dialect::durability(parameters)?;
    let content = receive(app, headers, body).await?;
    let options = line_options(app, &target.database, precision);
    let backend = Arc::clone(&app.backend);
    let mut parsed = off_the_sockets(content, move |bytes| {
        json_records::parse(bytes, &*backend.catalog(), &target, &options)
    })
    .await?;
    let mut position = None;
    let (mut written, mut refused) = (0, 0);
    if !parsed.batches.is_empty() && (partial || parsed.bad_records == 0) {
        let acked = write(&*app.backend, parsed.batches, durability, partial).await?;
        written = acked.rows;
        refused = acked.refused;
        position = acked.position;
        parsed.bad_records += acked.rejected.len() as u64;
        let room = app.settings.ingest.max_reported_errors.saturating_sub(parsed.errors.len());
        parsed
            .errors
            .extend(acked.rejected.into_iter().take(room).map(|row| (row.line, row.error)));
    }
    let mut response = if parsed.bad_records == 0 {
        Json(json!({ "status": "ok", "written": written })).into_response()
    } else {
        refuse(written, parsed.bad_records, &parsed.errors)
    };
    add_token(&mut response, position);
    add_refused(&mut response, refused);
    Ok(response)
}

fn refuse(written: u64, bad: u64, errors: &[(u32, Error)]) -> Response {
    let code = errors.first().map_or(Code::InvalidInput, |(_, error)| error.code());
    let message = format!("{bad} of the records could not be taken, {written} were written");
    let details: Vec<Value> = errors
        .iter()
        .map(|(record, error)| {
            json!({ "record": record, "code": error.code().as_str(), "message": error.message() })
        })
        .collect();
    let body = json!({
        "status": "error",
        "error": message,
        "code": code.as_str(),
        "message": message,
        "hint": "see errors for each record, counted from 1",
        "written": written,
        "dropped": bad,
        "errors": details,
    });
    Api::Own.answer(StatusCode::BAD_REQUEST, &message, &body)
}

/// The path is a database, `database/table` or `database/schema/table` with the slashes
/// percent-encoded.
fn target(place: &str, parameters: &Parameters) -> Result<Target> {
    let parts: Vec<&str> = place.split('/').collect();
    let (database, schema, table) = match parts.as_slice() {
        [database] => (*database, DEFAULT_SCHEMA, None),
        [database, table] => (*database, DEFAULT_SCHEMA, Some(*table)),
        [database, schema, table] => (*database, *schema, Some(*table)),
        _ => {
            return Err(Error::new(Code::InvalidInput, format!("no table is called {place:?}"))
                .with_hint("use /write/database, or /write/database%2Fschema%2Ftable"));
        }
    };
    let table = table.or_else(|| parameters.get("table"));
    let name = TableName {
        database: database.to_owned(),
        schema: schema.to_owned(),
        table: table.unwrap_or("records").to_owned(),
    };
    name.check()?;
    let tags = parameters.get("tags").unwrap_or_default();
    let tags: Vec<String> =
        tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
    for tag in &tags {
        check_name("tag", tag)?;
    }
    Ok(Target {
        database: name.database,
        schema: name.schema,
        table: table.map(str::to_owned),
        tags,
    })
}

fn precision(parameters: &Parameters) -> Result<Precision> {
    Ok(match parameters.get("precision").unwrap_or("auto") {
        "auto" => Precision::Auto,
        "ns" | "n" => Precision::Nanoseconds,
        "us" | "u" => Precision::Microseconds,
        "ms" => Precision::Milliseconds,
        "s" => Precision::Seconds,
        "m" => Precision::Minutes,
        "h" => Precision::Hours,
        other => {
            return Err(Error::new(Code::InvalidInput, format!("invalid precision {other:?}"))
                .with_hint("use auto, ns, us, ms, s, m or h"));
        }
    })
}
