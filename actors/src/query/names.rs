//! Names of result columns as PostgreSQL gives them: `count`, `min`, `?column?`.
//!
//! The engine calls an unnamed `count(*)` by its whole text, and refuses two columns of one
//! name. Here duplicates get names of our own that the result's schema drops again.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::sql::sqlparser::ast::{
    self, Expr, Ident, OrderByKind, Query, Select, SelectItem, SetExpr, VisitMut, VisitorMut,
};

use super::command::Names;

/// Settles the names of a query and of the queries inside of it.
pub(super) fn settle(query: &mut Query) -> Names {
    name_inner(query);
    let ordered = order_names(query);
    let Some(select) = leftmost(&mut query.body) else { return Names::default() };
    settle_select(select, &ordered)
}

/// The result's schema under the names that the client expects.
pub(super) fn rename(schema: &SchemaRef, names: &Names) -> SchemaRef {
    let count = schema.fields().len();
    if names.head.iter().chain(&names.tail).all(Option::is_none) {
        return schema.clone();
    }
    let tail_start = count.saturating_sub(names.tail.len());
    let fields = schema.fields().iter().enumerate().map(|(at, field)| {
        let wanted = names.head.get(at).or_else(|| names.tail.get(at.checked_sub(tail_start)?));
        match wanted.and_then(Option::as_ref) {
            Some(name) => Arc::new(field.as_ref().clone().with_name(name)),
            None => field.clone(),
        }
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// The select that names the columns of a query.
fn leftmost(body: &mut SetExpr) -> Option<&mut Select> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::SetOperation { left, .. } => leftmost(left),
        SetExpr::Query(query) => leftmost(&mut query.body),
        _ => None,
    }
}

/// Plain names in `ORDER BY`: they may mean an output column that has no written name.
fn order_names(query: &Query) -> HashSet<String> {
    let Some(OrderByKind::Expressions(expressions)) = query.order_by.as_ref().map(|by| &by.kind)
    else {
        return HashSet::new();
    };
    expressions
        .iter()
        .filter_map(|each| match &each.expr {
            Expr::Identifier(ident) => Some(shown(ident)),
            _ => None,
        })
        .collect()
}

fn settle_select(select: &mut Select, ordered: &HashSet<String>) -> Names {
    let wildcards = select.projection.iter().filter(|item| is_wildcard(item)).count();
    let last_wildcard = select.projection.iter().rposition(is_wildcard);
    let written: HashSet<String> = select
        .projection
        .iter()
        .filter_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => Some(shown(alias)),
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(shown(ident)),
            _ => None,
        })
        .collect();
    let mut seen = HashSet::new();
    let mut names = Names::default();
    let items = std::mem::take(&mut select.projection);
    for (at, item) in items.into_iter().enumerate() {
        let (item, name) = settle_item(item, at, wildcards > 0, &written, ordered, &mut seen);
        select.projection.push(item);
        match last_wildcard {
            None => names.head.push(name),
            Some(last) if at < last && !names_ended(&select.projection) => names.head.push(name),
            Some(last) if at > last => names.tail.push(name),
            Some(_) => {}
        }
    }
    names
}

/// Whether a wildcard has been passed: columns after it have no fixed place from the left.
fn names_ended(projection: &[SelectItem]) -> bool {
    projection.iter().any(is_wildcard)
}

fn is_wildcard(item: &SelectItem) -> bool {
    matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..))
}

fn settle_item(
    item: SelectItem,
    at: usize,
    beside_wildcard: bool,
    written: &HashSet<String>,
    ordered: &HashSet<String>,
    seen: &mut HashSet<String>,
) -> (SelectItem, Option<String>) {
    let hidden = || Ident::with_quote('"', format!("__column_{at}"));
    match item {
        SelectItem::ExprWithAlias { expr, alias } => {
            let name = shown(&alias);
            if seen.insert(name.clone()) {
                return (SelectItem::ExprWithAlias { expr, alias }, None);
            }
            (SelectItem::ExprWithAlias { expr, alias: hidden() }, Some(name))
        }
        SelectItem::UnnamedExpr(expr) => {
            let name = column_name(&expr);
            let column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
            // Columns are told apart by their own name, other expressions by their text.
            let identity = if column { name.clone() } else { format!("{expr}\u{0}") };
            let taken = !seen.insert(identity) || (column && beside_wildcard);
            if taken {
                return (SelectItem::ExprWithAlias { expr, alias: hidden() }, Some(name));
            }
            if !column
                && ordered.contains(&name)
                && !written.contains(&name)
                && seen.insert(name.clone())
            {
                let alias = Ident::with_quote('"', name);
                return (SelectItem::ExprWithAlias { expr, alias }, None);
            }
            (SelectItem::UnnamedExpr(expr), (!column).then_some(name))
        }
        other => (other, None),
    }
}

