//! SQL over HTTP: from text and JSON parameters to an outcome.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, NullArray, StringArray, UInt64Array,
};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::message::{Outcome, Query, Runnable, SessionContext, Statement};
use kymo_kernel::schema::{DEFAULT_DATABASE, DEFAULT_SCHEMA};
use kymo_kernel::{Code, Error, Result};
use serde_json::Value;
use tracing::Instrument;

use super::App;
use crate::auth::Identity;
use crate::sql_text::{name_at_start, opaque};

/// What to run, for whom.
#[derive(Debug, Clone)]
pub struct Ask {
    /// One or more statements, of which only the last may answer rows.
    pub sql: String,
    /// Values for `$1`, `$2` … (an array) or `$name` … (an object).
    pub parameters: Option<Value>,
    /// The database that unqualified names are looked up in.
    pub database: Option<String>,
    /// Whether statements that change something are refused.
    pub read_only: bool,
}

/// Runs the statements one after the other; the last one's outcome is the answer.
///
/// An answer is one table in every format, so a request may ask for one: rows of a statement
/// that is not the last would be lost, and such a request is refused before any of it runs.
///
/// # Errors
/// `unsupported` where a statement before the last answers rows; else the first error of any
/// of them, and those before it have taken effect.
pub async fn run(app: &App, identity: &Identity, ask: Ask) -> Result<Outcome> {
    let max = app.settings.query.max_sql_bytes;
    if ask.sql.len() as u64 > max {
        return Err(Error::new(Code::TooLarge, format!("SQL text is longer than {max} bytes"))
            .with_hint("raise query.max_sql_bytes"));
    }
    let mut session = session(app, identity, &ask)?;
    let (sql, values) = bind(ask.sql, ask.parameters)?;
    let statements = app.backend.parse(sql).instrument(tracing::info_span!("parse_sql")).await?;
    let Some((last, before)) = statements.split_last() else {
        return Err(Error::new(Code::Syntax, "no statement").with_hint("send SQL text as `q`"));
    };
    if let Some(at) = before.iter().position(|statement| answers_rows(&statement.verb)) {
        return Err(rows_before_the_last(at));
    }
    for (at, statement) in before.iter().enumerate() {
        match execute(app, statement, &values, &session).await? {
            Outcome::Rows { .. } => return Err(rows_before_the_last(at)),
            Outcome::Done { settings, .. } => apply(&mut session, settings),
        }
    }
    execute(app, last, &values, &session).await
}

/// Whether a statement is known to answer rows before it runs.
fn answers_rows(verb: &str) -> bool {
    matches!(verb, "SELECT" | "SHOW" | "EXPLAIN" | "BACKFILL" | "CALL")
}

fn rows_before_the_last(at: usize) -> Error {
    let text = format!("statement {} answers rows, but only the last one may", at + 1);
    Error::new(Code::Unsupported, text).with_hint(
        "send each question as a request of its own; `kymo repl` and the PostgreSQL port answer \
         every statement",
    )
}

async fn execute(
    app: &App,
    statement: &Arc<Statement>,
    values: &[ArrayRef],
    session: &SessionContext,
) -> Result<Outcome> {
    let mut guard = CancelOnDrop(Some(CancelToken::new()));
    let query = Query {
        run: Runnable::Statement(Arc::clone(statement)),
        parameters: values.to_vec(),
        session: Arc::new(session.clone()),
        timeout: None,
        cancel: guard.0.clone().unwrap_or_default(),
    };
    let outcome = app.backend.query(query).instrument(tracing::info_span!("query")).await;
    // From here on the stream stops the query when it is dropped.
    guard.0 = None;
    outcome
}

/// Stops a statement whose client went away before it had an answer.
struct CancelOnDrop(Option<CancelToken>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(token) = &self.0 {
            token.cancel();
        }
    }
}

/// What a request's statements run under.
///
/// # Errors
/// `database_not_found`.
pub fn session(app: &App, identity: &Identity, ask: &Ask) -> Result<SessionContext> {
    let database = ask.database.as_deref().unwrap_or(DEFAULT_DATABASE);
    if !app.backend.catalog().databases.contains(database) {
        return Err(Error::new(
            Code::DatabaseNotFound,
            format!("database {database:?} does not exist"),
        )
        .with_hint("SHOW DATABASES lists them; CREATE DATABASE makes one"));
    }
    Ok(SessionContext {
        user: identity.name.to_string(),
        admin: identity.admin,
        database: database.to_owned(),
        schema: DEFAULT_SCHEMA.to_owned(),
        settings: BTreeMap::new(),
        read_only: ask.read_only,
    })
}

