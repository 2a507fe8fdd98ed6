//! A rule run over the past: the same plan, label sets and states as when it is evaluated live,
//! with the time of history in the place of the clock.
//!
//! A rule of class `rows` gets its rows in the order of their times, each as if it had been
//! committed then, a slice of time after the other so that memory is bounded. A rule of class
//! `query` is evaluated at each instant of its grid over the rows up to that instant, many of
//! them at once where it looks back a fixed time. It begins without alerts, so one that fired before the range begins with it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use kymo_config::settings::Alerts;
use kymo_kernel::alert::AlertDef;
use kymo_kernel::ids::{TableId, TimeRange};
use kymo_kernel::pools::Pools;
use kymo_kernel::schema::time_type;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::board::Rule;
use super::facts::Facts;
use super::groups::{Evaluated, Group, Member};
use super::labels::{self, Values};
use super::sets::{Row, TooMany, Transition};
use super::stored;
use crate::query::{Instants, Kind, Layout, PlannedRule, RuleQuery, by_instant};

/// Rows of one slice of time: enough to amortise reading, few enough to hold.
const SLICE_ROWS: usize = 200_000;
/// Instants that one query answers for at a time.
const INSTANTS: i64 = 1024;

/// Gives the rows of a table as they are now.
pub(crate) type Versions = Arc<dyn Fn(TableId) -> Option<Arc<Version>> + Send + Sync>;

/// The shape of a backtest's result.
pub(crate) fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        Field::new("at", time_type(), false),
        text("labels"),
        text("from"),
        text("to"),
        Field::new("value", DataType::Float64, true),
    ]))
}

/// The transitions of a rule from the first to the last of two times.
///
/// # Errors
/// Those of reading and evaluating; `limit_reached` for more evaluations or transitions than one
/// backtest may have.
pub(crate) async fn run(
    def: AlertDef,
    planned: PlannedRule,
    settings: Alerts,
    range: (i64, i64),
    versions: Versions,
    pools: Pools,
) -> Result<RecordBatch> {
    let mut rule = Rule::new(Arc::new(def), &settings);
    rule.names = planned.layout.names.as_slice().into();
    let instants = range.1.saturating_sub(range.0) / rule.every_ns;
    if u64::try_from(instants).unwrap_or_default() > settings.max_backtest_evaluations {
        let most = settings.max_backtest_evaluations;
        let text = format!("the rule would be evaluated {instants} times, more than {most}");
        return Err(Error::new(Code::LimitReached, text).with_hint(
            "look back less far, give the rule a longer EVERY, or raise \
             alerts.max_backtest_evaluations",
        ));
    }
    let mut past = Past {
        next: first_instant(range.0, rule.every_ns),
        rule,
        most: settings.max_backtest_transitions,
        found: Found::default(),
    };
    match planned.kind {
        Kind::Rows(shape, own) => {
            let table = shape.table();
            let member = Member { rule: 0, shape, layout: planned.layout, own };
            let group = Arc::new(Group::of(vec![member])?);
            if let Some(version) = versions(table) {
                past.rows(group, version, range, &pools).await?;
            }
            past.tick_until(range.1)?;
        }
        Kind::Query(query) => {
            past.rule.terms.stale_ns = 0;
            past.query(&query, &planned.layout, range.1).await?;
        }
    }
    past.found.finish()
}

/// The first instant of a grid at or after a time.
fn first_instant(from: i64, every: i64) -> i64 {
    let before = from.div_euclid(every).saturating_mul(every);
    if before == from { from } else { before.saturating_add(every) }
}

/// A rule on its way through the past.
struct Past {
    rule: Rule,
    /// The next instant of the grid.
    next: i64,
    most: usize,
    found: Found,
}

/// A row of the rule with its label set.
type Labelled = (Row, Values);

impl Past {
    /// Feeds the rows of a table in the order of their times.
    async fn rows(
        &mut self,
        group: Arc<Group>,
        version: Arc<Version>,
        range: (i64, i64),
        pools: &Pools,
    ) -> Result<()> {
        let Some(all) = version.time() else { return Ok(()) };
        let (mut from, last) = (range.0.max(all.first), range.1.min(all.last));
        // As if rows were spread evenly; where they are not, slices get shorter.
        let rows = i64::try_from(version.stored_rows()).unwrap_or(i64::MAX).max(1);
        let slices = rows / SLICE_ROWS as i64 + 1;
        let mut width = (all.last.saturating_sub(all.first) / slices).max(1);
        while from <= last {
            let slice = TimeRange { first: from, last: from.saturating_add(width).min(last) };
            let (group, version) = (group.clone(), version.clone());
            let read = pools.foreground("backtest", move || read(&version, &group, slice));
            let Some(mut rows) = read.await?? else {
                if width <= 1 {
                    let text = format!("more than {SLICE_ROWS} rows have the same time");
                    return Err(Error::new(Code::LimitReached, text));
                }
                width /= 2;
                continue;
            };
            rows.sort_by_key(|(row, _)| row.time_ns);
            for (row, values) in rows {
                // What is at an instant is seen at it.
                self.tick_until(row.time_ns.saturating_sub(1))?;
                self.row(row.time_ns, row, || values)?;
            }
            from = slice.last.saturating_add(1);
        }
        Ok(())
    }

