//! Which rows of a result come from which window of its tables' rows, read from a plan.
//!
//! A plan is local in a column of windows where every row of the result follows from the rows
//! of some tables whose time lies within the row's window, and from other tables as a whole.
//! The scans of the first kind are called aligned. Such a plan can be asked for some windows
//! only, by a condition on the time right above its aligned scans; and a commit to a table
//! that is aligned throughout concerns the windows of its own rows only.
//!
//! A node of the plan can often be read in more than one way (either side of a join may be the
//! one that windows come from), so each gives the ways that hold, and the top chooses.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, JoinType, NullHandling, ScalarValue, internal_err};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::expr::{ScalarFunction, WindowFunction};
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, ExprSchemable, Filter, Join, LogicalPlan, TableScan, Unnest, lit,
};
use kymo_kernel::Result;
use kymo_kernel::ids::{TableId, TimeRange};
use kymo_kernel::message::WindowSpec;
use kymo_kernel::schema::ColumnKind;

use crate::query::duration::Span;
use crate::query::error::from_engine;
use crate::query::functions::{MILLENNIUM_MONDAY, TIME_BUCKET, TIME_HOPS};
use crate::query::provider::KymoTable;

/// Ways to read a node that are followed; joins of many tables have more than anybody needs.
const MOST_WAYS: usize = 16;
/// 1970-01-05T00:00:00Z, a Monday: where the weeks of `date_trunc` begin.
const EPOCH_MONDAY: i64 = 4 * 86_400 * SECOND;
const SECOND: i64 = 1_000_000_000;

/// What a column says about the time of the rows that a row came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    /// Their time, exactly.
    Instant,
    /// The start of a window that all of them lie in.
    Start(Windows),
    /// The list of the starts of all windows that each of them lies in.
    Starts(Windows),
}

/// Windows of a fixed width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Windows {
    width: i64,
    hop: i64,
    origin: i64,
}

impl Windows {
    fn spec(self, column: usize) -> WindowSpec {
        WindowSpec { column, width: self.width, hop: self.hop, origin: self.origin }
    }

    /// Whether each of these is made of whole windows of another kind, which lie side by side.
    fn whole(self, inner: Windows) -> bool {
        let whole = |length: i64| length.checked_rem(inner.width) == Some(0);
        let apart = self.origin.checked_sub(inner.origin);
        inner.hop == inner.width && whole(self.width) && whole(self.hop) && apart.is_some_and(whole)
    }
}

/// One way to read a node.
#[derive(Debug, Clone)]
struct Way {
    /// For each column of its rows.
    columns: Vec<Option<Time>>,
    /// The aligned scans, by their place in the plan.
    scans: BTreeSet<usize>,
}

/// The windows of a plan that is local in them.
#[derive(Debug, Clone)]
pub(super) struct Local {
    /// The windows.
    pub(super) window: WindowSpec,
    /// The tables whose commits concern the windows of their own rows only.
    pub(super) aligned: BTreeSet<TableId>,
    scans: BTreeSet<usize>,
}

/// The windows that a plan, as the optimizer left it, is local in.
pub(super) fn local(plan: &LogicalPlan) -> Option<Local> {
    let mut ways = ways(plan, &mut 0);
    ways.sort_by_key(|way| std::cmp::Reverse(way.scans.len()));
    let (way, window) = ways.into_iter().find_map(|way| {
        let window = way.columns.iter().enumerate().find_map(|(column, time)| match time {
            Some(Time::Start(windows)) if instants(plan.schema(), column) => {
                Some(windows.spec(column))
            }
            _ => None,
        })?;
        Some((way, window))
    })?;
    Some(Local { window, aligned: aligned(plan, &way.scans), scans: way.scans })
}

/// The place of the column with the starts of windows among those of a plan.
pub(super) fn place(plan: &LogicalPlan, window: WindowSpec) -> Option<usize> {
    let WindowSpec { width, hop, origin, .. } = window;
    let wanted = Some(Time::Start(Windows { width, hop, origin }));
    let ways = ways(plan, &mut 0);
    ways.iter().find_map(|way| way.columns.iter().position(|time| *time == wanted))
}