/// `SET` and `USE` hold for the statements that follow in the same request.
fn apply(session: &mut SessionContext, changes: Vec<(String, Option<String>)>) {
    for (name, value) in changes {
        match (name.as_str(), value) {
            ("database", Some(database)) => session.database = database,
            ("schema", Some(schema)) => session.schema = schema,
            (_, Some(value)) => drop(session.settings.insert(name, value)),
            (_, None) => drop(session.settings.remove(&name)),
        }
    }
}

/// Turns JSON parameters into values, and names in the text into numbers.
///
/// # Errors
/// `invalid_parameter` for a value that is missing or is no single value.
pub fn bind(sql: String, parameters: Option<Value>) -> Result<(String, Vec<ArrayRef>)> {
    match parameters {
        None | Some(Value::Null) => Ok((sql, Vec::new())),
        Some(Value::Array(values)) => {
            let arrays = values.iter().map(array).collect::<Result<_>>()?;
            Ok((sql, arrays))
        }
        Some(Value::Object(named)) => {
            let mut arrays = Vec::new();
            let mut order: Vec<String> = Vec::new();
            let sql = number_names(&sql, |name| {
                if let Some(at) = order.iter().position(|known| known == name) {
                    return Ok(at + 1);
                }
                let value = named.get(name).ok_or_else(|| {
                    Error::new(Code::InvalidParameter, format!("no value for parameter ${name}"))
                        .with_hint("add it to `params`")
                })?;
                arrays.push(array(value)?);
                order.push(name.to_owned());
                Ok(order.len())
            })?;
            Ok((sql, arrays))
        }
        Some(_) => Err(Error::new(
            Code::InvalidParameter,
            "`params` must be an array for $1, $2 … or an object for $name",
        )),
    }
}

/// A JSON value as an array of one element.
fn array(value: &Value) -> Result<ArrayRef> {
    Ok(match value {
        Value::Null => Arc::new(NullArray::new(1)),
        Value::Bool(value) => Arc::new(BooleanArray::from(vec![*value])),
        Value::String(value) => Arc::new(StringArray::from(vec![value.as_str()])),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), ..) => Arc::new(Int64Array::from(vec![value])),
            (None, Some(value), _) => Arc::new(UInt64Array::from(vec![value])),
            (None, None, value) => Arc::new(Float64Array::from(vec![value])),
        },
        Value::Array(_) | Value::Object(_) => {
            return Err(Error::new(
                Code::InvalidParameter,
                "a parameter must be a single value: text, number, truth value or null",
            ));
        }
    })
}

/// Replaces `$name` by `$n`, outside of strings, quoted names, comments and dollar quotes.
fn number_names(sql: &str, mut number: impl FnMut(&str) -> Result<usize>) -> Result<String> {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(at) = rest.find(['$', '\'', '"', '-', '/']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(skipped) = opaque(rest) {
            out.push_str(&rest[..skipped.bytes]);
            rest = &rest[skipped.bytes..];
            continue;
        }
        let name = rest.strip_prefix('$').map_or("", name_at_start);
        if name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) {
            out.push_str(&rest[..1]);
            rest = &rest[1..];
        } else {
            out.push('$');
            out.push_str(&number(name)?.to_string());
            rest = &rest[1 + name.len()..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bound(sql: &str, parameters: Value) -> Result<(String, usize)> {
        bind(sql.to_owned(), Some(parameters)).map(|(sql, values)| (sql, values.len()))
    }

    #[test]
    fn names_become_numbers_outside_of_text() {
        let (sql, count) = bound(
            "SELECT $a, '$a', \"$a\", $b -- $a\n, $a /* $b */, $$ $a $$, $t$ $b $t$, $1",
            json!({ "a": 1, "b": "x", "unused": 2 }),
        )
        .unwrap();
        assert_eq!(
            sql,
            "SELECT $1, '$a', \"$a\", $2 -- $a\n, $1 /* $b */, $$ $a $$, $t$ $b $t$, $1"
        );
        assert_eq!(count, 2);
        assert_eq!(bound("SELECT 'it''s $x', 1-2, 4/2", json!({})).unwrap().1, 0);
    }

    #[test]
    fn parameters_of_each_kind_are_bound_or_refused() {
        let (_, count) = bound("SELECT $1", json!([1, 1.5, "x", true, null, u64::MAX])).unwrap();
        assert_eq!(count, 6);
        for (sql, bad) in
            [("SELECT $x", json!({})), ("SELECT $1", json!([[1]])), ("SELECT $1", json!(7))]
        {
            assert_eq!(bound(sql, bad).unwrap_err().code(), Code::InvalidParameter);
        }
    }
}
