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

mod backfill;
mod evaluate;
mod follow;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::continuous::{ContinuousDef, Mark};
use kymo_kernel::ids::{Position, TableId, TimeRange};
use kymo_kernel::message::{Keep, Parse, SessionContext, WindowSpec, Windowed};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::{TableDef, TableName};
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::Context;
use super::registry::{Entry, Reached};
use super::target::Target;
use super::written::Written;
use crate::feed::{FeedEvent, Subscription, TableFilter};
use backfill::Filling;

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
    /// Its name, as metrics have it.
    label: String,
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
        let label = def.name.to_string();
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
            label,
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
                    metrics().continuous.lagged.with_label_values(&[&self.label]).inc();
                    self.catch_up(&def).await?;
                    self.noted(self.now());
                }
            }
        }
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

fn missing(what: &str, name: &TableName) -> Error {
    Error::new(Code::TableNotFound, format!("{what} {name} does not exist (any more)"))
        .with_hint("make it again and RESUME the query, or drop the query")
}

fn stopping() -> Error {
    Error::new(Code::ShuttingDown, "the server is stopping")
}
