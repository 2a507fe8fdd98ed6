//! One instance of a plugin: created for a query (or a pipeline), called one batch at a time
//! within its deadline and its memory, and never entered again once it has failed.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kymo_kernel::env::Clock;
use kymo_kernel::{Code, Error, Result, check};
use wasmtime::{Store, Trap, UpdateDeadline, WasmBacktrace};

use crate::engine::{Engine, TICK};
use crate::limits::Limits;
use crate::line::{Bound, CallError, Called, Start};
use crate::log::{Logger, PluginLog};
use crate::memory::{Limiter, MemoryAccount, Refusal};
use crate::permits::Permit;
use crate::stats::{Fault, Pending};
use crate::usage::Usage;
use crate::version::PluginVersion;

/// What calls of plugins have to know of the query that they are made for.
#[derive(Clone)]
pub struct QueryContext {
    /// Set by whoever cancels the query; running code sees it within a few hundredths of a
    /// second.
    pub cancel: Arc<AtomicBool>,
    /// When the query has to end, on the monotonic clock of the process.
    pub deadline: Option<Duration>,
    /// `now()` of the query, in nanoseconds since 1970-01-01T00:00:00Z.
    pub time_ns: i64,
    /// The session's time zone.
    pub timezone: String,
    /// What the seeds of all instances of the query are made from.
    pub seed: u64,
    /// Where memory is charged.
    pub memory: Arc<dyn MemoryAccount>,
    /// What is spent in calls.
    pub usage: Arc<Usage>,
}

impl QueryContext {
    /// # Errors
    /// [`Code::Cancelled`] or [`Code::Deadline`] once the query has to end.
    pub(crate) fn check(&self, clock: &dyn Clock) -> Result<()> {
        match self.stop(clock) {
            Some(stop) => Err(stop.error()),
            None => Ok(()),
        }
    }

    fn stop(&self, clock: &dyn Clock) -> Option<Stop> {
        if self.cancel.load(Ordering::Relaxed) {
            return Some(Stop::Cancelled);
        }
        let over = |end: Duration| clock.monotonic() >= end;
        self.deadline.is_some_and(over).then_some(Stop::Query)
    }
}

/// Why code was stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The query was cancelled.
    Cancelled,
    /// The query's time is over.
    Query,
    /// The call's time is over.
    Call,
}

impl Stop {
    fn error(self) -> Error {
        match self {
            Stop::Cancelled => Error::new(Code::Cancelled, "the query was cancelled"),
            Stop::Query => Error::new(Code::Deadline, "the query's time is over"),
            Stop::Call => Error::new(Code::Deadline, "the call took too long"),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.error().message())
    }
}

impl std::error::Error for Stop {}

/// What the engine and the interface's imports find beside an instance.
pub(crate) struct HostState {
    limiter: Limiter,
    pub(crate) logger: Logger,
    context: Arc<QueryContext>,
    clock: Arc<dyn Clock>,
    call_end: Duration,
    call_time: Duration,
}

impl HostState {
    fn look(&self) -> Option<Stop> {
        let late = || (self.clock.monotonic() >= self.call_end).then_some(Stop::Call);
        self.context.stop(self.clock.as_ref()).or_else(late)
    }
}

/// An instance and the store that it lives in.
pub(crate) struct Instance {
    // The order is that of dropping: the store gives its memory back before the permit goes.
    bound: Box<dyn Bound>,
    store: Store<HostState>,
    version: Arc<PluginVersion>,
    pending: Pending,
    poisoned: bool,
    calls: u64,
    born: Duration,
    _permit: Permit,
}

/// Where an instance comes from and belongs to.
pub(crate) struct Birth<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) log: &'a Arc<PluginLog>,
    pub(crate) context: &'a Arc<QueryContext>,
}

/// What one call is about, for its limits and its errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallSite<'a> {
    /// What is called, as errors name it: `c2f`, `spread.update`.
    pub(crate) name: &'a str,
    /// Rows handed over.
    pub(crate) rows: usize,
    /// Bytes handed over.
    pub(crate) bytes: usize,
    /// The row of the query's batch that is the call's first.
    pub(crate) first_row: usize,
}

