//! Statements about alerts, read by hand: `CREATE ALERT`, `DROP ALERT`, `ALTER ALERT`, `SILENCE`,
//! `DROP SILENCE`, `ACK`, `RELOAD ALERT RULES` and `EXPLAIN ALERT … OVER`.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use kymo_kernel::alert::{AlertDef, ChannelDef, Matcher, Missing, NoData};
use kymo_kernel::message::Statement;
use kymo_kernel::{Code, Error};

use super::super::command::{Command, Define, Parsed};
use super::super::duration::Span;
use super::super::parse::{Failure, one, relative};
use super::super::rewrite::Rewriter;
use super::super::utility::word_is;
use super::channel;

/// A statement about alerts that changes something.
#[derive(Debug, Clone)]
pub(crate) enum AlertStatement {
    /// `CREATE ALERT`.
    Create {
        /// The rule; who creates it and where is the session's to say.
        rule: Box<Rule>,
        /// `IF NOT EXISTS`.
        if_not_exists: bool,
    },
    /// `DROP ALERT`.
    Drop {
        /// Its name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `ALTER ALERT … PAUSE|RESUME`.
    Pause {
        /// Its name.
        name: String,
        /// Whether it is to pause.
        paused: bool,
    },
    /// `SILENCE`.
    Silence {
        /// Which alerts.
        matcher: Matcher,
        /// For how many nanoseconds.
        for_ns: i64,
        /// Why.
        comment: String,
    },
    /// `DROP SILENCE`.
    DropSilence(u64),
    /// `CREATE ALERT CHANNEL`.
    CreateChannel {
        /// The channel.
        channel: ChannelDef,
        /// `IF NOT EXISTS`.
        if_not_exists: bool,
    },
    /// `DROP ALERT CHANNEL`.
    DropChannel {
        /// Its name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `ACK`.
    Ack {
        /// Which alerts.
        matcher: Matcher,
        /// What to say.
        comment: String,
    },
}

/// A rule as written.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// The definition, without the session's part.
    pub(crate) def: AlertDef,
    /// Its query, parsed, for errors that point into the client's text.
    pub(crate) query: Arc<Statement>,
}

/// `EXPLAIN ALERT … OVER …`.
#[derive(Debug, Clone)]
pub(crate) struct Backtest {
    /// Which rule.
    pub(crate) rule: Wanted,
    /// How far back, in nanoseconds.
    pub(crate) over_ns: i64,
}

/// The rule of a backtest.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// One that exists.
    Named(String),
    /// One that does not exist yet.
    New(Box<Rule>),
}

