//! Statements about continuous queries, read by hand: `CREATE`, `ALTER` and
//! `DROP CONTINUOUS QUERY`, `BACKFILL`, `CREATE` and `DROP DOWNSAMPLING POLICY`.

use std::sync::Arc;

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use kymo_kernel::message::Statement;
use kymo_kernel::{Code, Error};

use super::super::command::{Command, Parsed, PartialName};
use super::super::duration::Span;
use super::super::instants;
use super::super::parse::{Failure, one, relative};
use super::super::rewrite::Rewriter;
use super::super::utility::{end, name, table_name, take, word_is};
use super::policy::Aggregate;

/// A statement about continuous queries.
#[derive(Debug, Clone)]
pub(crate) enum Continuous {
    /// `CREATE CONTINUOUS QUERY`, or `EXPLAIN` of it.
    Create(Create),
    /// `CREATE DOWNSAMPLING POLICY`.
    CreatePolicy(CreatePolicy),
    /// `DROP CONTINUOUS QUERY`, `DROP DOWNSAMPLING POLICY`.
    Drop { name: String, if_exists: bool, policy: bool },
    /// `ALTER CONTINUOUS QUERY name PAUSE`.
    Pause(String),
    /// `ALTER CONTINUOUS QUERY name RESUME`.
    Resume(String),
    /// `BACKFILL name FROM … TO …`.
    Backfill { name: String, from: Moment, to: Moment },
}

/// `CREATE CONTINUOUS QUERY`.
#[derive(Debug, Clone)]
pub(crate) struct Create {
    /// Its name.
    pub(crate) name: String,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// `EVERY`, in nanoseconds.
    pub(crate) every_ns: Option<i64>,
    /// `ALLOWED LATENESS`, in nanoseconds.
    pub(crate) lateness_ns: Option<i64>,
    /// `INTO`, as written.
    pub(crate) target: PartialName,
    /// The query.
    pub(crate) query: Arc<Statement>,
    /// Whether only to tell how it would run.
    pub(crate) explain: bool,
}

/// `CREATE DOWNSAMPLING POLICY`.
#[derive(Debug, Clone)]
pub(crate) struct CreatePolicy {
    /// Its name, if written.
    pub(crate) name: Option<String>,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// The table of raw rows, as written.
    pub(crate) table: PartialName,
    /// The age at which raw rows go, in nanoseconds.
    pub(crate) after_ns: i64,
    /// The width of a window, in nanoseconds.
    pub(crate) width_ns: i64,
    /// The same as it was written, for names.
    pub(crate) width: String,
    /// `INTO`, as written.
    pub(crate) target: Option<PartialName>,
    /// What is kept of each field; the default where empty.
    pub(crate) aggregates: Vec<Aggregate>,
}

/// An instant as a statement names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// In nanoseconds since 1970.
    At(i64),
    /// So many nanoseconds before the statement runs.
    Ago(i64),
}

impl Moment {
    /// In nanoseconds since 1970, for a statement that runs now.
    pub(crate) fn resolve(self, now_ns: i64) -> i64 {
        match self {
            Moment::At(at) => at,
            Moment::Ago(ago) => now_ns.saturating_sub(ago),
        }
    }
}

