//! A query that follows each commit: class `windows`. One aggregate by windows over one table,
//! kept as one state for each window.
//!
//! A state has every row of its window up to a commit. Rows that no row before can have had
//! the tags and time of are added to it; rows that may replace others, and whatever else is
//! not an addition, make the window unknown: it is read from the table once it is asked for.
//! A window that nothing is known of has no rows where it begins after all rows that the table
//! had when it was looked at last. A window whose state takes too much memory runs again instead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch, UInt32Array};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::{SchemaRef, TimestampNanosecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::common::cast::as_boolean_array;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use kymo_kernel::ids::{Position, TimeRange};
use kymo_kernel::message::{Committed, Taken, WindowSpec, Windowed};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::late;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Error, Result};

use super::super::compile::dress;
use super::local;
use super::rerun::{Rerun, changed, starts, upto};
use super::shape::{Inputs, Shape};
use super::shaped::Shaped;
use super::state::Window;
use crate::query::error::from_engine;

/// Windows that are answered one by one; a longer range runs as one query.
const MOST_ONE_BY_ONE: i64 = 64;
/// Windows whose states are read again for one answer; more run as one query, and are read
/// when they change next.
const MOST_REBUILT: usize = 4;
/// Windows that are remembered for the size of their state.
const MOST_LARGE: usize = 1024;

/// The query.
pub(super) struct Incremental {
    /// The same query, for windows without states.
    rerun: Rerun,
    /// `None` once its plugins have changed, until the query is planned again.
    shaped: Option<Shaped>,
    window: WindowSpec,
    /// States by the starts of their windows; `None` for a window that has to be read.
    windows: BTreeMap<i64, Option<Box<Window>>>,
    /// Windows that start here or later have no rows where they are not among `windows`;
    /// earlier ones have to be read then.
    fresh_from: i64,
    /// Windows whose states took too much memory.
    large: BTreeSet<i64>,
    /// Every commit up to here was given.
    applied: Position,
    bytes: usize,
    why: String,
}

impl Incremental {
    pub(super) fn new(rerun: Rerun, shaped: Shaped) -> Self {
        let table = rerun.source.tables.first().map(|table| table.name.to_string());
        let plugins = match shaped.calls_plugins() {
            true => ", which hold for the versions of its plugins that are in use",
            false => "",
        };
        let why = format!(
            "one aggregate by windows of {}: each commit is added to the states of its \
             windows{plugins}",
            table.unwrap_or_default()
        );
        Incremental {
            window: shaped.local.window,
            rerun,
            shaped: Some(shaped),
            windows: BTreeMap::new(),
            large: BTreeSet::new(),
            fresh_from: i64::MAX,
            applied: Position::default(),
            bytes: 0,
            why,
        }
    }

    /// The shape, unless it is void: then so are the states.
    fn shape(&mut self) -> Option<Arc<Shape>> {
        let source = &self.rerun.source;
        let shaped = self.shaped.as_ref()?;
        if source.planned().is_ok_and(|planned| shaped.holds(&source.engine, planned)) {
            return Some(shaped.shape.clone());
        }
        self.forget_all();
        None
    }

    /// Whatever is known was made with plugins that are not in use any more.
    fn forget_all(&mut self) {
        self.shaped = None;
        self.measured(|this| {
            let known: Vec<i64> = this.windows.keys().copied().collect();
            known.into_iter().for_each(|start| this.unknown(start));
        });
    }

    /// The shape as the query's names are meant now; `None` where it has none any more.
    ///
    /// # Errors
    /// Those of planning, such as `plugin_unavailable`; `conflict` where the query has other
    /// windows now.
    async fn reshaped(&mut self) -> Result<Option<Arc<Shape>>> {
        if let Some(shape) = self.shape() {
            return Ok(Some(shape));
        }
        let Ok(shaped) = self.rerun.source.shaped().await? else { return Ok(None) };
        if shaped.local.window != self.window {
            return Err(changed());
        }
        let shape = shaped.shape.clone();
        self.shaped = Some(shaped);
        Ok(Some(shape))
    }

