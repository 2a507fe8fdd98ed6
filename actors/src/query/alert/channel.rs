//! `CREATE ALERT CHANNEL`, `DROP ALERT CHANNEL` and `SHOW ALERT CHANNELS`.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use kymo_kernel::alert::{ChannelDef, ChannelKind};
use kymo_kernel::schema::SYSTEM_SCHEMA;
use kymo_kernel::{Code, Error};

use super::super::parse::Failure;
use super::super::utility::word_is;
use super::statement::{AlertStatement, Words};

/// Reads a statement about channels; `None` if it is something else, and then nothing is taken.
pub(super) fn read(words: &mut Words) -> Result<Option<(&'static str, AlertStatement)>, Failure> {
    // A rule may be called channel, too.
    let rule = |words: &Words| words.is("EVERY") || words.is("ON") || words.done();
    let before = words.place();
    if words.take_all(&["CREATE", "ALERT", "CHANNEL"]) && !rule(words) {
        return Ok(Some(("CREATE ALERT CHANNEL", create(words)?)));
    }
    words.back_to(before);
    if words.take_all(&["DROP", "ALERT", "CHANNEL"]) && !rule(words) {
        let if_exists = words.take_all(&["IF", "EXISTS"]);
        let name = words.name()?;
        return Ok(Some(("DROP ALERT CHANNEL", AlertStatement::DropChannel { name, if_exists })));
    }
    words.back_to(before);
    Ok(None)
}

/// `SHOW ALERT CHANNELS` as the query that it stands for.
pub(in super::super) fn spelled_out(tokens: &[TokenWithSpan]) -> Option<Vec<TokenWithSpan>> {
    let written: Vec<&TokenWithSpan> =
        tokens.iter().filter(|each| !matches!(each.token, Token::Whitespace(_))).collect();
    let [show, alert, channels] = written.as_slice() else { return None };
    let words = [(show, "SHOW"), (alert, "ALERT"), (channels, "CHANNELS")];
    if !words.iter().all(|(token, word)| word_is(&token.token, word)) {
        return None;
    }
    let name = |name| Token::make_word(name, None);
    let query = [
        Token::make_keyword("SELECT"),
        Token::Mul,
        Token::make_keyword("FROM"),
        name(SYSTEM_SCHEMA),
        Token::Period,
        name("alert_channels"),
    ];
    Some(query.map(|token| TokenWithSpan { token, span: show.span }).into())
}

fn create(words: &mut Words) -> Result<AlertStatement, Failure> {
    let if_not_exists = words.take_all(&["IF", "NOT", "EXISTS"]);
    let name = words.name()?;
    if !words.take("TYPE") {
        return Err(misread("a channel has a TYPE"));
    }
    let kind = ChannelKind::from_word(&words.name()?)?;
    let mut options = if words.take("WITH") { words.pairs()? } else { Default::default() };
    let mut option = |name: &str| options.remove(name).unwrap_or_default();
    let (url, secret) = (option("url"), option("secret"));
    if let Some(name) = options.keys().next() {
        return Err(misread(&format!("a channel has no option {name}")));
    }
    let channel = ChannelDef { name, kind, url, secret };
    Ok(AlertStatement::CreateChannel { channel, if_not_exists })
}

fn misread(what: &str) -> Failure {
    Error::new(Code::Syntax, what)
        .with_hint(
            "CREATE ALERT CHANNEL [IF NOT EXISTS] name TYPE webhook|alertmanager|log \
             [WITH (url = '…', secret = '…')]",
        )
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::super::command::{Command, Define, Parsed};
    use super::super::super::parse::parse;
    use super::super::super::rewrite::Rewriter;
    use super::*;

    fn statement(sql: &str) -> kymo_kernel::Result<(String, AlertStatement)> {
        let statement = parse(sql, &Rewriter::new())?.remove(0);
        match &statement.tree.downcast_ref::<Parsed>().unwrap().command {
            Command::Define(Define::Alert(found)) => Ok((statement.verb.clone(), *found.clone())),
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn channels_are_read_and_rules_may_have_that_name() {
        let sql = "CREATE ALERT CHANNEL IF NOT EXISTS Ops TYPE webhook \
                   WITH (url = 'https://a/b', secret = 'x')";
        let (verb, created) = statement(sql).unwrap();
        assert_eq!(verb, "CREATE ALERT CHANNEL");
        let AlertStatement::CreateChannel { channel, if_not_exists: true } = created else {
            panic!("{created:?}")
        };
        assert_eq!((channel.name.as_str(), channel.kind), ("ops", ChannelKind::Webhook));
        assert_eq!((channel.url.as_str(), channel.secret.as_str()), ("https://a/b", "x"));
        let (_, created) = statement("create alert channel l type log").unwrap();
        assert!(matches!(created, AlertStatement::CreateChannel { if_not_exists: false, .. }));
        let (verb, dropped) = statement("DROP ALERT CHANNEL IF EXISTS ops").unwrap();
        assert_eq!(verb, "DROP ALERT CHANNEL");
        let text = format!("{dropped:?}");
        assert!(text.contains("if_exists: true"), "{text}");

        let shown = parse("show alert  channels", &Rewriter::new()).unwrap().remove(0);
        let parsed = shown.tree.downcast_ref::<Parsed>().unwrap();
        assert!(matches!(parsed.command, Command::Plan(_)), "{:?}", parsed.command);

        for (sql, verb) in [
            ("CREATE ALERT channel ON (SELECT 1)", "CREATE ALERT"),
            ("DROP ALERT channel", "DROP ALERT"),
        ] {
            assert_eq!(statement(sql).unwrap().0, verb, "{sql}");
        }
        for sql in [
            "CREATE ALERT CHANNEL ops",
            "CREATE ALERT CHANNEL ops TYPE webhook WITH (colour = 'x')",
            "CREATE ALERT CHANNEL ops TYPE log extra",
        ] {
            assert_eq!(statement(sql).unwrap_err().code(), Code::Syntax, "{sql}");
        }
        let error = statement("CREATE ALERT CHANNEL ops TYPE pigeon").unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput);
    }
}