/// The plan for rows of windows with these instants only.
///
/// # Errors
/// Those of the engine.
pub(super) fn within(plan: LogicalPlan, local: &Local, times: TimeRange) -> Result<LogicalPlan> {
    if times == TimeRange::ALL {
        return Ok(plan);
    }
    let mut next = 0;
    plan.transform_up(|node| {
        let LogicalPlan::TableScan(scan) = &node else { return Ok(Transformed::no(node)) };
        if table(scan).is_none() {
            return Ok(Transformed::no(node));
        }
        let place = next;
        next += 1;
        if !local.scans.contains(&place) {
            return Ok(Transformed::no(node));
        }
        let condition = during(scan, times);
        let filter = Filter::try_new(condition, node.into())?;
        Ok(Transformed::yes(LogicalPlan::Filter(filter)))
    })
    .data()
    .map_err(from_engine)
}

/// The condition that a scan's rows have a time within a range.
fn during(scan: &TableScan, times: TimeRange) -> Expr {
    let Some((at, zone)) = time_column(scan) else { return lit(true) };
    let column = Expr::Column(scan.projected_schema.columns().swap_remove(at));
    let bound =
        |time| Expr::Literal(ScalarValue::TimestampNanosecond(Some(time), zone.clone()), None);
    column.clone().gt_eq(bound(times.first)).and(column.lt_eq(bound(times.last)))
}

/// The plan for rows whose window, the value of an expression over them, starts within a
/// range. Of windows that overlap, rows of some instants have others, too.
///
/// # Errors
/// Those of the engine.
pub(super) fn starting(plan: LogicalPlan, window: &Expr, starts: TimeRange) -> Result<LogicalPlan> {
    let of = |plan: &LogicalPlan| match window.get_type(plan.schema())? {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => Ok(zone),
        other => internal_err!("windows of type {other}"),
    };
    let zone = of(&plan).map_err(from_engine)?;
    let bound = |time| lit(ScalarValue::TimestampNanosecond(Some(time), zone.clone()));
    let window = window.clone();
    let condition = window.clone().gt_eq(bound(starts.first)).and(window.lt_eq(bound(starts.last)));
    let filter = Filter::try_new(condition, Arc::new(plan)).map_err(from_engine)?;
    Ok(LogicalPlan::Filter(filter))
}

/// The place of the time among the columns that a scan reads, and the zone of its type.
fn time_column(scan: &TableScan) -> Option<(usize, Option<std::sync::Arc<str>>)> {
    let provider = source_as_provider(&scan.source).ok()?;
    let table = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>()?;
    let columns = &table.def().schema.columns;
    let time = columns.iter().position(|column| column.kind == ColumnKind::Time)?;
    let at = match &scan.projection {
        Some(places) => places.iter().position(|place| *place == time)?,
        None => time,
    };
    match scan.projected_schema.field(at).data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => Some((at, zone.clone())),
        _ => None,
    }
}

fn table(scan: &TableScan) -> Option<TableId> {
    let provider = source_as_provider(&scan.source).ok()?;
    let table = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>()?;
    Some(table.def().id)
}

/// The tables all of whose scans are aligned. Scans of subqueries in expressions never are.
fn aligned(plan: &LogicalPlan, scans: &BTreeSet<usize>) -> BTreeSet<TableId> {
    let (mut seen, mut next) = (Vec::new(), 0);
    let among_inputs = plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(table) = table(scan)
        {
            seen.push((table, scans.contains(&next)));
            next += 1;
        }
        Ok(TreeNodeRecursion::Continue)
    });
    let mut all = 0;
    let with_subqueries = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && table(scan).is_some()
        {
            all += 1;
        }
        Ok(TreeNodeRecursion::Continue)
    });
    if among_inputs.is_err() || with_subqueries.is_err() || all != seen.len() {
        return BTreeSet::new();
    }
    let (inside, outside): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(_, inside)| *inside);
    let outside: BTreeSet<TableId> = outside.into_iter().map(|(table, _)| table).collect();
    inside.into_iter().map(|(table, _)| table).filter(|table| !outside.contains(table)).collect()
}

