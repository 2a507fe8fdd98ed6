//! Errors and notices as PostgreSQL clients read them: severity, SQLSTATE, message, hint, place.

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::response::{ErrorResponse, NoticeResponse};
use kymo_kernel::Error;

use crate::error::sqlstate;

/// An error that ends the statement.
pub(super) fn error(error: &Error) -> PgWireBackendMessage {
    response("ERROR", error)
}

/// An error that ends the connection.
pub(super) fn fatal(error: &Error) -> PgWireBackendMessage {
    response("FATAL", error)
}

fn response(severity: &str, error: &Error) -> PgWireBackendMessage {
    let mut fields = fields(severity, sqlstate(error.code()), error.message());
    if let Some(hint) = error.hint() {
        fields.push((b'H', hint.to_owned()));
    }
    if let Some(position) = error.position() {
        fields.push((b'P', position.to_string()));
    }
    PgWireBackendMessage::ErrorResponse(ErrorResponse::new(fields))
}

/// A warning that changes nothing.
pub(super) fn warning(state: &str, message: &str) -> PgWireBackendMessage {
    PgWireBackendMessage::NoticeResponse(NoticeResponse::new(fields("WARNING", state, message)))
}

fn fields(severity: &str, state: &str, message: &str) -> Vec<(u8, String)> {
    // A zero byte would end the field early.
    let message = message.replace('\0', "\u{fffd}");
    vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', state.to_owned()),
        (b'M', message),
    ]
}
