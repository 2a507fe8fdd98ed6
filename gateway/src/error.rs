//! What a [`Code`] is called outside: an HTTP status, an SQLSTATE, a WebSocket close code.
//!
//! One file, so that the same fault reads the same on every protocol. A condition that
//! clears is never a 4xx: agents such as Telegraf throw a batch away on those.

use std::time::Duration;

use axum::http::StatusCode;
use kymo_kernel::{Code, Error, Retry};
use serde_json::{Value, json};

/// The HTTP status that a fault is answered with.
#[must_use]
pub fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidInput
        | Code::Syntax
        | Code::ColumnNotFound
        | Code::FunctionNotFound
        | Code::SettingNotFound
        | Code::InvalidCast
        | Code::OutOfRange
        | Code::DivisionByZero
        | Code::InvalidParameter
        | Code::Unsupported
        | Code::AmbiguousColumn
        | Code::Grouping
        | Code::TransactionFailed
        | Code::NoTransaction
        | Code::CursorNotFound
        | Code::StatementNotFound
        | Code::StatementExists
        | Code::InvalidEncoding
        | Code::Protocol
        | Code::Settings => StatusCode::BAD_REQUEST,
        Code::NotAuthenticated => StatusCode::UNAUTHORIZED,
        Code::NotAuthorized => StatusCode::FORBIDDEN,
        Code::DatabaseNotFound
        | Code::TableNotFound
        | Code::PluginNotFound
        | Code::QueryNotFound
        | Code::AlertNotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::InUse => StatusCode::CONFLICT,
        Code::Gone => StatusCode::GONE,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::TypeConflict | Code::PluginFailed => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Deadline => StatusCode::GATEWAY_TIMEOUT,
        Code::LimitReached
        | Code::Busy
        | Code::OutOfMemory
        | Code::Down
        | Code::Starting
        | Code::ShuttingDown
        | Code::DiskFull
        | Code::Unreachable
        | Code::Poisoned
        | Code::Locked
        | Code::Fenced
        | Code::PluginUnavailable
        | Code::Conflict => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The SQLSTATE that a fault is reported with over the PostgreSQL wire protocol.
#[must_use]
pub fn sqlstate(code: Code) -> &'static str {
    match code {
        Code::Syntax => "42601",
        Code::InvalidInput => "22023",
        Code::DatabaseNotFound => "3D000",
        Code::TableNotFound => "42P01",
        Code::ColumnNotFound => "42703",
        Code::FunctionNotFound => "42883",
        Code::SettingNotFound => "42704",
        Code::PluginNotFound | Code::QueryNotFound | Code::AlertNotFound => "42704",
        // snapshot_too_old
        Code::Gone => "72000",
        // dependent_objects_still_exist
        Code::InUse => "2BP01",
        // object_not_in_prerequisite_state
        Code::PluginUnavailable => "55000",
        // external_routine_exception
        Code::PluginFailed => "38000",
        Code::AlreadyExists => "42P07",
        Code::TypeConflict => "42804",
        Code::InvalidCast => "22P02",
        Code::OutOfRange => "22003",
        Code::DivisionByZero => "22012",
        Code::InvalidParameter => "42P02",
        Code::Unsupported => "0A000",
        Code::AmbiguousColumn => "42702",
        Code::Grouping => "42803",
        Code::TransactionFailed => "25P02",
        Code::NoTransaction => "25P01",
        Code::CursorNotFound => "34000",
        Code::StatementNotFound => "26000",
        Code::StatementExists => "42P05",
        Code::InvalidEncoding => "22021",
        Code::Protocol => "08P01",
        Code::NotAuthenticated => "28P01",
        Code::NotAuthorized => "42501",
        Code::TooLarge => "54000",
        Code::LimitReached => "53300",
        Code::Busy => "53000",
        Code::Deadline | Code::Cancelled => "57014",
        Code::OutOfMemory => "53200",
        Code::Starting => "57P03",
        Code::Down | Code::ShuttingDown => "57P01",
        Code::DiskFull => "53100",
        Code::Io | Code::Unreachable => "58030",
        Code::Corrupt => "XX001",
        Code::Poisoned => "57P02",
        Code::Locked | Code::Fenced => "55006",
        Code::Conflict => "40001",
        Code::Settings => "F0000",
        _ => "XX000",
    }
}

