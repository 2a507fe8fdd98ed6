//! From the SQL engine's errors to Kymo's: a code, a sentence in the reader's terms, the place
//! in the text and a way out.

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Location;
use kymo_kernel::schema::TableName;
use kymo_kernel::{Code, Error};

use super::command::PartialName;
use super::text::{Lines, nearest};

/// Maps an error of planning or running.
pub(crate) fn from_engine(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => match other.downcast::<DataFusionError>() {
                Ok(nested) => from_engine(*nested),
                Err(other) => plain(&other.to_string()),
            },
        },
        DataFusionError::Shared(inner) => shared(&inner),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            from_engine(*inner)
        }
        DataFusionError::Collection(errors) => errors
            .into_iter()
            .next()
            .map_or_else(|| Error::internal("empty list of errors"), from_engine),
        DataFusionError::SQL(inner, _) => from_parser(&inner, None),
        DataFusionError::SchemaError(inner, _) => from_schema(&inner),
        DataFusionError::ArrowError(inner, _) => from_arrow(*inner),
        DataFusionError::ParquetError(inner) => {
            Error::new(Code::Corrupt, format!("reading a segment: {inner}")).with_source(*inner)
        }
        DataFusionError::NotImplemented(text) => Error::new(Code::Unsupported, tidy(&text)),
        DataFusionError::ResourcesExhausted(text) => Error::new(
            Code::OutOfMemory,
            format!("the query needs too much memory: {}", tidy(&text)),
        )
        .with_hint("narrow the time range, group by fewer keys, or raise query.memory_bytes"),
        DataFusionError::IoError(inner) => Error::io("run the query", inner),
        DataFusionError::Internal(text) => Error::internal(tidy(&text)),
        DataFusionError::Configuration(text) => Error::new(Code::InvalidInput, tidy(&text)),
        DataFusionError::Plan(text)
        | DataFusionError::Execution(text)
        | DataFusionError::Substrait(text) => plain(&text),
        DataFusionError::ExecutionJoin(inner) => {
            Error::internal(format!("a part of the query panicked: {inner}"))
        }
        other => plain(&other.to_string()),
    }
}

/// Errors that several consumers share arrive behind an `Arc` and cannot be taken apart.
fn shared(error: &DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(ours) => ours.clone(),
            None => plain(&inner.to_string()),
        },
        DataFusionError::Shared(inner) => shared(inner),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => shared(inner),
        DataFusionError::ArrowError(inner, _) => arrow_text(inner),
        DataFusionError::ResourcesExhausted(text) => {
            from_engine(DataFusionError::ResourcesExhausted(text.clone()))
        }
        DataFusionError::NotImplemented(text) => Error::new(Code::Unsupported, tidy(text)),
        DataFusionError::Internal(text) => Error::internal(tidy(text)),
        DataFusionError::Plan(text) | DataFusionError::Execution(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

/// Maps an error of the SQL parser, with its place in `sql` where that is at hand.
pub(crate) fn from_parser(error: &ParserError, sql: Option<&str>) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => {
            return Error::new(Code::TooLarge, "the statement is nested too deeply")
                .with_hint("split it, or use a common table expression");
        }
    };
    let (message, place) = split_location(text);
    let found = message.replace("Expected: ", "expected ").replace(", found: ", ", found ");
    let message = format!("syntax error: {}", found.trim_end_matches('.'));
    let error = Error::new(Code::Syntax, message);
    match (place, sql) {
        (Some(place), Some(sql)) => error.with_position(Lines::new(sql).position(place)),
        _ => error,
    }
}

/// Takes ` at Line: 1, Column: 8` off the end of a message.
fn split_location(text: &str) -> (&str, Option<Location>) {
    let Some(at) = text.rfind(" at Line: ") else { return (text, None) };
    let mut numbers = text[at..]
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .filter_map(|part| part.parse::<u64>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(line), Some(column)) => (&text[..at], Some(Location { line, column })),
        _ => (text, None),
    }
}

