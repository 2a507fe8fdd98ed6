//! Writes: line protocol in the dialects of InfluxDB 1, 2 and 3, and JSON records.
//!
//! A body is read, parsed and sent to the system; then the dialect says what became of it.
//! They differ in their parameters, in whether one bad line costs the others, and in the
//! words of an error. Success is 204 in all of them: Telegraf takes anything else for a
//! failure.

mod answer;
mod dialect;
mod records;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kymo_kernel::message::{Acked, Durability, Write};
use kymo_kernel::schema::TableBatch;
use kymo_kernel::{Code, Error, Result};
use tracing::Instrument;

use super::body::{self, Content, Limits, SMALL_BYTES};
use super::guard::shutting_down;
use super::parameters::Parameters;
use super::respond::Api;
use super::{App, Backend};
use crate::line_protocol::{self, LineError, Options, Precision};
use dialect::Request;

/// Where the rows of an accepted write lie, for clients that want to read them elsewhere.
pub const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("x-consistency-token");
/// How many rows of an accepted write the transforms of their tables refused, where any were.
pub const REFUSED_ROWS: HeaderName = HeaderName::from_static("x-kymo-refused-rows");

/// `POST /write`, as InfluxDB 1 has it.
pub async fn v1(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    lines(app, Api::V1, query, &headers, body).await
}

/// `POST /api/v2/write`, as InfluxDB 2 has it.
pub async fn v2(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    lines(app, Api::V2, query, &headers, body).await
}

/// `POST /api/v3/write_lp`, as InfluxDB 3 has it.
pub async fn v3(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    lines(app, Api::V3, query, &headers, body).await
}

/// `POST /write/{database}`: records in JSON.
pub async fn json(
    State(app): State<App>,
    Path(place): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    match records::take(&app, &place, &parameters, &headers, body).await {
        Ok(response) => response,
        Err(error) => Api::Own.refuse(&error),
    }
}

async fn lines(
    app: App,
    api: Api,
    query: Option<String>,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let request = match dialect::request(api, &parameters, &app.backend.catalog()) {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    let content = match receive(&app, headers, body).await {
        Ok(content) => content,
        Err(error) => return api.refuse(&error),
    };
    match take_lines(&app, &request, content).await {
        Ok(taken) => answer::lines(&request, &taken),
        Err(error) => api.refuse(&error),
    }
}

/// What became of a body of lines.
struct Taken {
    body: bytes::Bytes,
    /// Whether there was nothing in it but comments.
    empty: bool,
    kept: u64,
    refused: u64,
    position: Option<kymo_kernel::ids::Position>,
    /// The bad lines, in order, as far as they are reported.
    errors: Vec<LineError>,
    bad_lines: u64,
}

async fn receive(app: &App, headers: &HeaderMap, body: Body) -> Result<Content> {
    let ingest = &app.settings.ingest;
    let limits = Limits {
        bytes: ingest.max_body_bytes,
        time: Duration::from_millis(ingest.body_timeout_ms),
        turns: &app.parsing,
    };
    let reading = body::read(headers, body, &limits).instrument(tracing::info_span!("receive"));
    tokio::select! {
        content = reading => content,
        // A body that has not arrived is not accepted: its sender keeps it.
        () = app.draining() => Err(shutting_down()),
    }
}

async fn take_lines(app: &App, request: &Request, content: Content) -> Result<Taken> {
    let options = line_options(app, &request.database, request.precision);
    let body = content.bytes.clone();
    let backend = Arc::clone(&app.backend);
    let parsed = off_the_sockets(content, move |bytes| {
        line_protocol::parse(bytes, &*backend.catalog(), &options)
    })
    .await?;
    let mut taken = Taken {
        body,
        empty: parsed.rows == 0 && parsed.bad_lines == 0,
        kept: 0,
        refused: 0,
        position: None,
        errors: parsed.errors,
        bad_lines: parsed.bad_lines,
    };
    if parsed.batches.is_empty() || !request.keeps_good_lines(&taken) {
        return Ok(taken);
    }
    let acked = write(&*app.backend, parsed.batches, request.durability, request.partial).await;
    match acked {
        Ok(acked) => add_acked(&mut taken, acked, app.settings.ingest.max_reported_errors),
        Err(error) if request.refuses_rows(&error) => add_refusal(&mut taken, error),
        Err(error) => return Err(error),
    }
    Ok(taken)
}

fn line_options(app: &App, database: &str, precision: Precision) -> Options {
    let ingest = &app.settings.ingest;
    Options {
        database: database.to_owned(),
        precision,
        now_ns: app.backend.now_ns(),
        max_line_bytes: usize::try_from(ingest.max_line_bytes).unwrap_or(usize::MAX),
        max_columns: ingest.max_columns,
        max_tables: ingest.max_tables,
        max_errors: ingest.max_reported_errors,
    }
}

/// Parses here where it is quick, else on a thread that may take its time. The turn of a
/// large body is given back when it has been parsed.
async fn off_the_sockets<T: Send + 'static>(
    content: Content,
    parse: impl FnOnce(&[u8]) -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::info_span!("parse", bytes = content.bytes.len());
    if content.bytes.len() <= SMALL_BYTES {
        return span.in_scope(|| parse(&content.bytes));
    }
    tokio::task::spawn_blocking(move || {
        let _turn = content.turn;
        span.in_scope(|| parse(&content.bytes))
    })
    .await
    .map_err(|error| Error::internal(format!("parse a body: {error}")))?
}

