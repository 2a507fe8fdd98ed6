//! `/api/v3/query_sql` and `/sql`: a question in SQL, its rows streamed in the format asked for.
//!
//! GET reads only; POST takes any statement. The first batch is waited for before the answer
//! begins, so an error up to there has a status of its own. A later one can only break the
//! connection off (JSON Lines first says why), so that no client takes half an answer for a
//! whole one. A client that goes away drops the stream, which stops the query.

use axum::Extension;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use kymo_kernel::message::{BatchStream, Outcome};
use kymo_kernel::{Code, Error, Result};
use serde_json::{Value, json};

use super::App;
use super::body::{self, Limits};
use super::format::{Encoder, Format};
use super::parameters::Parameters;
use super::respond::Api;
use super::statement::{Ask, run};
use crate::auth::Identity;

/// `GET`: `?db=&q=&format=&params=`, reading only.
pub async fn get(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let asked = ask(&parameters, None, true);
    respond(&app, &identity, asked, &headers).await
}

/// `POST`: the same names as JSON or as a form, or SQL as plain text; any statement.
pub async fn post(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let asked = match read_text(&app, &headers, body).await {
        Ok(bytes) => from_body(&headers, parameters, &bytes),
        Err(error) => Err(error),
    };
    respond(&app, &identity, asked, &headers).await
}

/// Reads the body of a question, within the limit of SQL text.
///
/// # Errors
/// Those of [`body::read`].
pub async fn read_text(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes> {
    let limits = Limits {
        // Quotes and escapes of JSON and forms need room beside the text.
        bytes: app.settings.query.max_sql_bytes.saturating_mul(2),
        time: std::time::Duration::from_millis(app.settings.ingest.body_timeout_ms),
        turns: &app.parsing,
    };
    body::read(headers, body, &limits).await.map(|content| content.bytes)
}

/// What was asked, and in which format the answer is wanted.
pub type Asked = (Ask, Option<String>);

fn from_body(headers: &HeaderMap, parameters: Parameters, bytes: &[u8]) -> Result<Asked> {
    let content_type = content_type(headers);
    if content_type == "application/x-www-form-urlencoded" {
        return ask(&Parameters::read(bytes).or(parameters), None, false);
    }
    let trimmed = bytes.trim_ascii_start();
    if content_type.ends_with("json") || trimmed.first() == Some(&b'{') {
        return from_json(&parameters, bytes);
    }
    let sql = std::str::from_utf8(bytes)
        .map_err(|_| Error::new(Code::InvalidInput, "the SQL text is not UTF-8"))?;
    let body = match sql.trim() {
        "" => None,
        sql => Some(json!({ "q": sql })),
    };
    ask(&parameters, body.as_ref(), false)
}

/// What a body of JSON asks; what it does not say, the parameters of the address may.
///
/// # Errors
/// `invalid_input` for a body that is not JSON or holds no SQL, `invalid_parameter` for
/// parameters that are not JSON.
pub fn from_json(parameters: &Parameters, bytes: &[u8]) -> Result<Asked> {
    let body: Value = serde_json::from_slice(bytes).map_err(|error| {
        Error::new(Code::InvalidInput, format!("the body is not JSON: {error}"))
            .with_hint(r#"send {"db": "…", "q": "SELECT …", "format": "json"}"#)
    })?;
    ask(parameters, Some(&body), false)
}

fn ask(parameters: &Parameters, body: Option<&Value>, read_only: bool) -> Result<Asked> {
    let text = |names: &[&str]| {
        names.iter().find_map(|name| {
            let in_body = body.and_then(|body| body.get(name)).and_then(Value::as_str);
            in_body.or_else(|| parameters.get(name)).map(str::to_owned)
        })
    };
    let sql = text(&["q", "query", "sql"]).ok_or_else(|| {
        Error::new(Code::InvalidInput, "the request has no SQL").with_hint("send it as `q`")
    })?;
    let given = match body.and_then(|body| body.get("params")) {
        Some(value) => Some(value.clone()),
        None => {
            parameters.get("params").map(serde_json::from_str).transpose().map_err(|error| {
                Error::new(Code::InvalidParameter, format!("`params` is not JSON: {error}"))
            })?
        }
    };
    let ask = Ask { sql, parameters: given, database: text(&["db", "database"]), read_only };
    Ok((ask, text(&["format"])))
}

/// The media type of a body, in lower case, without its parameters.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn respond(
    app: &App,
    identity: &Identity,
    asked: Result<Asked>,
    headers: &HeaderMap,
) -> Response {
    match answer(app, identity, asked, headers).await {
        Ok(response) => response,
        Err(error) => Api::Own.refuse(&error),
    }
}

async fn answer(
    app: &App,
    identity: &Identity,
    asked: Result<Asked>,
    headers: &HeaderMap,
) -> Result<Response> {
    let (ask, format) = asked?;
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::choose(format.as_deref(), accept)?;
    match run(app, identity, ask).await? {
        Outcome::Done { verb, rows, .. } => {
            Ok(Json(json!({ "status": "ok", "command": verb, "rows": rows })).into_response())
        }
        Outcome::Rows { schema, mut stream, .. } => {
            let mut encoder = Encoder::new(format, &schema)?;
            let head = match stream.next().await {
                Some(batch) => encoder.batch(&batch?)?,
                None => Bytes::new(),
            };
            let body = Body::from_stream(encoded(encoder, head, stream));
            let mut response = (StatusCode::OK, body).into_response();
            response.headers_mut().insert(CONTENT_TYPE, format.media_type());
            Ok(response)
        }
    }
}

/// The encoded answer, one piece a batch.
fn encoded(
    encoder: Encoder,
    head: Bytes,
    stream: BatchStream,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send {
    enum State {
        Running(Box<Encoder>, BatchStream),
        Broken(Error),
        Ended,
    }
    let rest =
        futures::stream::unfold(State::Running(Box::new(encoder), stream), |state| async move {
            let (mut encoder, mut stream) = match state {
                State::Running(encoder, stream) => (encoder, stream),
                // An error here makes the server close the connection without the end mark.
                State::Broken(error) => return Some((Err(error), State::Ended)),
                State::Ended => return None,
            };
            let step = match stream.next().await {
                Some(Ok(batch)) => encoder.batch(&batch),
                Some(Err(error)) => Err(error),
                None => return Some((encoder.finish(), State::Ended)),
            };
            match step {
                Ok(piece) => Some((Ok(piece), State::Running(encoder, stream))),
                Err(error) => {
                    tracing::warn!(code = error.code().as_str(), %error, "query failed midway");
                    match encoder.last_words(&error) {
                        Some(words) => Some((Ok(words), State::Broken(error))),
                        None => Some((Err(error), State::Ended)),
                    }
                }
            }
        });
    futures::stream::once(async move { Ok(head) })
        .chain(rest)
        .try_filter(|piece| std::future::ready(!piece.is_empty()))
        .map_err(std::io::Error::other)
}
