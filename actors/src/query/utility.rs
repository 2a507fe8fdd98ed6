//! Statements that set up a session rather than ask for data, read by hand: `SHOW`, `SET`,
//! `BEGIN`, cursors and what connection pools send between two borrowers.

use std::time::Duration;

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;
use kymo_kernel::{Code, Error};

use super::command::{Command, Cursor, PartialName, Scope, Show, Transaction};
use super::duration::Span;
use super::parse::Failure;

type Read = Result<Option<(&'static str, Command)>, Failure>;

/// Refuses anything after the statement.
pub(super) fn end(parser: &Parser) -> Result<(), ParserError> {
    let next = parser.peek_token();
    match next.token {
        Token::EOF => Ok(()),
        _ => parser.expected("end of statement", next),
    }
}

/// Whether the next word is this one; words are compared without case, quoted ones never match.
pub(super) fn word_is(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted))
}

/// Takes the next word if it is this one.
pub(super) fn take(parser: &mut Parser, wanted: &str) -> bool {
    let found = word_is(&parser.peek_token_ref().token, wanted);
    if found {
        parser.advance_token();
    }
    found
}

fn take_any(parser: &mut Parser, wanted: &[&str]) -> bool {
    wanted.iter().any(|each| take(parser, each))
}

/// An identifier as PostgreSQL reads it: lower case unless quoted.
pub(super) fn name(parser: &mut Parser) -> Result<String, ParserError> {
    let ident = parser.parse_identifier()?;
    Ok(match ident.quote_style {
        Some(_) => ident.value,
        None => ident.value.to_lowercase(),
    })
}

/// The value of an option, as `WITH (…)` and `SET (…)` take it: a word, a text or a number.
pub(super) fn option_value(parser: &mut Parser) -> String {
    match parser.next_token().token {
        Token::Word(word) => word.value,
        Token::SingleQuotedString(text) | Token::Number(text, _) => text,
        other => other.to_string(),
    }
}

/// `table`, `schema.table` or `database.schema.table`.
pub(super) fn table_name(parser: &mut Parser) -> Result<PartialName, Failure> {
    let mut parts = vec![name(parser)?];
    while parser.consume_token(&Token::Period) {
        parts.push(name(parser)?);
    }
    let mut parts = parts.into_iter().rev();
    let found = PartialName {
        table: parts.next().unwrap_or_default(),
        schema: parts.next(),
        database: parts.next(),
    };
    if parts.next().is_some() {
        return Err(Error::new(Code::Syntax, "a table's name has at most three parts")
            .with_hint("write database.schema.table")
            .into());
    }
    Ok(found)
}

/// Reads a utility statement; `None` if it is something else.
pub(super) fn read(parser: &mut Parser) -> Read {
    let first = parser.peek_token();
    let Token::Word(word) = &first.token else { return Ok(None) };
    if word.quote_style.is_some() {
        return Ok(None);
    }
    match word.value.to_ascii_uppercase().as_str() {
        "SHOW" => show(parser),
        "DESCRIBE" | "DESC" => describe(parser),
        "USE" => {
            parser.advance_token();
            let database = name(parser)?;
            Ok(Some(("USE", set("database", Some(database)))))
        }
        "SET" => set_statement(parser),
        "RESET" => {
            parser.advance_token();
            if take(parser, "ALL") {
                return Ok(Some(("RESET", Command::ResetAll("RESET"))));
            }
            let name = setting_name(parser)?;
            Ok(Some(("RESET", set(&name, None))))
        }
        "DISCARD" => discard(parser),
        "DEALLOCATE" => {
            parser.advance_token();
            let _ = take(parser, "PREPARE");
            if take(parser, "ALL") {
                return Ok(Some(nothing("DEALLOCATE ALL")));
            }
            name(parser)?;
            Ok(Some(nothing("DEALLOCATE")))
        }
        "LISTEN" | "UNLISTEN" | "NOTIFY" => notifications(parser),
        "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE" => {
            transaction(parser)
        }
        "FETCH" | "MOVE" => fetch(parser),
        "CLOSE" => {
            parser.advance_token();
            if take(parser, "ALL") {
                return Ok(Some(("CLOSE CURSOR ALL", Command::Cursor(Cursor::Close(None)))));
            }
            let name = name(parser)?;
            Ok(Some(("CLOSE CURSOR", Command::Cursor(Cursor::Close(Some(name))))))
        }
        _ => Ok(None),
    }
}

fn nothing(tag: &'static str) -> (&'static str, Command) {
    (tag, Command::Nothing)
}