impl<'a> CallSite<'a> {
    /// A call that hands no rows over.
    pub(crate) fn of(name: &'a str) -> CallSite<'a> {
        CallSite { name, rows: 0, bytes: 0, first_row: 0 }
    }
}

/// A failed call: the error for the query, and the fault if it is the plugin's.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) fault: Option<Fault>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, fault: None }
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Instance {
    /// A fresh instance that has been started.
    pub(crate) fn start(
        birth: &Birth<'_>,
        version: &Arc<PluginVersion>,
        permit: Permit,
    ) -> std::result::Result<Instance, Failure> {
        let mut instance = Instance::new(birth, version, permit)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let context = birth.context.clone();
        let start = Start {
            query_time_ns: context.time_ns,
            timezone: &context.timezone,
            seed: mixed(context.seed, number),
            settings: version.settings(),
        };
        let site = CallSite::of("start");
        let time = version.limits().start_timeout;
        instance.call_within(time, site, |bound, store| bound.start(store, &start))?;
        instance.calls = 0;
        Ok(instance)
    }

    /// A fresh instance that nobody has called.
    pub(crate) fn new(
        birth: &Birth<'_>,
        version: &Arc<PluginVersion>,
        permit: Permit,
    ) -> std::result::Result<Instance, Failure> {
        let clock = birth.engine.env().clock.clone();
        let limits = version.limits();
        let state = HostState {
            limiter: Limiter::new(birth.context.memory.clone(), limits),
            logger: Logger::new(
                birth.log.clone(),
                version.name().clone(),
                version.short().clone(),
                limits.log_lines,
                limits.log_bytes,
            ),
            context: birth.context.clone(),
            call_end: clock.monotonic() + limits.start_timeout,
            call_time: limits.start_timeout,
            clock,
        };
        let born = state.clock.monotonic();
        let mut store = Store::new(birth.engine.wasm(), state);
        store.limiter(|state| &mut state.limiter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| match store.data().look() {
            None => Ok(UpdateDeadline::Continue(1)),
            Some(stop) => Err(wasmtime::Error::new(stop)),
        });
        store.set_hostcall_fuel(limits.result_bytes);
        let entered = catch_unwind(AssertUnwindSafe(|| version.line().instantiate(&mut store)));
        let bound = match entered {
            Ok(Ok(bound)) => bound,
            Ok(Err(error)) => {
                return Err(judge(&mut store, version, CallSite::of("instantiate"), error));
            }
            Err(_) => return Err(panicked("instantiate").into()),
        };
        version.stats().created();
        let context = birth.context;
        let took = clock_of(&store).saturating_sub(born);
        context.usage.add((version.name(), version.short()), "instantiate", 0, took);
        Ok(Instance {
            bound,
            store,
            version: version.clone(),
            pending: Pending::default(),
            poisoned: false,
            calls: 0,
            born,
            _permit: permit,
        })
    }

    /// Whether it must not be entered again.
    pub(crate) fn poisoned(&self) -> bool {
        self.poisoned
    }

    /// Calls since it was started.
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// How long it has lived.
    pub(crate) fn age(&self) -> Duration {
        clock_of(&self.store).saturating_sub(self.born)
    }

    /// Bytes of memory that it has.
    pub(crate) fn memory(&self) -> usize {
        self.store.data().limiter.charged()
    }

    /// One call within the time of the plugin's limits.
    pub(crate) fn call<T>(
        &mut self,
        site: CallSite<'_>,
        body: impl FnOnce(&mut dyn Bound, &mut Store<HostState>) -> Called<T>,
    ) -> std::result::Result<T, Failure> {
        self.call_within(self.version.limits().call_timeout, site, body)
    }

    /// One call within this time.
    pub(crate) fn call_within<T>(
        &mut self,
        time: Duration,
        site: CallSite<'_>,
        body: impl FnOnce(&mut dyn Bound, &mut Store<HostState>) -> Called<T>,
    ) -> std::result::Result<T, Failure> {
        if self.poisoned {
            return Err(Error::internal("a plugin instance that failed was entered again").into());
        }
        let begin = self.prepare(time, site)?;
        let (bound, store) = (self.bound.as_mut(), &mut self.store);
        let outcome = catch_unwind(AssertUnwindSafe(|| body(bound, store)));
        self.count(begin, time, site);
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.poisoned = !matches!(error, CallError::Reported { .. });
                Err(judge(&mut self.store, &self.version, site, error))
            }
            Err(_) => {
                self.poisoned = true;
                Err(panicked(site.name).into())
            }
        }
    }

    fn prepare(&mut self, time: Duration, site: CallSite<'_>) -> Result<Duration> {
        let results = self.version.limits().result_bytes;
        let store = &mut self.store;
        let state = store.data_mut();
        state.context.check(state.clock.as_ref())?;
        let begin = state.clock.monotonic();
        state.call_end = begin + time;
        state.call_time = time;
        state.limiter.take_refusal();
        state.logger.take_last();
        store.set_hostcall_fuel(results.saturating_add(site.bytes.saturating_mul(4)));
        store.set_epoch_deadline(1);
        Ok(begin)
    }

    fn count(&mut self, begin: Duration, time: Duration, site: CallSite<'_>) {
        let took = clock_of(&self.store).saturating_sub(begin);
        self.calls += 1;
        let version = (self.version.name(), self.version.short());
        self.store.data().context.usage.add(version, site.name, site.rows as u64, took);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.version.stats().called(&mut self.pending, site.rows as u64, nanoseconds);
        let memory = self.memory();
        self.version.stats().memory(memory);
        check!(P1, memory <= self.version.limits().memory_bytes, "{memory} bytes");
        // Copying in and out of the call is not interrupted, and a busy machine has late ticks.
        check!(P1, took < time + 1000 * TICK, "{} took {took:?}", site.name);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.version.stats().flush(&mut self.pending);
        self.version.stats().dropped();
    }
}