fn instants(schema: &DFSchema, column: usize) -> bool {
    matches!(schema.field(column).data_type(), DataType::Timestamp(TimeUnit::Nanosecond, _))
}

/// The ways in which a node is local; none where it is in no way. `next` counts scans.
fn ways(plan: &LogicalPlan, next: &mut usize) -> Vec<Way> {
    if let LogicalPlan::TableScan(scan) = plan {
        return of_scan(scan, next);
    }
    let mut inputs: Vec<Vec<Way>> =
        plan.inputs().into_iter().map(|input| ways(input, next)).collect();
    let mut ways = match plan {
        LogicalPlan::Join(join) => match inputs.as_slice() {
            [left, right] => of_join(join, left, right),
            _ => Vec::new(),
        },
        LogicalPlan::Union(_) => of_union(&inputs),
        _ => match (inputs.pop(), plan.inputs().as_slice()) {
            (Some(below), [input]) => {
                let above = below.into_iter();
                above.filter_map(|way| of_node(plan, way, input.schema())).collect()
            }
            _ => Vec::new(),
        },
    };
    ways.truncate(MOST_WAYS);
    ways
}

fn of_scan(scan: &TableScan, next: &mut usize) -> Vec<Way> {
    if table(scan).is_none() {
        return Vec::new();
    }
    let place = *next;
    *next += 1;
    let Some((at, _)) = time_column(scan) else { return Vec::new() };
    if scan.fetch.is_some() {
        return Vec::new();
    }
    let mut columns = vec![None; scan.projected_schema.fields().len()];
    columns[at] = Some(Time::Instant);
    vec![Way { columns, scans: BTreeSet::from([place]) }]
}

/// A node with one input.
fn of_node(node: &LogicalPlan, below: Way, input: &DFSchema) -> Option<Way> {
    let read = |expr: &Expr| time(expr, input, &below.columns);
    let columns = match node {
        LogicalPlan::Projection(projection) => projection.expr.iter().map(read).collect(),
        LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => below.columns.clone(),
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => below.columns.clone(),
        LogicalPlan::Distinct(Distinct::All(_)) => {
            below.columns.iter().flatten().next()?;
            below.columns.clone()
        }
        LogicalPlan::Aggregate(aggregate) => of_aggregate(aggregate, read)?,
        LogicalPlan::Unnest(unnest) => of_unnest(unnest, &below.columns),
        LogicalPlan::Window(window) => {
            let apart = |expr: &Expr| match unnamed(expr) {
                Expr::WindowFunction(function) => parted(function, &read),
                _ => false,
            };
            if !window.window_expr.iter().all(apart) {
                return None;
            }
            let mut columns = below.columns.clone();
            columns.resize(window.schema.fields().len(), None);
            columns
        }
        _ => return None,
    };
    Some(Way { columns, scans: below.scans })
}

/// Groups that have a time or a window in their key are made of rows of one window.
fn of_aggregate(
    aggregate: &Aggregate,
    read: impl Fn(&Expr) -> Option<Time>,
) -> Option<Vec<Option<Time>>> {
    if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
        return None;
    }
    let mut columns: Vec<Option<Time>> = aggregate.group_expr.iter().map(read).collect();
    columns.iter().flatten().next()?;
    columns.resize(aggregate.schema.fields().len(), None);
    Some(columns)
}