async fn write(
    backend: &dyn Backend,
    batches: Vec<TableBatch>,
    durability: Option<Durability>,
    partial: bool,
) -> Result<Acked> {
    backend
        .write(Write { batches, durability, create: true, partial })
        .instrument(tracing::info_span!("write"))
        .await
}

/// Adds the rows that the system left out to the lines that were bad before.
fn add_acked(taken: &mut Taken, acked: Acked, max_errors: usize) {
    taken.kept = acked.rows;
    taken.refused = acked.refused;
    taken.position = acked.position;
    taken.bad_lines += acked.rejected.len() as u64;
    let room = max_errors.saturating_sub(taken.errors.len());
    let late: Vec<LineError> = acked
        .rejected
        .into_iter()
        .take(room)
        .map(|row| LineError {
            line: row.line,
            span: line_span(&taken.body, row.line),
            error: row.error,
        })
        .collect();
    taken.errors.extend(late);
    taken.errors.sort_by_key(|error| error.line);
}

/// A whole request that was refused for what it holds.
fn add_refusal(taken: &mut Taken, error: Error) {
    taken.bad_lines += 1;
    taken.errors.push(LineError { line: 0, span: 0..0, error });
}

/// Where a line (from 1) stands in a body.
fn line_span(body: &[u8], line: u32) -> std::ops::Range<usize> {
    let Some(nth) = usize::try_from(line).ok().and_then(|line| line.checked_sub(1)) else {
        return 0..0;
    };
    let start = match nth {
        0 => 0,
        _ => match memchr::memchr_iter(b'\n', body).nth(nth - 1) {
            Some(line_end) => line_end + 1,
            None => return 0..0,
        },
    };
    let len = memchr::memchr(b'\n', &body[start..]).unwrap_or(body.len() - start);
    start..start + len
}

/// 204 with the position that a reader must reach to see the rows.
fn no_content(position: Option<kymo_kernel::ids::Position>) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    add_token(&mut response, position);
    response
}

fn add_token(response: &mut Response, position: Option<kymo_kernel::ids::Position>) {
    let token = position.and_then(|position| HeaderValue::from_str(&position.to_string()).ok());
    if let Some(token) = token {
        response.headers_mut().insert(CONSISTENCY_TOKEN, token);
    }
}

fn add_refused(response: &mut Response, rows: u64) {
    if rows > 0 {
        response.headers_mut().insert(REFUSED_ROWS, HeaderValue::from(rows));
    }
}

/// Whether an error is about the rows rather than about the server.
fn is_about_rows(code: Code) -> bool {
    matches!(code, Code::InvalidInput | Code::OutOfRange | Code::TypeConflict | Code::InvalidCast)
}
