//! Where work runs: every thread of the process is made here, with a name and a purpose.
//!
//! | pool | runs | threads |
//! |---|---|---|
//! | [`Pool::Io`] | sockets, HTTP, object-store clients, supervision | `server.io_threads` |
//! | [`Pool::Query`] | planning and execution of queries, plugin calls | `query.threads` |
//! | background | flush, compaction, compilation; niced | `server.background_threads` |
//! | foreground | short computing that a caller waits for: parsing, password hashes | one a core |
//! | arbiters | actors, by [`Group`]; timers and sockets belong to the I/O runtime | 4 groups |
//! | threads | what must not share: the journal, the watchdog | one each |
//! | own | the client of a bucket, whose callers block ([`OwnRuntime`]) | 2 |
//!
//! Nothing is spawned without a name and an owner: dropping a [`Task`] or a [`TaskGroup`]
//! stops what it owns. [`Pools::here`] maps all of it onto the current `LocalSet`: the same
//! program on one thread, for simulation.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_rt::ArbiterHandle;
use kymo_config::Settings;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::error::{Code, Error, Result};
use crate::host::panic_text;

mod group;
mod place;

pub use group::TaskGroup;
use place::Arbiters;
pub use place::Group;
pub(crate) use place::Place;

/// A runtime that futures are spawned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pool {
    /// Sockets and everything that waits.
    Io,
    /// Planning and running queries.
    Query,
    /// Asynchronous parts of background work.
    Background,
}

/// How many threads each pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSizes {
    /// Threads of the I/O runtime.
    pub io: usize,
    /// Threads of the query runtime.
    pub query: usize,
    /// Background jobs that run at a time.
    pub background: usize,
    /// Foreground jobs that run at a time.
    pub foreground: usize,
    /// Arbiters of each group, in the order of [`Group::ALL`].
    pub arbiters: [usize; Group::ALL.len()],
}

impl PoolSizes {
    /// The sizes that the settings ask for on a machine with `cores` cores.
    #[must_use]
    pub fn of(settings: &Settings, cores: usize) -> PoolSizes {
        let or = |wanted: usize, default: usize| if wanted == 0 { default } else { wanted };
        PoolSizes {
            io: or(settings.server.io_threads, cores.max(2)),
            query: or(settings.query.threads, cores.max(2)),
            background: or(settings.server.background_threads, (cores / 4).max(1)),
            foreground: cores.max(1),
            arbiters: [
                1,
                (cores / 4).clamp(1, 2),
                (cores / 4).clamp(1, 8),
                (cores / 4).clamp(1, 4),
            ],
        }
    }

    /// How many cores this process may use.
    #[must_use]
    pub fn cores() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}

/// All pools; cheap to clone. Stopped by [`Pools::stop`], or when the last clone goes.
#[derive(Clone)]
pub struct Pools(Arc<Inner>);

struct Inner {
    /// `None` on one thread, where everything is spawned on the current `LocalSet`.
    threads: Option<Threads>,
    background: Arc<Semaphore>,
    foreground: Arc<Semaphore>,
    sizes: PoolSizes,
    next_arbiter: [AtomicUsize; Group::ALL.len()],
}

struct Threads {
    io: Handle,
    query: Handle,
    background: Handle,
    arbiters: Vec<Vec<ArbiterHandle>>,
    owned: Mutex<Option<Owned>>,
}

/// What has to be ended, in this order.
struct Owned {
    arbiters: Arbiters,
    query: Runtime,
    background: Runtime,
    io: Arc<Runtime>,
}

/// How long [`Pools::stop`] waits for each runtime's running work.
const RUNTIME_GRACE: Duration = Duration::from_millis(500);

/// Niceness of background threads: half-way down, so that they use idle cores only.
const BACKGROUND_NICENESS: i32 = 10;

impl Pools {
    /// Makes all threads.
    ///
    /// # Errors
    /// [`Code::Io`] if the operating system refuses a thread.
    pub fn start(sizes: PoolSizes) -> Result<Pools> {
        let make = |what: &str, made: std::io::Result<Runtime>| {
            made.map_err(|error| Error::io(format!("start the {what} runtime"), error))
        };
        let io = make("i/o", runtime("kymo-io", sizes.io, sizes.foreground, 0))?;
        let query = make("query", runtime("kymo-query", sizes.query, 8, 0))?;
        let niced = runtime("kymo-background", 1, sizes.background, BACKGROUND_NICENESS);
        let background = make("background", niced)?;
        let io = Arc::new(io);
        let arbiters = Arbiters::start(&io, sizes.arbiters)?;
        let threads = Threads {
            io: io.handle().clone(),
            query: query.handle().clone(),
            background: background.handle().clone(),
            arbiters: arbiters.handles(),
            owned: Mutex::new(Some(Owned { arbiters, query, background, io })),
        };
        Ok(Pools::new(Some(threads), sizes))
    }

