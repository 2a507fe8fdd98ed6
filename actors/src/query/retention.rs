//! How long rows are kept, in SQL: `ALTER TABLE t SET (retention = '30d')` and relatives, and the
//! edge that a query cuts at.
//!
//! A query sees no row whose time is not after its own now less the retention, whatever is
//! stored of them yet. Where no stored row can be that old, it pays nothing for it.

use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::{Result as EngineResult, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use kymo_kernel::schema::{TableName, time_type};
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::command::Retained;
use super::duration::Span;
use super::parse::Failure;
use super::utility::{name, option_value, take, word_is};

const SECOND: i64 = 1_000_000_000;
/// What keeps everything, also where the database says otherwise.
const FOREVER: &str = "forever";

/// Reads `ALTER DATABASE`; `None` if it is something else.
pub(super) fn read(parser: &mut Parser) -> std::result::Result<Option<Retained>, Failure> {
    let (first, second) = (parser.peek_token(), parser.peek_nth_token(1));
    if !word_is(&first.token, "ALTER") || !word_is(&second.token, "DATABASE") {
        return Ok(None);
    }
    parser.advance_token();
    parser.advance_token();
    let name = name(parser)?;
    let retention_ns = change(parser, "ALTER DATABASE")?.filter(|retention| *retention > 0);
    Ok(Some(Retained::Database(name, retention_ns)))
}

/// `SET (retention = '30d')` or `RESET (retention)`.
pub(super) fn change(parser: &mut Parser, verb: &str) -> std::result::Result<Option<i64>, Failure> {
    let set = take(parser, "SET");
    if !set && !take(parser, "RESET") {
        let next = parser.peek_token().token.to_string().to_uppercase();
        return Err(Error::new(Code::Unsupported, format!("{verb} … {next} is not supported"))
            .with_hint("what can be changed: SET (retention = '30d'), RESET (retention)")
            .into());
    }
    parser.expect_token(&Token::LParen)?;
    let option = name(parser)?;
    if option != "retention" {
        return Err(Error::new(Code::InvalidInput, format!("{option:?} cannot be changed"))
            .with_hint("what can be changed: retention, and widen_integers of a table")
            .into());
    }
    let mut retention = None;
    if set {
        parser.expect_token(&Token::Eq)?;
        let value = option_value(parser);
        retention = Some(length(&value)?);
    }
    parser.expect_token(&Token::RParen)?;
    Ok(retention)
}

/// A retention in nanoseconds; zero means for ever.
///
/// # Errors
/// `invalid_cast`, `invalid_input` where it is too short or has no fixed length.
pub(super) fn length(text: &str) -> Result<i64> {
    if text.eq_ignore_ascii_case(FOREVER) {
        return Ok(0);
    }
    let nanos = Span::parse(text)?.fixed_nanos();
    nanos.filter(|nanos| *nanos >= SECOND).ok_or_else(|| {
        Error::new(Code::InvalidInput, format!("retention = {text:?} is not a fixed length"))
            .with_hint("use one second or more, without months: '30d', '12h'; or 'forever'")
    })
}

/// A retention as [`length`] reads it, in the largest unit that it is whole in.
pub(super) fn shown(retention_ns: i64) -> String {
    const UNITS: [(i64, &str); 5] = [
        (86_400 * SECOND, "d"),
        (3_600 * SECOND, "h"),
        (60 * SECOND, "m"),
        (SECOND, "s"),
        (1, "ns"),
    ];
    if retention_ns == 0 {
        return FOREVER.to_owned();
    }
    let unit = UNITS.iter().find(|(nanos, _)| retention_ns % nanos == 0);
    unit.map_or_else(String::new, |(nanos, unit)| format!("{}{unit}", retention_ns / nanos))
}

/// The latest time that a statement takes for expired; `None` where the table keeps everything.
pub(super) fn edge(snapshot: &Snapshot, table: &TableName, state: &dyn Session) -> Option<i64> {
    let retention_ns = snapshot.retention_ns(table)?;
    let now = state.execution_props().query_execution_start_time;
    let now = now.and_then(|now| now.timestamp_nanos_opt())?;
    Some(expired_upto(retention_ns, now))
}

/// Whether what is stored of a version within a time range holds rows on both sides of an edge;
/// what lies wholly behind it is not even opened.
pub(super) fn straddles(version: &Version, edge: i64) -> bool {
    let segments = version.segments.iter().map(|segment| segment.meta().time);
    let frozen = version.frozen.iter().map(|frozen| frozen.span.time);
    let hot = version.hot.span().map(|span| span.time);
    let mut times = segments.chain(frozen).chain(hot);
    times.any(|time| time.first <= edge && time.last > edge)
}

/// The rows after an edge of a scan whose last column is the time; in the columns before it, and
/// in that one too where it is wanted.
pub(super) fn cut(
    scan: Arc<dyn ExecutionPlan>,
    edge: i64,
    output: &SchemaRef,
    limit: Option<usize>,
) -> EngineResult<Arc<dyn ExecutionPlan>> {
    let input = scan.schema();
    let at = input.fields().len() - 1;
    debug_assert_eq!(input.field(at).data_type(), &time_type());
    let edge = ScalarValue::TimestampNanosecond(Some(edge), Some("+00:00".into()));
    let time = Arc::new(Column::new(input.field(at).name(), at));
    let after = BinaryExpr::new(time, Operator::Gt, Arc::new(Literal::new(edge)));
    let columns = (0..output.fields().len()).collect();
    let cut = FilterExecBuilder::new(Arc::new(after), scan)
        .apply_projection(Some(columns))?
        .with_fetch(limit)
        .build()?;
    Ok(Arc::new(cut))
}

/// The text of an option of `CREATE TABLE`.
pub(super) fn option(retention_ns: Option<i64>) -> String {
    retention_ns.map_or_else(String::new, |ns| format!(", retention = '{}'", shown(ns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_come_back_as_they_went() {
        for (text, nanos, again) in [
            ("30d", 30 * 86_400 * SECOND, "30d"),
            ("2 weeks", 14 * 86_400 * SECOND, "14d"),
            ("36h", 36 * 3_600 * SECOND, "36h"),
            ("90s", 90 * SECOND, "90s"),
            ("1.5s", 1_500_000_000, "1500000000ns"),
            ("FOREVER", 0, "forever"),
        ] {
            assert_eq!(length(text).unwrap(), nanos, "{text}");
            assert_eq!(shown(nanos), again);
            assert_eq!(length(again).unwrap(), nanos);
        }
        for text in ["1 month", "500ms", "-1d", "0"] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}
