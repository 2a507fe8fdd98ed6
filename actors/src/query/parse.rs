//! From SQL text to statements: split at semicolons, our own commands read by hand, everything
//! else by the SQL engine's PostgreSQL grammar.
//!
//! Each statement keeps its own text and its place in the client's text, so that an error in
//! the third statement points into the third statement.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{self, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use kymo_kernel::message::Statement;
use kymo_kernel::{Code, Error, Result};

use super::command::{Command, Cursor, Define, Parsed, Planned, Retained};
use super::error::from_parser;
use super::rewrite::{Applied, Rewriter, catalog_query};
use super::text::{Lines, position};
use super::{alert, call, continuous, ddl, delete, live, manage, utility};

/// Nesting that a statement may have: deeper ones would need more stack than threads have.
const DEPTH: usize = 64;
/// Operators chained in one statement; each is a level of the tree, which is walked by recursion
/// here and planned by recursion on the query pool's threads.
const MAX_OPERATORS: usize = 500;
/// Operators that any thread's stack has room for; a statement with more is read on a stack of
/// its own, because the actors' threads have the system's default of 2 MiB.
const SHALLOW: usize = 32;
/// That stack. A build without optimisation takes several KiB a level.
const STACK_BYTES: usize = 8 << 20;
/// Set operations and joins chained in one statement.
const MAX_NESTED_QUERIES: usize = 100;

pub(super) static DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// Splits and parses SQL text; empty statements are left out.
///
/// # Errors
/// `syntax_error` with the place; `unsupported` for statements that are not offered.
pub(crate) fn parse(sql: &str, rewriter: &Rewriter) -> Result<Vec<Arc<Statement>>> {
    let lines = Lines::new(sql);
    let tokens = Tokenizer::new(&DIALECT, sql).tokenize_with_location().map_err(|error| {
        Error::new(Code::Syntax, format!("syntax error: {}", error.message))
            .with_position(lines.position(error.location))
    })?;
    let mut statements = Vec::new();
    for piece in tokens.split(|token| token.token == Token::SemiColon) {
        let mut words = piece.iter().filter(|t| !matches!(t.token, Token::Whitespace(_)));
        let Some(first) = words.next() else { continue };
        let last = words.next_back().unwrap_or(first);
        let start = lines.byte(first.span.start);
        let end = lines.byte(last.span.end).max(start);
        let statement = one(&sql[start..end], piece, position(sql, start) - 1, rewriter)
            .map_err(|error| place(error, sql))?;
        statements.push(Arc::new(statement));
    }
    Ok(statements)
}

/// Parser messages carry their place as text; here it becomes a number.
fn place(error: Failure, sql: &str) -> Error {
    match error {
        Failure::Parser(error) => from_parser(&error, Some(sql)),
        Failure::Ours(error) => error,
    }
}

/// Why a statement cannot be read.
pub(super) enum Failure {
    /// The grammar says so; the place is in the text.
    Parser(ParserError),
    /// We say so.
    Ours(Error),
}

impl From<ParserError> for Failure {
    fn from(error: ParserError) -> Self {
        Failure::Parser(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Ours(error)
    }
}

/// Reads the tokens of one statement, of which `text` is the text and `offset` the place.
pub(super) fn one(
    text: &str,
    tokens: &[TokenWithSpan],
    offset: u32,
    rewriter: &Rewriter,
) -> Result<Statement, Failure> {
    if check_size(tokens)? <= SHALLOW {
        return read(text, tokens, offset, rewriter);
    }
    stacker::grow(STACK_BYTES, || read(text, tokens, offset, rewriter))
}

fn read(
    text: &str,
    tokens: &[TokenWithSpan],
    offset: u32,
    rewriter: &Rewriter,
) -> Result<Statement, Failure> {
    let parameters = largest_parameter(tokens)?;
    let mut parser = Parser::new(&DIALECT)
        .with_recursion_limit(DEPTH)
        .with_tokens_with_locations(spelled_out(tokens));
    let (verb, command) = command(&mut parser, text, offset, tokens, rewriter)?;
    let verb = verb.to_owned();
    let start = tokens
        .iter()
        .find(|each| !matches!(each.token, Token::Whitespace(_)))
        .map_or((1, 1), |first| (first.span.start.line, first.span.start.column));
    let parsed = Parsed { command, offset, start, parameters };
    Ok(Statement { text: text.into(), verb, tree: Arc::new(parsed) })
}

/// `TABLE name` where a query begins as `SELECT * FROM name`, which it means, and what else is
/// short for a query.
fn spelled_out(tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    if let Some(query) = alert::channels(tokens) {
        return query;
    }
    const BEFORE: [Keyword; 6] = [
        Keyword::UNION,
        Keyword::EXCEPT,
        Keyword::INTERSECT,
        Keyword::ALL,
        Keyword::EXPLAIN,
        Keyword::ANALYZE,
    ];
    let keyword = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.keyword),
        _ => None,
    };
    let mut spelled = Vec::with_capacity(tokens.len() + 2);
    let mut before: Option<&TokenWithSpan> = None;
    for token in tokens {
        if matches!(token.token, Token::Whitespace(_)) {
            spelled.push(token.clone());
            continue;
        }
        let begins = before
            .is_none_or(|before| keyword(before).is_some_and(|keyword| BEFORE.contains(&keyword)));
        if begins && keyword(token) == Some(Keyword::TABLE) {
            let words = [Token::make_keyword("SELECT"), Token::Mul, Token::make_keyword("FROM")];
            spelled.extend(words.map(|word| TokenWithSpan { token: word, span: token.span }));
        } else {
            spelled.push(token.clone());
        }
        before = Some(token);
    }
    spelled
}

