//! `ALTER TABLE`: columns that come, go and get other names, and a table's settings.
//!
//! One statement may change several columns, separated by commas; all of the changes happen, or
//! none. Settings are changed by statements of their own.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use kymo_kernel::message::TableChange;
use kymo_kernel::schema::{Column, check_name};
use kymo_kernel::{Code, Error, Result};

use super::command::{AlterTable, Define, Retained};
use super::parse::Failure;
use super::utility::{name, option_value, table_name, take, word_is};
use super::{ddl, retention};

const WHAT: &str = "what can be changed: ADD COLUMN, DROP COLUMN, RENAME COLUMN … TO …, \
                    SET (retention = '30d'), SET (widen_integers = true), RESET (…)";

/// Reads `ALTER TABLE`; `None` if it is something else.
pub(super) fn read(parser: &mut Parser) -> Result<Option<Define>, Failure> {
    let (first, second) = (parser.peek_token(), parser.peek_nth_token(1));
    if !word_is(&first.token, "ALTER") || !word_is(&second.token, "TABLE") {
        return Ok(None);
    }
    parser.advance_token();
    parser.advance_token();
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let _ = take(parser, "ONLY");
    let table = table_name(parser)?;
    let next = parser.peek_token();
    let (set, reset) = (word_is(&next.token, "SET"), word_is(&next.token, "RESET"));
    if (set || reset) && word_is(&parser.peek_nth_token(2).token, "widen_integers") {
        let changes = vec![TableChange::WidenIntegers(widening(parser, set)?)];
        let alter = AlterTable { name: table, if_exists, changes };
        return Ok(Some(Define::AlterTable(Box::new(alter))));
    }
    if set || reset {
        let retention_ns = retention::change(parser, "ALTER TABLE")?;
        return Ok(Some(Define::Retention(Retained::Table(table, retention_ns))));
    }
    let mut changes = vec![change(parser)?];
    while parser.consume_token(&Token::Comma) {
        changes.push(change(parser)?);
    }
    Ok(Some(Define::AlterTable(Box::new(AlterTable { name: table, if_exists, changes }))))
}

/// `SET (widen_integers = …)`; `RESET (widen_integers)` is no.
fn widening(parser: &mut Parser, set: bool) -> Result<bool, Failure> {
    parser.advance_token();
    parser.expect_token(&Token::LParen)?;
    let option = name(parser)?;
    let mut widen = false;
    if set {
        parser.expect_token(&Token::Eq)?;
        let value = option_value(parser);
        widen = ddl::boolean(&option, &value)?;
    }
    parser.expect_token(&Token::RParen)?;
    Ok(widen)
}

fn change(parser: &mut Parser) -> Result<TableChange, Failure> {
    if take(parser, "ADD") {
        refuse_constraint(parser)?;
        let _ = take(parser, "COLUMN");
        let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
        let column: Column = ddl::added(parser)?;
        return Ok(TableChange::AddColumn { column, if_not_exists });
    }
    if take(parser, "DROP") {
        refuse_constraint(parser)?;
        let _ = take(parser, "COLUMN");
        let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
        let name = name(parser)?;
        let _ = take(parser, "CASCADE") || take(parser, "RESTRICT");
        return Ok(TableChange::DropColumn { name, if_exists });
    }
    let next = parser.peek_token();
    let to_a_name = word_is(&parser.peek_nth_token(1).token, "TO");
    if word_is(&next.token, "RENAME") && !to_a_name {
        parser.advance_token();
        let _ = take(parser, "COLUMN");
        let from = name(parser)?;
        parser.expect_keyword(Keyword::TO)?;
        let to = name(parser)?;
        check_name("column", &to)?;
        return Ok(TableChange::RenameColumn { from, to });
    }
    let words = if to_a_name { format!("{next} TO") } else { next.to_string() };
    let text = format!("ALTER TABLE … {} is not supported", words.to_uppercase());
    Err(Error::new(Code::Unsupported, text).with_hint(WHAT).into())
}

