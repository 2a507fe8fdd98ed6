//! Takes writes: has the tables' transforms change them, checks rows against the definitions,
//! has the catalog add what is missing, and hands each table's rows to its writer.
//!
//! Rows that a transform refuses go to `system.rejected_writes` of their database, in one group
//! of the journal with the rows that stay: after a crash both are there or neither.
//!
//! The actor keeps nothing but a cache, so it can be restarted at any time; callers whose
//! write was under way are told to try again. Rows of a type that conflicts are left out and
//! reported, or fail the whole request before anything is written. Rows of several tables
//! are appended at the same time and acknowledged together: the request is acknowledged
//! when all of them are durable and visible.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::future::join_all;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::ids::{Position, TableId};
use kymo_kernel::message::{
    Acked, Append, Beside, Ddl, Durability, OwnRows, RejectedRow, Write, WriteOwn,
};
use kymo_kernel::pools::Pools;
use kymo_kernel::port::Port;
use kymo_kernel::schema::{SYSTEM_SCHEMA, TableBatch, TableDef, TableOptions, TableSchema};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::log::Record;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use serde_json::json;

use crate::catalog::plan::no_database;
use crate::cluster::Router;
use crate::writer::Writers;

pub mod check;
pub mod rejected;
pub mod transform;

use check::{Checked, Known, check, schema_of};
use transform::{Passed, Transforms};

/// How often a write is checked again because definitions changed under it. Each round adds
/// to what is known of the table, so that two are the rule and this many never happen.
const MAX_ROUNDS: usize = 8;

/// How many definitions are kept prepared.
const MAX_KNOWN: usize = 4096;

/// How often instances of transforms that nothing asks for any more are let go.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// Rows below this size are encoded within the turn, larger ones by the foreground pool.
const ENCODE_HERE: usize = 32 << 10;

/// The actor.
#[derive(Clone)]
pub struct Ingest(Arc<Shared>);

struct Shared {
    store: Arc<Store>,
    catalog: Port<Ddl>,
    writers: Writers,
    router: Arc<dyn Router>,
    pools: Pools,
    transforms: Transforms,
    known: Mutex<HashMap<TableId, Arc<Known>>>,
}

impl Ingest {
    /// Ingest over a store, a catalog, and the writers that own the slots.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        catalog: Port<Ddl>,
        writers: Writers,
        router: Arc<dyn Router>,
        pools: Pools,
        transforms: Transforms,
    ) -> Self {
        let known = Mutex::new(HashMap::new());
        Ingest(Arc::new(Shared { store, catalog, writers, router, pools, transforms, known }))
    }
}

impl Actor for Ingest {
    fn started(&mut self, cx: &mut Cx<Self>) {
        cx.every(TIDY_EVERY, |ingest, _| ingest.0.transforms.tidy(&ingest.0.store.catalog()));
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "definitions_cached": self.0.known.lock().len(),
            "idle_transforms": self.0.transforms.idle(),
        })
    }
}

impl Handle<Write> for Ingest {
    fn handle(&mut self, message: Write, reply: Reply<Write>, cx: &mut Cx<Self>) {
        let shared = self.0.clone();
        cx.answer(reply, async move { shared.write(message).await });
    }
}

impl Handle<WriteOwn> for Ingest {
    fn handle(&mut self, message: WriteOwn, reply: Reply<WriteOwn>, cx: &mut Cx<Self>) {
        let shared = self.0.clone();
        cx.answer(reply, async move { shared.write_own(message).await });
    }
}

/// What one look at the definitions came to.
enum Round {
    /// The rows fit the table.
    Fits(Arc<Known>, Checked),
    /// No row is left, and no table was needed to see it.
    Nothing(Vec<RejectedRow>),
    /// The definitions changed, for these rows or under them.
    Again,
}