    /// Evaluates a query at each instant up to the last one, many of them by one query where it
    /// can be.
    async fn query(&mut self, query: &RuleQuery, layout: &Layout, last: i64) -> Result<()> {
        let every = self.rule.every_ns;
        let mut most = INSTANTS;
        while self.next <= last {
            let first = self.next;
            let ahead = first.saturating_add(every.saturating_mul(most - 1));
            let instants = Instants { first, last: ahead.min(last), every };
            match query.evaluate_all(instants).await {
                Ok(Some(rows)) => {
                    for (instant, rows) in by_instant(&rows)? {
                        self.tick_until(instant.saturating_sub(1))?;
                        self.found_at(instant, layout, &rows)?;
                    }
                    self.tick_until(instants.last)?;
                }
                Ok(None) => {
                    let rows = query.evaluate(first).await?;
                    self.found_at(first, layout, &rows)?;
                }
                // Fewer instants have fewer rows.
                Err(error) if error.code() == Code::LimitReached && most > 1 => most /= 2,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what a query found at an instant.
    fn found_at(&mut self, instant: i64, layout: &Layout, rows: &RecordBatch) -> Result<()> {
        let facts = Facts::of(layout, rows, None)?;
        for (row, at) in facts.distinct(instant) {
            self.row(instant, row, || facts.values(at))?;
        }
        self.tick_until(instant)
    }

    fn row(&mut self, instant: i64, row: Row, values: impl FnOnce() -> Values) -> Result<()> {
        match self.rule.sets.row(instant, row, values, &self.rule.terms) {
            Ok(transition) => transition.map_or(Ok(()), |transition| self.keep(&transition)),
            Err(TooMany) => {
                let text = format!("the rule has more than {} label sets", self.rule.terms.most);
                Err(Error::new(Code::LimitReached, text)
                    .with_hint("narrow its query, or raise alerts.max_label_sets"))
            }
        }
    }

    /// Passes the instants of the grid up to a time.
    fn tick_until(&mut self, time: i64) -> Result<()> {
        while self.next <= time {
            let mut transitions = Vec::new();
            let rule = &mut self.rule;
            rule.sets.tick(self.next, &rule.terms, |transition| transitions.push(transition));
            self.next = self.next.saturating_add(self.rule.every_ns);
            transitions.iter().try_for_each(|transition| self.keep(transition))?;
        }
        Ok(())
    }

    fn keep(&mut self, transition: &Transition) -> Result<()> {
        if self.found.at.len() >= self.most {
            let text = format!("the backtest has more than {} transitions", self.most);
            return Err(Error::new(Code::LimitReached, text)
                .with_hint("look back less far, or raise alerts.max_backtest_transitions"));
        }
        let Some(set) = self.rule.sets.get(transition.key) else { return Ok(()) };
        let labels = self.rule.labels(set);
        self.found.at.push(transition.at_ns);
        self.found.labels.push(labels::json(&labels));
        self.found.from.push(transition.from.as_str());
        self.found.to.push(transition.to.as_str());
        self.found.values.push(transition.value);
        Ok(())
    }
}

/// The rows of a slice; `None` where there are too many.
fn read(version: &Version, group: &Group, slice: TimeRange) -> Result<Option<Vec<Labelled>>> {
    let mut rows = Vec::new();
    let (mut failure, mut too_many) = (None, false);
    let outcome = stored::each(
        version,
        group,
        |_| true,
        slice,
        |evaluated, failed| {
            failure = failure.take().or(failed.into_iter().next().map(|(_, error)| error));
            for Evaluated { facts, .. } in &evaluated {
                let all = (0..facts.len()).map(|at| (facts.row(at, i64::MIN), at));
                let within =
                    all.filter(|(row, _)| (slice.first..=slice.last).contains(&row.time_ns));
                rows.extend(within.map(|(row, at)| (row, facts.values(at))));
            }
            too_many = rows.len() > SLICE_ROWS;
            if too_many || failure.is_some() {
                return Err(Error::internal("enough"));
            }
            Ok(())
        },
    );
    match (failure, too_many) {
        (Some(error), _) => Err(error),
        (None, true) => Ok(None),
        (None, false) => outcome.map(|()| Some(rows)),
    }
}

/// Transitions, column by column.
#[derive(Default)]
struct Found {
    at: Vec<i64>,
    labels: Vec<String>,
    from: Vec<&'static str>,
    to: Vec<&'static str>,
    values: Vec<Option<f64>>,
}

impl Found {
    fn finish(self) -> Result<RecordBatch> {
        let times = TimestampNanosecondArray::from(self.at).with_data_type(time_type());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(times),
            Arc::new(StringArray::from(self.labels)),
            Arc::new(StringArray::from(self.from)),
            Arc::new(StringArray::from(self.to)),
            Arc::new(Float64Array::from(self.values)),
        ];
        RecordBatch::try_new(schema(), columns)
            .map_err(|error| Error::internal(format!("transitions of a backtest: {error}")))
    }
}