/// Names the unnamed columns of subqueries, so that the query around them can refer to them.
fn name_inner(query: &mut Query) {
    struct Inner {
        depth: usize,
    }
    impl VisitorMut for Inner {
        type Break = ();

        fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
            self.depth += 1;
            if self.depth > 1
                && let Some(select) = leftmost(&mut query.body)
            {
                alias_select(select);
            }
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }
    }
    let _ = query.visit(&mut Inner { depth: 0 });
}

fn alias_select(select: &mut Select) {
    let mut counts: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => *counts.entry(column_name(expr)).or_default() += 1,
            SelectItem::ExprWithAlias { alias, .. } => {
                *counts.entry(shown(alias)).or_default() += 1
            }
            // A wildcard may bring any name.
            _ => return,
        }
    }
    for item in &mut select.projection {
        let SelectItem::UnnamedExpr(expr) = item else { continue };
        let name = column_name(expr);
        let plain = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
        if plain || name == UNNAMED || counts.get(&name) != Some(&1) {
            continue;
        }
        let expr = std::mem::replace(expr, Expr::Identifier(Ident::new("")));
        *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
    }
}

const UNNAMED: &str = "?column?";

/// An identifier as it names things: lower case unless quoted.
fn shown(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// What PostgreSQL calls the column of an expression (`FigureColname`).
pub(super) fn column_name(expr: &Expr) -> String {
    figure(expr).unwrap_or_else(|| UNNAMED.to_owned())
}

fn figure(expr: &Expr) -> Option<String> {
    let fixed = match expr {
        Expr::Identifier(ident) => return Some(shown(ident)),
        Expr::CompoundIdentifier(idents) => return idents.last().map(shown),
        Expr::Function(function) => {
            return function.name.0.last().and_then(|part| part.as_ident()).map(shown);
        }
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => return figure(inner),
        Expr::Cast { expr: inner, data_type, .. } => {
            return figure(inner).or_else(|| Some(type_name(data_type)));
        }
        Expr::TypedString(typed) => return Some(type_name(&typed.data_type)),
        Expr::Subquery(query) => return subquery_name(query),
        Expr::Case { else_result, .. } => {
            return else_result
                .as_deref()
                .filter(|other| matches!(other, Expr::Identifier(_) | Expr::CompoundIdentifier(_)))
                .and_then(figure)
                .or_else(|| Some("case".to_owned()));
        }
        Expr::Value(value) => match value.value {
            ast::Value::Boolean(_) => "bool",
            _ => return None,
        },
        Expr::Exists { .. } => "exists",
        Expr::Array(_) => "array",
        Expr::Extract { .. } => "extract",
        Expr::Ceil { .. } => "ceil",
        Expr::Floor { .. } => "floor",
        Expr::Position { .. } => "position",
        Expr::Substring { .. } => "substring",
        Expr::Trim { .. } => "btrim",
        Expr::Overlay { .. } => "overlay",
        Expr::AtTimeZone { .. } => "timezone",
        Expr::Interval(_) => "interval",
        Expr::Tuple(_) => "row",
        _ => return None,
    };
    Some(fixed.to_owned())
}

fn subquery_name(query: &Query) -> Option<String> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    match select.projection.first()? {
        SelectItem::UnnamedExpr(expr) => figure(expr),
        SelectItem::ExprWithAlias { alias, .. } => Some(shown(alias)),
        _ => None,
    }
}

