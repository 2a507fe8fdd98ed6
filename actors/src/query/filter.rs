//! What a query's conditions say about series and time, read from its filter expressions.
//!
//! The result is what storage can look up: a time range and sets of tag values. It never
//! leaves out a row that the conditions keep; whether it keeps exactly those decides how the
//! filter is declared to the planner.

use std::collections::BTreeSet;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::schema::{ColumnKind, TableSchema};
use kymo_kernel::storage::segment::TagFilter;

/// Conditions that storage can look up.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// The times.
    pub(super) time: TimeRange,
    /// For tags by their place among the table's tags: the values allowed, `None` for NULL.
    pub(super) tags: Vec<(usize, BTreeSet<Option<String>>)>,
}

impl Wanted {
    /// Every row.
    pub(super) fn all() -> Self {
        Wanted { time: TimeRange::ALL, tags: Vec::new() }
    }

    /// What several conditions together demand.
    pub(super) fn of(schema: &TableSchema, filters: &[Expr]) -> Self {
        let mut wanted = Wanted::all();
        for filter in filters {
            wanted.narrow(schema, filter);
        }
        wanted
    }

    /// The times that conditions demand, where the time is all that they look at.
    pub(super) fn only_times(schema: &TableSchema, filters: &[Expr]) -> Option<TimeRange> {
        let mut wanted = Wanted::all();
        let exact = filters.iter().all(|filter| wanted.narrow(schema, filter));
        (exact && wanted.tags.is_empty()).then_some(wanted.time)
    }

    /// Whether no row can satisfy it.
    pub(super) fn is_nothing(&self) -> bool {
        self.time.first > self.time.last || self.tags.iter().any(|(_, values)| values.is_empty())
    }

    /// Whether it lets every row through.
    pub(super) fn is_everything(&self) -> bool {
        self.time == TimeRange::ALL && self.tags.is_empty()
    }

    /// The form that storage takes for series.
    pub(super) fn tag_filter(&self) -> TagFilter {
        self.tags.iter().fold(TagFilter::all(), |filter, (place, values)| {
            filter.and(*place, values.iter().cloned())
        })
    }

    /// Adds one condition; answers whether it was understood completely.
    fn narrow(&mut self, schema: &TableSchema, filter: &Expr) -> bool {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                let left = self.narrow(schema, left);
                self.narrow(schema, right) && left
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                if let Some(bound) = time_bound(schema, left, *op, right) {
                    self.time.first = self.time.first.max(bound.first);
                    self.time.last = self.time.last.min(bound.last);
                    return true;
                }
                self.narrow_tag(schema, filter)
            }
            Expr::Between(between) if !between.negated => {
                let low = time_bound(schema, &between.expr, Operator::GtEq, &between.low);
                let high = time_bound(schema, &between.expr, Operator::LtEq, &between.high);
                for bound in [low, high].into_iter().flatten() {
                    self.time.first = self.time.first.max(bound.first);
                    self.time.last = self.time.last.min(bound.last);
                }
                low.is_some() && high.is_some()
            }
            _ => self.narrow_tag(schema, filter),
        }
    }

    fn narrow_tag(&mut self, schema: &TableSchema, filter: &Expr) -> bool {
        let Some((place, values)) = tag_values(schema, filter) else { return false };
        match self.tags.iter_mut().find(|(other, _)| *other == place) {
            Some((_, known)) => known.retain(|value| values.contains(value)),
            None => {
                self.tags.push((place, values));
                self.tags.sort_by_key(|(place, _)| *place);
            }
        }
        true
    }
}

/// Whether storage understands a condition at all, so that it is worth passing down.
pub(super) fn understood(schema: &TableSchema, filter: &Expr) -> bool {
    let mut wanted = Wanted::all();
    wanted.narrow(schema, filter);
    !wanted.is_everything()
}

/// The column behind an expression; the planner may have wrapped tags in a cast to text.
fn column(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(column) => Some(&column.name),
        Expr::Cast(cast) if is_text(cast.field.data_type()) => column(&cast.expr),
        Expr::Alias(alias) => column(&alias.expr),
        _ => None,
    }
}

fn is_text(data_type: &datafusion::arrow::datatypes::DataType) -> bool {
    use datafusion::arrow::datatypes::DataType::{Dictionary, LargeUtf8, Utf8, Utf8View};
    match data_type {
        Utf8 | LargeUtf8 | Utf8View => true,
        Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// The range of times that `left op right` allows, if it compares the time with a constant.
fn time_bound(schema: &TableSchema, left: &Expr, op: Operator, right: &Expr) -> Option<TimeRange> {
    let (name, op, value) = match (column(left), instant(right)) {
        (Some(name), Some(value)) => (name, op, value),
        _ => (column(right)?, op.swap()?, instant(left)?),
    };
    if schema.column(name)?.kind != ColumnKind::Time {
        return None;
    }
    let nothing = TimeRange { first: i64::MAX, last: i64::MIN };
    let mut range = TimeRange::ALL;
    match op {
        Operator::Eq => (range.first, range.last) = (value, value),
        Operator::GtEq => range.first = value,
        Operator::Gt => match value.checked_add(1) {
            Some(value) => range.first = value,
            None => range = nothing,
        },
        Operator::LtEq => range.last = value,
        Operator::Lt => match value.checked_sub(1) {
            Some(value) => range.last = value,
            None => range = nothing,
        },
        _ => return None,
    }
    Some(range)
}

/// A constant instant of exactly the type of the time column.
fn instant(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::TimestampNanosecond(Some(value), _), _) => Some(*value),
        _ => None,
    }
}