    /// Everything on the current `LocalSet`: futures and actors become local tasks, jobs run
    /// inside one. For simulation; must be used within that `LocalSet` only.
    #[must_use]
    pub fn here() -> Pools {
        let arbiters = [1; Group::ALL.len()];
        let sizes = PoolSizes { io: 1, query: 1, background: 1, foreground: 1, arbiters };
        Pools::new(None, sizes)
    }

    fn new(threads: Option<Threads>, sizes: PoolSizes) -> Pools {
        Pools(Arc::new(Inner {
            threads,
            background: Arc::new(Semaphore::new(sizes.background)),
            foreground: Arc::new(Semaphore::new(sizes.foreground)),
            sizes,
            next_arbiter: Default::default(),
        }))
    }

    /// How many threads each pool has.
    #[must_use]
    pub fn sizes(&self) -> PoolSizes {
        self.0.sizes
    }

    /// Whether everything runs on the current thread.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.0.threads.is_none()
    }

    /// The runtime behind a pool, for libraries that want a handle; `None` on one thread.
    #[must_use]
    pub fn handle(&self, pool: Pool) -> Option<&Handle> {
        self.0.threads.as_ref().map(|threads| threads.handle(pool))
    }

    /// Runs a future on the I/O runtime from a thread that belongs to none, such as `main`.
    ///
    /// # Errors
    /// [`Code::Internal`] where everything runs on the current thread.
    ///
    /// # Panics
    /// Inside of asynchronous code.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output> {
        let handle = self.handle(Pool::Io);
        let handle = handle.ok_or_else(|| Error::internal("block_on needs pools with threads"))?;
        Ok(handle.block_on(future))
    }

    /// Spawns a future with a name; dropping the [`Task`] aborts it.
    pub fn spawn<T: Send + 'static>(
        &self,
        pool: Pool,
        name: impl Into<Arc<str>>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let join = match self.handle(pool) {
            Some(handle) => handle.spawn(future),
            None => tokio::task::spawn_local(future),
        };
        Task { name: name.into(), join }
    }

    /// Runs a blocking job on the niced background pool: flush, compaction, compilation.
    ///
    /// At most `background` jobs run at a time, the rest wait in order; who submits jobs
    /// bounds how many. Dropping the [`Task`] takes back a job that has not started; one that
    /// runs goes on to its end, and its result is thrown away.
    pub fn background<T: Send + 'static>(
        &self,
        name: impl Into<Arc<str>>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        self.job(Pool::Background, &self.0.background, name.into(), job)
    }

    /// Runs a short blocking job that somebody waits for: parsing a large body, hashing a
    /// password. Normal priority, at most one a core at a time, the rest waits in order.
    pub fn foreground<T: Send + 'static>(
        &self,
        name: impl Into<Arc<str>>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        self.job(Pool::Io, &self.0.foreground, name.into(), job)
    }

    fn job<T: Send + 'static>(
        &self,
        pool: Pool,
        limit: &Arc<Semaphore>,
        name: Arc<str>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        let limit = Arc::clone(limit);
        let span = tracing::Span::current();
        let blocking = !self.is_here();
        self.spawn(pool, name, async move {
            let permit = limit.acquire_owned().await;
            let run = move || {
                let _permit = permit;
                span.in_scope(|| catch_unwind(AssertUnwindSafe(job)))
            };
            let outcome = if blocking {
                match tokio::task::spawn_blocking(run).await {
                    Ok(outcome) => outcome,
                    Err(error) => Err(Box::new(error.to_string()) as _),
                }
            } else {
                run()
            };
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread of its own for something that must not share one, such as the journal.
    ///
    /// # Errors
    /// [`Code::Io`] if the operating system refuses.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<NamedThread<T>> {
        thread(name, body)
    }

    /// Where the next actor of a group is placed: its arbiters in turn.
    pub(crate) fn place(&self, group: Option<Group>) -> Place {
        let (Some(threads), Some(group)) = (&self.0.threads, group) else { return Place::Here };
        let arbiters = &threads.arbiters[group as usize];
        let turn = self.0.next_arbiter[group as usize].fetch_add(1, Ordering::Relaxed);
        Place::Arbiter(arbiters[turn % arbiters.len()].clone())
    }

    /// Ends all threads: arbiters are joined, runtimes get half a second for what still runs.
    ///
    /// Blocks: call it from a thread that belongs to no pool, after the ordered shutdown.
    pub fn stop(&self) {
        let Some(owned) = self.0.threads.as_ref().and_then(|threads| threads.owned.lock().take())
        else {
            return;
        };
        owned.arbiters.stop();
        owned.query.shutdown_timeout(RUNTIME_GRACE);
        owned.background.shutdown_timeout(RUNTIME_GRACE);
        if let Ok(io) = Arc::try_unwrap(owned.io) {
            io.shutdown_timeout(RUNTIME_GRACE);
        }
    }
}

