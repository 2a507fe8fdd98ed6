//! What happens to every request before and after its handler.

use std::panic::AssertUnwindSafe;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures::FutureExt;
use kymo_kernel::observe::join_remote;
use kymo_kernel::{Code, Error, Result};
use tracing::Instrument;
use uuid::Uuid;

use super::body::lend_body;
use super::parameters::Parameters;
use super::respond::Api;
use super::{App, admin};
use crate::auth::{Credentials, Identity};

/// What clients of InfluxDB look at to learn what they talk to: a version of InfluxDB 1
/// whose dialect is understood.
pub const INFLUX_VERSION: &str = "1.8.10";

const VERSION: HeaderName = HeaderName::from_static("x-influxdb-version");
const BUILD: HeaderName = HeaderName::from_static("x-influxdb-build");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Paths that tell nothing worth hiding, for load balancers and browsers.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/ping" | "/ready")
}

/// Who asks at a path where the first message may say so.
#[derive(Debug, Clone)]
pub struct Visitor(pub Option<Identity>);

/// Wraps every handler: id, trace, metrics, panics, shutdown and identity.
pub async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = admin::route_label(request.uri().path());
    let method = request.method().clone();
    let span = tracing::info_span!(
        "http_request",
        otel.name = %format_args!("{method} {route}"),
        otel.kind = "server",
        http.request.method = %method,
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
        request.id = %id.to_str().unwrap_or_default(),
    );
    if let Some(parent) = request.headers().get("traceparent").and_then(|it| it.to_str().ok()) {
        join_remote(&span, parent);
    }
    let timer = admin::Timer::start(route);
    let api = Api::of(request.uri().path());
    let (request, rest) = lend_body(request);
    let handled = AssertUnwindSafe(admit(app, api, request, next)).catch_unwind();
    let mut response = match handled.instrument(span.clone()).await {
        Ok(response) => response,
        Err(panic) => {
            tracing::error!(parent: &span, reason = panic_text(&*panic), "request handler panicked");
            api.refuse(&Error::internal("internal server error"))
        }
    };
    span.record("http.response.status_code", response.status().as_u16());
    timer.stop(response.status());
    rest.read_to_end().await;
    decorate(response.headers_mut(), id);
    response
}

async fn admit(app: App, api: Api, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if app.is_draining() && !is_open(path) {
        let mut response = api.refuse(&shutting_down());
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    if !is_open(path) {
        let waits = path == "/ws" && app.door.enabled();
        let identified = match credentials(&request) {
            Ok(None) if waits => Ok(None),
            Ok(credentials) => identify(&app, credentials).await.map(Some),
            Err(error) => Err(error),
        };
        let extensions = request.extensions_mut();
        match identified {
            Ok(identity) => {
                extensions.insert(Visitor(identity.clone()));
                identity.map(|identity| extensions.insert(identity));
            }
            Err(error) => return refuse_credentials(api, &error),
        }
    }
    next.run(request).await
}

/// What a request is told that comes too late.
#[must_use]
pub fn shutting_down() -> Error {
    Error::new(Code::ShuttingDown, "the server is shutting down")
        .with_hint("send the request again in a few seconds")
}

/// A malformed header is the client's mistake in interfaces that say so; the older ones
/// know only one answer.
fn refuse_credentials(api: Api, error: &Error) -> Response {
    match (api, error.code()) {
        (Api::V1 | Api::V2, Code::InvalidInput | Code::NotAuthenticated) => {
            let error = Error::new(Code::NotAuthenticated, "authorization failed");
            api.refuse_with(StatusCode::UNAUTHORIZED, &error)
        }
        _ => api.refuse(error),
    }
}

/// What the request brings: a header, or the parameters of InfluxDB 1.
fn credentials(request: &Request) -> Result<Option<Credentials>> {
    if let Some(value) = request.headers().get(AUTHORIZATION) {
        return Credentials::from_header(value.as_bytes()).map(Some);
    }
    let query = request.uri().query().unwrap_or_default();
    let parameters = Parameters::read(query.as_bytes());
    Ok(Credentials::from_parameters(parameters.get("u"), parameters.get("p")))
}

async fn identify(app: &App, credentials: Option<Credentials>) -> Result<Identity> {
    if !app.door.enabled() {
        return Ok(app.door.anybody());
    }
    match credentials {
        Some(credentials) => app.door.check(&credentials).await,
        None => Err(Error::new(Code::NotAuthenticated, "authorization failed").with_hint(
            "send an Authorization header: `Bearer TOKEN` or `Basic` with user:password",
        )),
    }
}

/// The client's own id where it is short and printable, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(X_REQUEST_ID).or_else(|| headers.get(REQUEST_ID));
    let usable = given.filter(|value| {
        let bytes = value.as_bytes();
        (1..=64).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    match usable {
        Some(value) => value.clone(),
        None => HeaderValue::from_str(&Uuid::new_v4().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("-")),
    }
}

fn decorate(headers: &mut HeaderMap, id: HeaderValue) {
    headers.insert(VERSION, HeaderValue::from_static(INFLUX_VERSION));
    headers.insert(BUILD, HeaderValue::from_static("Kymo"));
    headers.insert(REQUEST_ID, id.clone());
    headers.insert(X_REQUEST_ID, id);
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}