/// The depth of the tree at most.
fn check_size(tokens: &[TokenWithSpan]) -> Result<usize> {
    let operators: usize = tokens.iter().map(|each| operators(&each.token)).sum();
    if operators > MAX_OPERATORS {
        return Err(Error::new(
            Code::TooLarge,
            format!(
                "the statement chains more than {MAX_OPERATORS} operators or more than \
                 {MAX_NESTED_QUERIES} set operations and joins"
            ),
        )
        .with_hint("use IN (…), = ANY (array) or a join instead of long chains"));
    }
    Ok(operators)
}

/// What a token adds to the depth of the tree. A set operation or a join nests whole queries,
/// whose planning needs far more of the stack and of time than an expression does.
fn operators(token: &Token) -> usize {
    match token {
        Token::Plus | Token::Minus | Token::Mul | Token::Div | Token::Mod => 1,
        Token::StringConcat | Token::DoubleColon | Token::LBracket => 1,
        Token::Word(word) => match word.keyword {
            Keyword::AND | Keyword::OR | Keyword::NOT => 1,
            Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::JOIN => {
                MAX_OPERATORS / MAX_NESTED_QUERIES
            }
            _ => 0,
        },
        _ => 0,
    }
}

fn largest_parameter(tokens: &[TokenWithSpan]) -> Result<usize> {
    let mut largest = 0;
    for token in tokens {
        let Token::Placeholder(name) = &token.token else { continue };
        let number = name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        match number {
            Some(number) if (1..=65_535).contains(&number) => largest = largest.max(number),
            _ => {
                return Err(Error::new(
                    Code::Syntax,
                    format!("parameter {name:?} is not of the form $1 … $65535"),
                ));
            }
        }
    }
    Ok(largest)
}

