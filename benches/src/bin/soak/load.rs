//! Everybody who works on the server during a soak: writers, readers, one who deletes and one
//! who checks. Each waits out a restart and repeats what was not acknowledged, which changes
//! nothing where it was done already.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kymo_benches::server::{Outcome, Server, text};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::Arguments;
use crate::ledger::{Ledger, REGIONS, Sum};

const SECOND: i64 = 1_000_000_000;
/// How long rows are kept.
const RETENTION_S: i64 = 240;
/// How late a row may be.
const LATE_S: i64 = 50;
/// The oldest second that is looked at; those before may expire meanwhile.
const OLDEST_S: i64 = 200;
/// Rows of a request.
const BATCH: usize = 500;
/// How long the windows of the continuous query may take to be right.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all threads know of one another.
pub struct Shared {
    /// How the run was asked for.
    pub arguments: Arguments,
    /// Whether to end.
    pub stop: AtomicBool,
    /// Rows acknowledged.
    pub rows: AtomicU64,
    /// Queries answered.
    pub queries: AtomicU64,
    /// The slowest query since the last look, in microseconds.
    pub slowest_us: AtomicU64,
    /// Seconds compared with the ledger.
    pub checks: AtomicU64,
    /// Rows in them.
    pub checked_rows: AtomicU64,
    /// Deletions done.
    pub deletions: AtomicU64,
    ledger: Mutex<Ledger>,
    /// For each writer the oldest second it may still write to.
    floors: Mutex<Vec<i64>>,
    /// Held while a second is compared or rows of it are deleted.
    settled: Mutex<()>,
}

