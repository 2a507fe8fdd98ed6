//! The task of one continuous query: commits go in, windows come out, the cursor follows.
//!
//! ```text
//! feed ──► apply ──► dirty windows ── take ──► compare with the target ──► remove, write
//!                                                                             │ acknowledged
//!                                                                             ▼
//!                                                                           cursor
//! ```
//!
//! It is the only one that writes the windows of its target, so what it writes last is the
//! latest. Its marks say which commits it has applied; once every window that was dirty at some
//! moment has been written and acknowledged, the marks of that moment become the cursor. What
//! happens between is repeated after a crash, and gives the same rows again.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::continuous::{ContinuousDef, Mark};
use kymo_kernel::ids::{Position, TableId, TimeRange};
use kymo_kernel::message::{
    Committed, Delete, Doomed, Keep, Parse, SessionContext, WindowSpec, Windowed, Write,
};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::{TableBatch, TableDef};
use kymo_kernel::storage::delete::keys;
use kymo_kernel::storage::late::times;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::storage::missed::{Missed, read_elsewhere};
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::Context;
use super::registry::{Backfill, Entry, Progress, Reached};
use super::target::Target;
use super::written::{Change, Written, read};
use crate::feed::{FeedEvent, Subscription, TableFilter};

/// Rows of one write.
const WRITE_ROWS: usize = 16_384;
/// How many of its own writes a query tells apart from those of others.
const OWN_WRITES: usize = 4096;
/// The first and the longest pause before something that was turned away is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Windows that are taken at once at first.
const FIRST_STEP: i64 = 16;

/// A continuous query that runs.
pub(super) struct Runner {
    context: Context,
    def: Arc<ContinuousDef>,
    entry: Arc<Entry>,
    query: Box<dyn Windowed>,
    spec: WindowSpec,
    target: Arc<Target>,
    written: Written,
    feed: Subscription,
    /// What was applied, by table.
    marks: BTreeMap<TableId, Mark>,
    /// The last deletion whose windows were marked.
    gone: u64,
    /// Positions of its own writes to the target that the feed has not brought yet.
    own: VecDeque<Position>,
    /// How many windows are taken at once: more where they have few rows.
    step: i64,
    /// When the next evaluation is due, on the monotonic clock.
    due: Option<Duration>,
    backfill: Option<Filling>,
    lag: String,
}

/// A backfill under way.
struct Filling {
    wish: Backfill,
    /// The starts of windows that are left.
    left: TimeRange,
    progress: Progress,
}

impl Runner {
    /// Plans a query, enters it into the feed, and marks what it has missed.
    ///
    /// # Errors
    /// Those of planning; `table_not_found`, `column_not_found` and `type_conflict` where
    /// sources or the target are not what they were.
    pub(super) async fn open(
        context: Context,
        def: Arc<ContinuousDef>,
        entry: Arc<Entry>,
    ) -> Result<Runner> {
        let query = plan(&context, &def).await?;
        let Some(spec) = query.window() else { return Err(super::target::no_windows(query.why())) };
        let target = context.store.catalog().table(&def.target).map(|table| table.def.clone());
        let target = target.ok_or_else(|| missing("target", &def.target))?;
        let target = Arc::new(Target::new(&*query, target)?);
        let written = Written::new(target.clone(), spec, context.memory_bytes)?;
        let tables = query.tables().iter().map(|table| table.id).chain([target.def.id]);
        let filter = TableFilter::Tables(tables.collect());
        let feed = context.hub.subscribe(filter, context.buffer_bytes);
        let cursor = context.store.catalog().cursors.get(&def.id).cloned().unwrap_or_default();
        entry.note(|figures| figures.class = query.class());
        let lag = def.name.to_string();
        let mut runner = Runner {
            marks: cursor.marks.clone(),
            gone: 0,
            own: VecDeque::new(),
            step: FIRST_STEP,
            due: None,
            backfill: None,
            context,
            def,
            entry,
            query,
            spec,
            target,
            written,
            feed,
            lag,
        };
        let tables = runner.query.tables().to_vec();
        // A table that was dropped and made again is another one.
        runner.marks.retain(|id, _| tables.iter().any(|table| table.id == *id));
        for table in tables {
            runner.catch_up(&table).await?;
        }
        runner.deletions()?;
        runner.noted(runner.now());
        if runner.due.is_none() {
            // Nothing was missed: the target stands for what is there.
            runner.entry.reached(Reached { marks: runner.marks.clone(), gone: runner.gone });
        }
        Ok(runner)
    }