type Read = Result<Option<(&'static str, Command)>, Failure>;

/// Reads a statement about continuous queries; `None` if it is something else.
pub(in super::super) fn read(
    parser: &mut Parser,
    text: &str,
    offset: u32,
    tokens: &[TokenWithSpan],
    rewriter: &Rewriter,
) -> Read {
    let words: Vec<Token> = (0..4).map(|at| parser.peek_nth_token(at).token).collect();
    let at = |index: usize, word: &str| words.get(index).is_some_and(|each| word_is(each, word));
    let explain = at(0, "EXPLAIN");
    let verb = usize::from(explain);
    let query = at(verb + 1, "CONTINUOUS") && at(verb + 2, "QUERY");
    let policy = at(1, "DOWNSAMPLING") && at(2, "POLICY");
    let (verb, statement) = if query && at(verb, "CREATE") {
        (0..verb + 3).for_each(|_| parser.advance_token());
        let create = create(parser, (text, offset, tokens), rewriter, explain)?;
        let verb = if explain { "EXPLAIN" } else { "CREATE CONTINUOUS QUERY" };
        return Ok(Some((verb, command(Continuous::Create(create)))));
    } else if (query || policy) && at(0, "DROP") {
        (0..3).for_each(|_| parser.advance_token());
        let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
        let verb = if policy { "DROP DOWNSAMPLING POLICY" } else { "DROP CONTINUOUS QUERY" };
        (verb, Continuous::Drop { name: name(parser)?, if_exists, policy })
    } else if query && at(0, "ALTER") {
        (0..3).for_each(|_| parser.advance_token());
        ("ALTER CONTINUOUS QUERY", alter(parser)?)
    } else if policy && at(0, "CREATE") {
        (0..3).for_each(|_| parser.advance_token());
        ("CREATE DOWNSAMPLING POLICY", Continuous::CreatePolicy(create_policy(parser)?))
    } else if at(0, "BACKFILL") {
        parser.advance_token();
        ("BACKFILL", backfill(parser)?)
    } else {
        return Ok(None);
    };
    end(parser)?;
    Ok(Some((verb, command(statement))))
}

fn command(statement: Continuous) -> Command {
    Command::Continuous(Box::new(statement))
}

fn create(
    parser: &mut Parser,
    (text, offset, tokens): (&str, u32, &[TokenWithSpan]),
    rewriter: &Rewriter,
    explain: bool,
) -> Result<Create, Failure> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = name(parser)?;
    let every_ns = if take(parser, "EVERY") { Some(length(parser, "EVERY")?) } else { None };
    let mut lateness_ns = None;
    if take(parser, "ALLOWED") {
        if !take(parser, "LATENESS") {
            let next = parser.peek_token();
            return Ok(parser.expected("LATENESS", next)?);
        }
        lateness_ns = Some(length(parser, "ALLOWED LATENESS")?);
    }
    parser.expect_keyword(Keyword::INTO)?;
    let target = table_name(parser)?;
    parser.expect_keyword(Keyword::AS)?;
    let query = Arc::new(rest(parser, (text, offset, tokens), rewriter)?);
    Ok(Create { name, if_not_exists, every_ns, lateness_ns, target, query, explain })
}

/// What follows is a statement of its own.
fn rest(
    parser: &mut Parser,
    (text, offset, tokens): (&str, u32, &[TokenWithSpan]),
    rewriter: &Rewriter,
) -> Result<Statement, Failure> {
    let next = parser.peek_token();
    let skip = tokens.iter().position(|each| each.span.start == next.span.start);
    let first = tokens.iter().find(|each| !matches!(each.token, Token::Whitespace(_)));
    let (Some(skip), Some(first)) = (skip, first) else { return Err(no_select()) };
    let from = relative(first.span.start, next.span.start, text);
    let skipped = text.get(..from).unwrap_or_default().chars().count();
    let offset = offset.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
    let inner = text.get(from..).unwrap_or_default();
    let query = one(inner, &tokens[skip..], offset, rewriter)?;
    let parsed = query.tree.downcast_ref::<Parsed>();
    let reads = query.verb == "SELECT"
        && parsed.is_some_and(
            |parsed| matches!(&parsed.command, Command::Plan(planned) if !planned.writes),
        );
    if !reads {
        return Err(no_select());
    }
    if parsed.is_some_and(|parsed| parsed.parameters > 0) {
        return Err(Error::new(Code::Syntax, "a continuous query has no parameters")
            .with_hint("write the values in the place of $1, $2 …")
            .into());
    }
    Ok(query)
}

fn no_select() -> Failure {
    Error::new(Code::Syntax, "a continuous query is made AS a SELECT")
        .with_hint(
            "CREATE CONTINUOUS QUERY name [EVERY '10s'] [ALLOWED LATENESS '5m'] INTO target AS \
             SELECT …",
        )
        .into()
}

/// A length of time that does not depend on the calendar, above zero.
fn length(parser: &mut Parser, what: &str) -> Result<i64, Failure> {
    let text = parser.parse_literal_string()?;
    fixed(&text, what)
}

fn fixed(text: &str, what: &str) -> Result<i64, Failure> {
    let nanos = Span::parse(text)?.fixed_nanos();
    nanos.filter(|nanos| *nanos > 0).ok_or_else(|| {
        Error::new(Code::InvalidInput, format!("{what} {text:?} is not a fixed length above zero"))
            .with_hint("write it without months: '10s', '5m', '1 hour', '7d'")
            .into()
    })
}

