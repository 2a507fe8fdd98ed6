//! `CREATE TABLE` and the other changes of definitions.
//!
//! Three styles of table meet here: columns marked `TAG`, a `TIME INDEX` beside a `PRIMARY KEY`,
//! and plain SQL, where the text columns of the primary key are the tags and the timestamp is
//! the time.

use datafusion::sql::sqlparser::ast::DataType;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use kymo_kernel::ids::ColumnId;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TIME, TableOptions, TableSchema, check_name, check_space,
    check_table,
};
use kymo_kernel::{Code, Error, Result};

use super::alter;
use super::command::{Define, NewTable};
use super::duration::Span;
use super::parse::Failure;
use super::retention;
use super::utility::{name, option_value, table_name, take, word_is};

/// Reads a change of definitions; `None` if it is something else.
pub(super) fn read(parser: &mut Parser) -> Result<Option<Define>, Failure> {
    if let Some(altered) = alter::read(parser)? {
        return Ok(Some(altered));
    }
    if let Some(retained) = retention::read(parser)? {
        return Ok(Some(Define::Retention(retained)));
    }
    let (first, second) = (parser.peek_token(), parser.peek_nth_token(1));
    let (create, drop) = (word_is(&first.token, "CREATE"), word_is(&first.token, "DROP"));
    if !create && !drop {
        return Ok(None);
    }
    let temporary = ["TEMP", "TEMPORARY", "UNLOGGED"].iter().any(|w| word_is(&second.token, w));
    if create && temporary {
        return Err(Error::new(Code::Unsupported, "temporary tables are not supported").into());
    }
    let (table, database) = (word_is(&second.token, "TABLE"), word_is(&second.token, "DATABASE"));
    if !table && !database {
        return Ok(None);
    }
    parser.advance_token();
    parser.advance_token();
    Ok(Some(match (create, table) {
        (true, true) => Define::CreateTable(Box::new(create_table(parser)?)),
        (true, false) => {
            let if_not_exists =
                parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
            let name = name(parser)?;
            check_space("database", &name)?;
            // Options such as ENCODING 'UTF8' or OWNER x say nothing here.
            while !matches!(parser.peek_token_ref().token, Token::EOF) {
                parser.advance_token();
            }
            Define::CreateDatabase { name, if_not_exists }
        }
        (false, true) => {
            let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
            let mut names = vec![table_name(parser)?];
            while parser.consume_token(&Token::Comma) {
                names.push(table_name(parser)?);
            }
            let _ = take(parser, "CASCADE") || take(parser, "RESTRICT");
            Define::DropTable { names, if_exists }
        }
        (false, false) => {
            let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
            Define::DropDatabase { name: name(parser)?, if_exists }
        }
    }))
}

/// A column as written, before it is known what the table's constraints make of it.
struct Draft {
    name: String,
    field_type: Option<FieldType>,
    kind: Option<ColumnKind>,
    /// Whether the type was written as an instant, so that it can be the time.
    instant: bool,
}

#[derive(Default)]
struct Drafts {
    columns: Vec<Draft>,
    key: Vec<String>,
    time: Option<String>,
}

