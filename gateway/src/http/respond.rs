//! How errors are said in each interface's own words, and the headers that go with them.

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kymo_kernel::{Code, Error};
use serde_json::{Value, json};

use crate::error;

/// Repeats the message of an error, for clients that log headers.
pub const INFLUX_ERROR: HeaderName = HeaderName::from_static("x-influxdb-error");

/// Whose words a path speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// InfluxDB 1: `/write`, `/query`.
    V1,
    /// InfluxDB 2: `/api/v2/…`.
    V2,
    /// InfluxDB 3: `/api/v3/write_lp`.
    V3,
    /// Kymo's own.
    Own,
}

impl Api {
    /// The interface of a path.
    #[must_use]
    pub fn of(path: &str) -> Api {
        match path {
            "/write" | "/query" => Api::V1,
            "/api/v3/write_lp" => Api::V3,
            _ if path.starts_with("/api/v2/") => Api::V2,
            _ => Api::Own,
        }
    }

    /// The response to a request that failed as a whole.
    #[must_use]
    pub fn refuse(self, error: &Error) -> Response {
        let mut status = error::status(error.code());
        // Agents keep a batch on 503 and try again; a deadline says that little.
        if self != Api::Own && error.code() == Code::Deadline {
            status = StatusCode::SERVICE_UNAVAILABLE;
        }
        let mut response = self.refuse_with(status, error);
        if let Some(wait) = error::retry_after(error) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        response
    }

    /// The response with a status that the interface has for this case.
    #[must_use]
    pub fn refuse_with(self, status: StatusCode, error: &Error) -> Response {
        let body = match self {
            Api::V1 => json!({ "error": error.message() }),
            Api::V2 if status == StatusCode::UNAUTHORIZED => {
                json!({ "code": "unauthorized", "message": "unauthorized access" })
            }
            Api::V2 => json!({ "code": v2_code(status), "message": error.message() }),
            Api::V3 => json!({ "error": error.message(), "data": Value::Null }),
            Api::Own => error::body(error),
        };
        self.answer(status, error.message(), &body)
    }

    /// A response with this body, and the headers of an error.
    #[must_use]
    pub fn answer(self, status: StatusCode, message: &str, body: &Value) -> Response {
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(self, Api::V1 | Api::V2) {
            headers.insert(INFLUX_ERROR, header_text(message));
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"Kymo\", charset=\"UTF-8\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"Kymo\""));
        }
        response
    }
}

fn v2_code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "invalid",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not found",
        409 => "conflict",
        413 => "request too large",
        422 => "unprocessable entity",
        429 => "too many requests",
        503 => "unavailable",
        _ => "internal error",
    }
}

/// A text as a header's value: printable ASCII, at most 1024 bytes.
fn header_text(text: &str) -> HeaderValue {
    let plain: String = text
        .chars()
        .map(|letter| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' })
        .take(1024)
        .collect();
    HeaderValue::from_str(&plain).unwrap_or_else(|_| HeaderValue::from_static("error"))
}

/// Plain text.
#[must_use]
pub fn text(status: StatusCode, content_type: &'static str, body: String) -> Response {
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}