impl Shared {
    async fn write(&self, mut write: Write) -> Result<Acked> {
        if self.router.ranges().len() != 1 {
            return Err(Error::new(Code::Unsupported, "route rows to several partitions"));
        }
        refuse_system(&write)?;
        let incoming = self.transform(std::mem::take(&mut write.batches)).await?;
        if !write.partial {
            // Nothing may be created for a request that is going to be refused.
            for passed in &incoming {
                refuse_conflicts(&self.look(&passed.rows)?.1)?;
            }
        }
        let tables =
            incoming.iter().filter(|each| each.rows.batch.num_rows() > 0 || each.refused.is_some());
        let outcomes = match incoming.as_slice() {
            [only] if only.rows.batch.num_rows() > 0 => vec![self.write_table(only, &write).await],
            _ => join_all(tables.map(|passed| self.write_table(passed, &write))).await,
        };
        let mut total = Acked::default();
        for outcome in outcomes {
            let acked = outcome?;
            total.rows += acked.rows;
            total.refused += acked.refused;
            total.position = total.position.max(acked.position);
            total.rejected.extend(acked.rejected);
        }
        total.rejected.sort_by_key(|row| row.line);
        Ok(total)
    }

    /// Writes rows of Kymo's own tables.
    async fn write_own(&self, WriteOwn { rows, beside }: WriteOwn) -> Result<()> {
        let (known, batch) = self.own(&rows).await?;
        let sync = Some(Durability::EveryWrite);
        self.keep(Some((known, batch)), beside.as_ref(), sync).await.map(|_| ())
    }

    /// The rows after the transforms of their tables, those of several tables at the same time.
    async fn transform(&self, batches: Vec<TableBatch>) -> Result<Vec<Passed>> {
        let known = self.store.catalog();
        let as_they_are = |rows| Passed { rows, refused: None, transformed: false };
        if known.transforms.is_empty() {
            return Ok(batches.into_iter().map(as_they_are).collect());
        }
        let passing = batches.into_iter().map(|rows| {
            let known = known.clone();
            async move {
                let table = known.table(&rows.table).filter(|_| rows.batch.num_rows() > 0);
                let chain = table.and_then(|table| known.transforms.get(&table.def.id));
                match (table, chain) {
                    (Some(table), Some(chain)) => {
                        let (def, chain) = (table.def.clone(), chain.clone());
                        self.transforms.run(def, rows, chain, known.clone()).await
                    }
                    _ => Ok(as_they_are(rows)),
                }
            }
        });
        join_all(passing).await.into_iter().collect()
    }

    /// Writes the rows of one table, as often as definitions change under it.
    async fn write_table(&self, passed: &Passed, write: &Write) -> Result<Acked> {
        let Passed { rows, refused, transformed } = passed;
        let own = |rows: &TableBatch| OwnRows {
            rows: rows.clone(),
            schema: rejected::schema(),
            options: rejected::options(),
        };
        let refused = refused.as_ref();
        let beside = refused.map(own);
        let refused_rows = refused.map_or(0, |refused| refused.batch.num_rows() as u64);
        for _ in 0..MAX_ROUNDS {
            let round = match rows.batch.num_rows() {
                0 => Round::Nothing(Vec::new()),
                _ => self.fit(rows, write, *transformed).await?,
            };
            let (kept, rejected) = match round {
                Round::Fits(known, checked) => {
                    let kept = (checked.batch.num_rows() > 0).then_some((known, checked.batch));
                    (kept, checked.rejected)
                }
                Round::Nothing(rejected) => (None, rejected),
                Round::Again => continue,
            };
            let rows = kept.as_ref().map_or(0, |(_, batch)| batch.num_rows() as u64);
            match self.keep(kept, beside.as_ref(), write.durability).await {
                Ok(position) => {
                    return Ok(Acked { rows, position, rejected, refused: refused_rows });
                }
                // Dropped since the check: it is made again, where that is allowed.
                Err(error) if error.code() == Code::TableNotFound && write.create => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            Code::Busy,
            format!("write to table {}: its definition keeps changing", rows.table),
        ))
    }