/// The name that PostgreSQL keeps for a type that may be written in several ways.
fn type_name(data_type: &ast::DataType) -> String {
    use ast::DataType::{
        BigInt, Bool, Boolean, Char, Character, CharacterVarying, Double, DoublePrecision, Float,
        Int, Int2, Int4, Int8, Integer, Real, SmallInt, Timestamp, Varchar,
    };
    let fixed = match data_type {
        Int(_) | Integer(_) | Int4(_) => "int4",
        BigInt(_) | Int8(_) => "int8",
        SmallInt(_) | Int2(_) => "int2",
        Double(_) | DoublePrecision | Float(_) => "float8",
        Real => "float4",
        Bool | Boolean => "bool",
        Varchar(_) | CharacterVarying(_) => "varchar",
        Char(_) | Character(_) => "bpchar",
        Timestamp(_, zone) => match zone {
            ast::TimezoneInfo::Tz | ast::TimezoneInfo::WithTimeZone => "timestamptz",
            _ => "timestamp",
        },
        other => {
            let text = other.to_string().to_lowercase();
            let end = text.find('(').unwrap_or(text.len());
            let name = text[..end].trim();
            return name.rsplit('.').next().unwrap_or(name).to_owned();
        }
    };
    fixed.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{DataType, Field};
    use datafusion::sql::sqlparser::parser::Parser;

    fn query(sql: &str) -> Box<Query> {
        match Parser::parse_sql(&crate::query::parse::DIALECT, sql).unwrap().remove(0) {
            ast::Statement::Query(query) => query,
            other => panic!("{other}"),
        }
    }

    fn names(sql: &str) -> Vec<String> {
        let mut query = query(sql);
        let names = settle(&mut query);
        assert!(names.tail.is_empty());
        names.head.into_iter().map(|name| name.unwrap_or_else(|| "-".to_owned())).collect()
    }

    #[test]
    fn expressions_are_named_as_in_postgresql() {
        assert_eq!(
            names(
                "SELECT count(*), min(a.time), a, b.c, 1, 'x', true, a + 1, CAST(a + 1 AS INT), a::text, now()::timestamptz"
            ),
            [
                "count", "min", "-", "-", "?column?", "?column?", "bool", "?column?", "int4", "a",
                "now"
            ]
        );
        assert_eq!(
            names(
                "SELECT CASE WHEN a THEN 1 END, extract(year from t), (SELECT max(x) FROM y), EXISTS (SELECT 1), INTERVAL '1' DAY"
            ),
            ["case", "extract", "max", "exists", "interval"]
        );
    }

    #[test]
    fn duplicates_get_hidden_names_and_keep_the_visible_one() {
        let mut both = query("SELECT 1, 1, a, t.a, x AS a FROM t");
        let names = settle(&mut both);
        let text = both.to_string();
        assert!(text.contains("1 AS \"__column_1\""), "{text}");
        assert!(text.contains("t.a AS \"__column_3\""), "{text}");
        assert!(text.contains("x AS \"__column_4\""), "{text}");
        assert_eq!(names.head[4].as_deref(), Some("a"));
    }

    #[test]
    fn order_by_may_use_the_name_of_an_unnamed_column() {
        let mut query = query("SELECT host, count(*) FROM t GROUP BY host ORDER BY count DESC");
        settle(&mut query);
        assert!(query.to_string().contains("count(*) AS \"count\""));
    }

    #[test]
    fn columns_of_subqueries_get_names_to_refer_to() {
        let mut query = query(
            "WITH a AS (SELECT max(x) FROM t) SELECT max FROM a, (SELECT count(*) FROM t) AS b",
        );
        settle(&mut query);
        let text = query.to_string();
        assert!(
            text.contains("max(x) AS \"max\"") && text.contains("count(*) AS \"count\""),
            "{text}"
        );
    }

    #[test]
    fn renaming_counts_from_both_ends_around_wildcards() {
        let field = |name: &str| Field::new(name, DataType::Int64, true);
        let schema = Arc::new(Schema::new(vec![
            field("Int64(1)"),
            field("x"),
            field("y"),
            field("count(*)"),
        ]));
        let mut query = query("SELECT 1, *, count(*) FROM t");
        let renamed = rename(&schema, &settle(&mut query));
        let names: Vec<&str> = renamed.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["?column?", "x", "y", "count"]);
    }
}
