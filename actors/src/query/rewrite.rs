//! What our dialect adds to PostgreSQL's, as changes of the syntax tree before planning.
//!
//! Durations become intervals (`now() - '5m'`), `pg_catalog.` prefixes of functions fall away,
//! and projections get names that the engine accepts. Queries of the system catalogs, which
//! only tools write, additionally pass the compatibility rewrites of `datafusion-pg-catalog`;
//! they would change the meaning of some ordinary queries, so they are kept to those.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, DataType, Expr, FunctionArguments, Ident, ObjectName, ObjectNamePart,
    TableAlias, TableFactor, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use datafusion_pg_catalog::pg_catalog::PG_CATALOG_TABLES;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use kymo_kernel::{Code, Error, Result};

use super::command::Names;
use super::duration::Span;
use super::names;
use super::parse::Failure;
use super::plugin::{Called, Place};

/// Holds the compatibility rewrites, which are costly to build.
#[derive(Debug)]
pub(crate) struct Rewriter {
    compatibility: PostgresCompatibilityParser,
}

/// Whether a statement reads the system catalogs that only tools read.
pub(super) fn catalog_query(tokens: &[TokenWithSpan]) -> bool {
    tokens.iter().any(|token| match &token.token {
        Token::Word(word) => {
            let name = word.value.to_ascii_lowercase();
            name == "pg_catalog"
                || name == "information_schema"
                || name.starts_with("reg") && name == "regclass"
                || name.starts_with("pg_") && PG_CATALOG_TABLES.contains(&name.as_str())
        }
        _ => false,
    })
}

impl Rewriter {
    /// Prepares the rewrites.
    pub(crate) fn new() -> Self {
        Rewriter { compatibility: PostgresCompatibilityParser::new() }
    }

    /// Parses a query of the system catalogs.
    pub(super) fn catalog_statement(&self, text: &str) -> Result<ast::Statement, Failure> {
        let mut statements = self.compatibility.parse(text)?;
        match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => Ok(statement),
            _ => Err(Error::new(Code::Syntax, "syntax error: more than one statement").into()),
        }
    }

    /// Applies our rewrites; answers what they found.
    pub(super) fn apply(&self, tree: &mut ast::Statement) -> Result<Applied> {
        let mut dialect = Dialect { late: false, sets: false, calls: Vec::new(), error: None };
        let _ = tree.visit(&mut dialect);
        if let Some(error) = dialect.error {
            return Err(error);
        }
        let names = match tree {
            ast::Statement::Query(query) => names::settle(query),
            ast::Statement::Explain { statement, .. } => {
                if let ast::Statement::Query(query) = statement.as_mut() {
                    names::settle(query);
                }
                Names::default()
            }
            _ => Names::default(),
        };
        Ok(Applied { names, late: dialect.late, sets: dialect.sets, calls: dialect.calls })
    }
}

/// What the rewrites found in a statement.
pub(super) struct Applied {
    /// How to name the result's columns.
    pub(super) names: Names,
    /// Whether parameters stand where only constants can be planned.
    pub(super) late: bool,
    /// Whether it calls `set_config`.
    pub(super) sets: bool,
    /// The functions that it calls, each once.
    pub(super) calls: Vec<Called>,
}

struct Dialect {
    late: bool,
    sets: bool,
    calls: Vec<Called>,
    error: Option<Error>,
}