    /// One round: compares, and has the definition changed where rows need it. What a transform
    /// adds becomes a column however the rows were written.
    async fn fit(&self, rows: &TableBatch, write: &Write, transformed: bool) -> Result<Round> {
        let (known, checked) = self.look(rows)?;
        if !write.partial {
            refuse_conflicts(&checked)?;
        }
        let exists = known.is_some();
        match known {
            Some(known) if checked.missing.is_empty() => {
                return Ok(Round::Fits(known, checked));
            }
            // Every row conflicts within the request itself: there is nothing to create for.
            None if checked.batch.num_rows() == 0 => return Ok(Round::Nothing(checked.rejected)),
            _ => {}
        }
        let may_add = write.create || (exists && transformed);
        if !may_add {
            return Err(self.missing(rows, &checked, exists));
        }
        let ddl = definition(rows, &checked, known.as_deref());
        match self.catalog.call(ddl).await {
            Ok(_) => Ok(Round::Again),
            Err(error) => match error.code() {
                // Somebody else was faster and defined it differently: the next look says how.
                Code::TypeConflict | Code::TableNotFound => Ok(Round::Again),
                Code::LimitReached | Code::InvalidInput | Code::InUse if write.partial => {
                    match known {
                        Some(known) => {
                            let checked = checked.without_missing(&error, false)?;
                            Ok(Round::Fits(known, checked))
                        }
                        None => Ok(Round::Nothing(checked.without_missing(&error, true)?.rejected)),
                    }
                }
                _ => Err(error),
            },
        }
    }

    /// Checks rows against the table as it is now.
    fn look(&self, rows: &TableBatch) -> Result<(Option<Arc<Known>>, Checked)> {
        let snapshot = self.store.catalog();
        let known = match snapshot.table(&rows.table) {
            Some(table) => Some(self.known(&table.def)?),
            None => None,
        };
        let checked = check(rows, known.as_deref())?;
        let checked = match snapshot.retention_ns(&rows.table) {
            Some(retention_ns) => {
                let now = self.store.env().clock.now_ns();
                checked.without_expired(&rows.table, expired_upto(retention_ns, now))?
            }
            None => checked,
        };
        Ok((known, checked))
    }

    fn known(&self, def: &Arc<TableDef>) -> Result<Arc<Known>> {
        let mut cache = self.known.lock();
        if let Some(known) = cache.get(&def.id)
            && known.def.schema.version == def.schema.version
        {
            return Ok(known.clone());
        }
        if cache.len() >= MAX_KNOWN {
            cache.clear();
        }
        let known = Arc::new(Known::new(def.clone())?);
        cache.insert(def.id, known.clone());
        Ok(known)
    }

    fn missing(&self, rows: &TableBatch, checked: &Checked, exists: bool) -> Error {
        if exists {
            let names: Vec<_> = checked.missing.iter().map(|column| &column.name).collect();
            return Error::new(
                Code::ColumnNotFound,
                format!("table {} has no column {names:?}", rows.table),
            );
        }
        if !self.store.catalog().databases.contains(&rows.table.database) {
            return no_database(&rows.table.database);
        }
        Error::new(Code::TableNotFound, format!("table {} does not exist", rows.table))
    }