fn command(
    parser: &mut Parser,
    text: &str,
    offset: u32,
    tokens: &[TokenWithSpan],
    rewriter: &Rewriter,
) -> Result<(&'static str, Command), Failure> {
    if let Some((verb, command)) = utility::read(parser)? {
        utility::end(parser)?;
        return Ok((verb, command));
    }
    if let Some(call) = call::read(parser)? {
        return Ok(call);
    }
    if let Some(subscription) = live::read(text, offset, tokens, rewriter)? {
        return Ok(subscription);
    }
    if let Some(continuous) = continuous::read(parser, text, offset, tokens, rewriter)? {
        return Ok(continuous);
    }
    if let Some(alert) = alert::read(text, offset, tokens, rewriter)? {
        return Ok(alert);
    }
    if let Some((name, hold)) = utility::declare(parser)? {
        // What follows FOR is a statement of its own.
        let rest = parser.peek_token();
        let skip = tokens.iter().position(|each| each.span.start == rest.span.start);
        let query_tokens = skip.map_or(&[][..], |skip| &tokens[skip..]);
        let start = tokens
            .iter()
            .find(|t| !matches!(t.token, Token::Whitespace(_)))
            .map_or(0, |first| relative(first.span.start, rest.span.start, text));
        let query = one(&text[start..], query_tokens, offset, rewriter)?;
        let reads =
            query.tree.downcast_ref::<Parsed>().is_some_and(|parsed| match &parsed.command {
                Command::Plan(planned) => !planned.writes,
                Command::Subscribe(subscribe) => !subscribe.explain,
                _ => false,
            });
        if !reads {
            return Err(Error::new(Code::Syntax, "a cursor is declared FOR a query")
                .with_hint("DECLARE c CURSOR FOR SELECT …, or FOR SUBSCRIBE TO SELECT …")
                .into());
        }
        let cursor = Cursor::Declare { name, hold, query: Arc::new(query) };
        return Ok(("DECLARE CURSOR", Command::Cursor(cursor)));
    }
    if let Some((verb, manage)) = manage::read(parser)? {
        utility::end(parser)?;
        return Ok((verb, Command::Define(Define::Manage(Box::new(manage)))));
    }
    if let Some(define) = ddl::read(parser)? {
        utility::end(parser)?;
        let verb = match &define {
            Define::CreateTable(_) => "CREATE TABLE",
            Define::DropTable { .. } => "DROP TABLE",
            Define::CreateDatabase { .. } => "CREATE DATABASE",
            Define::DropDatabase { .. } => "DROP DATABASE",
            Define::AlterTable(_) | Define::Retention(Retained::Table(..)) => "ALTER TABLE",
            Define::Retention(Retained::Database(..)) => "ALTER DATABASE",
            Define::Manage(_) | Define::Alert(_) => "ALTER PLUGIN",
        };
        return Ok((verb, Command::Define(define)));
    }
    let tree = if catalog_query(tokens) {
        rewriter.catalog_statement(text)?
    } else {
        let tree = parser.parse_statement()?;
        utility::end(parser)?;
        tree
    };
    planned(tree, rewriter)
}

/// The byte of a statement's text at a place of the client's text, where the statement begins
/// at `from`.
pub(super) fn relative(from: Location, to: Location, text: &str) -> usize {
    let columns = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let chars = |start: usize, count: usize| {
        let rest = &text[start..];
        start + rest.char_indices().nth(count).map_or(rest.len(), |(byte, _)| byte)
    };
    if to.line <= from.line {
        return chars(0, columns(to.column.saturating_sub(from.column)));
    }
    let breaks = columns(to.line - from.line - 1);
    let start = text.match_indices('\n').nth(breaks).map_or(text.len(), |(at, _)| at + 1);
    chars(start, columns(to.column.saturating_sub(1)))
}

/// The allow-list: what the engine may plan. Everything else is refused by name.
fn planned(
    mut tree: ast::Statement,
    rewriter: &Rewriter,
) -> Result<(&'static str, Command), Failure> {
    let mut deletes = false;
    if let ast::Statement::Truncate(truncate) = &tree {
        return Ok(("TRUNCATE TABLE", Command::Truncate(delete::truncated(truncate)?)));
    }
    if let ast::Statement::Delete(delete) = tree {
        (tree, deletes) = (delete::as_query(delete)?, true);
    }
    let (verb, writes) = match &tree {
        ast::Statement::Query(_) if deletes => ("DELETE", true),
        ast::Statement::Query(_) => ("SELECT", false),
        ast::Statement::Insert(insert) => {
            check_insert(insert)?;
            ("INSERT", true)
        }
        ast::Statement::Explain { statement, analyze, options, .. } => {
            // EXPLAIN ANALYZE of an INSERT would write; the plan alone is harmless.
            let runs = *analyze
                || options.as_ref().is_some_and(|all| {
                    all.iter().any(|each| each.name.value.eq_ignore_ascii_case("analyze"))
                });
            match statement.as_ref() {
                ast::Statement::Query(_) => ("EXPLAIN", false),
                ast::Statement::Insert(insert) => {
                    check_insert(insert)?;
                    ("EXPLAIN", runs)
                }
                other => return Err(refuse(other).into()),
            }
        }
        other => return Err(refuse(other).into()),
    };
    if let ControlFlow::Break(error) = tree.visit(&mut Queries) {
        return Err(error.into());
    }
    let Applied { names, late, sets, calls } = rewriter.apply(&mut tree)?;
    let planned = Box::new(Planned { tree, writes, names, sets, late, calls });
    Ok((verb, if deletes { Command::Delete(planned) } else { Command::Plan(planned) }))
}