fn refuse_constraint(parser: &Parser) -> Result<(), Failure> {
    let (first, second) = (parser.peek_token(), parser.peek_nth_token(1));
    let key = word_is(&second.token, "KEY");
    let constraint = match &first.token {
        token if word_is(token, "CONSTRAINT") => matches!(second.token, Token::Word(_)),
        token => key && (word_is(token, "PRIMARY") || word_is(token, "FOREIGN")),
    };
    if !constraint {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, "the constraints of a table cannot be changed")
        .with_hint("a table's tags and time identify its rows; ADD COLUMN … TAG adds a tag")
        .into())
}

#[cfg(test)]
mod tests {
    use kymo_kernel::schema::{ColumnKind, FieldType};

    use super::*;
    use crate::query::command::{Command, Parsed};
    use crate::query::{parse::parse, rewrite::Rewriter};

    fn changes(sql: &str) -> Result<Vec<TableChange>> {
        let statements = parse(&format!("ALTER TABLE {sql}"), &Rewriter::new())?;
        match &statements[0].tree.downcast_ref::<Parsed>().unwrap().command {
            Command::Define(Define::AlterTable(alter)) => Ok(alter.changes.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn several_changes_are_one_statement() {
        let read = changes(
            "IF EXISTS a.t ADD COLUMN IF NOT EXISTS v DOUBLE PRECISION, ADD region TEXT TAG, \
             DROP COLUMN IF EXISTS \"Old\", DROP w CASCADE, RENAME COLUMN x TO y, RENAME a TO \"B\"",
        );
        let read: Vec<String> = read
            .unwrap()
            .iter()
            .map(|change| match change {
                TableChange::AddColumn { column, if_not_exists } => format!(
                    "+ {} {} {} {if_not_exists}",
                    column.name,
                    column.kind.as_str(),
                    column.field_type
                ),
                TableChange::DropColumn { name, if_exists } => format!("- {name} {if_exists}"),
                TableChange::RenameColumn { from, to } => format!("{from} → {to}"),
                TableChange::WidenIntegers(widen) => format!("widen {widen}"),
            })
            .collect();
        let expected =
            ["+ v field float true", "+ region tag string false", "- Old true", "- w false"];
        assert_eq!(read, [&expected[..], &["x → y", "a → B"]].concat());
    }

    #[test]
    fn widening_is_set_and_reset() {
        let one = |sql: &str| changes(sql).map(|mut changes| changes.remove(0));
        let on = TableChange::WidenIntegers(true);
        assert_eq!(one("t SET (widen_integers = true)").unwrap(), on);
        assert_eq!(one("t SET (widen_integers = 'on')").unwrap(), on);
        let off = TableChange::WidenIntegers(false);
        assert_eq!(one("a.t RESET (widen_integers)").unwrap(), off);
        assert!(one("t SET (widen_integers = maybe)").is_err());
        let other = one("t SET (append_only = true)").unwrap_err();
        assert!(other.hint().unwrap().contains("retention"), "{other}");
    }

    #[test]
    fn new_columns_are_written_as_in_a_new_table() {
        let one = |sql: &str| -> Result<_> {
            match changes(sql)?.remove(0) {
                TableChange::AddColumn { column, .. } => Ok((column.kind, column.field_type)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(one("t ADD v BIGINT NULL").unwrap(), (ColumnKind::Field, FieldType::Int64));
        assert_eq!(one("t ADD h TAG").unwrap(), (ColumnKind::Tag, FieldType::Text));
        let key = one("t ADD h STRING PRIMARY KEY").unwrap();
        assert_eq!(key, (ColumnKind::Tag, FieldType::Text));
        assert_eq!(one("t ADD at TIMESTAMP").unwrap(), (ColumnKind::Field, FieldType::Timestamp));
        for sql in ["t ADD h BIGINT TAG", "t ADD ts TIMESTAMP TIME INDEX"] {
            assert_eq!(one(sql).unwrap_err().code(), Code::InvalidInput, "{sql}");
        }
        for sql in ["t ADD v BYTEA", "t ADD v INT DEFAULT 3", "t ADD PRIMARY KEY (a)"] {
            assert_eq!(one(sql).unwrap_err().code(), Code::Unsupported, "{sql}");
        }
        for sql in ["t RENAME TO u", "t SET SCHEMA u", "t ALTER COLUMN v TYPE INT"] {
            let error = one(sql).unwrap_err();
            assert!(matches!(error.code(), Code::Unsupported | Code::Syntax), "{sql}: {error}");
        }
    }
}