    fn rest(&self) {
        if let Some(shaped) = &self.shaped {
            shaped.rest();
        }
    }

    /// Rows that may replace others: what their windows hold is not known any more.
    fn doubt(&mut self, committed: &Committed) -> Result<()> {
        let times = late::times(&committed.table.schema, &committed.batch)?;
        for start in starts(self.window, times) {
            self.rerun.dirty.add(one(start));
            let known = self.windows.get(&start).and_then(Option::as_ref);
            if known.is_none_or(|state| state.upto < committed.position) {
                self.unknown(start);
            }
        }
        Ok(())
    }

    /// Nothing is known of a window any more.
    fn unknown(&mut self, start: i64) {
        let old = match start < self.fresh_from {
            true => self.windows.remove(&start),
            false => self.windows.insert(start, None),
        };
        self.bytes = self.bytes.saturating_sub(old.flatten().map_or(0, |old| old.bytes));
    }

    /// Rows that are new.
    fn add(&mut self, shape: &Shape, committed: &Committed) -> Result<()> {
        let rows = shape.below.run(&committed.batch, shape.below.schema())?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let inputs = shape.inputs(&rows)?;
        for (start, inputs) in apart(inputs)? {
            self.rerun.dirty.add(one(start));
            self.add_to(shape, start, &inputs, committed.position)?;
        }
        Ok(())
    }

    fn add_to(
        &mut self,
        shape: &Shape,
        start: i64,
        inputs: &Inputs,
        position: Position,
    ) -> Result<()> {
        if start >= self.fresh_from && !self.windows.contains_key(&start) {
            let state = Window::new(shape, Position::default())?;
            self.windows.insert(start, Some(Box::new(state)));
        }
        let Some(place) = self.windows.get_mut(&start) else { return Ok(()) };
        let Some(state) = place.as_mut().filter(|state| state.upto < position) else {
            return Ok(());
        };
        let before = state.bytes;
        let added = state.add(shape, inputs);
        state.upto = position;
        let after = state.bytes;
        if added.is_err() {
            *place = None;
        }
        let after = if added.is_ok() { after } else { 0 };
        self.bytes = (self.bytes + after).saturating_sub(before);
        added
    }

    /// Forgets the oldest windows beyond the budget, but never the newest.
    fn evict(&mut self) {
        while self.bytes > self.rerun.source.most && self.windows.len() > 1 {
            let Some((start, state)) = self.windows.pop_first() else { break };
            self.fresh_from = self.fresh_from.max(self.window.next(start));
            if let Some(state) = state {
                self.bytes = self.bytes.saturating_sub(state.bytes);
                metrics().live.evicted_windows.inc();
            }
        }
    }