    /// Keeps the target up to date until that fails.
    pub(super) async fn run(mut self) -> Result<Infallible> {
        loop {
            self.wait().await?;
            let now = self.now();
            if self.due.is_some_and(|due| due <= now) {
                self.round().await?;
            }
            if self.backfill.is_some() {
                self.fill().await?;
            }
        }
    }

    fn now(&self) -> Duration {
        self.context.clock.monotonic()
    }

    /// Waits for something to do, and takes what the feed brings meanwhile.
    async fn wait(&mut self) -> Result<()> {
        let check = self.now() + self.context.check_every;
        loop {
            if self.backfill.is_some() && self.feed_is_idle().await? {
                return Ok(());
            }
            let now = self.now();
            let until = self.due.unwrap_or(check).min(check);
            if until <= now {
                return self.check();
            }
            let clock = self.context.clock.clone();
            tokio::select! {
                biased;
                wish = self.entry.wish(), if self.backfill.is_none() => self.begin(wish)?,
                event = self.feed.recv() => self.event(event.ok_or_else(stopping)?).await?,
                () = clock.sleep(until - now) => {}
            }
        }
    }

    /// Takes what the feed has already; true once there is nothing more.
    async fn feed_is_idle(&mut self) -> Result<bool> {
        while let Some(event) = self.feed.try_recv() {
            self.event(event).await?;
        }
        Ok(true)
    }

    /// Looks whether everything is still there: nobody tells of a table that was dropped.
    fn check(&mut self) -> Result<()> {
        let catalog = self.context.store.catalog();
        let sources = self.query.tables().iter().map(|table| ("table", table));
        for (what, table) in sources.chain([("target", &self.target.def)]) {
            if catalog.table_by_id(table.id).is_none() {
                return Err(missing(what, &table.name));
            }
        }
        self.deletions()?;
        self.noted(self.now());
        Ok(())
    }

    async fn event(&mut self, event: FeedEvent) -> Result<()> {
        match event {
            FeedEvent::Committed(rows) => {
                if rows.table.id == self.target.def.id {
                    return self.foreign(&rows);
                }
                if rows.deleted.is_some() {
                    self.deletions()?;
                }
                self.commit(&rows)?;
                self.noted(rows.at);
            }
            FeedEvent::Lagged { table, .. } if table == self.target.def.id => {
                self.written.forget(TimeRange::ALL);
            }
            FeedEvent::Lagged { table, upto, .. } => {
                let known = self.marks.get(&table).is_some_and(|mark| upto <= mark.position);
                let def = self.query.tables().iter().find(|def| def.id == table).cloned();
                if let Some(def) = def.filter(|_| !known) {
                    metrics().continuous.lagged.with_label_values(&[&self.lag]).inc();
                    self.catch_up(&def).await?;
                    self.noted(self.now());
                }
            }
        }
        Ok(())
    }

    /// Somebody else may have changed the target: what is remembered of it is void.
    fn foreign(&mut self, rows: &Committed) -> Result<()> {
        if let Some(times) = rows.deleted {
            self.written.forget(times);
            return Ok(());
        }
        let own = self.own.iter().position(|position| *position == rows.position);
        if let Some(own) = own {
            self.own.drain(..=own);
            return Ok(());
        }
        let changed = times(&rows.table.schema, &rows.batch)?;
        for time in changed.iter().copied().collect::<HashSet<i64>>() {
            self.written.forget(TimeRange { first: time, last: time });
        }
        Ok(())
    }

    /// Applies a commit of a source, without rows that come too late.
    fn commit(&mut self, rows: &Committed) -> Result<()> {
        let mark = self.marks.entry(rows.table.id).or_default();
        if rows.position <= mark.position || rows.batch.num_rows() == 0 {
            return Ok(());
        }
        let instants = times(&rows.table.schema, &rows.batch)?;
        let edge = edge(self.spec, mark.newest, self.def.lateness_ns);
        let late = instants.iter().filter(|time| **time < edge).count();
        let newest = instants.iter().copied().max();
        mark.position = rows.position;
        mark.newest = mark.newest.max(newest);
        if late == 0 {
            self.apply(rows);
            return Ok(());
        }
        self.entry.note(|figures| figures.late += late as u64);
        metrics().continuous.late_rows.with_label_values(&[&self.lag]).inc_by(late as u64);
        if late == instants.len() {
            return Ok(());
        }
        let keep: BooleanArray = instants.iter().map(|time| Some(*time >= edge)).collect();
        let batch = filter_record_batch(&rows.batch, &keep)
            .map_err(|error| Error::internal(format!("leave out late rows: {error}")))?;
        self.apply(&Committed { batch, ..rows.clone() });
        Ok(())
    }

