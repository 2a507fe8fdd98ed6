//! Operations: is it alive, is it ready, what is it doing.

pub mod measure;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use kymo_kernel::{Code, Error};
use serde_json::json;

use super::App;
use super::guard::INFLUX_VERSION;
use super::parameters::Parameters;
use super::respond::{Api, text};
pub use measure::{Timer, route_label};

/// Kymo's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The page for a browser that comes by.
pub async fn home() -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Kymo</title>\
         <style>body{{font:16px/1.5 system-ui;max-width:44rem;margin:3rem auto;padding:0 1rem}}\
         code{{background:#8882;padding:.1em .3em}}</style>\
         <h1>Kymo {VERSION}</h1><p>A time-series database. It takes line protocol and JSON, \
         and answers SQL over HTTP and the PostgreSQL protocol.</p><ul>\
         <li>Write: <code>POST /api/v3/write_lp?db=kymo</code>, <code>/api/v2/write</code>, \
         <code>/write</code>, JSON records at <code>/write/{{database}}</code></li>\
         <li>Ask: <code>GET /api/v3/query_sql?db=kymo&amp;q=SHOW TABLES&amp;format=pretty</code>\
         </li><li>Follow: <code>GET /api/v1/subscribe?db=kymo&amp;q=SELECT …</code>, or the \
         WebSocket at <code>/ws</code></li><li>Look: <a href=/health>/health</a>, <a href=/ready>/ready</a>, \
         <a href=/stats>/stats</a>, <a href=/metrics>/metrics</a></li></ul></html>"
    ))
}

/// `GET /health`: whether the server works, as InfluxDB 2 says it.
pub async fn health(State(app): State<App>) -> Response {
    let (status, word, message) = match app.backend.ready() {
        Ok(()) => (StatusCode::OK, "pass", "ready for queries and writes".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, "fail", error.message().to_owned()),
    };
    let body = json!({
        "name": "kymo", "message": message, "status": word, "checks": [], "version": VERSION,
    });
    (status, Json(body)).into_response()
}

/// `GET` and `HEAD /ping`: 204, or the version with `?verbose=true`.
pub async fn ping(RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::read(query.unwrap_or_default().as_bytes());
    if parameters.flag("verbose", false) {
        return Json(json!({ "version": INFLUX_VERSION, "kymo": VERSION })).into_response();
    }
    StatusCode::NO_CONTENT.into_response()
}

/// `GET /ready`: whether to send requests here.
pub async fn ready(State(app): State<App>) -> Response {
    if app.is_draining() {
        return Api::Own.refuse(&Error::new(Code::ShuttingDown, "the server is shutting down"));
    }
    match app.backend.ready() {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(error) => {
            let mut response = Api::Own.refuse(&error);
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// `GET /stats`: what goes on inside.
pub async fn stats(State(app): State<App>) -> Response {
    Json(app.backend.status()).into_response()
}

/// `GET /metrics`: for Prometheus.
pub async fn metrics(State(app): State<App>) -> Response {
    match app.backend.metrics() {
        Ok(metrics) => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics),
        Err(error) => Api::Own.refuse(&error),
    }
}

/// Whatever has no route.
pub async fn not_found(uri: Uri) -> Response {
    let error = Error::new(Code::InvalidInput, format!("no such path: {}", uri.path()))
        .with_hint("GET / lists what there is");
    Api::of(uri.path()).refuse_with(StatusCode::NOT_FOUND, &error)
}

/// A path that has other methods.
pub async fn not_allowed(method: Method, uri: Uri) -> Response {
    let error =
        Error::new(Code::InvalidInput, format!("{method} is not offered at {}", uri.path()))
            .with_hint("GET / lists what there is");
    Api::of(uri.path()).refuse_with(StatusCode::METHOD_NOT_ALLOWED, &error)
}