type Read = Result<Option<(&'static str, Command)>, Failure>;

/// Reads a statement about alerts from its tokens; `None` if it is something else.
pub(in super::super) fn read(
    text: &str,
    offset: u32,
    tokens: &[TokenWithSpan],
    rewriter: &Rewriter,
) -> Read {
    let mut words = Words::new(text, offset, tokens, rewriter);
    let (verb, statement) = if let Some(read) = channel::read(&mut words)? {
        read
    } else if words.take_all(&["CREATE", "ALERT"]) {
        ("CREATE ALERT", create(&mut words)?)
    } else if words.take_all(&["DROP", "ALERT"]) {
        let if_exists = words.take_all(&["IF", "EXISTS"]);
        ("DROP ALERT", AlertStatement::Drop { name: words.name()?, if_exists })
    } else if words.take_all(&["ALTER", "ALERT"]) {
        let name = words.name()?;
        let paused = words.take("PAUSE");
        if !paused && !words.take("RESUME") {
            return Err(misread("ALTER ALERT name is followed by PAUSE or RESUME"));
        }
        ("ALTER ALERT", AlertStatement::Pause { name, paused })
    } else if words.take_all(&["DROP", "SILENCE"]) {
        ("DROP SILENCE", AlertStatement::DropSilence(words.number()?))
    } else if words.is("SILENCE") && !words.alone() {
        words.advance();
        ("SILENCE", silence(&mut words)?)
    } else if words.is("ACK") && !words.alone() {
        words.advance();
        let matcher = matcher(&mut words, &["COMMENT"])?;
        ("ACK", AlertStatement::Ack { matcher, comment: comment(&mut words)? })
    } else if words.take_all(&["RELOAD", "ALERT", "RULES"]) {
        words.end()?;
        return Ok(Some(("RELOAD", Command::ReloadAlerts)));
    } else if words.take_all(&["EXPLAIN", "ALERT"]) {
        let backtest = backtest(&mut words)?;
        words.end()?;
        return Ok(Some(("EXPLAIN", Command::Backtest(Box::new(backtest)))));
    } else {
        return Ok(None);
    };
    words.end()?;
    Ok(Some((verb, Command::Define(Define::Alert(Box::new(statement))))))
}

fn create(words: &mut Words) -> Result<AlertStatement, Failure> {
    let if_not_exists = words.take_all(&["IF", "NOT", "EXISTS"]);
    let name = words.name()?;
    let rule = Box::new(rule(words, name)?);
    Ok(AlertStatement::Create { rule, if_not_exists })
}

/// From `[EVERY …] ON (SELECT …)` to the last clause of a rule.
fn rule(words: &mut Words, name: String) -> Result<Rule, Failure> {
    let every_ns = if words.take("EVERY") { Some(words.span("EVERY")?) } else { None };
    if !words.take("ON") {
        return Err(misread("a rule has ON (SELECT …)"));
    }
    let query = words.query()?;
    let condition = if words.take("WHEN") { Some(words.condition()?) } else { None };
    let mut def = AlertDef {
        name,
        revision: 0,
        database: String::new(),
        schema: String::new(),
        owner: String::new(),
        query: query.text.to_string(),
        condition,
        every_ns,
        hold_ns: 0,
        keep_firing_ns: 0,
        no_data: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        channels: Vec::new(),
        paused: false,
        origin: None,
    };
    while clause(words, &mut def)? {}
    Ok(Rule { def, query: Arc::new(query) })
}

/// Reads one of the clauses behind the condition; false where there is none.
fn clause(words: &mut Words, def: &mut AlertDef) -> Result<bool, Failure> {
    if words.take("FOR") {
        def.hold_ns = words.span("FOR")?;
    } else if words.take_all(&["KEEP", "FIRING", "FOR"]) {
        def.keep_firing_ns = words.span("KEEP FIRING FOR")?;
    } else if words.take_all(&["NO", "DATA", "AFTER"]) {
        let after_ns = words.span("NO DATA AFTER")?;
        let word = if words.take("AS") { words.name()? } else { String::new() };
        let Some(means) = Missing::from_word(&word) else {
            return Err(misread("NO DATA AFTER '5m' AS is followed by firing, resolved or ignore"));
        };
        def.no_data = Some(NoData { after_ns, means });
    } else if words.take("LABELS") {
        def.labels = words.pairs()?;
    } else if words.take("ANNOTATIONS") {
        def.annotations = words.pairs()?;
    } else if words.take("NOTIFY") {
        loop {
            let channel = words.name()?;
            if !def.channels.contains(&channel) {
                def.channels.push(channel);
            }
            if !words.symbol(&Token::Comma) {
                break;
            }
        }
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn silence(words: &mut Words) -> Result<AlertStatement, Failure> {
    let matcher = matcher(words, &["FOR"])?;
    if !words.take("FOR") {
        return Err(misread("SILENCE is followed by FOR '2h'"));
    }
    let for_ns = words.span("FOR")?;
    Ok(AlertStatement::Silence { matcher, for_ns, comment: comment(words)? })
}

/// `[name] [WHERE label = 'x' AND …]`, up to one of `ends`.
fn matcher(words: &mut Words, ends: &[&str]) -> Result<Matcher, Failure> {
    let mut matcher = Matcher::default();
    let named = !words.is("WHERE") && !ends.iter().any(|end| words.is(end));
    if named {
        matcher.rule = Some(words.name()?);
    }
    if words.take("WHERE") {
        loop {
            let (label, value) = words.pair()?;
            matcher.labels.insert(label, value);
            if !words.take("AND") {
                break;
            }
        }
    }
    if matcher == Matcher::default() {
        return Err(misread("name a rule, or labels behind WHERE"));
    }
    Ok(matcher)
}

fn comment(words: &mut Words) -> Result<String, Failure> {
    if words.take("COMMENT") { words.text("COMMENT") } else { Ok(String::new()) }
}

fn backtest(words: &mut Words) -> Result<Backtest, Failure> {
    let rule = if words.is("EVERY") || words.is("ON") {
        Wanted::New(Box::new(rule(words, "backtest".to_owned())?))
    } else {
        Wanted::Named(words.name()?)
    };
    if !words.take("OVER") {
        return Err(misread("EXPLAIN ALERT is followed by OVER '30 days'"));
    }
    Ok(Backtest { rule, over_ns: words.span("OVER")? })
}

pub(super) fn misread(what: &str) -> Failure {
    Error::new(Code::Syntax, what)
        .with_hint(
            "CREATE ALERT name [EVERY '10s'] ON (SELECT …) [WHEN condition] [FOR '1m'] \
             [KEEP FIRING FOR '5m'] [NO DATA AFTER '5m' AS firing] [LABELS (k = 'v')] \
             [ANNOTATIONS (k = 'v')] [NOTIFY channel]; SILENCE [name] [WHERE label = 'x'] FOR '2h' \
             [COMMENT '…']; ACK [name] [WHERE label = 'x'] [COMMENT '…']",
        )
        .into()
}

/// What ends a condition, outside of parentheses.
const AFTER_CONDITION: [&str; 7] = ["FOR", "KEEP", "NO", "LABELS", "ANNOTATIONS", "NOTIFY", "OVER"];

/// The tokens of a statement without the space between them.
pub(super) struct Words<'a> {
    text: &'a str,
    offset: u32,
    tokens: &'a [TokenWithSpan],
    /// The places of what is no space.
    places: Vec<usize>,
    at: usize,
    rewriter: &'a Rewriter,
}

impl<'a> Words<'a> {
    fn new(
        text: &'a str,
        offset: u32,
        tokens: &'a [TokenWithSpan],
        rewriter: &'a Rewriter,
    ) -> Words<'a> {
        let written = |at: &usize| !matches!(tokens[*at].token, Token::Whitespace(_));
        let places = (0..tokens.len()).filter(written).collect();
        Words { text, offset, tokens, places, at: 0, rewriter }
    }

    fn token(&self, ahead: usize) -> Option<&'a Token> {
        self.places.get(self.at + ahead).map(|place| &self.tokens[*place].token)
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.token(0).is_some_and(|token| word_is(token, word))
    }

    /// Whether there are no more words.
    pub(super) fn done(&self) -> bool {
        self.token(0).is_none()
    }

    /// Where the present word is.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// Goes back to a word.
    pub(super) fn back_to(&mut self, place: usize) {
        self.at = place;
    }

    /// Whether nothing follows the present word.
    fn alone(&self) -> bool {
        self.token(1).is_none()
    }

    fn advance(&mut self) {
        self.at += 1;
    }

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.is(word);
        self.at += usize::from(found);
        found
    }

    /// Takes all of these words or none.
    pub(super) fn take_all(&mut self, words: &[&str]) -> bool {
        let each = |(ahead, word): (usize, &&str)| {
            self.token(ahead).is_some_and(|token| word_is(token, word))
        };
        let found = words.iter().enumerate().all(each);
        self.at += if found { words.len() } else { 0 };
        found
    }

    fn symbol(&mut self, symbol: &Token) -> bool {
        let found = self.token(0) == Some(symbol);
        self.at += usize::from(found);
        found
    }

    fn shown(&self) -> String {
        self.token(0).map_or_else(|| "the end".to_owned(), |token| format!("{token}"))
    }

    fn end(&self) -> Result<(), Failure> {
        match self.token(0) {
            None => Ok(()),
            Some(token) => Err(misread(&format!("{token} is not expected here"))),
        }
    }

    /// A name as PostgreSQL reads it: lower case unless quoted.
    pub(super) fn name(&mut self) -> Result<String, Failure> {
        let Some(Token::Word(word)) = self.token(0) else {
            return Err(misread(&format!("a name is expected, not {}", self.shown())));
        };
        self.at += 1;
        Ok(if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() })
    }

    fn text(&mut self, what: &str) -> Result<String, Failure> {
        let Some(Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) =
            self.token(0)
        else {
            return Err(misread(&format!("{what} is followed by a text in quotes")));
        };
        self.at += 1;
        Ok(text.clone())
    }

    /// A length of time in nanoseconds; months have no fixed length.
    fn span(&mut self, what: &str) -> Result<i64, Failure> {
        let text = self.text(what)?;
        let span = Span::parse(&text)?;
        match span.fixed_nanos() {
            Some(nanos) if nanos >= 0 => Ok(nanos),
            _ => Err(Error::new(
                Code::InvalidInput,
                format!("{what} '{text}' is negative or has no fixed length"),
            )
            .with_hint("write it like '10s', '5m', '1 hour' or '30 days'")
            .into()),
        }
    }

    fn number(&mut self) -> Result<u64, Failure> {
        let number = match self.token(0) {
            Some(Token::Number(digits, _)) => digits.parse().ok(),
            _ => None,
        };
        self.at += 1;
        number.ok_or_else(|| misread("the number of a silence is expected"))
    }

    /// `name = 'text'`.
    fn pair(&mut self) -> Result<(String, String), Failure> {
        let name = self.name()?;
        if !self.symbol(&Token::Eq) {
            return Err(misread(&format!("{name} is followed by = and a text")));
        }
        let text = self.text(&name)?;
        Ok((name, text))
    }

    /// `(name = 'text', …)`.
    pub(super) fn pairs(&mut self) -> Result<BTreeMap<String, String>, Failure> {
        let mut pairs = BTreeMap::new();
        if !self.symbol(&Token::LParen) {
            return Err(misread("labels and annotations are given as (name = 'text', …)"));
        }
        loop {
            let (name, text) = self.pair()?;
            pairs.insert(name, text);
            if !self.symbol(&Token::Comma) {
                break;
            }
        }
        match self.symbol(&Token::RParen) {
            true => Ok(pairs),
            false => Err(misread("labels and annotations are given as (name = 'text', …)")),
        }
    }

    /// The place behind what begins here and ends where `ends` says, outside of parentheses.
    fn until(&self, ends: impl Fn(&Token) -> bool) -> usize {
        let mut depth = 0_usize;
        let mut at = self.at;
        while let Some(place) = self.places.get(at) {
            let token = &self.tokens[*place].token;
            match token {
                _ if depth == 0 && ends(token) => break,
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += 1;
        }
        at
    }

    /// The text and the tokens from here to a place, which is not part of it.
    fn slice(&self, to: usize) -> Option<(&'a str, &'a [TokenWithSpan], usize)> {
        let origin = self.tokens[*self.places.first()?].span.start;
        let (first, last) = (*self.places.get(self.at)?, *self.places.get(to.checked_sub(1)?)?);
        let tokens = self.tokens.get(first..=last)?;
        let from = relative(origin, self.tokens[first].span.start, self.text);
        let end = relative(origin, self.tokens[last].span.end, self.text);
        Some((self.text.get(from..end)?, tokens, from))
    }

    /// `(SELECT …)`.
    fn query(&mut self) -> Result<Statement, Failure> {
        let wrong = || misread("ON is followed by a SELECT in parentheses");
        if !self.symbol(&Token::LParen) {
            return Err(wrong());
        }
        let end = self.until(|token| *token == Token::RParen);
        let (text, tokens, from) = self.slice(end).ok_or_else(wrong)?;
        self.at = end;
        if !self.symbol(&Token::RParen) {
            return Err(wrong());
        }
        let skipped = self.text.get(..from).unwrap_or_default().chars().count();
        let offset = self.offset.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
        let query = one(text, tokens, offset, self.rewriter)?;
        let reads = query.verb == "SELECT"
            && query.tree.downcast_ref::<Parsed>().is_some_and(|parsed| {
                let plain = matches!(&parsed.command, Command::Plan(planned) if !planned.writes && !planned.sets);
                plain && parsed.parameters == 0
            });
        if reads { Ok(query) } else { Err(wrong()) }
    }

    /// The text of a condition.
    fn condition(&mut self) -> Result<String, Failure> {
        let end = self.until(|token| AFTER_CONDITION.iter().any(|word| word_is(token, word)));
        let found = self.slice(end).filter(|_| end > self.at);
        let (text, _, _) = found.ok_or_else(|| misread("WHEN is followed by a condition"))?;
        self.at = end;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::parse::parse;
    use super::*;

    fn command(sql: &str) -> kymo_kernel::Result<(String, Command)> {
        let statement = parse(sql, &Rewriter::new())?.remove(0);
        let parsed = statement.tree.downcast_ref::<Parsed>().unwrap();
        Ok((statement.verb.clone(), parsed.command.clone()))
    }

    fn statement(sql: &str) -> AlertStatement {
        match command(sql).unwrap().1 {
            Command::Define(Define::Alert(statement)) => *statement,
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn a_rule_is_read_with_every_clause() {
        let sql = "CREATE ALERT IF NOT EXISTS \"Hot\" EVERY '10s' ON (SELECT host, max(usage) AS u \
                   FROM cpu WHERE (time > now() - '5m') GROUP BY host) WHEN u > 90 AND (u < 1000) \
                   FOR '1m' KEEP FIRING FOR '5m' NO DATA AFTER '2m' AS firing \
                   LABELS (severity = 'page', team='a') \
                   ANNOTATIONS (summary = 'it''s {{ $labels.host }}') NOTIFY log, ops, log";
        let AlertStatement::Create { rule, if_not_exists: true } = statement(sql) else {
            panic!("{sql}")
        };
        let (def, second) = (rule.def, 1_000_000_000);
        assert_eq!(def.name, "Hot");
        assert!(def.query.starts_with("SELECT host,") && def.query.ends_with("GROUP BY host"));
        assert_eq!(def.condition.as_deref(), Some("u > 90 AND (u < 1000)"));
        assert_eq!((def.every_ns, def.hold_ns), (Some(10 * second), 60 * second));
        assert_eq!(def.keep_firing_ns, 300 * second);
        let no_data = NoData { after_ns: 120 * second, means: Missing::Firing };
        assert_eq!(def.no_data, Some(no_data));
        assert_eq!(def.labels["team"], "a");
        assert_eq!(def.annotations["summary"], "it's {{ $labels.host }}");
        assert_eq!(def.channels, ["log", "ops"]);
    }

    #[test]
    fn a_rule_needs_little() {
        let AlertStatement::Create { rule, if_not_exists: false } =
            statement("create alert a on (select * from t)")
        else {
            panic!("no rule")
        };
        assert_eq!((rule.def.condition, rule.def.every_ns, rule.def.hold_ns), (None, None, 0));
    }

    #[test]
    fn the_other_statements_are_read() {
        for (sql, verb, part) in [
            ("DROP ALERT IF EXISTS a", "DROP ALERT", "if_exists: true"),
            ("ALTER ALERT a PAUSE", "ALTER ALERT", "paused: true"),
            ("ALTER ALERT a RESUME", "ALTER ALERT", "paused: false"),
            ("SILENCE a FOR '2h'", "SILENCE", "for_ns: 7200000000000"),
            (
                "SILENCE WHERE host = 'x' AND dc = 'y' FOR '1 day' COMMENT 'work'",
                "SILENCE",
                r#"{"dc": "y", "host": "x"}"#,
            ),
            ("DROP SILENCE 7", "DROP SILENCE", "DropSilence(7)"),
            ("ACK a WHERE host = 'x' COMMENT 'mine'", "ACK", r#"comment: "mine""#),
            ("ACK a", "ACK", r#"rule: Some("a")"#),
            ("RELOAD ALERT RULES;", "RELOAD", "ReloadAlerts"),
            ("EXPLAIN ALERT a OVER '30 days'", "EXPLAIN", r#"Named("a")"#),
            (
                "EXPLAIN ALERT ON (SELECT v FROM t) WHEN v > 1 FOR '1m' OVER '1h'",
                "EXPLAIN",
                "over_ns: 3600000000000",
            ),
        ] {
            let (found, command) = command(sql).unwrap();
            assert_eq!(found, verb, "{sql}");
            assert!(format!("{command:?}").contains(part), "{sql}: {command:?}");
        }
    }

    #[test]
    fn what_is_no_statement_says_why() {
        for (sql, code) in [
            ("CREATE ALERT a", Code::Syntax),
            ("CREATE ALERT a ON SELECT 1", Code::Syntax),
            ("CREATE ALERT a ON (INSERT INTO t VALUES (1))", Code::Syntax),
            ("CREATE ALERT a ON (SELECT $1)", Code::Syntax),
            ("CREATE ALERT a ON (SELECT 1", Code::Syntax),
            ("CREATE ALERT a ON (SELECT 1) WHEN FOR '1m'", Code::Syntax),
            ("CREATE ALERT a ON (SELECT 1) FOR 5", Code::Syntax),
            ("CREATE ALERT a ON (SELECT 1) FOR '1 month'", Code::InvalidInput),
            ("CREATE ALERT a ON (SELECT 1) FOR '-1m'", Code::InvalidInput),
            ("CREATE ALERT a ON (SELECT 1) NO DATA AFTER '5m' AS odd", Code::Syntax),
            ("CREATE ALERT a ON (SELECT 1) LABELS (a)", Code::Syntax),
            ("CREATE ALERT a ON (SELECT 1) extra", Code::Syntax),
            ("RELOAD ALERT RULES a", Code::Syntax),
            ("RELOAD ALERT", Code::Syntax),
            ("ALTER ALERT a STOP", Code::Syntax),
            ("SILENCE FOR '1h'", Code::Syntax),
            ("SILENCE a", Code::Syntax),
            ("DROP SILENCE a", Code::Syntax),
            ("EXPLAIN ALERT a", Code::Syntax),
        ] {
            assert_eq!(command(sql).unwrap_err().code(), code, "{sql}");
        }
    }
}