/// Looks at every query of a statement, however deep, for what is not offered.
struct Queries;

impl Visitor for Queries {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<Error> {
        fn check(body: &ast::SetExpr) -> Result<()> {
            match body {
                ast::SetExpr::Select(select) if select.into.is_some() => {
                    Err(unsupported("SELECT … INTO")
                        .with_hint("use CREATE TABLE and INSERT … SELECT"))
                }
                ast::SetExpr::Insert(_)
                | ast::SetExpr::Update(_)
                | ast::SetExpr::Delete(_)
                | ast::SetExpr::Merge(_) => Err(unsupported("a data change inside a query")),
                ast::SetExpr::SetOperation { left, right, .. } => {
                    check(left).and_then(|()| check(right))
                }
                // A query in parentheses is visited by itself.
                _ => Ok(()),
            }
        }
        if !query.locks.is_empty() {
            return ControlFlow::Break(unsupported("SELECT … FOR UPDATE"));
        }
        match check(&query.body) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

fn check_insert(insert: &ast::Insert) -> Result<()> {
    if insert.on.is_some() {
        return Err(unsupported("INSERT … ON CONFLICT")
            .with_hint("writing the same tags and time again replaces the earlier row"));
    }
    if insert.returning.is_some() {
        return Err(unsupported("INSERT … RETURNING"));
    }
    if insert.overwrite || insert.replace_into {
        return Err(unsupported("INSERT OVERWRITE and REPLACE INTO")
            .with_hint("a plain INSERT replaces rows of the same tags and time"));
    }
    if insert.source.is_none() {
        return Err(unsupported("INSERT … DEFAULT VALUES and SET"));
    }
    Ok(())
}

pub(super) fn unsupported(what: &str) -> Error {
    Error::new(Code::Unsupported, format!("{what} is not supported"))
}

fn refuse(tree: &ast::Statement) -> Error {
    let text = tree.to_string();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    let what = words.join(" ").to_uppercase();
    let hint = match tree {
        ast::Statement::Copy { .. } => {
            "the server reads and writes no files for SQL; use the HTTP API or COPY … TO STDOUT"
        }
        ast::Statement::Update(_) => "an INSERT with the same tags and time replaces the row",
        ast::Statement::Prepare { .. } | ast::Statement::Execute { .. } => {
            "use your driver's prepared statements"
        }
        _ => {
            "statements: SELECT, INSERT, DELETE, TRUNCATE, EXPLAIN, CREATE/DROP TABLE, CREATE/DROP DATABASE, SHOW, DESCRIBE, SET"
        }
    };
    unsupported(&what).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::command::{Show, Transaction};

    fn all(sql: &str) -> Vec<Arc<Statement>> {
        parse(sql, &Rewriter::new()).unwrap()
    }

    fn first(sql: &str) -> Command {
        all(sql)[0].tree.downcast_ref::<Parsed>().unwrap().command.clone()
    }

    #[test]
    fn splits_at_semicolons_outside_of_strings_and_keeps_places() {
        let found = all(" SELECT ';' ;;\n SELECT 2 -- end;\n; /* x */ ");
        assert_eq!(found.len(), 2);
        assert_eq!(&*found[0].text, "SELECT ';'");
        assert_eq!(&*found[1].text, "SELECT 2");
        assert_eq!(found[1].tree.downcast_ref::<Parsed>().unwrap().offset, 16);
        assert!(all("").is_empty());
        assert!(all(" ; -- nothing\n").is_empty());
    }

    #[test]
    fn a_syntax_error_has_a_place_in_the_whole_text() {
        let error = parse("SELECT 1; SELEC 2", &Rewriter::new()).unwrap_err();
        assert_eq!((error.code(), error.position()), (Code::Syntax, Some(11)));
        let error = parse("SELECT 'abc", &Rewriter::new()).unwrap_err();
        assert_eq!((error.code(), error.position()), (Code::Syntax, Some(8)));
        let error = parse("SELECT 1 1", &Rewriter::new()).unwrap_err();
        assert_eq!((error.code(), error.position()), (Code::Syntax, Some(10)));
    }

    #[test]
    fn statements_that_touch_files_or_the_engine_are_refused() {
        for sql in [
            "COPY (SELECT 1) TO '/tmp/x.parquet'",
            "COPY t FROM '/etc/passwd'",
            "CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION '/tmp/x'",
            "CREATE VIEW v AS SELECT 1",
            "UPDATE t SET a = 1",
            "DELETE FROM t RETURNING a",
            "DELETE FROM t USING u WHERE t.a = u.a",
            "DELETE FROM t, u",
            "DELETE FROM t JOIN u ON true",
            "DELETE FROM f(1)",
            "DELETE FROM t WHERE a IN (SELECT 1 FOR UPDATE)",
            "WITH x AS (DELETE FROM t) SELECT * FROM x",
            "EXPLAIN DELETE FROM t",
            "TRUNCATE IF EXISTS t",
            "ALTER TABLE t RENAME TO u",
            "ALTER TABLE t SET SCHEMA u",
            "SELECT 1 INTO t",
            "WITH x AS (INSERT INTO t VALUES (1)) SELECT * FROM x",
            "EXPLAIN COPY (SELECT 1) TO '/tmp/x'",
            "EXPLAIN SELECT 1 INTO t",
            "EXPLAIN SELECT * FROM t FOR UPDATE",
            "EXPLAIN ANALYZE WITH x AS (INSERT INTO t VALUES (1)) SELECT * FROM x",
            "SELECT * FROM (SELECT 1 INTO t) AS x",
            "SELECT * FROM (SELECT * FROM t FOR UPDATE) AS x",
            "SELECT (SELECT max(a) FROM t FOR SHARE)",
            "SELECT 1 WHERE EXISTS (SELECT 1 INTO t)",
            "INSERT INTO t SELECT * FROM (SELECT 1 INTO u) AS x",
            "PREPARE p AS SELECT 1",
            "CREATE FUNCTION f() RETURNS INT AS 'x'",
            "GRANT ALL ON t TO u",
            "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
            "ALTER TABLE t ALTER COLUMN x TYPE INT",
            "LOAD 'x'",
        ] {
            let error = parse(sql, &Rewriter::new()).unwrap_err();
            assert!(matches!(error.code(), Code::Unsupported | Code::Syntax), "{sql}: {error:?}");
        }
    }

    #[test]
    fn commands_have_their_tags() {
        for (sql, verb) in [
            ("select 1", "SELECT"),
            ("VALUES (1)", "SELECT"),
            ("TABLE t", "SELECT"),
            ("/* all */ table a.t ORDER BY 1 LIMIT 3", "SELECT"),
            ("SELECT 1 UNION ALL TABLE t", "SELECT"),
            ("EXPLAIN TABLE t", "EXPLAIN"),
            ("WITH a AS (SELECT 1) SELECT * FROM a", "SELECT"),
            ("insert into t values (1)", "INSERT"),
            ("ALTER TABLE t SET (retention = '30d')", "ALTER TABLE"),
            ("alter table a.t reset (retention)", "ALTER TABLE"),
            ("alter table a.t add column x int, drop y", "ALTER TABLE"),
            ("ALTER DATABASE d SET (retention = 'forever')", "ALTER DATABASE"),
            ("delete from t", "DELETE"),
            ("DELETE FROM a.t AS x WHERE x.v > (SELECT avg(v) FROM u)", "DELETE"),
            ("truncate t", "TRUNCATE TABLE"),
            ("TRUNCATE TABLE a.t, u RESTART IDENTITY CASCADE", "TRUNCATE TABLE"),
            ("explain select 1", "EXPLAIN"),
            ("EXPLAIN (ANALYZE) SELECT 1", "EXPLAIN"),
            ("begin", "BEGIN"),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "BEGIN"),
            ("START TRANSACTION READ ONLY", "START TRANSACTION"),
            ("commit and no chain", "COMMIT"),
            ("END", "COMMIT"),
            ("abort", "ROLLBACK"),
            ("SAVEPOINT a", "SAVEPOINT"),
            ("RELEASE SAVEPOINT a", "RELEASE"),
            ("ROLLBACK TO SAVEPOINT a", "ROLLBACK"),
            ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "SET"),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET"),
            ("SET x.y = 1", "SET"),
            ("RESET ALL", "RESET"),
            ("DISCARD ALL", "DISCARD ALL"),
            ("DEALLOCATE ALL", "DEALLOCATE ALL"),
            ("DEALLOCATE PREPARE s1", "DEALLOCATE"),
            ("CLOSE ALL", "CLOSE CURSOR ALL"),
            ("UNLISTEN *", "UNLISTEN"),
            ("LISTEN channel", "LISTEN"),
            ("NOTIFY channel, 'x'", "NOTIFY"),
            ("SHOW TABLES", "SHOW"),
            ("DESCRIBE cpu", "SHOW"),
            ("USE metrics", "USE"),
            ("DECLARE c CURSOR FOR SELECT 1", "DECLARE CURSOR"),
            ("FETCH FORWARD 10 FROM c", "FETCH"),
            ("MOVE 5 IN c", "MOVE"),
            ("CREATE DATABASE d", "CREATE DATABASE"),
            ("DROP TABLE IF EXISTS a, b", "DROP TABLE"),
        ] {
            assert_eq!(all(sql)[0].verb, verb, "{sql}");
        }
    }

