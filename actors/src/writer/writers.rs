//! Finds the writer of a table, and starts it when it is first needed.
//!
//! Ten thousand tables may exist and few may be written to, so a writer is made by the first
//! append, or at the start for tables that recovery left rows of in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{Append, Deliver};
use kymo_kernel::pools::Group;
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::schema::TableDef;
use kymo_kernel::supervise::{Restart, Running, Spec, Supervisor};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Altered, Context, Dropped, Freeze, Replaced, Turns, Writer};
use crate::catalog::TableObserver;
use crate::memory::Memory;

/// Control messages that may wait for one writer.
const CONTROL: usize = 16;

/// The writers of a process; cheap to clone.
#[derive(Clone)]
pub struct Writers(Arc<Inner>);

struct Inner {
    context: Context,
    memory: Arc<Memory>,
    supervisor: Supervisor,
    append: Budget,
    table: Mutex<BTreeMap<TableId, Entry>>,
    turns: Turns,
    /// Writers of dropped tables that still answer what was under way.
    leaving: Mutex<BTreeMap<TableId, Running<Writer>>>,
}

/// A writer, alive as long as this is.
struct Entry {
    running: Running<Writer>,
    ports: Ports,
}

/// The ways to one writer.
#[derive(Clone)]
pub struct Ports {
    /// Rows.
    pub append: Port<Append>,
    /// Flush now.
    pub freeze: Port<Freeze>,
    altered: Port<Altered>,
    dropped: Port<Dropped>,
    /// Segments in the place of others.
    pub replaced: Port<Replaced>,
}

impl Writers {
    /// No writers yet; those that come are placed and watched by `supervisor`, and each has
    /// the budget `append` for rows on their way.
    #[must_use]
    pub fn new(
        context: Context,
        memory: Arc<Memory>,
        supervisor: Supervisor,
        append: Budget,
    ) -> Self {
        Writers(Arc::new(Inner {
            context,
            memory,
            supervisor,
            append,
            table: Mutex::default(),
            turns: Turns::default(),
            leaving: Mutex::default(),
        }))
    }

    /// The way to the writer of a table.
    ///
    /// # Errors
    /// `table_not_found` where the table was dropped.
    pub fn port(&self, def: &TableDef) -> Result<Port<Append>> {
        Ok(self.ports(def)?.append)
    }

    /// All ways to the writer of a table, which is started if there is none.
    ///
    /// # Errors
    /// `table_not_found` where the table was dropped.
    pub fn ports(&self, def: &TableDef) -> Result<Ports> {
        let mut table = self.0.table.lock();
        if let Some(entry) = table.get(&def.id) {
            return Ok(entry.ports.clone());
        }
        let entry = self.start(def)?;
        let ports = entry.ports.clone();
        table.insert(def.id, entry);
        Ok(ports)
    }

    /// A way to hand the writer of a table rows that become durable with an append to another
    /// one, and word of when they are shown. It costs no permit here: the append's covers it.
    ///
    /// # Errors
    /// `table_not_found` where the table was dropped.
    pub fn deliver(&self, def: &TableDef) -> Result<(Deliver, oneshot::Receiver<()>)> {
        self.ports(def)?;
        let writer = self.0.table.lock().get(&def.id).map(|entry| entry.running.poster());
        let writer = writer.ok_or_else(|| {
            Error::new(Code::TableNotFound, format!("table {} was dropped", def.name))
        })?;
        let (shown, seen) = oneshot::channel();
        let deliver = move |position, batch| {
            writer.post(move |writer, cx| {
                writer.attend(position, batch, cx);
                // Whoever waited may have gone.
                let _ = shown.send(());
            });
        };
        Ok((Box::new(deliver), seen))
    }

    fn start(&self, def: &TableDef) -> Result<Entry> {
        let inner = &self.0;
        let table = def.id;
        let state = inner.context.store.claim(table)?;
        let context = inner.context.clone();
        let (ask, left) = (self.weak(), self.weak());
        let meter = inner.memory.register(
            table,
            Box::new(move || ask().is_some_and(|writers| writers.ask_to_freeze(table))),
        );
        let on_stop = move || {
            if let Some(Writers(inner)) = left() {
                drop(inner.leaving.lock().remove(&table));
            }
        };
        let spec = Spec::new(format!("writer.{}", def.name), "writer")
            .on(Group::Writers)
            .restart(Restart::FailStop);
        let running = inner
            .supervisor
            .start_once(spec, move || Writer::new(context, state, meter, Box::new(on_stop)));
        let ports = Ports::of(&running, inner.append);
        Ok(Entry { running, ports })
    }

    /// A way back here for what the writers hold, which must not keep them alive.
    fn weak(&self) -> impl Fn() -> Option<Writers> + Send + Sync + 'static {
        let weak = Arc::downgrade(&self.0);
        move || weak.upgrade().map(Writers)
    }

    /// Tells a writer to freeze, without waiting; false where it has no room for the wish.
    pub fn ask_to_freeze(&self, table: TableId) -> bool {
        let port = self.0.table.lock().get(&table).map(|entry| entry.ports.freeze.clone());
        port.is_some_and(|port| port.tell(Freeze).is_ok())
    }

    /// Whose turn it is to exchange segments of a table.
    #[must_use]
    pub fn turns(&self) -> &Turns {
        &self.0.turns
    }

    /// How many writers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.table.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn all(&self) -> Vec<Ports> {
        self.0.table.lock().values().map(|entry| entry.ports.clone()).collect()
    }

    /// Takes no more rows, and completes once all that were accepted have been answered.
    pub async fn drain(&self) {
        let ports = self.all();
        ports.iter().for_each(|ports| ports.append.close());
        join_all(ports.iter().map(|ports| ports.append.drain())).await;
    }

    /// Ends all writers and their flushes; the rows in memory are in the journal.
    pub fn stop(&self) {
        self.0.context.flusher.cancel();
        self.0.table.lock().clear();
        self.0.leaving.lock().clear();
    }

    /// Flushes what is in memory now, of all tables.
    ///
    /// # Errors
    /// The first reason why rows could not be flushed.
    pub async fn flush(&self) -> Result<()> {
        let ports = self.all();
        let flushes = ports.iter().map(|ports| ports.freeze.call(Freeze));
        join_all(flushes).await.into_iter().collect()
    }
}

impl Ports {
    fn of(running: &Running<Writer>, append: Budget) -> Ports {
        Ports {
            append: running.port(append),
            freeze: running.port(Budget::count(CONTROL)),
            altered: running.port(Budget::count(CONTROL)),
            dropped: running.port(Budget::count(CONTROL)),
            replaced: running.port(Budget::count(CONTROL)),
        }
    }
}

impl TableObserver for Writers {
    fn altered(&self, def: &Arc<TableDef>) {
        let port = self.0.table.lock().get(&def.id).map(|entry| entry.ports.altered.clone());
        if let Some(port) = port
            && let Err(error) = port.tell(Altered(def.clone()))
        {
            // The next append brings the definition, too.
            warn!(table = %def.name, %error, "writer was not told of its new definition");
        }
    }

    fn dropped(&self, table: TableId) {
        let entry = self.0.table.lock().remove(&table);
        let Some(Entry { running, ports }) = entry else {
            return self.0.context.store.forget(table);
        };
        self.0.leaving.lock().insert(table, running);
        if let Err(error) = ports.dropped.tell(Dropped) {
            warn!(%table, %error, "writer of a dropped table was not told");
            drop(self.0.leaving.lock().remove(&table));
        }
    }
}