impl VisitorMut for Dialect {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        strip_catalog(relation, &["generate_series", "unnest", "range"]);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<()> {
        let holds = match table {
            TableFactor::Table { args: Some(args), .. } => has_placeholder(&args.args),
            TableFactor::Function { args, .. } => has_placeholder(args),
            TableFactor::TableFunction { expr, .. } => expr_has_placeholder(expr),
            _ => false,
        };
        self.late |= holds;
        match table {
            TableFactor::Table { name, args: Some(_), alias, .. } => self.table(name, alias, None),
            TableFactor::Function { name, alias, .. } => self.table(name, alias, Some('"')),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match self.rewrite(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

impl Dialect {
    fn calls(&mut self, name: &mut ObjectName) {
        if let Some(called) = Called::read(name, Place::Value)
            && !self.calls.contains(&called)
        {
            self.calls.push(called);
        }
    }

    /// A function in `FROM`. The engine's planner looks at one part of its name only, quotes and
    /// all, so every name becomes one part as it is looked up; a table of a plugin is called by
    /// the last of its parts.
    fn table(
        &mut self,
        name: &mut ObjectName,
        alias: &mut Option<TableAlias>,
        quote: Option<char>,
    ) {
        strip_catalog(name, &[]);
        let Some(called) = Called::read(name, Place::From) else { return };
        if let [_, function] = called.parts.as_slice() {
            alias.get_or_insert_with(|| TableAlias {
                explicit: true,
                name: Ident::with_quote('"', function),
                columns: Vec::new(),
                at: None,
            });
        }
        let ident = Ident { quote_style: quote, ..Ident::new(called.key.clone()) };
        *name = ObjectName::from(vec![ident]);
        if !self.calls.contains(&called) {
            self.calls.push(called);
        }
    }

    fn rewrite(&mut self, expr: &mut Expr) -> Result<()> {
        match expr {
            Expr::BinaryOp { left, op: BinaryOperator::Plus | BinaryOperator::Minus, right } => {
                duration_literal(right)?;
                duration_literal(left)?;
            }
            Expr::Interval(interval) if interval.leading_field.is_none() => {
                if let Some(canonical) =
                    literal(&interval.value).map(Span::read).transpose()?.flatten()
                {
                    *interval.value = text(canonical.canonical());
                }
            }
            Expr::Cast { expr: inner, data_type: DataType::Interval { .. }, .. } => {
                duration_literal(inner)?;
                if matches!(inner.as_ref(), Expr::Interval(_)) {
                    *expr = std::mem::replace(inner.as_mut(), text(String::new()));
                }
            }
            Expr::Collate { expr: inner, .. } => {
                *expr = std::mem::replace(inner.as_mut(), text(String::new()));
            }
            Expr::Case { conditions, else_result, .. }
                if else_result.as_deref().is_none_or(is_null)
                    && conditions
                        .iter()
                        .all(|when| is_null(&when.result) || empty(&when.result)) =>
            {
                *expr = null(DataType::Text);
            }
            // The catalog lacks this column, which says nothing here.
            Expr::CompoundIdentifier(parts) if column_of(parts, "pg_class", &["reloptions"]) => {
                *expr = null(DataType::Text);
            }
            Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
                backslash_escapes(pattern, escape_char);
            }
            Expr::Function(function) => {
                if let Some(gathered) = gathered(function) {
                    *expr = gathered;
                    return Ok(());
                }
                strip_catalog(&mut function.name, &[]);
                self.calls(&mut function.name);
                self.sets |= function.name.to_string().eq_ignore_ascii_case("set_config");
                if takes_keys_apart(function) {
                    *expr = null(DataType::Integer(None));
                    return Ok(());
                }
                if matches!(function.args, FunctionArguments::None)
                    && is_session_word(&function.name)
                {
                    function.args = no_arguments();
                }
            }
            Expr::Identifier(ident)
                if ident.quote_style.is_none()
                    && ident.value.eq_ignore_ascii_case("current_schema") =>
            {
                *expr = call("current_schema");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Catalogs of what Kymo has nothing of: defaults and collations of columns, and sequences.
const NOTHING_IN: [&str; 3] = ["pg_attrdef", "pg_collation", "pg_sequence"];

/// Whether an expression is a query of a catalog in which no column of a table has a row.
/// SQLAlchemy's reflection puts such queries, correlated as the engine plans none, into `CASE`.
fn empty(expr: &Expr) -> bool {
    let Expr::Subquery(query) = expr else { return false };
    let ast::SetExpr::Select(select) = query.body.as_ref() else { return false };
    let Some(TableFactor::Table { name, .. }) = select.from.first().map(|from| &from.relation)
    else {
        return false;
    };
    let (last, schema) = match name.0.as_slice() {
        [table] => (table, None),
        [schema, table] => (table, Some(schema)),
        _ => return false,
    };
    let is = |part: &ObjectNamePart, wanted: &str| {
        part.as_ident().is_some_and(|ident| ident.value.eq_ignore_ascii_case(wanted))
    };
    schema.is_none_or(|schema| is(schema, "pg_catalog"))
        && NOTHING_IN.iter().any(|catalog| is(last, catalog))
}

fn is_null(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if value.value == Value::Null)
}

/// Whether a call takes the columns of an index or constraint apart, as SQLAlchemy's reflection
/// does. The catalog has these columns as text; no table of Kymo has such an index.
fn takes_keys_apart(function: &ast::Function) -> bool {
    let name = function.name.to_string().to_ascii_lowercase();
    if !["unnest", "generate_subscripts"].contains(&name.as_str()) {
        return false;
    }
    let FunctionArguments::List(list) = &function.args else { return false };
    let Some(ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(Expr::CompoundIdentifier(
        parts,
    )))) = list.args.first()
    else {
        return false;
    };
    column_of(parts, "pg_index", &["indkey", "indclass", "indcollation", "indoption"])
        || column_of(parts, "pg_constraint", &["conkey", "confkey"])
}

/// Whether a name is that of one of these columns, with its table's name before it.
fn column_of(parts: &[Ident], table: &str, columns: &[&str]) -> bool {
    let [.., of, column] = parts else { return false };
    of.value.eq_ignore_ascii_case(table)
        && columns.iter().any(|each| column.value.eq_ignore_ascii_case(each))
}

/// A NULL of a type.
fn null(data_type: DataType) -> Expr {
    Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(Expr::value(Value::Null)),
        data_type,
        array: false,
        format: None,
    }
}

/// The engine knows no escape character but the backslash: a pattern with another is turned
/// into one with backslashes.
fn backslash_escapes(pattern: &mut Expr, escape: &mut Option<ast::ValueWithSpan>) {
    let Some(Value::SingleQuotedString(character)) = escape.as_ref().map(|each| &each.value) else {
        return;
    };
    let character = character.clone();
    *escape = None;
    if character == "\\" {
        return;
    }
    let mut plain = std::mem::replace(pattern, text(String::new()));
    for (from, to) in [("\\", "\\\\"), (character.as_str(), "\\")] {
        if from.is_empty() {
            continue;
        }
        let mut replaced = call("replace");
        if let Expr::Function(function) = &mut replaced
            && let FunctionArguments::List(list) = &mut function.args
        {
            let arguments = [plain, text(from.to_owned()), text(to.to_owned())];
            let unnamed = |each| ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(each));
            list.args = arguments.map(unnamed).into();
        }
        plain = replaced;
    }
    *pattern = plain;
}

/// `ARRAY(SELECT x …)` as the scalar query `(SELECT array_agg(x) …)`.
fn gathered(function: &mut ast::Function) -> Option<Expr> {
    let FunctionArguments::Subquery(query) = &mut function.args else { return None };
    if !function.name.to_string().eq_ignore_ascii_case("array") {
        return None;
    }
    let ast::SetExpr::Select(select) = query.body.as_mut() else { return None };
    let [item] = select.projection.as_mut_slice() else { return None };
    let (ast::SelectItem::UnnamedExpr(value) | ast::SelectItem::ExprWithAlias { expr: value, .. }) =
        item
    else {
        return None;
    };
    let value = std::mem::replace(value, text(String::new()));
    let mut aggregate = call("array_agg");
    if let Expr::Function(aggregate) = &mut aggregate
        && let FunctionArguments::List(list) = &mut aggregate.args
    {
        list.args = vec![ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(value))];
    }
    *item = ast::SelectItem::UnnamedExpr(aggregate);
    query.order_by = None;
    Some(Expr::Subquery(query.clone()))
}

fn is_session_word(name: &ObjectName) -> bool {
    let word = name.to_string().to_ascii_lowercase();
    ["current_user", "session_user", "user", "current_role", "current_catalog", "current_schema"]
        .contains(&word.as_str())
}

fn no_arguments() -> FunctionArguments {
    FunctionArguments::List(ast::FunctionArgumentList {
        duplicate_treatment: None,
        args: Vec::new(),
        clauses: Vec::new(),
    })
}

fn call(name: &str) -> Expr {
    Expr::Function(ast::Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: no_arguments(),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Takes `pg_catalog.` off a name; of relations only where the rest is a table function.
fn strip_catalog(name: &mut ObjectName, only: &[&str]) {
    let prefixed = name.0.len() == 2
        && name.0[0].as_ident().is_some_and(|part| part.value.eq_ignore_ascii_case("pg_catalog"));
    let wanted = only.is_empty()
        || name
            .0
            .last()
            .and_then(|part| part.as_ident())
            .is_some_and(|part| only.iter().any(|each| part.value.eq_ignore_ascii_case(each)));
    if prefixed && wanted {
        name.0.remove(0);
    }
}

/// The text of a string literal.
fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        Expr::Nested(inner) => literal(inner),
        _ => None,
    }
}

fn text(value: String) -> Expr {
    Expr::value(Value::SingleQuotedString(value))
}

/// Replaces a literal such as `'5m'` by an interval; other literals stay.
fn duration_literal(expr: &mut Expr) -> Result<()> {
    let Some(span) = literal(expr).map(Span::read).transpose()?.flatten() else { return Ok(()) };
    *expr = Expr::Interval(ast::Interval {
        value: Box::new(text(span.canonical())),
        leading_field: None,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    });
    Ok(())
}

fn has_placeholder(arguments: &[ast::FunctionArg]) -> bool {
    arguments.iter().any(|argument| match argument {
        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr))
        | ast::FunctionArg::Named { arg: ast::FunctionArgExpr::Expr(expr), .. } => {
            expr_has_placeholder(expr)
        }
        _ => false,
    })
}