fn create_table(parser: &mut Parser) -> Result<NewTable, Failure> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = table_name(parser)?;
    check_table("table", &name.table)?;
    if take(parser, "AS") {
        return Err(Error::new(Code::Unsupported, "CREATE TABLE … AS is not supported")
            .with_hint("create the table, then INSERT INTO … SELECT")
            .into());
    }
    parser.expect_token(&Token::LParen)?;
    let mut drafts = Drafts::default();
    loop {
        element(parser, &mut drafts)?;
        if !parser.consume_token(&Token::Comma) {
            break;
        }
        // A comma after the last element is forgiven.
        if parser.peek_token_ref().token == Token::RParen {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    let Options { table: options, retention_ns } = options(parser)?;
    let (schema, flaw) = match settle(drafts) {
        Ok(schema) => (schema, None),
        Err(flaw) if if_not_exists => (TableSchema { version: 0, columns: Vec::new() }, Some(flaw)),
        Err(flaw) => return Err(flaw.into()),
    };
    Ok(NewTable { name, schema, options, retention_ns, if_not_exists, flaw })
}

/// One element between the parentheses: a column or a constraint.
fn element(parser: &mut Parser, drafts: &mut Drafts) -> Result<(), Failure> {
    if take(parser, "CONSTRAINT") {
        name(parser)?;
    }
    let (first, second) = (parser.peek_token(), parser.peek_nth_token(1));
    if word_is(&first.token, "PRIMARY") && word_is(&second.token, "KEY") {
        parser.advance_token();
        parser.advance_token();
        drafts.key.extend(names(parser)?);
        return Ok(());
    }
    if word_is(&first.token, "TIME") && word_is(&second.token, "INDEX") {
        parser.advance_token();
        parser.advance_token();
        let columns = names(parser)?;
        let [column] = columns.as_slice() else {
            return Err(
                Error::new(Code::InvalidInput, "TIME INDEX names exactly one column").into()
            );
        };
        return set_time(drafts, column.clone());
    }
    for word in ["UNIQUE", "FOREIGN", "CHECK", "EXCLUDE", "LIKE"] {
        let column = matches!(&second.token, Token::Word(_)) && word != "FOREIGN" && word != "LIKE";
        if word_is(&first.token, word) && !column {
            return Err(Error::new(
                Code::Unsupported,
                format!("{word} constraints are not supported"),
            )
            .with_hint("rows are identified by their tags and time")
            .into());
        }
    }
    column(parser, drafts)
}

fn names(parser: &mut Parser) -> Result<Vec<String>, Failure> {
    parser.expect_token(&Token::LParen)?;
    let mut found = vec![name(parser)?];
    while parser.consume_token(&Token::Comma) {
        found.push(name(parser)?);
    }
    parser.expect_token(&Token::RParen)?;
    Ok(found)
}

fn set_time(drafts: &mut Drafts, column: String) -> Result<(), Failure> {
    if let Some(other) = drafts.time.replace(column) {
        return Err(Error::new(
            Code::InvalidInput,
            format!("more than one TIME INDEX; {other:?} is the first"),
        )
        .into());
    }
    Ok(())
}

fn column(parser: &mut Parser, drafts: &mut Drafts) -> Result<(), Failure> {
    let name = name(parser)?;
    check_name("column", &name)?;
    let mut draft = Draft { name, field_type: None, kind: None, instant: false };
    let next = parser.peek_token();
    let typeless =
        word_is(&next.token, "TAG") || matches!(next.token, Token::Comma | Token::RParen);
    if !typeless {
        let written = parser.parse_data_type()?;
        let field_type = field_type(&written).ok_or_else(|| {
            Error::new(
                Code::Unsupported,
                format!("column {:?} has the unsupported type {written}", draft.name),
            )
            .with_hint(
                "types: DOUBLE PRECISION, BIGINT, BIGINT UNSIGNED, BOOLEAN, TEXT, TIMESTAMPTZ",
            )
        })?;
        draft.instant = field_type == FieldType::Timestamp;
        draft.field_type = Some(field_type);
    }
    loop {
        if take(parser, "TAG") {
            draft.kind = Some(ColumnKind::Tag);
        } else if take(parser, "FIELD") {
            draft.kind = Some(ColumnKind::Field);
        } else if word_is(&parser.peek_token_ref().token, "TIME")
            && word_is(&parser.peek_nth_token(1).token, "INDEX")
        {
            parser.advance_token();
            parser.advance_token();
            set_time(drafts, draft.name.clone())?;
        } else if parser.parse_keywords(&[Keyword::PRIMARY, Keyword::KEY]) {
            drafts.key.push(draft.name.clone());
        } else if parser.parse_keywords(&[Keyword::NOT, Keyword::NULL]) || take(parser, "NULL") {
            // Everything but time may be NULL; saying otherwise is accepted, as sparse rows are normal.
        } else {
            break;
        }
    }
    if let Token::Word(word) = &parser.peek_token_ref().token {
        return Err(Error::new(
            Code::Unsupported,
            format!("column {:?}: {} is not supported", draft.name, word.value.to_uppercase()),
        )
        .with_hint("a column is: name [type] [TAG | TIME INDEX] [PRIMARY KEY] [NOT NULL]")
        .into());
    }
    if drafts.columns.iter().any(|other| other.name == draft.name) {
        return Err(Error::new(
            Code::InvalidInput,
            format!("column \"{}\" is specified more than once", draft.name),
        )
        .into());
    }
    drafts.columns.push(draft);
    Ok(())
}

/// The column of an `ADD COLUMN`.
pub(super) fn added(parser: &mut Parser) -> Result<Column, Failure> {
    let mut drafts = Drafts::default();
    column(parser, &mut drafts)?;
    let Drafts { columns, key, time } = drafts;
    let Some(mut draft) = columns.into_iter().next() else {
        return Err(Error::internal("a column that was read is gone").into());
    };
    if time.is_some() {
        let text = format!("column {:?}: a table has one time, from the start", draft.name);
        return Err(Error::new(Code::InvalidInput, text)
            .with_hint("leave out TIME INDEX to add a field")
            .into());
    }
    // No column has an empty name, so none is taken for the time.
    settle_kind(&mut draft, &key, "")?;
    Ok(settled(draft)?)
}

/// The type that a column written in SQL is kept as. Narrower numbers widen to 64 bits;
/// exact decimals become floating point.
fn field_type(written: &DataType) -> Option<FieldType> {
    Some(match written {
        DataType::Float(_)
        | DataType::Float4
        | DataType::Float8
        | DataType::Float32
        | DataType::Float64
        | DataType::Real
        | DataType::Double(_)
        | DataType::DoublePrecision
        | DataType::Decimal(_)
        | DataType::Numeric(_)
        | DataType::Dec(_) => FieldType::Float64,
        DataType::TinyInt(_)
        | DataType::SmallInt(_)
        | DataType::MediumInt(_)
        | DataType::Int(_)
        | DataType::Integer(_)
        | DataType::BigInt(_)
        | DataType::Int2(_)
        | DataType::Int4(_)
        | DataType::Int8(_)
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64 => FieldType::Int64,
        DataType::TinyIntUnsigned(_)
        | DataType::SmallIntUnsigned(_)
        | DataType::MediumIntUnsigned(_)
        | DataType::IntUnsigned(_)
        | DataType::IntegerUnsigned(_)
        | DataType::BigIntUnsigned(_)
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64 => FieldType::UInt64,
        DataType::Bool | DataType::Boolean => FieldType::Bool,
        DataType::Text
        | DataType::String(_)
        | DataType::Varchar(_)
        | DataType::Nvarchar(_)
        | DataType::CharacterVarying(_)
        | DataType::CharVarying(_)
        | DataType::Char(_)
        | DataType::Character(_)
        | DataType::Uuid
        | DataType::JSON
        | DataType::JSONB => FieldType::Text,
        DataType::Timestamp(..) | DataType::Datetime(_) | DataType::Date => FieldType::Timestamp,
        DataType::Custom(name, arguments) => return custom(&name.to_string(), arguments),
        _ => return None,
    })
}

/// Names that the grammar does not know.
fn custom(name: &str, _arguments: &[String]) -> Option<FieldType> {
    Some(match name.to_ascii_lowercase().as_str() {
        "f64" | "float" | "double" => FieldType::Float64,
        "i64" | "long" | "serial" | "bigserial" => FieldType::Int64,
        "u64" | "unsigned" | "ubigint" | "uint64" => FieldType::UInt64,
        "string" | "name" | "bpchar" | "symbol" => FieldType::Text,
        "timestamp_ns" | "timestamp_us" | "timestamp_ms" | "timestamp_s" | "timestamptz" => {
            FieldType::Timestamp
        }
        _ => return None,
    })
}

/// Turns drafts and constraints into a schema.
fn settle(drafts: Drafts) -> Result<TableSchema> {
    let Drafts { mut columns, key, time } = drafts;
    for name in key.iter().chain(&time) {
        if !columns.iter().any(|column| column.name == *name) {
            return Err(Error::new(
                Code::ColumnNotFound,
                format!("column \"{name}\" named in key does not exist"),
            ));
        }
    }
    let time = find_time(&columns, &key, time)?;
    for column in &mut columns {
        settle_kind(column, &key, &time)?;
    }
    let columns = columns.into_iter().map(settled).collect::<Result<Vec<_>>>()?;
    Ok(TableSchema { version: 0, columns })
}

fn settled(draft: Draft) -> Result<Column> {
    let kind = draft.kind.unwrap_or(ColumnKind::Field);
    let field_type = match kind {
        ColumnKind::Tag => FieldType::Text,
        ColumnKind::Time => FieldType::Timestamp,
        ColumnKind::Field => draft.field_type.ok_or_else(|| {
            Error::new(Code::Syntax, format!("column \"{}\" has no type", draft.name))
                .with_hint("write a type, or TAG after the name")
        })?,
    };
    Ok(Column { id: ColumnId(0), name: draft.name, kind, field_type })
}

/// The time column: the one named, or `time`, or the timestamp of the key, or the only one.
fn find_time(columns: &[Draft], key: &[String], named: Option<String>) -> Result<String> {
    if let Some(name) = named {
        return Ok(name);
    }
    let instants: Vec<&Draft> = columns.iter().filter(|column| column.instant).collect();
    let chosen = instants
        .iter()
        .find(|column| column.name == TIME)
        .or_else(|| instants.iter().find(|column| key.contains(&column.name)))
        .or(match instants.as_slice() {
            [_] => instants.first(),
            _ => None,
        });
    chosen.map(|column| column.name.clone()).ok_or_else(|| {
        let text = if instants.is_empty() {
            "the table has no time column"
        } else {
            "more than one column could be the time"
        };
        Error::new(Code::InvalidInput, text)
            .with_hint("add `time TIMESTAMPTZ`, or mark a timestamp column with TIME INDEX")
    })
}

fn settle_kind(column: &mut Draft, key: &[String], time: &str) -> Result<()> {
    if column.name == time {
        if column.kind == Some(ColumnKind::Tag) || !column.instant {
            return Err(Error::new(
                Code::InvalidInput,
                format!("the time column \"{time}\" must be a timestamp"),
            ));
        }
        column.kind = Some(ColumnKind::Time);
        return Ok(());
    }
    let in_key = key.contains(&column.name);
    if in_key {
        column.kind = Some(ColumnKind::Tag);
    }
    let text = matches!(column.field_type, None | Some(FieldType::Text));
    if column.kind == Some(ColumnKind::Tag) && !text {
        let what = if in_key { "is part of the primary key" } else { "is a tag" };
        return Err(Error::new(
            Code::InvalidInput,
            format!("column \"{}\" {what}, so it must be TEXT", column.name),
        )
        .with_hint("tags identify a series and are text; numbers are fields"));
    }
    Ok(())
}

/// What `WITH` says.
#[derive(Default)]
struct Options {
    table: TableOptions,
    retention_ns: Option<i64>,
}

/// `WITH (name = value, …)`.
fn options(parser: &mut Parser) -> Result<Options, Failure> {
    let mut options = Options::default();
    if !take(parser, "WITH") {
        return Ok(options);
    }
    parser.expect_token(&Token::LParen)?;
    while parser.peek_token_ref().token != Token::RParen {
        let option = match parser.next_token().token {
            Token::Word(word) => word.value.to_lowercase(),
            Token::SingleQuotedString(text) => text.to_lowercase(),
            other => other.to_string(),
        };
        let value =
            if parser.consume_token(&Token::Eq) { option_value(parser) } else { "true".to_owned() };
        apply_option(&mut options, &option, &value)?;
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(options)
}

fn apply_option(given: &mut Options, name: &str, value: &str) -> Result<()> {
    let options = &mut given.table;
    match name {
        "retention" => given.retention_ns = Some(retention::length(value)?),
        "append_only" | "append_mode" => options.append_only = boolean(name, value)?,
        "widen_integers" => options.widen_integers = boolean(name, value)?,
        "window" => {
            let nanos = Span::parse(value)?.fixed_nanos();
            options.window_ns = nanos.filter(|nanos| *nanos >= 1_000_000_000).ok_or_else(|| {
                Error::new(Code::InvalidInput, format!("window = {value:?} is not a fixed length"))
                    .with_hint("use one second or more, without months: '1h', '1 day'")
            })?;
        }
        other => {
            return Err(Error::new(Code::InvalidInput, format!("unknown table option {other:?}"))
                .with_hint("options: append_only, window, retention, widen_integers"));
        }
    }
    Ok(())
}

pub(super) fn boolean(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => {
            Err(Error::new(Code::InvalidInput, format!("{name} = {value:?} is not true or false")))
        }
    }
}

/// The statement that would make a table again.
pub(crate) fn create_statement(
    name: &str,
    schema: &TableSchema,
    options: &TableOptions,
    retention_ns: Option<i64>,
) -> String {
    let columns: Vec<String> = schema
        .columns
        .iter()
        .map(|column| {
            let rest = match column.kind {
                ColumnKind::Tag => "TEXT TAG",
                ColumnKind::Time => "TIMESTAMPTZ TIME INDEX",
                ColumnKind::Field => sql_type(column.field_type),
            };
            format!("  {} {rest}", quoted(&column.name))
        })
        .collect();
    let window = options.window_ns / 1_000_000_000;
    let widens = if options.widen_integers { ", widen_integers = true" } else { "" };
    format!(
        "CREATE TABLE {} (\n{}\n) WITH (append_only = {}, window = '{window}s'{}{widens})",
        quoted(name),
        columns.join(",\n"),
        options.append_only,
        retention::option(retention_ns)
    )
}

/// How a field's type is written in `CREATE TABLE`.
pub(crate) fn sql_type(field_type: FieldType) -> &'static str {
    match field_type {
        FieldType::Float64 => "DOUBLE PRECISION",
        FieldType::Int64 => "BIGINT",
        FieldType::UInt64 => "BIGINT UNSIGNED",
        FieldType::Bool => "BOOLEAN",
        FieldType::Text => "TEXT",
        FieldType::Timestamp => "TIMESTAMPTZ",
    }
}

fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::command::{Command, Parsed};
    use crate::query::{parse::parse, rewrite::Rewriter};

    fn table(sql: &str) -> Result<NewTable> {
        let statements = parse(sql, &Rewriter::new())?;
        match &statements[0].tree.downcast_ref::<Parsed>().unwrap().command {
            Command::Define(Define::CreateTable(table)) => Ok((**table).clone()),
            other => panic!("{other:?}"),
        }
    }

    fn shape(sql: &str) -> Vec<String> {
        table(sql)
            .unwrap()
            .schema
            .columns
            .iter()
            .map(|c| format!("{}:{}:{}", c.name, c.kind.as_str(), c.field_type))
            .collect()
    }

    #[test]
    fn three_styles_of_table_come_to_the_same() {
        let expected = ["host:tag:string", "usage:field:float", "time:time:timestamp"];
        for sql in [
            "CREATE TABLE cpu (host TEXT TAG, usage DOUBLE PRECISION, time TIMESTAMP)",
            "CREATE TABLE cpu (host TAG, usage DOUBLE, time TIMESTAMPTZ)",
            "CREATE TABLE cpu (host STRING, usage FLOAT8, time TIMESTAMP(9), TIME INDEX (time), PRIMARY KEY (host))",
            "CREATE TABLE cpu (host VARCHAR(20) PRIMARY KEY, usage REAL, time TIMESTAMP TIME INDEX)",
            "create table if not exists a.cpu (HOST text not null, usage numeric(10, 2) null, time timestamp with time zone not null, constraint pk primary key (host, time),)",
        ] {
            assert_eq!(shape(sql), expected, "{sql}");
        }
    }

    #[test]
    fn types_of_many_dialects_are_read() {
        assert_eq!(
            shape("CREATE TABLE t (a INT, b BIGINT UNSIGNED, c BOOL, d CHARACTER VARYING(3), e SMALLINT, f DATE, g UUID, h int8, i u64, j \"J\", time TIMESTAMP)".replace(", j \"J\"", "").as_str()),
            [
                "a:field:integer", "b:field:unsigned", "c:field:boolean", "d:field:string",
                "e:field:integer", "f:field:timestamp", "g:field:string", "h:field:integer",
                "i:field:unsigned", "time:time:timestamp"
            ]
        );
    }

    #[test]
    fn the_time_column_is_found_or_asked_for() {
        assert_eq!(shape("CREATE TABLE t (ts TIMESTAMP, v INT)")[0], "ts:time:timestamp");
        assert_eq!(
            shape("CREATE TABLE t (a TIMESTAMP, b TIMESTAMP, PRIMARY KEY (b))")[1],
            "b:time:timestamp"
        );
        assert_eq!(
            shape("CREATE TABLE t (a TIMESTAMP TIME INDEX, time TIMESTAMP)")[1],
            "time:field:timestamp"
        );
        for sql in [
            "CREATE TABLE t (v INT)",
            "CREATE TABLE t (a TIMESTAMP, b TIMESTAMP)",
            "CREATE TABLE t (a INT TIME INDEX)",
            "CREATE TABLE t (id INT PRIMARY KEY, time TIMESTAMP)",
            "CREATE TABLE t (a INT TAG, time TIMESTAMP)",
            "CREATE TABLE t (a TIMESTAMP TIME INDEX, b TIMESTAMP TIME INDEX)",
            "CREATE TABLE t (a INT, a INT, time TIMESTAMP)",
        ] {
            assert_eq!(table(sql).unwrap_err().code(), Code::InvalidInput, "{sql}");
        }
        assert_eq!(
            table("CREATE TABLE t (time TIMESTAMP, PRIMARY KEY (nope))").unwrap_err().code(),
            Code::ColumnNotFound
        );
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let options = |with: &str| {
            table(&format!("CREATE TABLE t (time TIMESTAMP) WITH ({with})")).map(|t| t.options)
        };
        assert!(options("append_only = true").unwrap().append_only);
        assert!(options("'append_mode' = 'on'").unwrap().append_only);
        assert_eq!(options("window = '1h'").unwrap().window_ns, 3_600_000_000_000);
        assert!(options("append_only = maybe").is_err());
        assert!(options("window = '1 month'").is_err());
        assert!(options("colour = 'red'").unwrap_err().hint().unwrap().contains("append_only"));
    }

    #[test]
    fn what_is_not_offered_says_so() {
        for sql in [
            "CREATE TABLE t (a BYTEA, time TIMESTAMP)",
            "CREATE TABLE t (a INT DEFAULT 3, time TIMESTAMP)",
            "CREATE TABLE t (a INT REFERENCES b (c), time TIMESTAMP)",
            "CREATE TABLE t (a INT, time TIMESTAMP, UNIQUE (a))",
            "CREATE TABLE t (a INT, time TIMESTAMP, FOREIGN KEY (a) REFERENCES b (c))",
            "CREATE TEMP TABLE t (time TIMESTAMP)",
            "CREATE TABLE t AS SELECT 1",
        ] {
            assert_eq!(table(sql).unwrap_err().code(), Code::Unsupported, "{sql}");
        }
    }

    #[test]
    fn the_statement_shown_makes_the_same_table() {
        let made = table("CREATE TABLE \"My t\" (\"Host\" TAG, u BIGINT UNSIGNED, time TIMESTAMP) WITH (append_only = true, widen_integers)").unwrap();
        for retention in [None, Some(0), Some(36 * 3_600_000_000_000)] {
            let text = create_statement("My t", &made.schema, &made.options, retention);
            let again = table(&text).unwrap();
            assert_eq!((&again.schema, &again.options), (&made.schema, &made.options));
            assert_eq!(again.retention_ns, retention);
        }
    }
}