/// The monotonic clock of the process, as an instance sees it.
fn clock_of(store: &Store<HostState>) -> Duration {
    store.data().clock.monotonic()
}

/// Another seed for every instance, from the query's and a number (SplitMix64).
fn mixed(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn panicked(name: &str) -> Error {
    Error::internal(format!("the host of plugins panicked in a call of {name}"))
}

/// What went wrong, for the query and for the plugin's record.
fn judge(
    store: &mut Store<HostState>,
    version: &PluginVersion,
    site: CallSite<'_>,
    error: CallError,
) -> Failure {
    let refused = store.data_mut().limiter.take_refusal();
    let said = store.data_mut().logger.take_last();
    let limits = version.limits();
    let (error, fault) = match error {
        CallError::Host(error) => return error.into(),
        CallError::Reported { code, message, row } => {
            let row = row.map(|row| site.first_row + row as usize);
            (told(limits, code, &message, row), None)
        }
        CallError::Broken(what) => {
            let text = format!("it broke the interface: {}", cut(&what, limits.text_bytes));
            (Error::new(Code::PluginFailed, text), Some(Fault::Interface))
        }
        CallError::Trap(trap) => trapped(limits, store.data().call_time, &trap, refused, said),
    };
    let place = format!("plugin {} ({}), {}", version.name(), version.short(), site.name);
    let error = match fault {
        None => error.context(place),
        Some(Fault::Deadline) if ["instantiate", "start", "describe"].contains(&site.name) => error
            .context(place)
            .with_hint("raise plugins.start_timeout_ms, if it is an interpreter that starts"),
        Some(_) => error
            .context(place)
            .with_hint("this is a defect of the plugin; system.plugin_log may say more"),
    };
    Failure { error, fault }
}

/// The plugin's own error.
fn told(limits: &Limits, code: Code, message: &str, row: Option<usize>) -> Error {
    let message = cut(message, limits.text_bytes);
    match row {
        Some(row) => Error::new(code, format!("row {row}: {message}")),
        None => Error::new(code, message),
    }
}

fn trapped(
    limits: &Limits,
    time: Duration,
    trap: &wasmtime::Error,
    refused: Option<Refusal>,
    said: Option<String>,
) -> (Error, Option<Fault>) {
    if let Some(stop) = trap.downcast_ref::<Stop>() {
        return match stop {
            Stop::Cancelled | Stop::Query => (stop.error(), None),
            Stop::Call => (late(time), Some(Fault::Deadline)),
        };
    }
    let cause = match trap.downcast_ref::<Trap>() {
        Some(code) => format!("it trapped: {code}"),
        None => format!("it failed: {}", cut(&trap.root_cause().to_string(), limits.text_bytes)),
    };
    let mut text = cause;
    if let Some(frames) = trap.downcast_ref::<WasmBacktrace>().and_then(frames) {
        text = format!("{text}, in {frames}");
    }
    if let Some(said) = said {
        text = format!("{text}; before, it logged: {}", cut(&said, limits.text_bytes));
    }
    match refused {
        None => (Error::new(Code::PluginFailed, text), Some(Fault::Trap)),
        Some(Refusal::Limit) => {
            let limit = limits.memory_bytes;
            let text = format!("it was refused more memory than its {limit} bytes; {text}");
            (Error::new(Code::OutOfMemory, text), Some(Fault::Memory))
        }
        // The query has used up its share: no fault of the plugin.
        Some(Refusal::Account) => {
            let text = format!("the query has no memory left for it; {text}");
            (Error::new(Code::OutOfMemory, text), None)
        }
    }
}

fn late(time: Duration) -> Error {
    let text = format!("the call took longer than {} ms", time.as_millis());
    Error::new(Code::Deadline, text)
}

/// The names of the innermost functions.
fn frames(trace: &WasmBacktrace) -> Option<String> {
    let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
        Some(name) => cut(name, 80).to_owned(),
        None => format!("function {}", frame.func_index()),
    };
    let names: Vec<String> = trace.frames().iter().take(5).map(name).collect();
    (!names.is_empty()).then(|| names.join(" < "))
}

/// A text of at most so many bytes.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let mut end = bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