impl Threads {
    fn handle(&self, pool: Pool) -> &Handle {
        match pool {
            Pool::Io => &self.io,
            Pool::Query => &self.query,
            Pool::Background => &self.background,
        }
    }
}

/// The last clone may go inside asynchronous code, where dropping a runtime would panic.
impl Drop for Threads {
    fn drop(&mut self) {
        let Some(owned) = self.owned.lock().take() else { return };
        owned.arbiters.abandon();
        owned.query.shutdown_background();
        owned.background.shutdown_background();
        if let Ok(io) = Arc::try_unwrap(owned.io) {
            io.shutdown_background();
        }
    }
}

/// Plans are trees walked by recursion, and plugins run on their caller's stack, so workers get
/// more than the 2 MiB of a thread by default. Pages are taken only where they are touched.
const STACK_BYTES: usize = 8 << 20;

fn runtime(name: &str, threads: usize, blocking: usize, niceness: i32) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        // Two more for the resolver and for libraries that open files.
        .max_blocking_threads(blocking + 2)
        .thread_name(name)
        .thread_stack_size(STACK_BYTES)
        .on_thread_start(move || be_nice(niceness))
        .enable_all()
        .build()
}

/// Lowers the priority of the current thread; on Linux niceness belongs to the thread.
fn be_nice(niceness: i32) {
    if niceness == 0 {
        return;
    }
    // SAFETY: a plain system call on integers; `0` names the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) };
    if result != 0 {
        tracing::debug!(niceness, "thread priority not lowered");
    }
}

/// A runtime of its own for a client whose callers block: they may stand on any thread, also on
/// one of another runtime, and never wait for themselves.
pub struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    /// Starts `threads` threads with a name.
    ///
    /// # Errors
    /// [`Code::Io`] if the operating system refuses a thread.
    pub fn start(name: &str, threads: usize) -> Result<OwnRuntime> {
        let made = runtime(name, threads, 1, 0);
        let made = made.map_err(|error| Error::io(format!("start the runtime {name}"), error))?;
        Ok(OwnRuntime(Some(made)))
    }

    /// Runs a future on it and waits for its output; `None` where it panicked or the runtime
    /// is gone. Blocks; must not be called on its own threads.
    pub fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.0.as_ref()?.spawn(async move {
            let output = future.await;
            // The receiver waits below for as long as this exists.
            let _ = sender.send(output);
        });
        receiver.recv().ok()
    }
}

/// May go inside asynchronous code, where waiting for a runtime's end would panic.
impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a thread with a name. Its panic becomes an error of [`NamedThread::join`].
///
/// # Errors
/// [`Code::Io`] if the operating system refuses.
pub fn thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<NamedThread<T>> {
    let handle = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| Error::io(format!("start thread {name}"), error))?;
    Ok(NamedThread { name: name.to_owned(), handle })
}

/// A thread of its own. Dropping this lets it run on: its body ends when its work is done.
#[derive(Debug)]
pub struct NamedThread<T> {
    name: String,
    handle: std::thread::JoinHandle<T>,
}

impl<T> NamedThread<T> {
    /// Waits for its end. Blocks.
    ///
    /// # Errors
    /// [`Code::Internal`] if it panicked.
    pub fn join(self) -> Result<T> {
        self.handle.join().map_err(|panic| panicked(&self.name, &panic_text(panic.as_ref())))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// A spawned future or job. Await it for its output; dropping it aborts it.
///
/// Its output is an error with [`Code::Internal`] if it panicked, and with [`Code::Down`] if
/// its pool stopped.
#[derive(Debug)]
#[must_use = "dropping a task aborts it"]
pub struct Task<T> {
    name: Arc<str>,
    join: JoinHandle<T>,
}

impl<T> Task<T> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.join.is_finished()
    }

    /// Stops it at its next await.
    pub fn abort(&self) {
        self.join.abort();
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let joined = std::task::ready!(Pin::new(&mut self.join).poll(cx));
        Poll::Ready(joined.map_err(|error| {
            if error.is_panic() {
                return panicked(&self.name, &panic_text(error.into_panic().as_ref()));
            }
            Error::new(Code::Down, format!("{} was stopped", self.name))
        }))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.join.abort();
    }
}

fn panicked(name: &str, text: &str) -> Error {
    Error::internal(format!("{name} panicked: {text}")).with_hint("this is a defect; report it")
}

#[cfg(test)]
mod tests;
