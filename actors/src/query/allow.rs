//! What a session may do: who changes definitions, and who changes anything at all.
//!
//! There are two kinds of account. Everybody reads and writes rows, and tables come into being
//! by writing to them; definitions that are made or taken away by a statement, and what other
//! users ask, are the administrators'.

use kymo_kernel::message::SessionContext;
use kymo_kernel::{Code, Error, Result};

/// What stands in the place of text that belongs to another user, as in PostgreSQL.
pub(super) const HIDDEN: &str = "<insufficient privilege>";

/// Refuses a statement that changes something in a session that may only read.
pub(super) fn writable(session: &SessionContext, verb: &str) -> Result<()> {
    if !session.read_only {
        return Ok(());
    }
    Err(Error::new(Code::NotAuthorized, format!("cannot execute {verb} in a read-only session"))
        .with_hint("use POST for statements that change something"))
}

/// Refuses a change of definitions to anybody but an administrator.
pub(super) fn administrator(session: &SessionContext, verb: &str) -> Result<()> {
    if session.admin {
        return Ok(());
    }
    Err(Error::new(
        Code::NotAuthorized,
        format!("permission denied: {verb} needs an administrator, and {:?} is none", session.user),
    )
    .with_hint("log in as an administrator; tables are also made by writing rows to them"))
}

/// Whether a session may see what a user asks.
pub(super) fn sees(session: &SessionContext, user: &str) -> bool {
    session.admin || session.user == user
}