/// A constant text; `Some(None)` for NULL.
fn text(expr: &Expr) -> Option<Option<String>> {
    let Expr::Literal(value, _) = expr else { return None };
    scalar_text(value)
}

fn scalar_text(value: &ScalarValue) -> Option<Option<String>> {
    match value {
        ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text) => {
            Some(text.clone())
        }
        ScalarValue::Dictionary(_, inner) => scalar_text(inner),
        _ => None,
    }
}

/// The values of a tag that a condition allows.
fn tag_values(schema: &TableSchema, filter: &Expr) -> Option<(usize, BTreeSet<Option<String>>)> {
    let place = |expr: &Expr| {
        let name = column(expr)?;
        schema.tags().position(|tag| tag.name == name)
    };
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let (place, value) = match (place(left), text(right)) {
                (Some(place), Some(value)) => (place, value),
                _ => (place(right)?, text(left)?),
            };
            // NULL equals nothing.
            Some((place, value.into_iter().map(Some).collect()))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (place, mut values) = tag_values(schema, left)?;
            let (other, more) = tag_values(schema, right)?;
            values.extend(more);
            (place == other).then_some((place, values))
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let place = place(expr)?;
            let values = list.iter().map(text).collect::<Option<Vec<_>>>()?;
            Some((place, values.into_iter().flatten().map(Some).collect()))
        }
        Expr::IsNull(expr) => Some((place(expr)?, BTreeSet::from([None]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, in_list, lit};
    use kymo_kernel::ids::ColumnId;
    use kymo_kernel::schema::{Column, FieldType};

    fn schema() -> TableSchema {
        let column = |id, name: &str, kind, field_type| Column {
            id: ColumnId(id),
            name: name.into(),
            kind,
            field_type,
        };
        TableSchema {
            version: 1,
            columns: vec![
                column(1, "host", ColumnKind::Tag, FieldType::Text),
                column(2, "region", ColumnKind::Tag, FieldType::Text),
                column(3, "usage", ColumnKind::Field, FieldType::Float64),
                column(4, "time", ColumnKind::Time, FieldType::Timestamp),
            ],
        }
    }

    fn at(value: i64) -> Expr {
        lit(ScalarValue::TimestampNanosecond(Some(value), Some("+00:00".into())))
    }

    #[test]
    fn times_narrow_to_a_closed_range() {
        let wanted =
            Wanted::of(&schema(), &[col("time").gt_eq(at(10)).and(at(20).gt(col("time")))]);
        assert_eq!(wanted.time, TimeRange { first: 10, last: 19 });
        assert!(Wanted::of(&schema(), &[col("time").gt(at(i64::MAX))]).is_nothing());
        assert!(
            Wanted::of(&schema(), &[col("time").gt(at(5)), col("time").lt(at(5))]).is_nothing()
        );
        assert_eq!(
            Wanted::of(&schema(), &[col("time").between(at(1), at(2))]).time,
            TimeRange { first: 1, last: 2 }
        );
    }

    #[test]
    fn tags_narrow_by_equality_lists_and_alternatives() {
        let some =
            |values: &[&str]| values.iter().map(|v| Some((*v).to_owned())).collect::<BTreeSet<_>>();
        let filters = [
            in_list(col("host"), vec![lit("a"), lit("b"), lit("c")], false),
            col("host").eq(lit("b")).or(col("host").eq(lit("c"))),
            col("region").is_null(),
        ];
        let wanted = Wanted::of(&schema(), &filters);
        assert_eq!(wanted.tags, [(0, some(&["b", "c"])), (1, BTreeSet::from([None]))]);
        assert!(
            Wanted::of(&schema(), &[col("host").eq(lit("a")), col("host").eq(lit("b"))])
                .is_nothing()
        );
    }

    #[test]
    fn other_conditions_leave_everything_in() {
        for filter in [
            col("usage").gt(lit(1.0)),
            col("host").not_eq(lit("a")),
            col("host").eq(lit("a")).or(col("usage").gt(lit(1.0))),
            in_list(col("host"), vec![lit("a")], true),
            col("usage").eq(lit("a")),
        ] {
            assert!(
                Wanted::of(&schema(), std::slice::from_ref(&filter)).is_everything(),
                "{filter}"
            );
            assert!(!understood(&schema(), &filter), "{filter}");
        }
        assert!(understood(&schema(), &col("usage").gt(lit(1.0)).and(col("time").gt(at(1)))));
    }
}