/// Each row is repeated for the items of its list; a list of starts gives a start to each.
fn of_unnest(unnest: &Unnest, below: &[Option<Time>]) -> Vec<Option<Time>> {
    let lists: Vec<usize> = unnest.list_type_columns.iter().map(|(at, _)| *at).collect();
    let column = |from: &usize| match below.get(*from).copied().flatten() {
        Some(Time::Starts(windows)) if lists == [*from] && of_one_list(unnest) => {
            Some(Time::Start(windows))
        }
        // Lists of unequal length are filled up.
        _ if lists.contains(from) => None,
        other => other,
    };
    unnest.dependency_indices.iter().map(column).collect()
}

/// Whether nothing but the items of one list come out, and rows without items vanish.
pub(in super::super) fn of_one_list(unnest: &Unnest) -> bool {
    matches!(unnest.list_type_columns.as_slice(), [(_, list)] if list.depth == 1)
        && unnest.struct_type_columns.is_empty()
        && unnest.options.null_handling == NullHandling::Drop
}

/// Whether a window function looks only at rows of one window of time.
fn parted(function: &WindowFunction, read: &impl Fn(&Expr) -> Option<Time>) -> bool {
    function.params.partition_by.iter().any(|expr| read(expr).is_some())
}

/// A join of two sides whose times are equal is local in both; else one side can be aligned,
/// and the other counts as a whole, where each row of the result has one row of the aligned
/// side behind it.
fn of_join(join: &Join, left: &[Way], right: &[Way]) -> Vec<Way> {
    use JoinType::{
        Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi,
    };
    let width = join.schema.fields().len();
    let (lefts, rights) = (join.left.schema().fields().len(), join.right.schema().fields().len());
    let none = |count: usize| vec![None; count];
    let only_left = |columns: &[Option<Time>]| match join.join_type {
        LeftSemi | LeftAnti => Some(columns.to_vec()),
        Inner | Left | LeftMark => {
            Some([columns.to_vec(), none(width.saturating_sub(lefts))].concat())
        }
        Right | Full | RightSemi | RightAnti | RightMark => None,
    };
    let only_right = |columns: &[Option<Time>]| match join.join_type {
        RightSemi | RightAnti => Some(columns.to_vec()),
        Inner | Right => Some([none(width.saturating_sub(rights)), columns.to_vec()].concat()),
        RightMark => Some([columns.to_vec(), none(width.saturating_sub(rights))].concat()),
        Left | Full | LeftSemi | LeftAnti | LeftMark => None,
    };
    let mut ways = Vec::new();
    for (l, r) in left.iter().flat_map(|l| right.iter().map(move |r| (l, r))) {
        if !same_times(join, l, r) {
            continue;
        }
        let columns = match join.join_type {
            Inner => [l.columns.clone(), r.columns.clone()].concat(),
            Right | RightSemi | RightAnti | RightMark => only_right(&r.columns).unwrap_or_default(),
            Full => none(width),
            Left | LeftSemi | LeftAnti | LeftMark => only_left(&l.columns).unwrap_or_default(),
        };
        ways.push(Way { columns, scans: l.scans.union(&r.scans).copied().collect() });
    }
    let alone = |way: &Way, columns: Option<Vec<Option<Time>>>| {
        Some(Way { columns: columns?, scans: way.scans.clone() })
    };
    ways.extend(left.iter().filter_map(|way| alone(way, only_left(&way.columns))));
    ways.extend(right.iter().filter_map(|way| alone(way, only_right(&way.columns))));
    ways
}

/// Whether rows of both sides meet only where they are of one time or one window.
fn same_times(join: &Join, left: &Way, right: &Way) -> bool {
    join.on.iter().any(|(l, r)| {
        let l = time(l, join.left.schema(), &left.columns);
        l.is_some() && l == time(r, join.right.schema(), &right.columns)
    })
}

/// Every input has to be local in the same columns.
fn of_union(inputs: &[Vec<Way>]) -> Vec<Way> {
    let mut whole: Option<Way> = None;
    for ways in inputs {
        let Some(way) = ways.first() else { return Vec::new() };
        whole = Some(match whole {
            None => way.clone(),
            Some(before) => Way {
                columns: before
                    .columns
                    .iter()
                    .zip(&way.columns)
                    .map(|(one, other)| if one == other { *one } else { None })
                    .collect(),
                scans: before.scans.union(&way.scans).copied().collect(),
            },
        });
    }
    whole.into_iter().collect()
}