    fn measured<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.bytes;
        let done = work(self);
        self.evict();
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics().live.state_bytes.add(signed(self.bytes) - signed(before));
        done
    }

    /// The windows of a range, where each can be answered from its state; with those that have
    /// to be read before. `None` where one query does better.
    fn one_by_one(&self, range: TimeRange) -> Option<(Vec<i64>, Vec<i64>)> {
        let times = self.window.times(range);
        let first = self.window.start(times.first);
        // Of windows that overlap, each row touches many.
        let most = MOST_ONE_BY_ONE.max(2 * (self.window.width / self.window.hop));
        if range == TimeRange::ALL || range.last.saturating_sub(first) / self.window.hop >= most {
            return None;
        }
        let all = std::iter::successors(Some(first), |start| start.checked_add(self.window.hop));
        let all: Vec<i64> = all.take_while(|start| *start <= range.last).collect();
        let unknown = |start: &i64| match self.windows.get(start) {
            Some(state) => state.is_none(),
            None => *start < self.fresh_from,
        };
        let unknown: Vec<i64> = all.iter().copied().filter(unknown).collect();
        let fits =
            unknown.len() <= MOST_REBUILT && self.large.range(first..=range.last).next().is_none();
        fits.then_some((all, unknown))
    }

    /// A window whose state takes too much memory runs again from now on.
    fn too_large(&mut self, start: i64) {
        self.unknown(start);
        self.large.insert(start);
        if self.large.len() > MOST_LARGE {
            self.large.pop_first();
        }
    }

    /// Reads the state of a window from the table at a version.
    async fn rebuild(&mut self, shape: &Shape, start: i64, version: &Arc<Version>) -> Result<()> {
        metrics().live.rebuilt_windows.inc();
        let Some(Shaped { local, .. }) = &self.shaped else { return Ok(()) };
        let (input, local, starts) = (shape.input.clone(), local.clone(), shape.starts.clone());
        let window = self.window;
        let change = move |_: &SessionState, _: LogicalPlan| {
            let plan = local::within(input.clone(), &local, window.times(one(start)))?;
            if window.overlaps() { local::starting(plan, &starts, one(start)) } else { Ok(plan) }
        };
        let (_, mut rows) = self.rerun.source.run(vec![version.clone()], change).await?;
        let mut state = Window::new(shape, version.watermark)?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            let inputs = shape.inputs(&dress(&batch, shape.below.schema())?)?;
            state.add(shape, &inputs)?;
            if state.bytes > self.rerun.source.most {
                self.measured(|this| this.too_large(start));
                return Ok(());
            }
        }
        self.measured(|this| {
            this.bytes += state.bytes;
            let old = this.windows.insert(start, Some(Box::new(state))).flatten();
            this.bytes = this.bytes.saturating_sub(old.map_or(0, |old| old.bytes));
        });
        Ok(())
    }

    /// The rows of some windows from their states; `None` where a state is missing after all.
    fn answer(&mut self, shape: &Shape, all: &[i64]) -> Result<Option<Vec<RecordBatch>>> {
        let mut rows = Vec::new();
        for start in all {
            let Some(state) = self.windows.get_mut(start) else {
                if *start < self.fresh_from {
                    return Ok(None);
                }
                continue;
            };
            let Some(window) = state else { return Ok(None) };
            if window.bytes > self.rerun.source.most {
                self.too_large(*start);
                return Ok(None);
            }
            let before = window.bytes;
            let answer = window.rows(shape, *start);
            let after = window.bytes;
            if answer.is_err() {
                *state = None;
            }
            let after = if answer.is_ok() { after } else { 0 };
            self.bytes = (self.bytes + after).saturating_sub(before);
            let batch = dress(&answer?, &self.rerun.schema)?;
            if batch.num_rows() > 0 {
                rows.push(batch);
            }
        }
        Ok(Some(rows))
    }

    async fn rows(
        &mut self,
        range: TimeRange,
        versions: &[Arc<Version>],
    ) -> Result<Vec<RecordBatch>> {
        if let ([version], Some((all, unknown))) = (versions, self.one_by_one(range))
            && let Some(shape) = self.reshaped().await?
        {
            for start in unknown {
                self.rebuild(&shape, start, version).await?;
            }
            if let Some(rows) = self.measured(|this| this.answer(&shape, &all))? {
                return Ok(rows);
            }
        }
        self.rerun.read(versions.to_vec(), range).await
    }

    /// Whatever the table has now lies before here; what it gets later is given.
    fn look(&mut self, versions: &[Arc<Version>]) {
        let last = versions.iter().filter_map(|version| version.time()).map(|time| time.last).max();
        let next = last.map_or(i64::MIN, |last| self.window.next(self.window.start(last)));
        self.fresh_from = self.fresh_from.min(next);
    }
}

fn one(start: i64) -> TimeRange {
    TimeRange { first: start, last: start }
}

/// Rows apart by their windows. Those of a commit are mostly of one.
fn apart(inputs: Inputs) -> Result<Vec<(i64, Inputs)>> {
    let starts = inputs.starts.as_primitive_opt::<TimestampNanosecondType>();
    let starts = starts.ok_or_else(|| Error::internal("a window that is no timestamp"))?;
    let Some(first) = starts.values().first().copied() else { return Ok(Vec::new()) };
    if starts.values().iter().all(|start| *start == first) {
        return Ok(vec![(first, inputs)]);
    }
    let mut places: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for (place, start) in (0_u32..).zip(starts.values()) {
        places.entry(*start).or_default().push(place);
    }
    let pick = |(start, places)| Ok((start, picked(&inputs, &UInt32Array::from(places))?));
    let places: Vec<(i64, Vec<u32>)> = places.into_iter().collect();
    places.into_iter().map(pick).collect()
}