    fn apply(&mut self, rows: &Committed) {
        if let Err(error) = self.query.apply(rows) {
            // What it concerns is dirty, so that taking it says what is wrong.
            tracing::debug!(%error, query = %self.def.name, "a commit could not be evaluated");
        }
    }

    /// Brings the query to where a table is: from the log, or by marking the times of
    /// everything that is newer than the mark.
    async fn catch_up(&mut self, table: &Arc<TableDef>) -> Result<()> {
        let version = self.version(table)?;
        let known = self.marks.get(&table.id).copied();
        let from = known.unwrap_or_default().position;
        if known.is_some() && version.watermark <= from {
            return Ok(());
        }
        let missed = match known {
            // Nothing of the table was ever looked at.
            None => None,
            Some(_) => self.missed(table.id, from, version.watermark).await?,
        };
        match missed {
            Some(missed) => {
                for (position, record) in missed {
                    let (batch, at) = (record.decode()?, self.now());
                    // What a row replaced is not in the log.
                    let late = !table.options.append_only;
                    let table = table.clone();
                    self.commit(&Committed { table, position, batch, deleted: None, late, at })?;
                }
            }
            None => self.newer_parts(&version, from),
        }
        let mark = self.marks.entry(table.id).or_default();
        mark.position = mark.position.max(version.watermark);
        mark.newest = mark.newest.max(version.time().map(|time| time.last));
        Ok(())
    }

    /// Marks the times of all parts of a version that hold anything newer than a position.
    /// Which of their rows came too late cannot be told: all of them count.
    fn newer_parts(&mut self, version: &Version, from: Position) {
        let segments = version.segments.iter().map(|segment| segment.meta());
        let segments = segments.filter(|meta| meta.seq_range.1 > from).map(|meta| meta.time);
        let frozen = version.frozen.iter().map(|frozen| frozen.span);
        let spans = frozen.chain(version.hot.span()).filter(|span| span.last > from);
        let times: Vec<TimeRange> = segments.chain(spans.map(|span| span.time)).collect();
        times.into_iter().for_each(|times| self.query.invalidate(times));
    }

    async fn missed(
        &mut self,
        table: TableId,
        after: Position,
        upto: Position,
    ) -> Result<Option<Missed>> {
        let (store, most) = (self.context.store.clone(), self.context.catch_up_bytes);
        let read = move || store.missed(table, after, upto, most);
        match self.context.pools.foreground("read missed rows", read).await? {
            Err(error) if read_elsewhere(&error) => {
                tracing::warn!(%error, query = %self.def.name, "missed rows cannot be read from the log");
                Ok(None)
            }
            other => other,
        }
    }

    /// Marks the windows of rows that were deleted since the last look. Deletions are in the
    /// metadata before they are in the versions that are read, so they wait for these.
    fn deletions(&mut self) -> Result<()> {
        let catalog = self.context.store.catalog();
        let Some(cursor) = catalog.cursors.get(&self.def.id) else { return Ok(()) };
        if cursor.last_gone <= self.gone {
            return Ok(());
        }
        for table in self.query.tables() {
            let known = catalog.table_by_id(table.id).map_or(0, |meta| meta.deletions);
            if self.version(table)?.deletions < known {
                return Ok(());
            }
        }
        let new = cursor.gone.iter().filter(|(number, _)| **number > self.gone);
        let new: Vec<TimeRange> = new.map(|(_, times)| *times).collect();
        self.gone = cursor.last_gone;
        new.into_iter().for_each(|times| self.query.invalidate(times));
        Ok(())
    }

    fn version(&self, table: &TableDef) -> Result<Arc<Version>> {
        let known = self.context.store.catalog().table_by_id(table.id).is_some();
        let cell = self.context.store.table(table.id).filter(|_| known);
        cell.map(|cell| cell.load()).ok_or_else(|| missing("table", &table.name))
    }

    /// Settles when to evaluate what is dirty, of which the oldest is as old as `at`.
    fn noted(&mut self, at: Duration) {
        if self.due.is_some() || self.query.dirty().is_empty() {
            return;
        }
        self.entry.note(|figures| figures.behind_since = Some(at));
        self.due = Some(match self.def.every_ns {
            None => self.now() + self.context.delay,
            Some(every) => {
                // At whole multiples of the interval, on the wall clock.
                let left = every - self.context.clock.now_ns().rem_euclid(every);
                self.now() + Duration::from_nanos(left.unsigned_abs())
            }
        });
    }