fn set(name: &str, value: Option<String>) -> Command {
    Command::Set(vec![(name.to_owned(), value)], Scope::Session)
}

fn show(parser: &mut Parser) -> Read {
    parser.advance_token();
    let show = if take(parser, "TABLES") {
        let database = if take_any(parser, &["FROM", "IN"]) { Some(name(parser)?) } else { None };
        let like = if take(parser, "LIKE") { Some(parser.parse_literal_string()?) } else { None };
        Show::Tables { database, like }
    } else if take(parser, "DATABASES") {
        Show::Databases
    } else if take(parser, "SCHEMAS") {
        Show::Schemas
    } else if take_any(parser, &["COLUMNS", "FIELDS"]) {
        if !take_any(parser, &["FROM", "IN"]) {
            let next = parser.peek_token();
            return Ok(parser.expected("FROM table", next)?);
        }
        Show::Columns(table_name(parser)?)
    } else if take(parser, "CREATE") {
        parser.expect_keyword(Keyword::TABLE)?;
        Show::CreateTable(table_name(parser)?)
    } else if take(parser, "PLUGINS") {
        Show::Plugins
    } else if word_is(&parser.peek_nth_token(1).token, "QUERIES") && take(parser, "CONTINUOUS") {
        parser.advance_token();
        Show::ContinuousQueries
    } else if word_is(&parser.peek_nth_token(1).token, "POLICIES") && take(parser, "DOWNSAMPLING") {
        parser.advance_token();
        Show::DownsamplingPolicies
    } else if take(parser, "ALERTS") {
        Show::Alerts
    } else if take(parser, "SILENCES") {
        Show::Silences
    } else if take(parser, "ALL") {
        Show::All
    } else {
        Show::Setting(setting_name(parser)?)
    };
    Ok(Some(("SHOW", Command::Show(show))))
}

fn describe(parser: &mut Parser) -> Read {
    // DESCRIBE SELECT … is another word for EXPLAIN.
    let next = parser.peek_nth_token(1);
    if ["SELECT", "INSERT", "WITH", "VALUES"].iter().any(|word| word_is(&next.token, word)) {
        return Ok(None);
    }
    parser.advance_token();
    let _ = take(parser, "TABLE");
    Ok(Some(("SHOW", Command::Show(Show::Columns(table_name(parser)?)))))
}

/// The name of a setting, with PostgreSQL's spelled-out ones.
fn setting_name(parser: &mut Parser) -> Result<String, Failure> {
    if take(parser, "TIME") {
        if !take(parser, "ZONE") {
            let next = parser.peek_token();
            return Ok(parser.expected("ZONE", next)?);
        }
        return Ok("timezone".to_owned());
    }
    if take(parser, "TRANSACTION") {
        if take(parser, "ISOLATION") && take(parser, "LEVEL") {
            return Ok("transaction_isolation".to_owned());
        }
        let next = parser.peek_token();
        return Ok(parser.expected("ISOLATION LEVEL", next)?);
    }
    if take(parser, "SESSION") {
        if take(parser, "AUTHORIZATION") {
            return Ok("session_authorization".to_owned());
        }
        return Ok("session".to_owned());
    }
    if take(parser, "NAMES") {
        return Ok("client_encoding".to_owned());
    }
    let mut full = name(parser)?;
    while parser.consume_token(&Token::Period) {
        full = format!("{full}.{}", name(parser)?);
    }
    Ok(full.to_lowercase())
}

fn set_statement(parser: &mut Parser) -> Read {
    parser.advance_token();
    let scope = if take(parser, "LOCAL") {
        Scope::Transaction
    } else {
        if take(parser, "SESSION") {
            if take(parser, "CHARACTERISTICS") {
                rest(parser);
                return Ok(Some(("SET", Command::Transaction(Transaction::Modes))));
            }
            if word_is(&parser.peek_token_ref().token, "AUTHORIZATION") {
                return Err(no_roles());
            }
        }
        Scope::Session
    };
    if take(parser, "TRANSACTION") {
        rest(parser);
        return Ok(Some(("SET", Command::Transaction(Transaction::Modes))));
    }
    if word_is(&parser.peek_token_ref().token, "ROLE") {
        parser.advance_token();
        if take_any(parser, &["NONE", "DEFAULT"]) {
            return Ok(Some(nothing("SET")));
        }
        return Err(no_roles());
    }
    let zone = word_is(&parser.peek_token_ref().token, "TIME");
    let names = word_is(&parser.peek_token_ref().token, "NAMES");
    let name = setting_name(parser)?;
    let needs_no_sign = zone || names;
    if !(needs_no_sign || parser.consume_token(&Token::Eq) || take(parser, "TO")) {
        let next = parser.peek_token();
        return Ok(parser.expected("= or TO", next)?);
    }
    let value = setting_value(parser)?;
    Ok(Some(("SET", Command::Set(vec![(name, value)], scope))))
}