impl Shared {
    /// Before the beginning.
    pub fn new(arguments: Arguments) -> Shared {
        let floors = Mutex::new(vec![i64::MAX; arguments.writers]);
        Shared {
            arguments,
            floors,
            stop: AtomicBool::default(),
            rows: AtomicU64::default(),
            queries: AtomicU64::default(),
            slowest_us: AtomicU64::default(),
            checks: AtomicU64::default(),
            checked_rows: AtomicU64::default(),
            deletions: AtomicU64::default(),
            ledger: Mutex::default(),
            settled: Mutex::default(),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A second that nobody writes to any more and that is not about to expire.
    fn settled_second(&self, random: &mut StdRng) -> Option<i64> {
        let now = now_ns() / SECOND;
        let floor = lock(&self.floors).iter().copied().min()?.min(now - LATE_S - 1);
        let oldest = now - OLDEST_S;
        lock(&self.ledger).forget(now - RETENTION_S);
        (oldest < floor).then(|| random.random_range(oldest..floor))
    }

    /// Does something until the server has answered; nothing where the run ends before. What
    /// the server refuses for another reason than that it is down or busy is a failure.
    fn persist<T>(&self, mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<Option<T>> {
        while !self.stopped() {
            match attempt() {
                Ok(done) => return Ok(Some(done)),
                Err(error) if excusable(&error) => thread::sleep(Duration::from_millis(100)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Whether an error is one of a server that is down, stops or is busy.
fn excusable(error: &str) -> bool {
    error.starts_with("503") || !error.starts_with(|first: char| first.is_ascii_digit())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ns() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Makes the table and what keeps its windows.
pub fn prepare(server: &Server) -> Outcome<()> {
    server.sql(&format!(
        "CREATE TABLE soak (host TEXT TAG, region TEXT TAG, n BIGINT, v DOUBLE, note TEXT, time \
         TIMESTAMP TIME INDEX) WITH (retention = '{RETENTION_S}s', window = '30s')"
    ))?;
    server.sql(
        "CREATE CONTINUOUS QUERY soak_sums INTO soak_10s AS SELECT time_bucket('10s', time) AS \
         time, region, count(*) AS c, sum(n) AS s FROM soak GROUP BY 1, 2",
    )?;
    Ok(())
}

/// Starts everybody.
pub fn start(shared: &Arc<Shared>) -> Vec<JoinHandle<Outcome<()>>> {
    let mut threads = Vec::new();
    let mut add = |work: fn(&Shared, usize, &Server) -> Outcome<()>, number: usize| {
        let shared = shared.clone();
        threads.push(thread::spawn(move || {
            let done = shared.arguments.server().and_then(|server| work(&shared, number, &server));
            // One who fails ends the run.
            if done.is_err() {
                shared.stop.store(true, Ordering::Relaxed);
            }
            done
        }));
    };
    (0..shared.arguments.writers).for_each(|number| add(write, number));
    (0..2).for_each(|number| add(read, number));
    add(delete, 0);
    add(check, 0);
    add(check_windows, 0);
    threads
}

/// A row as its writer remembers it.
#[derive(Clone, Copy)]
struct Row {
    host: usize,
    time: i64,
    number: i64,
}

fn write(shared: &Shared, writer: usize, server: &Server) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(writer as u64);
    let arguments = &shared.arguments;
    let rate = arguments.rows_per_second as f64 / arguments.writers as f64;
    let step = Duration::from_secs_f64(BATCH as f64 / rate);
    let (mut recent, mut due) = (VecDeque::new(), Instant::now());
    while !shared.stopped() {
        due = (due + step).max(Instant::now().checked_sub(step * 4).unwrap_or(due));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = now_ns();
        lock(&shared.floors)[writer] = now / SECOND - LATE_S - 1;
        let (lines, changes) = batch(shared, writer, now, &mut recent, &mut random);
        if shared.persist(|| server.write(lines.clone()))?.is_some() {
            lock(&shared.ledger).add(&changes);
            shared.rows.fetch_add(BATCH as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Rows of now, one in ten late, and one in fifty that overwrites another.
fn batch(
    shared: &Shared,
    writer: usize,
    now: i64,
    recent: &mut VecDeque<Row>,
    random: &mut StdRng,
) -> (String, Vec<(i64, usize, Sum)>) {
    let (mut lines, mut changes) = (String::with_capacity(BATCH * 80), Vec::with_capacity(BATCH));
    let oldest = now - LATE_S * SECOND;
    while recent.front().is_some_and(|row: &Row| row.time < oldest) {
        recent.pop_front();
    }
    for index in 0..BATCH {
        let old = (random.random_range(0..50) == 0 && !recent.is_empty())
            .then(|| random.random_range(0..recent.len()));
        let (row, change) = match old.map(|at| &mut recent[at]) {
            // Late rows are remembered out of order: some may be too old by now.
            Some(row) if row.time >= oldest => {
                let more = random.random_range(1..100);
                row.number += more;
                (*row, Sum { rows: 0, numbers: more })
            }
            _ => {
                let late = random.random_range(0..10) == 0;
                let back = if late { random.random_range(0..LATE_S * SECOND) } else { 0 };
                let host = random.random_range(0..shared.arguments.hosts);
                let number = random.random_range(0..1000);
                let row = Row { host, time: now - back + index as i64, number };
                if random.random_range(0..10) == 0 {
                    recent.push_back(row);
                }
                (row, Sum { rows: 1, numbers: number })
            }
        };
        let region = row.host % REGIONS;
        let (host, n, time) = (row.host, row.number, row.time);
        let v = n as f64 / 7.0;
        let _ = writeln!(
            lines,
            "soak,host=w{writer}h{host},region=r{region} n={n}i,v={v},note=\"note {n}\" {time}"
        );
        changes.push((row.time.div_euclid(SECOND), region, change));
    }
    (lines, changes)
}

fn read(shared: &Shared, reader: usize, server: &Server) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(100 + reader as u64);
    while !shared.stopped() {
        let (writer, host) = (
            random.random_range(0..shared.arguments.writers),
            random.random_range(0..shared.arguments.hosts),
        );
        let sql = match random.random_range(0..4) {
            0 => format!(
                "SELECT n, v FROM soak WHERE host = 'w{writer}h{host}' ORDER BY time DESC LIMIT 1"
            ),
            1 => "SELECT time_bucket('5s', time) AS t, region, avg(v), max(n) FROM soak \
                  WHERE time > now() - INTERVAL '1 minute' GROUP BY 1, 2 ORDER BY 1, 2"
                .to_owned(),
            2 => "SELECT count(*), sum(n) FROM soak WHERE time > now() - INTERVAL '10 seconds'"
                .to_owned(),
            _ => "SELECT host, max(v) AS m FROM soak WHERE time > now() - INTERVAL '30 seconds' \
                  GROUP BY host ORDER BY m DESC, host LIMIT 10"
                .to_owned(),
        };
        let mut took = Duration::ZERO;
        let asked = shared.persist(|| {
            let began = Instant::now();
            let rows = server.sql(&sql)?;
            took = began.elapsed();
            Ok(rows)
        })?;
        if asked.is_some() {
            shared.queries.fetch_add(1, Ordering::Relaxed);
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            shared.slowest_us.fetch_max(micros, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The condition that a row is of some seconds.
fn of_seconds(first: i64, end: i64) -> String {
    format!(
        "time >= to_timestamp_nanos({}) AND time < to_timestamp_nanos({})",
        first * SECOND,
        end * SECOND
    )
}

fn delete(shared: &Shared, _: usize, server: &Server) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(200);
    while !shared.stopped() {
        for _ in 0..70 {
            if shared.stopped() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        let Some(second) = shared.settled_second(&mut random) else { continue };
        let region = random.random_range(0..REGIONS);
        let sql = format!(
            "DELETE FROM soak WHERE {} AND region = 'r{region}'",
            of_seconds(second, second + 1)
        );
        let _settled = lock(&shared.settled);
        let mut tries = 0;
        let answer = shared.persist(|| {
            tries += 1;
            server.sql(&sql)
        })?;
        let Some(answer) = answer else { return Ok(()) };
        let wanted = lock(&shared.ledger).delete(second, region);
        let told = answer.first().and_then(|row| row["rows"].as_i64());
        // A deletion that was repeated may have been done before its answer was lost.
        if tries == 1 && told != Some(wanted) {
            return Err(format!("{sql}: {answer:?}, but there must have been {wanted} rows"));
        }
        shared.deletions.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Counts and sums by region, of an answer with the columns `region`, `c` and `s`.
fn sums(rows: &[Value]) -> Outcome<[Sum; REGIONS]> {
    let mut sums = [Sum::default(); REGIONS];
    for row in rows {
        let region = row["region"].as_str().and_then(|name| name.strip_prefix('r'));
        let region: usize = region.and_then(|it| it.parse().ok()).ok_or("a row without region")?;
        let sum = sums.get_mut(region).ok_or("a region that nobody wrote")?;
        sum.rows += row["c"].as_i64().ok_or("a row without count")?;
        sum.numbers += row["s"].as_i64().unwrap_or_default();
    }
    Ok(sums)
}

fn check(shared: &Shared, _: usize, server: &Server) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(300);
    while !shared.stopped() {
        thread::sleep(Duration::from_millis(250));
        let Some(second) = shared.settled_second(&mut random) else { continue };
        let sql = format!(
            "SELECT region, count(*) AS c, sum(n) AS s FROM soak WHERE {} GROUP BY region",
            of_seconds(second, second + 1)
        );
        let _settled = lock(&shared.settled);
        let Some(wanted) = lock(&shared.ledger).at(second) else { continue };
        let Some(rows) = shared.persist(|| server.sql(&sql))? else { return Ok(()) };
        let got = sums(&rows)?;
        if got != wanted {
            return Err(format!("{sql}:\n     got {got:?}\n instead of {wanted:?}"));
        }
        shared.checks.fetch_add(1, Ordering::Relaxed);
        let rows: i64 = wanted.iter().map(|sum| sum.rows).sum();
        shared.checked_rows.fetch_add(rows.unsigned_abs(), Ordering::Relaxed);
    }
    Ok(())
}

/// The windows of the continuous query, which follow the table within moments.
fn check_windows(shared: &Shared, _: usize, server: &Server) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(400);
    while !shared.stopped() {
        thread::sleep(Duration::from_millis(1500));
        let Some(second) = shared.settled_second(&mut random) else { continue };
        let first = second - second.rem_euclid(10) - 10;
        let sql =
            format!("SELECT region, c, s FROM soak_10s WHERE {}", of_seconds(first, first + 1));
        let _settled = lock(&shared.settled);
        let mut wanted = [Sum::default(); REGIONS];
        for second in first..first + 10 {
            let sums = lock(&shared.ledger).at(second).unwrap_or_default();
            for (all, sum) in wanted.iter_mut().zip(sums) {
                all.rows += sum.rows;
                all.numbers += sum.numbers;
            }
        }
        let began = Instant::now();
        loop {
            let Some(rows) = shared.persist(|| server.sql(&sql))? else { return Ok(()) };
            let got = sums(&rows).map_err(text)?;
            if got == wanted {
                break;
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{sql}:\n     got {got:?}\n instead of {wanted:?}"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}