    /// Evaluates what is dirty, and moves the cursor.
    async fn round(&mut self) -> Result<()> {
        self.deletions()?;
        let reached = Reached { marks: self.marks.clone(), gone: self.gone };
        let began = self.now();
        for starts in self.query.dirty() {
            self.pass(starts).await?;
        }
        self.entry.reached(reached);
        self.due = None;
        self.entry.note(|figures| figures.behind_since = None);
        self.noted(began);
        Ok(())
    }

    /// Takes a range of windows piece by piece. Where the range goes beyond all rows, the rest
    /// is one piece on either side.
    async fn pass(&mut self, starts: TimeRange) -> Result<()> {
        let (first, last) = (starts.first, starts.last);
        let Some(rows) = self.extent() else { return self.piece(starts).await.map(|_| ()) };
        let inside = TimeRange { first: first.max(rows.first), last: last.min(rows.last) };
        if inside.first > inside.last {
            return self.piece(starts).await.map(|_| ());
        }
        if first < inside.first {
            self.piece(TimeRange { first, last: inside.first - 1 }).await?;
        }
        let mut next = inside.first;
        while next <= inside.last {
            let end = self.end_of(next, inside.last);
            if self.smaller(TimeRange { first: next, last: end }).await?.is_none() {
                continue;
            }
            self.feed_is_idle().await?;
            let Some(after) = end.checked_add(1) else { return Ok(()) };
            next = after;
        }
        if inside.last < last {
            self.piece(TimeRange { first: inside.last + 1, last }).await?;
        }
        Ok(())
    }

    /// Where the rows of sources and target lie, as starts of windows.
    fn extent(&self) -> Option<TimeRange> {
        let target = self.version(&self.target.def).ok().and_then(|version| version.time());
        let target = target.map(|times| self.spec.starts(times));
        match (self.query.extent(), target) {
            (Some(one), Some(other)) => Some(one.union(&other)),
            (one, other) => one.or(other),
        }
    }

    /// The last instant of the piece that begins with a window.
    fn end_of(&self, first: i64, last: i64) -> i64 {
        let whole = self.step.saturating_mul(self.spec.width);
        self.spec.start(first).saturating_add(whole).saturating_sub(1).min(last)
    }

