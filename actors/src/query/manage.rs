//! Statements about plugins, read by hand: `CREATE PLUGIN`, `ALTER PLUGIN`, `DROP PLUGIN`,
//! `CREATE FUNCTION … LANGUAGE wasm`, `DROP FUNCTION`, `ATTACH TRANSFORM`, `DETACH TRANSFORM`.

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::ast::{DataType, TimezoneInfo};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use kymo_kernel::message::{Existing, PluginCommand, PluginDdl, PluginSource};
use kymo_kernel::plugin::{FunctionDef, OnError, TransformDef};
use kymo_kernel::{Code, Error};

use super::command::PartialName;
use super::parse::Failure;
use super::utility::{name, table_name, take, word_is};

/// A statement about plugins.
#[derive(Debug, Clone)]
pub(crate) enum Manage {
    /// What needs nothing of the session.
    Plugin(PluginCommand),
    /// `CREATE FUNCTION`: its name must not be a built-in function's.
    CreateFunction(FunctionDef, bool),
    /// `ATTACH TRANSFORM`.
    Attach(PartialName, TransformDef),
    /// `DETACH TRANSFORM`: table, plugin and function.
    Detach(PartialName, String, String),
}

type Read = Result<Option<(&'static str, Manage)>, Failure>;

/// Reads a statement about plugins; `None` if it is something else.
pub(super) fn read(parser: &mut Parser) -> Read {
    let words: Vec<Token> = (0..4).map(|at| parser.peek_nth_token(at).token).collect();
    let at = |index: usize, word: &str| words.get(index).is_some_and(|each| word_is(each, word));
    let or_replace = at(0, "CREATE") && at(1, "OR") && at(2, "REPLACE");
    let object = if or_replace { 3 } else { 1 };
    let verb = match (at(object, "PLUGIN"), at(object, "FUNCTION"), at(1, "TRANSFORM")) {
        (true, _, _) if at(0, "CREATE") => "CREATE PLUGIN",
        (true, _, _) if at(0, "ALTER") => "ALTER PLUGIN",
        (true, _, _) if at(0, "DROP") => "DROP PLUGIN",
        (_, true, _) if at(0, "CREATE") => "CREATE FUNCTION",
        (_, true, _) if at(0, "DROP") => "DROP FUNCTION",
        (_, _, true) if at(0, "ATTACH") => "ATTACH TRANSFORM",
        (_, _, true) if at(0, "DETACH") => "DETACH TRANSFORM",
        _ => return Ok(None),
    };
    (0..=object).for_each(|_| parser.advance_token());
    let statement = match verb {
        "CREATE PLUGIN" => create_plugin(parser, or_replace)?,
        "ALTER PLUGIN" => alter_plugin(parser)?,
        "DROP PLUGIN" => {
            let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
            let name = name(parser)?;
            let cascade = take(parser, "CASCADE");
            let _ = take(parser, "RESTRICT");
            change(PluginDdl::Drop { name, if_exists, cascade })
        }
        "CREATE FUNCTION" => create_function(parser, or_replace)?,
        "DROP FUNCTION" => {
            let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
            let name = name(parser)?;
            skip_signature(parser)?;
            change(PluginDdl::DropFunction { name, if_exists })
        }
        "ATTACH TRANSFORM" => attach(parser)?,
        _ => {
            let (plugin, function) = plugin_function(parser)?;
            parser.expect_keyword(Keyword::FROM)?;
            Manage::Detach(table_name(parser)?, plugin, function)
        }
    };
    Ok(Some((verb, statement)))
}

fn change(change: PluginDdl) -> Manage {
    Manage::Plugin(PluginCommand::Change(change))
}

fn create_plugin(parser: &mut Parser, or_replace: bool) -> Result<Manage, Failure> {
    let keep = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = name(parser)?;
    parser.expect_keyword(Keyword::FROM)?;
    let source = PluginSource::Location(parser.parse_literal_string()?);
    let given = if take(parser, "WITH") { settings(parser)? } else { Vec::new() };
    let force = take(parser, "FORCE");
    let settings = given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let existing = match (or_replace, keep) {
        (true, _) => Existing::AddVersion,
        (false, true) => Existing::Keep,
        (false, false) => Existing::Refuse,
    };
    let activate = true;
    Ok(Manage::Plugin(PluginCommand::Install { name, source, existing, activate, force, settings }))
}

fn alter_plugin(parser: &mut Parser) -> Result<Manage, Failure> {
    let name = name(parser)?;
    let ddl = if take(parser, "RESUME") {
        PluginDdl::Resume { name }
    } else if take(parser, "ROLLBACK") {
        PluginDdl::Rollback { name, force: take(parser, "FORCE") }
    } else if take(parser, "ACTIVATE") {
        let version = parser.parse_literal_string()?;
        PluginDdl::Activate { name, version, force: take(parser, "FORCE") }
    } else if take(parser, "SUSPEND") {
        let reason = match parser.peek_token_ref().token {
            Token::SingleQuotedString(_) => parser.parse_literal_string()?,
            _ => "an administrator suspended it".to_owned(),
        };
        PluginDdl::Suspend { name, reason, only: None, at_ns: 0 }
    } else if take(parser, "DROP") && take(parser, "CANARY") {
        PluginDdl::DropCanary { name, only: None }
    } else if take(parser, "SET") {
        if take(parser, "CANARY") {
            set_canary(parser, name)?
        } else {
            PluginDdl::Set { name, settings: settings(parser)? }
        }
    } else {
        let next = parser.peek_token();
        let offered = "RESUME, ROLLBACK, ACTIVATE, SUSPEND, SET or DROP CANARY";
        return Ok(parser.expected(offered, next)?);
    };
    Ok(change(ddl))
}

fn set_canary(parser: &mut Parser, name: String) -> Result<PluginDdl, Failure> {
    let version = parser.parse_literal_string()?;
    if !take(parser, "PERCENT") {
        let next = parser.peek_token();
        return Ok(parser.expected("PERCENT", next)?);
    }
    let percent = parser.parse_literal_uint()?;
    let percent = u8::try_from(percent).map_err(|_| {
        Error::new(Code::InvalidInput, format!("{percent} percent is no trial: give 1 to 99"))
    })?;
    Ok(PluginDdl::SetCanary { name, version, percent, force: take(parser, "FORCE") })
}

/// `(key = value, …)`; `NULL` and `DEFAULT` take a setting away.
fn settings(parser: &mut Parser) -> Result<Vec<(String, Option<String>)>, Failure> {
    parser.expect_token(&Token::LParen)?;
    let mut found = Vec::new();
    loop {
        let key = name(parser)?;
        parser.expect_token(&Token::Eq)?;
        let next = parser.next_token();
        let value = match next.token {
            Token::SingleQuotedString(text) | Token::Number(text, _) => Some(text),
            Token::Word(word) if word.quote_style.is_none() => {
                match word.value.to_ascii_uppercase().as_str() {
                    "NULL" | "DEFAULT" => None,
                    _ => Some(word.value),
                }
            }
            _ => return Ok(parser.expected("a value", next)?),
        };
        found.push((key, value));
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(found)
}

fn create_function(parser: &mut Parser, or_replace: bool) -> Result<Manage, Failure> {
    let function_name = name(parser)?;
    parser.expect_token(&Token::LParen)?;
    let mut parameters = Vec::new();
    while parser.peek_token_ref().token != Token::RParen {
        if !parameters.is_empty() {
            parser.expect_token(&Token::Comma)?;
        }
        parameters.push(parameter(parser)?);
    }
    parser.expect_token(&Token::RParen)?;
    parser.expect_keyword(Keyword::RETURNS)?;
    let returns = type_name(&parser.parse_data_type()?)?;
    let language = if take(parser, "LANGUAGE") { name(parser)? } else { "sql".to_owned() };
    if language != "wasm" {
        return Err(Error::new(
            Code::Unsupported,
            format!("functions in language {language:?} are not supported"),
        )
        .with_hint("write LANGUAGE wasm AS PLUGIN name FUNCTION name")
        .into());
    }
    parser.expect_keyword(Keyword::AS)?;
    if !take(parser, "PLUGIN") {
        let next = parser.peek_token();
        return Ok(parser.expected("PLUGIN name FUNCTION name", next)?);
    }
    let plugin = name(parser)?;
    parser.expect_keyword(Keyword::FUNCTION)?;
    let function = name(parser)?;
    let def = FunctionDef { name: function_name, plugin, function, parameters, returns };
    Ok(Manage::CreateFunction(def, or_replace))
}

/// `type` or `name type`: what is followed by a type was a name.
fn parameter(parser: &mut Parser) -> Result<String, Failure> {
    let first = parser.parse_data_type()?;
    match parser.peek_token_ref().token {
        Token::Comma | Token::RParen => type_name(&first),
        _ => type_name(&parser.parse_data_type()?),
    }
}

/// `(type, …)` behind a name says which of several functions is meant; here a name has one.
fn skip_signature(parser: &mut Parser) -> Result<(), Failure> {
    if !parser.consume_token(&Token::LParen) {
        return Ok(());
    }
    while parser.peek_token_ref().token != Token::RParen {
        parameter(parser)?;
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(())
}

/// The one name that [`crate::plugin_types::sql_name`] has for a type as written.
fn type_name(written: &DataType) -> Result<String, Failure> {
    let name = match written {
        DataType::Bool | DataType::Boolean => "BOOLEAN",
        DataType::SmallInt(_)
        | DataType::Int(_)
        | DataType::Integer(_)
        | DataType::Int2(_)
        | DataType::Int4(_)
        | DataType::Int32 => "INTEGER",
        DataType::BigInt(_) | DataType::Int8(_) | DataType::Int64 => "BIGINT",
        DataType::BigIntUnsigned(_) | DataType::UInt64 => "BIGINT UNSIGNED",
        DataType::Real | DataType::Float4 | DataType::Float32 => "REAL",
        DataType::Float(_)
        | DataType::Float8
        | DataType::Float64
        | DataType::Double(_)
        | DataType::DoublePrecision => "DOUBLE PRECISION",
        DataType::Text
        | DataType::String(_)
        | DataType::Varchar(_)
        | DataType::CharacterVarying(_) => "TEXT",
        DataType::Bytea => "BYTEA",
        DataType::Date => "DATE",
        DataType::Timestamp(_, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone) => "TIMESTAMPTZ",
        DataType::Timestamp(..) => "TIMESTAMP",
        DataType::Interval { .. } => "INTERVAL",
        other => {
            return Err(Error::new(
                Code::Unsupported,
                format!("functions of plugins do not take or return {other}"),
            )
            .with_hint(
                "types: BOOLEAN, INTEGER, BIGINT, BIGINT UNSIGNED, REAL, DOUBLE PRECISION, TEXT, \
                 BYTEA, DATE, TIMESTAMP, TIMESTAMPTZ, INTERVAL",
            )
            .into());
        }
    };
    Ok(name.to_owned())
}

fn plugin_function(parser: &mut Parser) -> Result<(String, String), Failure> {
    let plugin = name(parser)?;
    parser.expect_token(&Token::Period)?;
    Ok((plugin, name(parser)?))
}

fn attach(parser: &mut Parser) -> Result<Manage, Failure> {
    let (plugin, function) = plugin_function(parser)?;
    if !take(parser, "TO") {
        let next = parser.peek_token();
        return Ok(parser.expected("TO table", next)?);
    }
    let table = table_name(parser)?;
    let given = if take(parser, "WITH") { settings(parser)? } else { Vec::new() };
    let settings: BTreeMap<String, String> =
        given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let mut on_error = OnError::Reject;
    if take(parser, "ON") {
        let _ = take(parser, "ERROR");
        let word = name(parser)?;
        on_error = OnError::from_word(&word).ok_or_else(|| {
            Error::new(Code::Syntax, format!("ON ERROR {word:?} is not known"))
                .with_hint("use reject, pass or dead_letter")
        })?;
    }
    Ok(Manage::Attach(table, TransformDef { plugin, function, settings, on_error }))
}

#[cfg(test)]
mod tests {
    use super::super::command::{Command, Define, Parsed};
    use super::super::parse::parse;
    use super::super::rewrite::Rewriter;
    use super::*;

    fn parsed(sql: &str) -> kymo_kernel::Result<(String, Manage)> {
        let statements = parse(sql, &Rewriter::new())?;
        let [statement] = statements.as_slice() else { panic!("{sql}: one statement") };
        let tree = statement.tree.downcast_ref::<Parsed>().unwrap();
        match &tree.command {
            Command::Define(Define::Manage(manage)) => {
                Ok((statement.verb.clone(), manage.as_ref().clone()))
            }
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn each_statement_is_read() {
        for (sql, verb, part) in [
            ("CREATE PLUGIN p FROM 'file:p.wasm'", "CREATE PLUGIN", "Refuse"),
            ("create or replace plugin p from 'sha256:00' force", "CREATE PLUGIN", "AddVersion"),
            ("CREATE PLUGIN IF NOT EXISTS p FROM 'x'", "CREATE PLUGIN", "Keep"),
            (
                "CREATE PLUGIN p FROM 'x' WITH (memory_bytes = 1024, unit = 'K')",
                "CREATE PLUGIN",
                r#"[("memory_bytes", "1024"), ("unit", "K")]"#,
            ),
            ("ALTER PLUGIN p RESUME", "ALTER PLUGIN", "Resume"),
            ("ALTER PLUGIN p ROLLBACK FORCE", "ALTER PLUGIN", "force: true"),
            ("ALTER PLUGIN p ACTIVATE '1.0'", "ALTER PLUGIN", "Activate"),
            ("ALTER PLUGIN p SUSPEND 'too slow'", "ALTER PLUGIN", "too slow"),
            ("ALTER PLUGIN p SET (a = 1, b = NULL)", "ALTER PLUGIN", r#"("b", None)"#),
            ("ALTER PLUGIN p SET CANARY '2.0' PERCENT 5", "ALTER PLUGIN", "percent: 5"),
            ("ALTER PLUGIN p DROP CANARY", "ALTER PLUGIN", "DropCanary"),
            ("DROP PLUGIN IF EXISTS p CASCADE", "DROP PLUGIN", "cascade: true"),
            (
                "CREATE FUNCTION f(x DOUBLE PRECISION, BIGINT) RETURNS TEXT LANGUAGE wasm \
                 AS PLUGIN p FUNCTION g",
                "CREATE FUNCTION",
                r#"parameters: ["DOUBLE PRECISION", "BIGINT"], returns: "TEXT""#,
            ),
            ("DROP FUNCTION f(double precision)", "DROP FUNCTION", "if_exists: false"),
            (
                "ATTACH TRANSFORM p.t TO s.cpu WITH (k = 'v') ON ERROR dead_letter",
                "ATTACH TRANSFORM",
                "on_error: DeadLetter",
            ),
            ("DETACH TRANSFORM p.t FROM cpu", "DETACH TRANSFORM", "Detach"),
        ] {
            let (found, manage) = parsed(sql).unwrap();
            assert_eq!(found, verb, "{sql}");
            let shown = format!("{manage:?}");
            assert!(shown.contains(part), "{sql}: {shown}");
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (sql, code) in [
            ("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'x'", Code::Unsupported),
            (
                "CREATE FUNCTION f(a json) RETURNS text LANGUAGE wasm AS PLUGIN p FUNCTION g",
                Code::Unsupported,
            ),
            ("ALTER PLUGIN p SET CANARY '2' PERCENT 300", Code::InvalidInput),
            ("ALTER PLUGIN p", Code::Syntax),
            ("CREATE PLUGIN p", Code::Syntax),
            ("ATTACH TRANSFORM p.t TO cpu ON ERROR panic", Code::Syntax),
            ("DROP PLUGIN p q", Code::Syntax),
        ] {
            assert_eq!(parsed(sql).unwrap_err().code(), code, "{sql}");
        }
    }
}