fn alter(parser: &mut Parser) -> Result<Continuous, Failure> {
    let name = name(parser)?;
    if take(parser, "PAUSE") {
        return Ok(Continuous::Pause(name));
    }
    if take(parser, "RESUME") {
        return Ok(Continuous::Resume(name));
    }
    let next = parser.peek_token();
    Ok(parser.expected("PAUSE or RESUME", next)?)
}

fn create_policy(parser: &mut Parser) -> Result<CreatePolicy, Failure> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let named = !word_is(&parser.peek_token_ref().token, "ON");
    let name = if named { Some(name(parser)?) } else { None };
    parser.expect_keyword(Keyword::ON)?;
    let table = table_name(parser)?;
    if !take(parser, "AFTER") {
        let next = parser.peek_token();
        return Ok(parser.expected("AFTER '7d'", next)?);
    }
    let after_ns = length(parser, "AFTER")?;
    parser.expect_keyword(Keyword::TO)?;
    let width = parser.parse_literal_string()?;
    let width_ns = fixed(&width, "TO")?;
    let target = if take(parser, "INTO") { Some(table_name(parser)?) } else { None };
    let aggregates = if take(parser, "WITH") { aggregates(parser)? } else { Vec::new() };
    let width = width.split_whitespace().collect();
    let policy =
        CreatePolicy { name, if_not_exists, table, after_ns, width_ns, width, target, aggregates };
    Ok(policy)
}

