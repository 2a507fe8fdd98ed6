//! What each dialect says when lines were bad.

use std::fmt::Write;

use axum::http::StatusCode;
use axum::response::Response;
use kymo_kernel::Code;
use serde_json::{Value, json};

use super::dialect::{Request, has_syntax_errors};
use super::{Taken, add_refused, add_token, no_content};
use crate::http::respond::Api;
use crate::line_protocol::LineError;

/// How much of a bad line the older dialects repeat.
const QUOTE_BYTES: usize = 120;
/// How much of a bad line InfluxDB 3 repeats.
const V3_QUOTE_BYTES: usize = 20;
/// How many bad lines the older dialects, whose answer is one text, tell of.
const LINES_IN_TEXT: usize = 10;

/// The response to a body of lines.
pub(super) fn lines(request: &Request, taken: &Taken) -> Response {
    if taken.empty && request.api == Api::V3 {
        let message = "incoming write was empty";
        let body = json!({ "error": message, "data": null });
        return Api::V3.answer(StatusCode::BAD_REQUEST, message, &body);
    }
    let mut response = match request.api {
        _ if taken.bad_lines == 0 => no_content(taken.position),
        Api::V1 => v1(request, taken),
        Api::V2 => v2(request, taken),
        _ => v3(request, taken),
    };
    add_token(&mut response, taken.position);
    add_refused(&mut response, taken.refused);
    response
}

fn v1(request: &Request, taken: &Taken) -> Response {
    let text = sentences(taken);
    let text = if taken.kept == 0 && only_syntax(taken) {
        text
    } else {
        format!(
            "partial write: {text} dropped={} for database: {:?}",
            taken.bad_lines, request.database
        )
    };
    Api::V1.answer(StatusCode::BAD_REQUEST, &text, &json!({ "error": text }))
}

fn v2(request: &Request, taken: &Taken) -> Response {
    let text = sentences(taken);
    if has_syntax_errors(taken) {
        let body = json!({ "code": "invalid", "message": text });
        return Api::V2.answer(StatusCode::BAD_REQUEST, &text, &body);
    }
    let text = format!(
        "failure writing points to database: partial write: {text} dropped={} for database: {:?}",
        taken.bad_lines, request.database
    );
    let body = json!({ "code": "unprocessable entity", "message": text });
    Api::V2.answer(StatusCode::UNPROCESSABLE_ENTITY, &text, &body)
}

fn v3(request: &Request, taken: &Taken) -> Response {
    let details: Vec<Value> = taken
        .errors
        .iter()
        .map(|error| {
            json!({
                "error_message": error.error.message(),
                "line_number": error.line,
                "original_line": error.quote(&taken.body, V3_QUOTE_BYTES),
            })
        })
        .collect();
    let message = if request.partial {
        "partial write of line protocol occurred"
    } else {
        "line protocol parsing error"
    };
    let over_limit = |error: &LineError| error.error.code() == Code::LimitReached;
    let status = if taken.errors.iter().any(over_limit) {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::BAD_REQUEST
    };
    let body = json!({ "error": message, "data": details, "dropped": taken.bad_lines });
    Api::V3.answer(status, message, &body)
}

/// The bad lines as text, one a line, as far as they are told.
fn sentences(taken: &Taken) -> String {
    let mut text = String::new();
    for error in taken.errors.iter().take(LINES_IN_TEXT) {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = match error.line {
            0 => write!(text, "{}", error.error),
            line if is_syntax(error) => write!(
                text,
                "unable to parse '{}': {} (line {line})",
                error.quote(&taken.body, QUOTE_BYTES),
                error.error
            ),
            line => write!(text, "{} (line {line})", error.error),
        };
    }
    let told = taken.errors.len().min(LINES_IN_TEXT) as u64;
    if taken.bad_lines > told {
        let _ = write!(text, "\nand {} more", taken.bad_lines - told);
    }
    text
}

fn is_syntax(error: &LineError) -> bool {
    !matches!(error.error.code(), Code::TypeConflict | Code::LimitReached)
}

fn only_syntax(taken: &Taken) -> bool {
    taken.errors.iter().all(is_syntax)
}