fn from_schema(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<&str> = valid_fields.iter().map(|each| each.name.as_str()).collect();
            let mut known = names.clone();
            known.dedup();
            let wanted = match &field.relation {
                Some(relation) => format!("{}.{}", relation.table(), field.name),
                None => field.name.clone(),
            };
            let missing =
                Error::new(Code::ColumnNotFound, format!("column \"{wanted}\" does not exist"));
            match nearest(&field.name, names.iter().copied()) {
                Some(near) => missing.with_hint(format!("did you mean \"{near}\"?")),
                None if known.is_empty() => missing,
                None => {
                    known.truncate(20);
                    missing.with_hint(format!("columns here: {}", known.join(", ")))
                }
            }
        }
        SchemaError::AmbiguousReference { field } => Error::new(
            Code::AmbiguousColumn,
            format!("column reference \"{}\" is ambiguous", field.name),
        )
        .with_hint("put the table's name or alias in front of it"),
        other => Error::new(Code::InvalidInput, other.to_string()),
    }
}

fn from_arrow(error: ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => match other.downcast::<DataFusionError>() {
                Ok(nested) => from_engine(*nested),
                Err(other) => plain(&other.to_string()),
            },
        },
        other => arrow_text(&other),
    }
}

fn arrow_text(error: &ArrowError) -> Error {
    match error {
        ArrowError::DivideByZero => Error::new(Code::DivisionByZero, "division by zero"),
        ArrowError::ArithmeticOverflow(text) => Error::new(Code::OutOfRange, tidy(text)),
        ArrowError::CastError(text) => cast(text),
        ArrowError::ParseError(text) => Error::new(Code::InvalidCast, tidy(text)),
        ArrowError::MemoryError(text) => Error::new(Code::OutOfMemory, tidy(text)),
        ArrowError::NotYetImplemented(text) => Error::new(Code::Unsupported, tidy(text)),
        ArrowError::InvalidArgumentError(text) | ArrowError::ComputeError(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

fn cast(text: &str) -> Error {
    let lower = text.to_lowercase();
    if lower.contains("overflow")
        || lower.contains("can't cast value")
        || lower.contains("out of range")
    {
        return Error::new(Code::OutOfRange, tidy(text));
    }
    Error::new(Code::InvalidCast, tidy(text))
}

/// Errors that the engine tells apart by their text only.
fn plain(text: &str) -> Error {
    let text = tidy(text);
    let lower = text.to_lowercase();
    if let Some(name) = missing_table(&text) {
        let short = name.strip_prefix("kymo.public.").unwrap_or(&name);
        return Error::new(Code::TableNotFound, format!("table \"{short}\" does not exist"))
            .with_hint("SHOW TABLES lists what there is");
    }
    if lower.starts_with("invalid function '") || lower.starts_with("table function '") {
        return function_missing(&text);
    }
    if let Some(name) = text.strip_prefix("There is no window function named ") {
        return Error::new(
            Code::FunctionNotFound,
            format!("window function {name}() does not exist"),
        );
    }
    if lower.contains("does not support zero arguments")
        || lower.contains("no function matches")
        || lower.contains("failed to coerce arguments")
        || lower.contains("user-defined coercion failed")
        || lower.contains("call to function") && lower.contains("failed")
    {
        return Error::new(Code::FunctionNotFound, text)
            .with_hint("no function of this name takes these argument types; a cast may help");
    }
    let code = if lower.contains("divide by zero") || lower.contains("division by zero") {
        Code::DivisionByZero
    } else if lower.contains("cannot cast")
        || lower.contains("error parsing")
        || lower.contains("parser error")
        || lower.contains("invalid input syntax")
    {
        Code::InvalidCast
    } else if lower.contains("overflow") || lower.contains("out of range") {
        Code::OutOfRange
    } else if lower.contains("placeholder") {
        Code::InvalidParameter
    } else if lower.contains("cannot coerce")
        || lower.contains("cannot infer common")
        || lower.contains("cannot automatically convert")
        || lower.contains("type mismatch")
    {
        Code::TypeConflict
    } else if lower.contains("not supported") || lower.contains("unsupported") {
        Code::Unsupported
    } else if lower.contains("must appear in the group by")
        || lower.contains("could not be resolved from available columns")
    {
        Code::Grouping
    } else {
        Code::InvalidInput
    };
    Error::new(code, text)
}

/// The full name of the table that the engine did not find.
pub(crate) fn missing_table(text: &str) -> Option<String> {
    between(text, "table '", "' not found").map(str::to_owned)
}

/// The error with a table's name as the statement has it in the place of the full one.
pub(crate) fn as_written(error: Error, full: &TableName, written: &PartialName) -> Error {
    let full = full.to_string();
    if !error.message().contains(&full) {
        return error;
    }
    let text = error.message().replace(&full, &format!("\"{written}\""));
    let renamed = Error::new(error.code(), text);
    match error.hint() {
        Some(hint) => renamed.with_hint(hint),
        None => renamed,
    }
}

fn function_missing(text: &str) -> Error {
    let name = text.split('\'').nth(1).unwrap_or_default();
    let error = Error::new(Code::FunctionNotFound, format!("function {name}() does not exist"));
    match between(text, "Did you mean '", "'") {
        Some(near) => error.with_hint(format!("did you mean {near}()?")),
        None => error.with_hint("the function's name may be misspelled"),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let start = text.find(before)? + before.len();
    let end = text[start..].find(after)? + start;
    Some(&text[start..end])
}

/// Takes off the engine's own prefixes and its advice to report a bug to somebody else.
fn tidy(text: &str) -> String {
    let mut text = text;
    if let Some(at) = text.find("\nThis issue was likely caused by a bug") {
        text = &text[..at];
    }
    if let Some(at) = text.find(".\nThis issue was likely caused by a bug") {
        text = &text[..at];
    }
    let prefixes = [
        "Error during planning: ",
        "Execution error: ",
        "External error: ",
        "Arrow error: ",
        "Optimizer rule ",
        "This feature is not implemented: ",
        "Invalid argument error: ",
        "Compute error: ",
        "Cast error: ",
        "Parser error: ",
        "Internal error: ",
        "type_coercion\ncaused by\n",
    ];
    while let Some(rest) = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    text.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_kind_of_fault() {
        for (error, code) in [
            (
                DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None),
                Code::DivisionByZero,
            ),
            (
                DataFusionError::Plan("table 'kymo.public.nope' not found".into()),
                Code::TableNotFound,
            ),
            (
                DataFusionError::Plan("Invalid function 'foo'.\nDid you mean 'floor'?".into()),
                Code::FunctionNotFound,
            ),
            (DataFusionError::NotImplemented("x".into()), Code::Unsupported),
            (DataFusionError::ResourcesExhausted("x".into()), Code::OutOfMemory),
            (DataFusionError::External(Box::new(Error::new(Code::Busy, "b"))), Code::Busy),
        ] {
            assert_eq!(from_engine(error).code(), code);
        }
    }

    #[test]
    fn a_missing_table_is_named_without_its_defaults() {
        let error = from_engine(DataFusionError::Plan("table 'kymo.public.nope' not found".into()));
        assert_eq!(error.message(), "table \"nope\" does not exist");
        assert!(error.hint().is_some());
    }

    #[test]
    fn a_parser_error_carries_its_place() {
        let error = ParserError::ParserError(
            "Expected: end of statement, found: FORM at Line: 1, Column: 10".into(),
        );
        let error = from_parser(&error, Some("SELECT 1 FORM x"));
        assert_eq!(error.code(), Code::Syntax);
        assert_eq!(error.position(), Some(10));
        assert_eq!(error.message(), "syntax error: expected end of statement, found FORM");
    }
}
