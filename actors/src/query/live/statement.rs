//! `SUBSCRIBE TO SELECT … [WITH (snapshot = …, progress = …, resume = '…')]`, and `EXPLAIN` of
//! it, read by hand.

use std::sync::Arc;

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use kymo_kernel::{Code, Error};

use super::super::command::{Command, Parsed, Subscribe};
use super::super::parse::{Failure, one, relative};
use super::super::rewrite::Rewriter;
use super::super::utility::word_is;

type Read = Result<Option<(&'static str, Command)>, Failure>;

/// Reads a subscription from the tokens of a statement; `None` if it is something else.
pub(in super::super) fn read(
    text: &str,
    offset: u32,
    tokens: &[TokenWithSpan],
    rewriter: &Rewriter,
) -> Read {
    let written = |token: &TokenWithSpan| !matches!(token.token, Token::Whitespace(_));
    let places: Vec<usize> = (0..tokens.len()).filter(|at| written(&tokens[*at])).collect();
    let word = |at: usize, wanted: &str| {
        places.get(at).is_some_and(|place| word_is(&tokens[*place].token, wanted))
    };
    let explain = word(0, "EXPLAIN");
    let begin = usize::from(explain);
    if !word(begin, "SUBSCRIBE") {
        return Ok(None);
    }
    if !word(begin + 1, "TO") {
        return Err(misread("SUBSCRIBE is followed by TO and a SELECT"));
    }
    let words = places.get(begin + 2..).unwrap_or_default();
    let tail = tail(tokens, words);
    let (words, options) = match tail {
        Some(at) => (&words[..at], read_options(tokens, &words[at..])?),
        None => (words, Options::default()),
    };
    let (Some(first), Some(from), Some(to)) = (places.first(), words.first(), words.last()) else {
        return Err(misread("SUBSCRIBE TO is followed by a SELECT"));
    };
    let start = tokens[*first].span.start;
    let (from_byte, to_byte) = (
        relative(start, tokens[*from].span.start, text),
        relative(start, tokens[*to].span.end, text),
    );
    let skipped = text.get(..from_byte).unwrap_or_default().chars().count();
    let offset = offset.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
    let inner = text.get(from_byte..to_byte).unwrap_or_default();
    let query = one(inner, &tokens[*from..=*to], offset, rewriter)?;
    let reads = query.verb == "SELECT"
        && query.tree.downcast_ref::<Parsed>().is_some_and(
            |parsed| matches!(&parsed.command, Command::Plan(planned) if !planned.writes),
        );
    if !reads {
        return Err(misread("SUBSCRIBE TO is followed by a SELECT"));
    }
    let Options { snapshot, progress, resume } = options;
    let progress = progress.unwrap_or(false);
    let subscribe = Subscribe { query: Arc::new(query), snapshot, progress, resume, explain };
    let verb = if explain { "EXPLAIN" } else { "SUBSCRIBE" };
    Ok(Some((verb, Command::Subscribe(subscribe))))
}

/// Where among `words` a closing `WITH (…)` begins. That of a query's own `WITH name AS (…)`
/// has a name behind it.
fn tail(tokens: &[TokenWithSpan], words: &[usize]) -> Option<usize> {
    let token = |at: usize| words.get(at).map(|place| &tokens[*place].token);
    let mut depth = 0_usize;
    for at in (0..words.len()).rev() {
        match token(at)? {
            Token::RParen => depth += 1,
            Token::LParen => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            let opens = token(at) == Some(&Token::LParen);
            return at
                .checked_sub(1)
                .filter(|at| opens && word_is(&tokens[words[*at]].token, "WITH"));
        }
    }
    None
}

/// What a subscription wants beside its query.
#[derive(Debug, Default, PartialEq)]
struct Options {
    snapshot: Option<bool>,
    progress: Option<bool>,
    resume: Option<String>,
}

/// Reads `WITH (name = value, …)`.
fn read_options(tokens: &[TokenWithSpan], words: &[usize]) -> Result<Options, Failure> {
    let inner: Vec<&Token> = words.iter().map(|place| &tokens[*place].token).collect();
    let [_, Token::LParen, list @ .., Token::RParen] = inner.as_slice() else {
        return Err(misread(KNOWN));
    };
    let mut options = Options::default();
    for option in list.split(|token| **token == Token::Comma) {
        let [name, Token::Eq, value] = option else { return Err(misread(KNOWN)) };
        let flag = [("true", true), ("false", false)]
            .into_iter()
            .find_map(|(word, meant)| word_is(value, word).then_some(meant));
        let free = match (name, value, flag) {
            (name, _, Some(flag)) if word_is(name, "snapshot") => {
                options.snapshot.replace(flag).is_none()
            }
            (name, _, Some(flag)) if word_is(name, "progress") => {
                options.progress.replace(flag).is_none()
            }
            (name, Token::SingleQuotedString(token), _) if word_is(name, "resume") => {
                options.resume.replace(token.clone()).is_none()
            }
            _ => return Err(misread(KNOWN)),
        };
        if !free {
            return Err(misread("an option of SUBSCRIBE is given twice"));
        }
    }
    Ok(options)
}

const KNOWN: &str = "the options of SUBSCRIBE are snapshot = true or false, progress = true or \
     false, and resume = 'token'";

fn misread(what: &str) -> Failure {
    Error::new(Code::Syntax, what)
        .with_hint("SUBSCRIBE TO SELECT … [WITH (snapshot = false, progress = true, resume = '…')]")
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::super::parse::parse;
    use super::*;

    fn subscribe(sql: &str) -> Result<(String, Option<bool>, bool, u32), Error> {
        let statements = parse(sql, &Rewriter::new())?;
        let parsed = statements[0].tree.downcast_ref::<Parsed>().unwrap();
        let Command::Subscribe(subscribe) = &parsed.command else { panic!("{sql}") };
        let inner = subscribe.query.tree.downcast_ref::<Parsed>().unwrap();
        let text = subscribe.query.text.to_string();
        Ok((text, subscribe.snapshot, subscribe.explain, inner.offset))
    }

    #[test]
    fn the_query_and_its_options_are_told_apart() {
        for (sql, text, snapshot, explain, offset) in [
            ("SUBSCRIBE TO SELECT * FROM t", "SELECT * FROM t", None, false, 13),
            (
                "subscribe to select a from t with (snapshot = FALSE)",
                "select a from t",
                Some(false),
                false,
                13,
            ),
            (
                "SUBSCRIBE TO SELECT a FROM t WHERE (b) WITH ( snapshot=true )",
                "SELECT a FROM t WHERE (b)",
                Some(true),
                false,
                13,
            ),
            (
                "SUBSCRIBE TO WITH x AS (SELECT 1) SELECT * FROM x",
                "WITH x AS (SELECT 1) SELECT * FROM x",
                None,
                false,
                13,
            ),
            (
                " EXPLAIN\n SUBSCRIBE TO SELECT 'é', f(x) FROM t;",
                "SELECT 'é', f(x) FROM t",
                None,
                true,
                23,
            ),
        ] {
            let found = subscribe(sql).unwrap();
            assert_eq!(found, (text.to_owned(), snapshot, explain, offset), "{sql}");
        }
    }

    #[test]
    fn options_come_in_any_order() {
        let read = |with: &str| {
            let statements =
                parse(&format!("SUBSCRIBE TO SELECT a FROM t {with}"), &Rewriter::new()).unwrap();
            let parsed = statements[0].tree.downcast_ref::<Parsed>().unwrap();
            let Command::Subscribe(subscribe) = parsed.command.clone() else { panic!("{with}") };
            (subscribe.snapshot, subscribe.progress, subscribe.resume)
        };
        assert_eq!(read(""), (None, false, None));
        let token = Some("7.0.3.41".to_owned());
        assert_eq!(
            read("WITH (RESUME = '7.0.3.41', progress = true, snapshot = false)"),
            (Some(false), true, token)
        );
        assert_eq!(read("WITH (progress = false)"), (None, false, None));
    }

    #[test]
    fn what_is_no_subscription_is_refused() {
        for sql in [
            "SUBSCRIBE",
            "SUBSCRIBE SELECT 1",
            "SUBSCRIBE TO",
            "SUBSCRIBE TO SHOW TABLES",
            "SUBSCRIBE TO INSERT INTO t VALUES (1)",
            "SUBSCRIBE TO EXPLAIN SELECT 1",
            "SUBSCRIBE TO SELECT 1 WITH (other = true)",
            "SUBSCRIBE TO SELECT 1 WITH (snapshot = 3)",
            "SUBSCRIBE TO WITH (snapshot = true)",
            "SUBSCRIBE TO SELECT 1 WITH ()",
            "SUBSCRIBE TO SELECT 1 WITH (snapshot = true,)",
            "SUBSCRIBE TO SELECT 1 WITH (snapshot = true, snapshot = true)",
            "SUBSCRIBE TO SELECT 1 WITH (progress = 'true')",
            "SUBSCRIBE TO SELECT 1 WITH (resume = 7)",
            "SUBSCRIBE TO SELECT 1 WITH (resume = $1)",
        ] {
            assert_eq!(subscribe(sql).unwrap_err().code(), Code::Syntax, "{sql}");
        }
    }
}