    #[test]
    fn reads_show_and_cursors() {
        assert!(
            matches!(first("SHOW transaction isolation level"), Command::Show(Show::Setting(name)) if name == "transaction_isolation")
        );
        assert!(
            matches!(first("SHOW TIME ZONE"), Command::Show(Show::Setting(name)) if name == "timezone")
        );
        assert!(
            matches!(first("SHOW COLUMNS FROM a.b"), Command::Show(Show::Columns(name)) if name.schema.as_deref() == Some("a"))
        );
        assert!(
            matches!(first("ROLLBACK TO a"), Command::Transaction(Transaction::RollbackTo(name)) if name == "a")
        );
        let Command::Cursor(Cursor::Declare { name, hold, query }) =
            first("DECLARE \"My\" NO SCROLL CURSOR WITH HOLD FOR\n  SELECT $1 + 1")
        else {
            panic!("not a cursor")
        };
        assert_eq!((name.as_str(), hold, &*query.text), ("My", true, "SELECT $1 + 1"));
        assert!(matches!(first("FETCH ALL c"), Command::Cursor(Cursor::Fetch { count: None, .. })));
        assert!(matches!(
            first("FETCH NEXT FROM c"),
            Command::Cursor(Cursor::Fetch { count: Some(1), .. })
        ));
        assert!(parse("FETCH BACKWARD 1 FROM c", &Rewriter::new()).is_err());
        let Command::Cursor(Cursor::Declare { query, .. }) =
            first("DECLARE c CURSOR FOR SUBSCRIBE TO SELECT 1 WITH (progress = true)")
        else {
            panic!("not a cursor")
        };
        assert_eq!(query.verb, "SUBSCRIBE");
        let timeout = |sql: &str| match first(sql) {
            Command::Cursor(Cursor::Fetch { timeout, .. }) => timeout,
            other => panic!("{other:?}"),
        };
        assert_eq!(timeout("FETCH 10 FROM c"), None);
        let ms = |ms| Some(std::time::Duration::from_millis(ms));
        assert_eq!(timeout("FETCH ALL FROM c WITH (timeout = '1500ms')"), ms(1500));
        assert_eq!(timeout("FETCH c with (TIMEOUT '0s')"), ms(0));
        for (sql, code) in [
            ("FETCH c WITH (timeout = 5)", Code::Syntax),
            ("FETCH c WITH (patience = '5s')", Code::Syntax),
            ("FETCH c WITH (timeout = '5s'", Code::Syntax),
            ("FETCH c WITH (timeout = 'soon')", Code::InvalidCast),
            ("FETCH c WITH (timeout = '1 month')", Code::OutOfRange),
            ("FETCH c WITH (timeout = '-1s')", Code::OutOfRange),
            ("MOVE 5 IN c WITH (timeout = '1s')", Code::Syntax),
            ("DECLARE c CURSOR FOR EXPLAIN SUBSCRIBE TO SELECT 1", Code::Syntax),
            ("DECLARE c CURSOR FOR INSERT INTO t VALUES (1)", Code::Syntax),
        ] {
            assert_eq!(parse(sql, &Rewriter::new()).unwrap_err().code(), code, "{sql}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
        assert_eq!(parse(&deep, &Rewriter::new()).unwrap_err().code(), Code::TooLarge);
        let long = format!("SELECT 1{}", " + 1".repeat(5000));
        assert_eq!(parse(&long, &Rewriter::new()).unwrap_err().code(), Code::TooLarge);
        assert_eq!(parse("SELECT $99999999", &Rewriter::new()).unwrap_err().code(), Code::Syntax);
    }
}