    /// A piece, or `None` where it has to be taken in smaller ones.
    async fn smaller(&mut self, starts: TimeRange) -> Result<Option<Wrote>> {
        match self.piece(starts).await {
            Ok(wrote) => {
                if wrote.taken < self.context.piece_rows / 2 {
                    self.step = self.step.saturating_mul(2).min(i64::MAX / self.spec.width);
                } else if wrote.taken > self.context.piece_rows {
                    self.step = (self.step / 2).max(1);
                }
                Ok(Some(wrote))
            }
            Err(error) if too_much(&error) && self.step > 1 => {
                self.step /= 2;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the target's rows of some windows to what the result has now.
    async fn piece(&mut self, starts: TimeRange) -> Result<Wrote> {
        let edge = self.first_unexpired();
        if starts.first < edge {
            // They are dirty no more; what is left of them is not what they were made from.
            let last = starts.last.min(edge - 1);
            self.take(TimeRange { first: starts.first, last }).await?;
        }
        let starts = TimeRange { first: starts.first.max(edge), last: starts.last };
        if starts.first > starts.last {
            return Ok(Wrote::default());
        }
        let taken = self.take(starts).await?;
        let rows = taken.iter().map(|batch| self.target.rows(batch)).collect::<Result<Vec<_>>>()?;
        let version = self.version(&self.target.def)?;
        let present = if self.written.must_read(starts, &version) {
            let (output, time) = (self.target.schema.clone(), starts);
            let read = move || read(&version, &output, time);
            self.context.pools.foreground("read target", read).await??
        } else {
            Vec::new()
        };
        let count = rows.iter().map(RecordBatch::num_rows).sum();
        let Change { gone, rows, windows } = self.written.change(starts, &present, &rows)?;
        if let Some(gone) = gone {
            self.remove(gone).await?;
        }
        let written = rows.as_ref().map_or(0, RecordBatch::num_rows) as u64;
        if let Some(rows) = rows {
            self.write(rows).await?;
        }
        self.entry.note(|figures| {
            figures.evaluations += 1;
            figures.windows += windows;
            figures.rows += written;
        });
        let of = &metrics().continuous;
        of.evaluations.with_label_values(&[&self.lag]).inc();
        of.windows.with_label_values(&[&self.lag]).inc_by(windows);
        of.rows.with_label_values(&[&self.lag]).inc_by(written);
        Ok(Wrote { taken: count, rows: written })
    }

    /// The first window that the retention of no source has touched. Those before it stay as
    /// they are, because the rows that they were made from are gone.
    fn first_unexpired(&self) -> i64 {
        let (catalog, now) = (self.context.store.catalog(), self.context.clock.now_ns());
        let retentions =
            self.query.tables().iter().filter_map(|def| catalog.retention_ns(&def.name));
        let edge = retentions.map(|retention| expired_upto(retention, now)).max();
        edge.map_or(i64::MIN, |edge| self.spec.start(edge).saturating_add(self.spec.width))
    }

    /// The rows of some windows. Others come first: where there is no room it waits.
    async fn take(&mut self, starts: TimeRange) -> Result<Vec<RecordBatch>> {
        let mut pause = Pause::new(&self.context);
        loop {
            match self.query.take(starts).await {
                Err(error) if error.code() == Code::Busy => pause.wait(&error).await,
                taken => return taken.map(|taken| taken.rows),
            }
        }
    }

    /// Takes rows out of the target, by their tags and time.
    async fn remove(&mut self, rows: RecordBatch) -> Result<()> {
        let def = self.target.def.clone();
        let count = rows.num_rows() as u64;
        let all = times(&def.schema, &rows)?.iter().copied();
        let (Some(first), Some(last)) = (all.clone().min(), all.max()) else { return Ok(()) };
        let doomed = keys(&def.schema, &rows)?;
        let mut pause = Pause::new(&self.context);
        loop {
            let delete = Delete {
                table: def.id,
                times: TimeRange { first, last },
                rows: Doomed::Where(doomed.clone()),
                count: false,
                cancel: CancelToken::new(),
            };
            match self.context.delete.call(delete).await {
                Ok(_) => break,
                Err(error) if error.code() == Code::Busy => pause.wait(&error).await,
                Err(error) => return Err(error.context(format_args!("remove from {}", def.name))),
            }
        }
        self.entry.note(|figures| figures.removed += count);
        metrics().continuous.removed.with_label_values(&[&self.lag]).inc_by(count);
        Ok(())
    }

    /// Writes rows like anybody's, a part at a time.
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        let mut from = 0;
        while from < rows.num_rows() {
            let count = WRITE_ROWS.min(rows.num_rows() - from);
            self.write_part(rows.slice(from, count)).await?;
            from += count;
        }
        Ok(())
    }

    async fn write_part(&mut self, batch: RecordBatch) -> Result<()> {
        let mut pause = Pause::new(&self.context);
        loop {
            let rows = TableBatch {
                table: self.target.def.name.clone(),
                batch: batch.clone(),
                lines: Vec::new(),
            };
            let write =
                Write { batches: vec![rows], durability: None, create: false, partial: false };
            match self.context.write.call(write).await {
                Ok(acked) => {
                    if self.own.len() >= OWN_WRITES {
                        self.own.pop_front();
                    }
                    self.own.extend(acked.position);
                    return Ok(());
                }
                Err(error) if error.code() == Code::Busy => pause.wait(&error).await,
                Err(error) => {
                    let target = &self.target.def.name;
                    return Err(error.context(format_args!("write to {target}")));
                }
            }
        }
    }

    /// Takes up a wish to compute windows again.
    fn begin(&mut self, wish: Backfill) -> Result<()> {
        let wanted = self.spec.starts(wish.times);
        let rows = self.extent();
        let inside = rows.map(|rows| TimeRange {
            first: wanted.first.max(rows.first),
            last: wanted.last.min(rows.last),
        });
        let left = inside.filter(|left| left.first <= left.last);
        let of = left.map_or(0, |left| {
            (i128::from(left.last) - i128::from(left.first)) / i128::from(self.spec.width) + 1
        });
        let of = u64::try_from(of).unwrap_or(u64::MAX);
        let progress = Progress { of, upto: wish.times.first, ..Progress::default() };
        self.entry.note(|figures| figures.backfill = Some((0, of)));
        match left {
            Some(left) => self.backfill = Some(Filling { wish, left, progress }),
            None => {
                // Who asked learns from the end of the reports that nothing was left to do.
                let _ = wish.reports.try_send(Ok(progress));
                self.entry.fulfilled();
            }
        }
        Ok(())
    }

    /// One piece of the backfill; ends it where nobody wants it any more.
    async fn fill(&mut self) -> Result<()> {
        let Some(mut filling) = self.backfill.take() else { return Ok(()) };
        let end = self.end_of(filling.left.first, filling.left.last);
        let piece = TimeRange { first: filling.left.first, last: end };
        // What the states have of these windows is not trusted: that is what a backfill is for.
        self.query.invalidate(self.spec.times(piece));
        let Some(wrote) = self.smaller(piece).await? else {
            self.backfill = Some(filling);
            return Ok(());
        };
        let windows = (i128::from(end) - i128::from(piece.first)) / i128::from(self.spec.width) + 1;
        let progress = &mut filling.progress;
        progress.windows += u64::try_from(windows).unwrap_or(u64::MAX);
        progress.rows += wrote.rows;
        progress.upto = self.spec.start(end).saturating_add(self.spec.width);
        let (done, of) = (progress.windows, progress.of);
        self.entry.note(|figures| figures.backfill = Some((done, of)));
        let report = Ok(filling.progress);
        let wanted = tokio::select! {
            biased;
            sent = filling.wish.reports.send(report) => sent.is_ok(),
            // Who does not take reports is not waited for.
            () = self.context.clock.sleep(self.context.check_every) => true,
        };
        filling.left.first = end.saturating_add(1);
        if wanted && filling.left.first <= filling.left.last {
            self.backfill = Some(filling);
        } else {
            self.entry.fulfilled();
        }
        Ok(())
    }
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, Default)]
struct Wrote {
    /// Rows of the result.
    taken: usize,
    /// Rows that were written.
    rows: u64,
}

/// Pauses between attempts, longer each time.
struct Pause {
    clock: Arc<dyn kymo_kernel::env::Clock>,
    next: Duration,
}

impl Pause {
    fn new(context: &Context) -> Pause {
        Pause { clock: context.clock.clone(), next: PAUSE.0 }
    }