fn picked(inputs: &Inputs, places: &UInt32Array) -> Result<Inputs> {
    let pick = |column| take(column, places, None).map_err(defect);
    let arguments = inputs.arguments.iter().map(|(arguments, filter)| {
        let arguments = arguments.iter().map(|each| pick(each.as_ref())).collect::<Result<_>>()?;
        let filter = match filter {
            Some(filter) => Some(as_boolean_array(&pick(filter)?).cloned().map_err(from_engine)?),
            None => None,
        };
        Ok((arguments, filter))
    });
    Ok(Inputs {
        starts: pick(inputs.starts.as_ref())?,
        groups: inputs.groups.iter().map(|each| pick(each.as_ref())).collect::<Result<_>>()?,
        arguments: arguments.collect::<Result<_>>()?,
    })
}

fn defect(error: ArrowError) -> Error {
    from_engine(error.into())
}

impl Windowed for Incremental {
    fn class(&self) -> &'static str {
        "windows"
    }

    fn why(&self) -> &str {
        &self.why
    }

    fn text(&self) -> &str {
        self.rerun.text()
    }

    fn tables(&self) -> &[Arc<TableDef>] {
        self.rerun.tables()
    }

    fn schema(&self) -> &SchemaRef {
        self.rerun.schema()
    }

    fn window(&self) -> Option<WindowSpec> {
        Some(self.window)
    }

    fn keys(&self) -> Option<&[usize]> {
        self.rerun.keys()
    }

    fn extent(&self) -> Option<TimeRange> {
        self.rerun.extent()
    }

    fn apply(&mut self, committed: &Committed) -> Result<()> {
        let ours = self.tables().iter().any(|table| table.id == committed.table.id);
        if let (true, Some(times)) = (ours, committed.deleted) {
            self.invalidate(times);
            return Ok(());
        }
        if !ours || committed.position <= self.applied {
            return Ok(());
        }
        self.applied = committed.position;
        let shape = self.shape().filter(|_| !committed.late);
        let taken = self.measured(|this| match &shape {
            Some(shape) => this.add(shape, committed),
            None => this.doubt(committed),
        });
        self.rest();
        if taken.is_err() {
            // Some of its rows may be in the states and some not.
            self.measured(|this| this.doubt(committed))?;
        }
        taken
    }

    fn reopen(&mut self, starts: TimeRange) {
        self.measured(|this| {
            // Windows without a state may have got rows.
            if starts.last >= this.fresh_from {
                this.fresh_from = i64::MAX;
                this.windows.retain(|_, state| state.is_some());
            }
            let known = this.windows.range(starts.first..=starts.last);
            let known: Vec<i64> = known.map(|(start, _)| *start).collect();
            known.into_iter().for_each(|start| this.unknown(start));
            this.large.retain(|start| *start < starts.first || *start > starts.last);
        });
        self.rerun.reopen(starts);
    }

    fn dirty(&self) -> Vec<TimeRange> {
        self.rerun.dirty()
    }

    fn take(&mut self, starts: TimeRange) -> BoxFuture<'_, Result<Taken>> {
        async move {
            let versions = self.rerun.source.versions()?;
            let rows = self.rows(starts, &versions).await;
            self.rest();
            let rows = rows?;
            self.look(&versions);
            self.rerun.dirty.remove(starts);
            Ok(Taken { rows, upto: upto(&versions) })
        }
        .boxed()
    }

    fn memory(&self) -> usize {
        self.bytes
    }
}

impl Drop for Incremental {
    fn drop(&mut self) {
        self.measured(|this| {
            this.windows.clear();
            this.bytes = 0;
        });
    }
}