    /// Makes rows of a table and those of one of Kymo's own that belong to them, such as what
    /// its transforms refused, durable, all or none.
    async fn keep(
        &self,
        kept: Option<(Arc<Known>, RecordBatch)>,
        beside: Option<&OwnRows>,
        durability: Option<Durability>,
    ) -> Result<Option<Position>> {
        let beside = match beside {
            Some(rows) => Some(self.own(rows).await?),
            None => None,
        };
        let ((known, batch), (other, second)) = match (kept, beside) {
            (None, None) => return Ok(None),
            (Some((known, batch)), None) | (None, Some((known, batch))) => {
                return self.append(&known.def, batch, durability, None).await.map(Some);
            }
            (Some(kept), Some(beside)) => (kept, beside),
        };
        let record = self.encode(&other.def, &second).await?;
        let (deliver, shown) = self.writers.deliver(&other.def)?;
        let beside = Beside { batch: second, record, deliver };
        let position = self.append(&known.def, batch, durability, Some(beside)).await?;
        // What is acknowledged shows. Without word the table was dropped, and its rows with it.
        let _ = shown.await;
        Ok(Some(position))
    }

    /// One of Kymo's own tables, made where it is missing, and rows that fit it.
    async fn own(&self, own: &OwnRows) -> Result<(Arc<Known>, RecordBatch)> {
        let rows = &own.rows;
        if self.store.catalog().table(&rows.table).is_none() {
            let ddl = Ddl::CreateTable {
                name: rows.table.clone(),
                schema: own.schema.clone(),
                options: own.options.clone(),
                if_not_exists: true,
                // Refused rows belong to a database; if that is gone, so are they.
                create_database: !rejected::is(&rows.table),
                retention_ns: None,
            };
            self.catalog.call(ddl).await?;
        }
        match self.look(rows)? {
            (Some(known), checked) if checked.batch.num_rows() == rows.batch.num_rows() => {
                Ok((known, checked.batch))
            }
            (Some(known), _) => {
                Err(Error::internal(format!("table {} takes no rows of its own", known.def.name)))
            }
            (None, _) => {
                let text = format!("table {} was dropped", rows.table);
                Err(Error::new(Code::TableNotFound, text))
            }
        }
    }

    async fn append(
        &self,
        def: &Arc<TableDef>,
        batch: RecordBatch,
        durability: Option<Durability>,
        beside: Option<Beside>,
    ) -> Result<Position> {
        let record = self.encode(def, &batch).await?;
        self.writers.port(def)?.call(Append { batch, record, durability, beside }).await
    }

    async fn encode(&self, def: &TableDef, batch: &RecordBatch) -> Result<Record> {
        let (id, version) = (def.id, def.schema.version);
        if batch.get_array_memory_size() < ENCODE_HERE {
            return Record::encode(id, version, batch);
        }
        let batch = batch.clone();
        let encode = move || Record::encode(id, version, &batch);
        self.pools.foreground("encode", encode).await?
    }
}

/// Nobody else fills Kymo's own tables.
fn refuse_system(write: &Write) -> Result<()> {
    match write.batches.iter().find(|rows| rows.table.schema == SYSTEM_SCHEMA) {
        None => Ok(()),
        Some(rows) => Err(Error::new(
            Code::InvalidInput,
            format!("table {} takes no rows: it is one of Kymo's own", rows.table),
        )
        .with_hint("write to another schema")),
    }
}

/// The change that makes the table take the rows.
fn definition(rows: &TableBatch, checked: &Checked, known: Option<&Known>) -> Ddl {
    match known {
        Some(known) => Ddl::AddColumns {
            table: known.def.id,
            schema: TableSchema { version: 0, columns: checked.missing.clone() },
        },
        None => Ddl::CreateTable {
            name: rows.table.clone(),
            schema: schema_of(&checked.missing),
            options: TableOptions::default(),
            if_not_exists: true,
            create_database: true,
            retention_ns: None,
        },
    }
}

/// Fails a request that takes all rows or none.
fn refuse_conflicts(checked: &Checked) -> Result<()> {
    let Some(first) = checked.rejected.first() else {
        return Ok(());
    };
    let others = match checked.rejected.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let way_out = first.error.hint().unwrap_or_default();
    let hint = match first.line {
        0 => way_out.to_owned(),
        line => format!("line {line}{others}: {way_out}"),
    };
    Err(first.error.clone().with_hint(hint))
}