/// `(avg, max, …)`.
fn aggregates(parser: &mut Parser) -> Result<Vec<Aggregate>, Failure> {
    parser.expect_token(&Token::LParen)?;
    let mut found = Vec::new();
    loop {
        let word = name(parser)?;
        let aggregate = Aggregate::from_word(&word).ok_or_else(|| {
            Error::new(Code::Syntax, format!("aggregate {word:?} is not offered by policies"))
                .with_hint(format!("choose among {}", Aggregate::words()))
        })?;
        if !found.contains(&aggregate) {
            found.push(aggregate);
        }
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(found)
}

fn backfill(parser: &mut Parser) -> Result<Continuous, Failure> {
    let name = name(parser)?;
    parser.expect_keyword(Keyword::FROM)?;
    let from = moment(parser)?;
    parser.expect_keyword(Keyword::TO)?;
    Ok(Continuous::Backfill { name, from, to: moment(parser)? })
}

/// `'2024-01-01'`, `now()` or `now() - '7d'`.
pub(in super::super) fn moment(parser: &mut Parser) -> Result<Moment, Failure> {
    if take(parser, "NOW") {
        parser.expect_token(&Token::LParen)?;
        parser.expect_token(&Token::RParen)?;
        if !parser.consume_token(&Token::Minus) {
            return Ok(Moment::Ago(0));
        }
        let _ = take(parser, "INTERVAL");
        return Ok(Moment::Ago(length(parser, "an age")?));
    }
    let _ = take(parser, "TIMESTAMP") || take(parser, "TIMESTAMPTZ");
    let text = parser.parse_literal_string()?;
    instants::read(&text).map(Moment::At).ok_or_else(|| {
        Error::new(Code::InvalidCast, format!("{text:?} is not an instant"))
            .with_hint("write '2024-01-31', '2024-01-31 12:00:00+01', now() or now() - '7d'")
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::parse::parse;
    use super::*;

    fn read_one(sql: &str) -> Result<(String, Continuous), Error> {
        let statements = parse(sql, &Rewriter::new())?;
        let parsed = statements[0].tree.downcast_ref::<Parsed>().unwrap();
        let Command::Continuous(statement) = &parsed.command else { panic!("{sql}") };
        Ok((statements[0].verb.clone(), statement.as_ref().clone()))
    }

    #[test]
    fn a_query_is_read_with_its_terms() {
        let sql = " CREATE continuous QUERY IF NOT EXISTS \"By Host\" EVERY '10s' ALLOWED \
                   LATENESS '5m' INTO d.public.out AS\n SELECT 'é', time FROM t;";
        let (verb, Continuous::Create(create)) = read_one(sql).unwrap() else { panic!() };
        assert_eq!((verb.as_str(), create.name.as_str()), ("CREATE CONTINUOUS QUERY", "By Host"));
        assert!(create.if_not_exists && !create.explain);
        assert_eq!(create.every_ns, Some(10_000_000_000));
        assert_eq!(create.lateness_ns, Some(300_000_000_000));
        assert_eq!(create.target.to_string(), "d.public.out");
        assert_eq!(&*create.query.text, "SELECT 'é', time FROM t");
        let inner = create.query.tree.downcast_ref::<Parsed>().unwrap();
        let place = sql.chars().take(inner.offset as usize).collect::<String>();
        assert!(place.ends_with("AS\n "), "{place:?}");
        let sql = "EXPLAIN CREATE CONTINUOUS QUERY q INTO t AS WITH x AS (SELECT 1) TABLE x";
        let (verb, Continuous::Create(create)) = read_one(sql).unwrap() else { panic!() };
        assert!(create.explain && verb == "EXPLAIN" && create.every_ns.is_none());
        assert_eq!(&*create.query.text, "WITH x AS (SELECT 1) TABLE x");
    }

    #[test]
    fn policies_and_backfills_are_read() {
        let sql = "CREATE DOWNSAMPLING POLICY ON cpu AFTER '7d' TO '1 m' WITH (max, avg, max)";
        let (_, Continuous::CreatePolicy(policy)) = read_one(sql).unwrap() else { panic!() };
        assert_eq!((policy.name, policy.width.as_str()), (None, "1m"));
        assert_eq!((policy.after_ns, policy.width_ns), (604_800_000_000_000, 60_000_000_000));
        assert_eq!(policy.aggregates, [Aggregate::Max, Aggregate::Avg]);
        let sql = "CREATE DOWNSAMPLING POLICY IF NOT EXISTS p ON a.cpu AFTER '1h' TO '10s' INTO b";
        let (_, Continuous::CreatePolicy(policy)) = read_one(sql).unwrap() else { panic!() };
        assert_eq!(policy.name.as_deref(), Some("p"));
        assert_eq!(policy.target.unwrap().to_string(), "b");
        let sql = "BACKFILL q FROM '2024-01-01 12:00' TO now() - INTERVAL '1h'";
        let (_, Continuous::Backfill { from, to, .. }) = read_one(sql).unwrap() else { panic!() };
        assert_eq!(from, Moment::At(1_704_110_400_000_000_000));
        assert_eq!(to.resolve(3_600_000_000_001), 1);
        for (sql, verb) in [
            ("drop continuous query if exists q", "DROP CONTINUOUS QUERY"),
            ("DROP DOWNSAMPLING POLICY q", "DROP DOWNSAMPLING POLICY"),
            ("alter continuous query q pause", "ALTER CONTINUOUS QUERY"),
            ("ALTER CONTINUOUS QUERY q RESUME", "ALTER CONTINUOUS QUERY"),
        ] {
            assert_eq!(read_one(sql).unwrap().0, verb);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_way_out() {
        for sql in [
            "CREATE CONTINUOUS QUERY q INTO t AS INSERT INTO t VALUES (1)",
            "CREATE CONTINUOUS QUERY q INTO t AS SHOW TABLES",
            "CREATE CONTINUOUS QUERY q INTO t AS",
            "CREATE CONTINUOUS QUERY q INTO t AS SELECT $1",
            "CREATE CONTINUOUS QUERY q AS SELECT 1",
            "CREATE CONTINUOUS QUERY q EVERY 10 INTO t AS SELECT 1",
            "CREATE CONTINUOUS QUERY q ALLOWED '5m' INTO t AS SELECT 1",
            "ALTER CONTINUOUS QUERY q",
            "ALTER CONTINUOUS QUERY q STOP",
            "DROP CONTINUOUS QUERY q r",
            "BACKFILL q FROM '2024-01-01'",
            "CREATE DOWNSAMPLING POLICY ON cpu TO '1m'",
            "CREATE DOWNSAMPLING POLICY ON cpu AFTER '7d' TO '1m' WITH (mode)",
        ] {
            assert_eq!(read_one(sql).unwrap_err().code(), Code::Syntax, "{sql}");
        }
        for (sql, code) in [
            ("CREATE CONTINUOUS QUERY q EVERY '1 month' INTO t AS SELECT 1", Code::InvalidInput),
            ("CREATE CONTINUOUS QUERY q EVERY '0s' INTO t AS SELECT 1", Code::InvalidInput),
            ("CREATE CONTINUOUS QUERY q EVERY 'soon' INTO t AS SELECT 1", Code::InvalidCast),
            ("BACKFILL q FROM 'then' TO now()", Code::InvalidCast),
        ] {
            let error = read_one(sql).unwrap_err();
            assert!(error.code() == code && error.hint().is_some(), "{sql}: {error:?}");
        }
    }
}