/// Whether a fault ends a PostgreSQL session (severity `FATAL`) or only its statement.
#[must_use]
pub fn ends_session(code: Code) -> bool {
    matches!(
        code,
        Code::NotAuthenticated
            | Code::Starting
            | Code::ShuttingDown
            | Code::Down
            | Code::Poisoned
            | Code::Fenced
    )
}

/// The code that a WebSocket is closed with after a fault that ends it.
#[must_use]
pub fn close_code(code: Code) -> u16 {
    match status(code).as_u16() {
        401 => 3000,
        403 => 3003,
        413 => 1009,
        503 if code == Code::ShuttingDown => 1001,
        503 => 1013,
        400..=499 => 1008,
        _ => 1011,
    }
}

/// How many seconds a client should wait before it tries again, where that can help.
#[must_use]
pub fn retry_after(error: &Error) -> Option<u64> {
    match error.retry() {
        Retry::After(wait) => Some(wait.max(Duration::from_secs(1)).as_secs()),
        Retry::Never if status(error.code()) == StatusCode::SERVICE_UNAVAILABLE => Some(10),
        Retry::Never => None,
    }
}

/// The body of an error on every interface that is Kymo's own.
///
/// `error` is the whole sentence for tools that look for that key; `code` is for programs.
#[must_use]
pub fn body(error: &Error) -> Value {
    let mut body = json!({
        "status": "error",
        "error": error.message(),
        "code": error.code().as_str(),
        "message": error.message(),
    });
    if let Some(hint) = error.hint() {
        body["hint"] = json!(hint);
    }
    if let Some(position) = error.position() {
        body["position"] = json!(position);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEARS: [Code; 8] = [
        Code::Busy,
        Code::Down,
        Code::Starting,
        Code::ShuttingDown,
        Code::LimitReached,
        Code::DiskFull,
        Code::OutOfMemory,
        Code::Conflict,
    ];

    #[test]
    fn a_condition_that_clears_is_503_with_a_wait_and_never_4xx() {
        for code in CLEARS {
            let error = Error::new(code, "x");
            assert_eq!(status(code), StatusCode::SERVICE_UNAVAILABLE, "{code}");
            assert!(retry_after(&error).is_some_and(|wait| wait > 0), "{code}");
        }
        assert_eq!(retry_after(&Error::new(Code::InvalidInput, "x")), None);
    }

    #[test]
    fn sqlstates_are_five_characters() {
        for code in CLEARS.into_iter().chain([Code::Internal, Code::Syntax, Code::Cancelled]) {
            assert_eq!(sqlstate(code).len(), 5, "{code}");
        }
        assert_eq!(sqlstate(Code::Busy), "53000");
        assert_eq!(sqlstate(Code::PluginFailed), "38000");
        assert_eq!(sqlstate(Code::PluginUnavailable), "55000");
        assert_eq!(close_code(Code::Busy), 1013);
        assert_eq!(close_code(Code::TooLarge), 1009);
        assert_eq!(close_code(Code::NotAuthenticated), 3000);
    }

    #[test]
    fn a_body_has_code_message_and_hint() {
        let error = Error::new(Code::TableNotFound, "no table x").with_hint("create it");
        let body = body(&error.with_position(15));
        assert_eq!(body["code"], "table_not_found");
        assert_eq!(body["message"], "no table x");
        assert_eq!(body["error"], "no table x");
        assert_eq!(body["hint"], "create it");
        assert_eq!(body["position"], 15);
    }
}