    async fn wait(&mut self, error: &Error) {
        tracing::debug!(%error, pause = ?self.next, "a continuous query waits for its turn");
        self.clock.sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSE.1);
    }
}

/// Plans the query of a definition, in the session that it was made in.
async fn plan(context: &Context, def: &ContinuousDef) -> Result<Box<dyn Windowed>> {
    let mut statements = context.parse.call(Parse { sql: def.text.clone() }).await?;
    let Some(statement) = statements.pop() else {
        return Err(Error::internal("a continuous query without text"));
    };
    let session = SessionContext {
        user: def.user.clone(),
        admin: true,
        database: def.name.database.clone(),
        schema: def.schema.clone(),
        settings: def.settings.clone(),
        read_only: true,
    };
    let keep = Keep { statement, parameters: Vec::new(), session: Arc::new(session) };
    Ok(context.keep.call(keep).await?.query)
}

/// Rows before it come too late: all windows that begin before it have ended longer ago than
/// the allowed lateness.
fn edge(spec: WindowSpec, newest: Option<i64>, lateness: Option<i64>) -> i64 {
    match (newest, lateness) {
        (Some(newest), Some(lateness)) => spec.start(newest.saturating_sub(lateness)),
        _ => i64::MIN,
    }
}

fn too_much(error: &Error) -> bool {
    matches!(error.code(), Code::LimitReached | Code::OutOfMemory)
}

fn missing(what: &str, name: &kymo_kernel::schema::TableName) -> Error {
    Error::new(Code::TableNotFound, format!("{what} {name} does not exist (any more)"))
        .with_hint("make it again and RESUME the query, or drop the query")
}

fn stopping() -> Error {
    Error::new(Code::ShuttingDown, "the server is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_late_once_its_window_ended_longer_ago_than_allowed() {
        let spec = WindowSpec { column: 0, width: 60, origin: 0 };
        assert_eq!(edge(spec, None, Some(60)), i64::MIN);
        assert_eq!(edge(spec, Some(1000), None), i64::MIN);
        // At 239 with a lateness of 60 the window [120, 180) has ended 59 ago.
        assert_eq!(edge(spec, Some(239), Some(60)), 120);
        assert_eq!(edge(spec, Some(240), Some(60)), 180);
        assert_eq!(edge(spec, Some(i64::MIN), Some(i64::MAX)), i64::MIN);
    }
}