fn expr_has_placeholder(expr: &Expr) -> bool {
    ast::visit_expressions(expr, |each| match each {
        Expr::Value(value) if matches!(value.value, Value::Placeholder(_)) => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })
    .is_break()
}

/// Puts values in the place of `$1`, `$2` … : for statements that can only be planned with them.
pub(super) fn bind_literals(tree: &mut ast::Statement, values: &[Expr]) -> Result<()> {
    let mut missing = None;
    let _ = ast::visit_expressions_mut(tree, |expr| {
        let number = match expr {
            Expr::Value(value) => match &value.value {
                Value::Placeholder(name) => {
                    name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok())
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(number) = number {
            match values.get(number.wrapping_sub(1)) {
                Some(value) => *expr = value.clone(),
                None => {
                    missing = Some(number);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    });
    match missing {
        None => Ok(()),
        Some(number) => Err(Error::new(
            Code::InvalidParameter,
            format!("there is no value for parameter ${number}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::command::{Command, Parsed};
    use crate::query::parse::parse;

    fn rewritten(sql: &str) -> String {
        let statements = parse(sql, &Rewriter::new()).unwrap();
        match &statements[0].tree.downcast_ref::<Parsed>().unwrap().command {
            Command::Plan(planned) => planned.tree.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn durations_become_intervals_next_to_plus_and_minus() {
        let minutes = "INTERVAL '0 months 0 days 300.000000000 seconds'";
        assert_eq!(rewritten("SELECT now() - '5m' AS x"), format!("SELECT now() - {minutes} AS x"));
        assert_eq!(
            rewritten("SELECT now() - INTERVAL '5m' AS x"),
            format!("SELECT now() - {minutes} AS x")
        );
        assert_eq!(rewritten("SELECT '5m'::interval AS x"), format!("SELECT {minutes} AS x"));
        assert_eq!(rewritten("SELECT a - '2024-01-01' AS x"), "SELECT a - '2024-01-01' AS x");
        assert_eq!(rewritten("SELECT a || '5m' AS x"), "SELECT a || '5m' AS x");
        assert_eq!(rewritten("SELECT INTERVAL '1' DAY AS x"), "SELECT INTERVAL '1' DAY AS x");
    }

    #[test]
    fn catalog_prefixes_fall_away_from_functions() {
        assert_eq!(
            rewritten("SELECT pg_catalog.upper(a) AS x FROM t"),
            "SELECT upper(a) AS x FROM t"
        );
        assert_eq!(rewritten("SELECT current_user AS x"), "SELECT current_user() AS x");
        assert_eq!(rewritten("SELECT a COLLATE \"C\" AS x"), "SELECT a AS x");
    }

    #[test]
    fn queries_of_what_nothing_is_in_are_null() {
        let default = "SELECT CASE WHEN a.atthasdef THEN (SELECT d.adbin FROM \
             pg_catalog.pg_attrdef AS d WHERE d.adrelid = a.attrelid) ELSE NULL END AS x \
             FROM pg_catalog.pg_attribute AS a";
        let rewritten_default = rewritten(default);
        assert!(rewritten_default.contains("CAST(NULL AS TEXT) AS x"), "{rewritten_default}");
        let keys = "SELECT unnest(pg_catalog.pg_index.indkey) AS x, unnest(a.b) AS y";
        let rewritten_keys = rewritten(keys);
        assert!(rewritten_keys.contains("CAST(NULL AS INTEGER) AS x"), "{rewritten_keys}");
        assert!(rewritten_keys.contains("unnest(a.b) AS y"), "{rewritten_keys}");
        let kept = "SELECT CASE WHEN a THEN (SELECT max(b) FROM u) ELSE NULL END AS x FROM t";
        assert!(rewritten(kept).contains("(SELECT max(b)"), "{}", rewritten(kept));
    }

    #[test]
    fn names_of_table_functions_become_one_part() {
        assert_eq!(
            rewritten("SELECT * FROM Weather.Stations(1)"),
            "SELECT * FROM weather.stations(1) AS \"stations\""
        );
        assert_eq!(
            rewritten("SELECT * FROM weather.stations(1) AS s, LATERAL weather.near(2) AS n"),
            "SELECT * FROM weather.stations(1) AS s, LATERAL \"weather.near\"(2) AS n"
        );
        assert_eq!(
            rewritten("SELECT * FROM pg_catalog.Generate_Series(1, 2)"),
            "SELECT * FROM generate_series(1, 2)"
        );
    }

    #[test]
    fn parameters_of_table_functions_are_noticed() {
        let late = |sql: &str| {
            let statements = parse(sql, &Rewriter::new()).unwrap();
            match &statements[0].tree.downcast_ref::<Parsed>().unwrap().command {
                Command::Plan(planned) => planned.late,
                other => panic!("{other:?}"),
            }
        };
        assert!(late("SELECT * FROM generate_series($1, $2)"));
        assert!(late("SELECT * FROM generate_series(1, $1 + 1) AS g"));
        assert!(!late("SELECT * FROM generate_series(1, 2) WHERE value = $1"));
    }
}
