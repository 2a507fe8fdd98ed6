//! `/query`: the few statements of InfluxQL that agents send before they write, and the
//! seed's `{"query": sql}`.
//!
//! Telegraf creates its database when it starts; others list databases or measurements to
//! see whether the server is there. All else is answered with the way to SQL.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::TryStreamExt;
use kymo_kernel::message::{Ddl, Outcome};
use kymo_kernel::schema::DEFAULT_SCHEMA;
use kymo_kernel::{Code, Error, Result};
use serde_json::{Value, json};

use super::App;
use super::format::{Encoder, Format};
use super::parameters::Parameters;
use super::query::{content_type, from_json, read_text};
use super::respond::Api;
use super::statement::run;
use crate::auth::Identity;
use crate::error;

/// Rows that the JSON answer of `{"query": …}` may take; larger results have a streaming path.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// `GET /query?q=`.
pub async fn get(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
) -> Response {
    influxql(&app, &identity, &Parameters::read(query.unwrap_or_default().as_bytes())).await
}

/// `POST /query`, with InfluxQL as a form or SQL as JSON.
pub async fn post(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    let bytes = match read_text(&app, &headers, body).await {
        Ok(bytes) => bytes,
        Err(error) => return Api::V1.refuse(&error),
    };
    if content_type(&headers).ends_with("json") {
        return match sql(&app, &identity, &bytes, &parameters).await {
            Ok(response) => response,
            Err(error) => refuse_sql(&error),
        };
    }
    influxql(&app, &identity, &Parameters::read(&bytes).or(parameters)).await
}

async fn sql(
    app: &App,
    identity: &Identity,
    body: &[u8],
    parameters: &Parameters,
) -> Result<Response> {
    let (ask, _) = from_json(parameters, body)?;
    let results = match run(app, identity, ask).await? {
        Outcome::Done { verb, rows, .. } => json!({ "command": verb, "rows": rows }),
        Outcome::Rows { schema, mut stream, .. } => {
            let mut encoder = Encoder::new(Format::Json, &schema)?;
            let mut rows = Vec::new();
            while let Some(batch) = stream.try_next().await? {
                rows.extend_from_slice(&encoder.batch(&batch)?);
                if rows.len() > MAX_ANSWER_BYTES {
                    return Err(Error::new(Code::TooLarge, "too many rows for one answer")
                        .with_hint("use /api/v3/query_sql, which streams"));
                }
            }
            rows.extend_from_slice(&encoder.finish()?);
            serde_json::from_slice(&rows)
                .map_err(|error| Error::internal(format!("rows as JSON: {error}")))?
        }
    };
    Ok(Json(json!({ "status": "ok", "results": results })).into_response())
}

/// The words of the seed that this form of the interface comes from: 400 for what does not
/// parse, 422 for what does not run.
fn refuse_sql(error: &Error) -> Response {
    let mut body = error::body(error);
    let mut response = Api::Own.refuse(error);
    if response.status() == StatusCode::BAD_REQUEST && error.code() != Code::Syntax {
        body["kind"] = json!("exec_error");
        response = Api::Own.answer(StatusCode::UNPROCESSABLE_ENTITY, error.message(), &body);
    }
    response
}

async fn influxql(app: &App, identity: &Identity, parameters: &Parameters) -> Response {
    let Some(text) = parameters.get("q") else {
        let error = Error::new(Code::InvalidInput, "missing required parameter \"q\"");
        return Api::V1.refuse(&error);
    };
    let mut results = Vec::new();
    for (id, statement) in text.split(';').map(str::trim).filter(|s| !s.is_empty()).enumerate() {
        let words = words(statement);
        let mut result = match one(app, identity, &words, parameters.get("db")).await {
            Ok(result) => result,
            Err(error) if error::retry_after(&error).is_some() => return Api::V1.refuse(&error),
            Err(error) => json!({ "error": error.message() }),
        };
        result["statement_id"] = json!(id);
        results.push(result);
    }
    Json(json!({ "results": results })).into_response()
}

/// Runs one statement of InfluxQL.
async fn one(
    app: &App,
    identity: &Identity,
    words: &[Word],
    database: Option<&str>,
) -> Result<Value> {
    let keywords: Vec<String> = words.iter().take(2).map(Word::keyword).collect();
    let keywords: Vec<&str> = keywords.iter().map(String::as_str).collect();
    match (keywords.as_slice(), words) {
        (["CREATE", "DATABASE"], [_, _, name, ..]) => {
            let name = name.0.clone();
            // Agents ask for what is there already, whoever they are.
            if !identity.admin && !app.backend.catalog().databases.contains(&name) {
                return Err(Error::new(
                    Code::NotAuthorized,
                    format!(
                        "CREATE DATABASE needs an administrator, and {:?} is none",
                        identity.name
                    ),
                )
                .with_hint("databases are also made by writing to them"));
            }
            app.backend.ddl(Ddl::CreateDatabase { name, if_not_exists: true }).await?;
            Ok(json!({}))
        }
        (["SHOW", "DATABASES"], [_, _]) => {
            let catalog = app.backend.catalog();
            Ok(series("databases", catalog.databases.iter().map(String::as_str)))
        }
        (["SHOW", "MEASUREMENTS"], [_, _, rest @ ..]) => {
            let named = match rest {
                [on, name, ..] if on.keyword() == "ON" => Some(name.0.as_str()),
                _ => None,
            };
            let database = named
                .or(database)
                .ok_or_else(|| Error::new(Code::InvalidInput, "database name required"))?;
            let catalog = app.backend.catalog();
            if !catalog.databases.contains(database) {
                let text = format!("database not found: {database}");
                return Err(Error::new(Code::DatabaseNotFound, text));
            }
            let tables: BTreeSet<&str> = catalog
                .names
                .keys()
                .filter(|name| name.database == database && name.schema == DEFAULT_SCHEMA)
                .map(|name| name.table.as_str())
                .collect();
            Ok(series("measurements", tables.into_iter()))
        }
        _ => Err(Error::new(
            Code::Unsupported,
            "this InfluxQL statement is not supported: ask in SQL at /api/v3/query_sql",
        )),
    }
}

fn series<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> Value {
    let values: Vec<Value> = values.map(|value| json!([value])).collect();
    if values.is_empty() {
        return json!({});
    }
    json!({ "series": [{ "name": name, "columns": ["name"], "values": values }] })
}

/// A word, or a quoted name without its quotes.
struct Word(String, bool);

impl Word {
    fn keyword(&self) -> String {
        if self.1 { String::new() } else { self.0.to_ascii_uppercase() }
    }
}

fn words(statement: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = statement.trim_start();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or(quoted.len());
            words.push(Word(quoted[..end].to_owned(), true));
            rest = quoted.get(end + 1..).unwrap_or_default().trim_start();
        } else {
            let end = rest.find(|letter: char| letter.is_whitespace() || letter == '"');
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            words.push(Word(word.to_owned(), false));
            rest = after.trim_start();
        }
    }
    words
}