pub(super) fn unnamed(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unnamed(&alias.expr),
        other => other,
    }
}

/// What an expression over rows says about their time.
fn time(expr: &Expr, schema: &DFSchema, columns: &[Option<Time>]) -> Option<Time> {
    match unnamed(expr) {
        Expr::Column(column) => {
            schema.maybe_index_of_column(column).and_then(|at| columns.get(at).copied().flatten())
        }
        // Another zone shows the same instants.
        Expr::Cast(cast) => match cast.field.data_type() {
            DataType::Timestamp(TimeUnit::Nanosecond, zone) if universal(zone.as_deref()) => {
                time(&cast.expr, schema, columns)
            }
            _ => None,
        },
        Expr::ScalarFunction(function) => {
            let (argument, windows) = window(function)?;
            let fits = match time(argument, schema, columns)? {
                Time::Instant => true,
                // Windows of windows, where the larger ones are made of whole smaller ones.
                Time::Start(inner) => windows.whole(inner),
                Time::Starts(_) => false,
            };
            fits.then_some(match function.func.name() {
                TIME_HOPS => Time::Starts(windows),
                _ => Time::Start(windows),
            })
        }
        _ => None,
    }
}

fn universal(zone: Option<&str>) -> bool {
    matches!(zone, None | Some("+00:00" | "UTC" | "Z"))
}

/// A call that gives windows of a fixed width: of which time, and which ones.
fn window(function: &ScalarFunction) -> Option<(&Expr, Windows)> {
    let apart = |width, origin| Windows { width, hop: width, origin };
    Some(match (function.func.name(), function.args.as_slice()) {
        (TIME_BUCKET, [width, time]) => (time, apart(nanos(width)?, MILLENNIUM_MONDAY)),
        (TIME_BUCKET | "date_bin", [width, time, origin]) => {
            (time, apart(nanos(width)?, instant(origin)?))
        }
        (TIME_HOPS, [hop, width, time, origin @ ..]) => {
            let origin = origin.first().map_or(Some(MILLENNIUM_MONDAY), instant)?;
            (time, Windows { width: nanos(width)?, hop: nanos(hop)?, origin })
        }
        ("date_bin", [width, time]) => (time, apart(nanos(width)?, 0)),
        ("date_trunc", [unit, time]) => {
            let (width, origin) = truncation(unit)?;
            (time, apart(width, origin))
        }
        _ => return None,
    })
}

/// A constant length of time in nanoseconds, where it is above zero and no calendar decides.
fn nanos(expr: &Expr) -> Option<i64> {
    let Expr::Literal(value, _) = unnamed(expr) else { return None };
    let span = match value {
        ScalarValue::IntervalMonthDayNano(Some(value)) => {
            Span { months: value.months, days: value.days, nanos: value.nanoseconds }
        }
        other => Span::parse(other.try_as_str()??).ok()?,
    };
    span.fixed_nanos().filter(|nanos| *nanos > 0)
}

fn instant(expr: &Expr) -> Option<i64> {
    match unnamed(expr) {
        Expr::Literal(ScalarValue::TimestampNanosecond(Some(at), _), _) => Some(*at),
        _ => None,
    }
}

fn truncation(unit: &Expr) -> Option<(i64, i64)> {
    let Expr::Literal(value, _) = unnamed(unit) else { return None };
    let unit = value.try_as_str()??.to_ascii_lowercase();
    Some(match unit.as_str() {
        "second" => (SECOND, 0),
        "minute" => (60 * SECOND, 0),
        "hour" => (3600 * SECOND, 0),
        "day" => (86_400 * SECOND, 0),
        "week" => (7 * 86_400 * SECOND, EPOCH_MONDAY),
        _ => return None,
    })
}