fn no_roles() -> Failure {
    Error::new(Code::Unsupported, "changing the role within a session is not supported")
        .with_hint("log in as the other user")
        .into()
}

/// Everything up to the end of the statement, unread.
fn rest(parser: &mut Parser) {
    while parser.peek_token_ref().token != Token::EOF {
        parser.advance_token();
    }
}

/// `DEFAULT`, or values separated by commas and joined as PostgreSQL shows lists.
fn setting_value(parser: &mut Parser) -> Result<Option<String>, Failure> {
    if take(parser, "DEFAULT") {
        return Ok(None);
    }
    let mut values = Vec::new();
    loop {
        // SET TIME ZONE INTERVAL '+00:00' HOUR TO MINUTE
        if take(parser, "INTERVAL") {
            values.push(parser.parse_literal_string()?);
            rest(parser);
            break;
        }
        let minus = parser.consume_token(&Token::Minus);
        let token = parser.next_token();
        let value = match token.token {
            Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text,
            Token::Number(number, _) => number,
            Token::Word(word) => word.value,
            _ => return Ok(parser.expected("a value", token)?),
        };
        values.push(if minus { format!("-{value}") } else { value });
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    Ok(Some(values.join(", ")))
}

fn discard(parser: &mut Parser) -> Read {
    parser.advance_token();
    for (word, tag) in [
        ("PLANS", "DISCARD PLANS"),
        ("SEQUENCES", "DISCARD SEQUENCES"),
        ("TEMP", "DISCARD TEMP"),
        ("TEMPORARY", "DISCARD TEMP"),
    ] {
        if take(parser, word) {
            return Ok(Some(nothing(tag)));
        }
    }
    if take(parser, "ALL") {
        return Ok(Some(("DISCARD ALL", Command::ResetAll("DISCARD ALL"))));
    }
    let next = parser.peek_token();
    Ok(parser.expected("ALL, PLANS, SEQUENCES or TEMP", next)?)
}

fn notifications(parser: &mut Parser) -> Read {
    if take(parser, "UNLISTEN") {
        if !parser.consume_token(&Token::Mul) {
            name(parser)?;
        }
        return Ok(Some(nothing("UNLISTEN")));
    }
    let tag = if take(parser, "LISTEN") { "LISTEN" } else { "NOTIFY" };
    if tag == "NOTIFY" {
        parser.advance_token();
    }
    name(parser)?;
    if tag == "NOTIFY" && parser.consume_token(&Token::Comma) {
        parser.parse_literal_string()?;
    }
    Ok(Some(nothing(tag)))
}

fn transaction(parser: &mut Parser) -> Read {
    let start = |tag| (tag, Command::Transaction(Transaction::Begin(tag)));
    if take(parser, "BEGIN") {
        let _ = take_any(parser, &["WORK", "TRANSACTION"]);
        modes(parser)?;
        return Ok(Some(start("BEGIN")));
    }
    if take(parser, "START") {
        parser.expect_keyword(Keyword::TRANSACTION)?;
        modes(parser)?;
        return Ok(Some(start("START TRANSACTION")));
    }
    if take(parser, "SAVEPOINT") {
        let name = name(parser)?;
        return Ok(Some(("SAVEPOINT", Command::Transaction(Transaction::Savepoint(name)))));
    }
    if take(parser, "RELEASE") {
        let _ = take(parser, "SAVEPOINT");
        let name = name(parser)?;
        return Ok(Some(("RELEASE", Command::Transaction(Transaction::Release(name)))));
    }
    let commit = take_any(parser, &["COMMIT", "END"]);
    if !commit {
        parser.advance_token();
    }
    let _ = take_any(parser, &["WORK", "TRANSACTION"]);
    if !commit && take(parser, "TO") {
        let _ = take(parser, "SAVEPOINT");
        let name = name(parser)?;
        return Ok(Some(("ROLLBACK", Command::Transaction(Transaction::RollbackTo(name)))));
    }
    if take(parser, "AND") {
        let no = take(parser, "NO");
        parser.expect_keyword(Keyword::CHAIN)?;
        if !no {
            return Err(Error::new(Code::Unsupported, "AND CHAIN is not supported").into());
        }
    }
    Ok(Some(if commit {
        ("COMMIT", Command::Transaction(Transaction::Commit))
    } else {
        ("ROLLBACK", Command::Transaction(Transaction::Rollback))
    }))
}

/// `ISOLATION LEVEL …`, `READ ONLY`, `DEFERRABLE`: read, and of no consequence here.
fn modes(parser: &mut Parser) -> Result<(), Failure> {
    const WORDS: [&str; 13] = [
        "ISOLATION",
        "LEVEL",
        "READ",
        "ONLY",
        "WRITE",
        "COMMITTED",
        "UNCOMMITTED",
        "REPEATABLE",
        "SERIALIZABLE",
        "NOT",
        "DEFERRABLE",
        "SNAPSHOT",
        "IMMEDIATE",
    ];
    while take_any(parser, &WORDS) || parser.consume_token(&Token::Comma) {}
    Ok(())
}

/// `DECLARE name [flags] CURSOR [WITH HOLD] FOR`; leaves the parser at the query.
pub(super) fn declare(parser: &mut Parser) -> Result<Option<(String, bool)>, Failure> {
    if !take(parser, "DECLARE") {
        return Ok(None);
    }
    let name = name(parser)?;
    while take_any(parser, &["BINARY", "ASENSITIVE", "INSENSITIVE", "NO", "SCROLL"]) {}
    if !take(parser, "CURSOR") {
        let next = parser.peek_token();
        return Ok(parser.expected("CURSOR", next)?);
    }
    let mut hold = false;
    if take(parser, "WITH") {
        hold = true;
        let _ = take(parser, "HOLD");
    } else if take(parser, "WITHOUT") {
        let _ = take(parser, "HOLD");
    }
    parser.expect_keyword(Keyword::FOR)?;
    Ok(Some((name, hold)))
}

fn fetch(parser: &mut Parser) -> Read {
    let skip = take(parser, "MOVE");
    if !skip {
        parser.advance_token();
    }
    let backward =
        take_any(parser, &["BACKWARD", "PRIOR", "FIRST", "LAST", "ABSOLUTE", "RELATIVE"]);
    if backward || parser.peek_token_ref().token == Token::Minus {
        return Err(Error::new(Code::Unsupported, "cursors move forward only")
            .with_hint("FETCH [FORWARD] n FROM cursor")
            .into());
    }
    let mut count = Some(1);
    if take_any(parser, &["FORWARD", "NEXT"]) || !is_cursor_name(parser) {
        if take(parser, "ALL") {
            count = None;
        } else if let Token::Number(..) = parser.peek_token_ref().token {
            count = Some(parser.parse_literal_uint()?);
        }
    }
    let _ = take_any(parser, &["FROM", "IN"]);
    let name = name(parser)?;
    let timeout = if !skip && take(parser, "WITH") { Some(timeout(parser)?) } else { None };
    let tag = if skip { "MOVE" } else { "FETCH" };
    Ok(Some((tag, Command::Cursor(Cursor::Fetch { name, count, skip, timeout }))))
}

/// The value of `(timeout = '1s')`.
fn timeout(parser: &mut Parser) -> Result<Duration, Failure> {
    let wrong = || {
        Error::new(Code::Syntax, "the only option of FETCH is WITH (timeout = '…')")
            .with_hint("FETCH 10 FROM c WITH (timeout = '1s')")
    };
    if !parser.consume_token(&Token::LParen) || !take(parser, "timeout") {
        return Err(wrong().into());
    }
    let _ = parser.consume_token(&Token::Eq);
    let Token::SingleQuotedString(text) = parser.next_token().token else {
        return Err(wrong().into());
    };
    if !parser.consume_token(&Token::RParen) {
        return Err(wrong().into());
    }
    let nanos = Span::parse(&text)?.fixed_nanos().and_then(|nanos| u64::try_from(nanos).ok());
    let nanos = nanos.ok_or_else(|| {
        Error::new(Code::OutOfRange, format!("{text:?} is no time to wait"))
            .with_hint("write it like '500ms', '10s' or '5m'")
    })?;
    Ok(Duration::from_nanos(nanos))
}

/// Whether the rest is just the cursor's name, possibly after FROM.
fn is_cursor_name(parser: &Parser) -> bool {
    matches!(&parser.peek_token_ref().token, Token::Word(word)
        if word.quote_style.is_some() || !word.value.eq_ignore_ascii_case("ALL"))
}
