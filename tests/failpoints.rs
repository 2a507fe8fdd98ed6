//! The real binary at each of its failpoints, under concurrent writers: killed there, and failing
//! there with an I/O error or for want of space. After the next start each acknowledged batch is
//! there once and whole. What an error comes to is what the list of failpoints says: the process
//! ends with a clear line, or the request is refused, or the work is done again by itself.
//!
//! A backup that is killed or fails at any of its steps costs nothing of the backups before it,
//! and the next one is whole.
//!
//! The points are those of `kymo_kernel::env::failpoint`, all of them. `KYMO_FAILPOINT=name`
//! runs one; `KYMO_TEST_SEED` repeats a run's writes and orders.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::env::failpoint::{BACKUP_FAILPOINTS, FAILPOINTS, Failpoint, OnError, VARIABLE};
use kymo_tests::command::{kymo, offline, run, succeeds};
use kymo_tests::files::files;
use kymo_tests::load::{Load, busy};
use kymo_tests::{Options, Server, StartFailed, seed, until_async};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

const WRITERS: usize = 3;
const TABLES: usize = 2;
/// Stores that live at the same time, each with its share of the orders.
const SHARES: usize = 2;
/// How long a point may take to be reached.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a process may take to end by itself.
const ENDING: Duration = Duration::from_secs(40);

/// What is ordered at a point.
#[derive(Clone, Copy, Debug)]
struct Order {
    point: &'static Failpoint,
    effect: &'static str,
    /// How often it happens.
    times: usize,
}

impl Order {
    fn kills(self) -> bool {
        self.effect.starts_with("kill")
    }

    /// What the operating system calls the error.
    fn reason(self) -> &'static str {
        if self.effect == "eio" { "Input/output error" } else { "No space left on device" }
    }
}

/// What a server with an order came to.
enum Life {
    /// It ended, with this log.
    Ended(ExitStatus, String),
    /// It went on, and its writers with it.
    WentOn(Box<Server>),
}

/// A folder with the books of those who wrote to it, through all lives of its servers.
struct Place {
    folder: TempDir,
    load: Load,
    random: StdRng,
}

impl Place {
    fn new(seed: u64) -> Place {
        Place {
            folder: TempDir::new().unwrap(),
            load: Load::new(seed, WRITERS, TABLES),
            random: StdRng::seed_from_u64(seed),
        }
    }

    fn options(&self) -> Options {
        busy().no_auth().data_dir(self.folder.path().join("data"))
    }

    fn start(&self, orders: &str) -> Result<Server, StartFailed> {
        Server::try_start(self.options().environment(VARIABLE, orders))
    }

    /// What the next start finds beside the end of a journal that it has to recover: what an
    /// earlier recovery did not finish, where the point is about that.
    fn prepare(&self, point: &Failpoint) {
        if point.name() == "recovery.remove" {
            let failed = self.start("recovery.write=kill_before").err().expect("a kill at start");
            assert!(killed(failed.status), "{}", failed.log);
        }
    }

    /// The order for a server: some points are reached hardly more than once in a life.
    fn spell(&mut self, order: Order) -> String {
        let name = order.point.name();
        let often = ["journal.", "segment.", "manifest."];
        let rare = name.contains("remove") || !often.iter().any(|family| name.starts_with(family));
        let first = if rare { 1 } else { self.random.random_range(1..12) };
        format!("{name}={}@{first}x{}", order.effect, order.times)
    }

    /// Runs a server under load until it ended as ordered, or until what was ordered is over
    /// and it took more rows.
    async fn live(&self, order: Order, spelt: &str) -> Life {
        let server = match self.start(spelt) {
            Ok(server) => Arc::new(server),
            Err(failed) => return Life::Ended(failed.status, failed.log),
        };
        let working = self.load.write_and_define(&server);
        until_async(&format!("{spelt} to be reached"), PATIENCE, || async {
            (server.log().matches("failpoint reached").count() >= order.times).then_some(())
        })
        .await;
        if order.kills() || order.point.on_error() == OnError::Stop {
            working.ended().await;
            let mut server = Arc::into_inner(server).expect("the writers have ended");
            let status = server.wait(ENDING);
            return Life::Ended(status, server.log());
        }
        // More rows than fit into memory, so that flushes have to succeed again.
        let more = if order.point.name().starts_with("segment.") { 300 } else { 30 };
        let (ledger, target) = (self.load.ledger.clone(), self.load.ledger.count() + more);
        let waiting = tokio::task::spawn_blocking(move || ledger.wait_for(target, PATIENCE));
        waiting.await.expect("rows are taken again");
        working.stop().await;
        Life::WentOn(Box::new(Arc::into_inner(server).expect("the writers have ended")))
    }

    /// Nothing acknowledged is missing, nothing else is there, and the store takes rows again.
    /// Then it is killed, and so leaves a journal to recover.
    async fn check(&self, context: &str) {
        let mut server = Server::start(self.options());
        if let Err(wrong) = self.load.check(&server).await {
            panic!("{context}:\n{wrong}\n{}", server.log());
        }
        self.load.write_one(&server).await;
        server.kill();
    }

    async fn kill_there(&mut self, order: Order, context: &str, spelt: &str) {
        match self.live(order, spelt).await {
            Life::Ended(status, log) => {
                assert!(killed(status), "{context}: {status}\n{log}");
                assert!(log.contains("failpoint reached"), "{context}: died by itself\n{log}");
            }
            Life::WentOn(server) => panic!("{context}: still runs\n{}", server.log()),
        }
    }

    async fn fail_there(&mut self, order: Order, context: &str, spelt: &str) {
        let on_error = order.point.on_error();
        let (log, refusals) = match self.live(order, spelt).await {
            Life::Ended(status, log) => {
                assert_eq!(on_error, OnError::Stop, "{context}: {status}\n{log}");
                assert_eq!(status.code(), Some(1), "{context}: {status}\n{log}");
                let last_words = log.lines().find(|line| line.starts_with("error: "));
                assert!(last_words.is_some_and(|line| line.contains(order.reason())), "{log}");
                (log, Vec::new())
            }
            Life::WentOn(mut server) => {
                assert_ne!(on_error, OnError::Stop, "{context}: still runs\n{}", server.log());
                let status = server.terminate();
                assert!(status.success(), "{context}: {status}\n{}", server.log());
                (server.log(), self.load.take_refusals())
            }
        };
        let lines = log.lines().filter(|line| !line.contains("failpoint"));
        let mut told = lines.chain(refusals.iter().map(String::as_str));
        assert!(told.any(|line| line.contains(order.reason())), "{context}: no reason\n{log}");
    }
}

fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGABRT)
}

fn orders(
    points: &'static [Failpoint],
    effects: impl Fn(&'static Failpoint) -> Vec<&'static str>,
) -> Vec<Order> {
    let only = std::env::var("KYMO_FAILPOINT").ok();
    let wanted = |point: &&Failpoint| only.as_ref().is_none_or(|name| point.name() == name);
    let of = |point: &'static Failpoint| {
        let effects = effects(point);
        effects.into_iter().map(move |effect| Order { point, effect, times: 1 })
    };
    points.iter().filter(wanted).flat_map(of).collect()
}

/// Carries the orders out, in shares that run at the same time.
fn carry_out(orders: &[Order]) {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    std::thread::scope(|scope| {
        for share in 0..SHARES {
            let mine = orders.iter().skip(share).step_by(SHARES);
            scope.spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let mut place = Place::new(seed.wrapping_add(share as u64));
                runtime.block_on(async {
                    place.check("at the beginning").await;
                    for order in mine {
                        place.prepare(order.point);
                        let spelt = place.spell(*order);
                        let context = format!("KYMO_TEST_SEED={seed} {spelt}");
                        if order.kills() {
                            place.kill_there(*order, &context, &spelt).await;
                        } else {
                            place.fail_there(*order, &context, &spelt).await;
                        }
                        place.check(&context).await;
                    }
                });
                println!("{} batches acknowledged, all there", place.load.ledger.count());
            });
        }
    });
}

#[test]
fn acknowledged_rows_survive_a_kill_at_each_failpoint() {
    carry_out(&orders(FAILPOINTS, |point| {
        if point.is_write() { vec!["kill_torn", "kill_after"] } else { vec!["kill_after"] }
    }));
}

#[test]
fn errors_at_each_failpoint_are_told_and_cost_nothing_acknowledged() {
    let mut effects = ["eio", "enospc"].into_iter().cycle();
    let mut orders = orders(FAILPOINTS, |_| vec![""]);
    for order in &mut orders {
        order.effect = effects.next().expect("a cycle has no end");
        // Flushes are tried again at once, and may fail more than once.
        order.times = if order.point.name().starts_with("segment.") { 3 } else { 1 };
    }
    carry_out(&orders);
}

/// A server that is backed up again and again into one folder.
struct BackedUp {
    folder: TempDir,
    load: Load,
    server: Server,
}

impl BackedUp {
    fn start(seed: u64) -> BackedUp {
        // Backups that were killed hold their pins for a while; segments stay to be copied.
        let options = busy()
            .setting("compaction.enabled", false)
            .setting("backup.max_running", 100)
            .setting("backup.lease_ms", 1000);
        let load = Load::new(seed, 1, TABLES);
        BackedUp { folder: TempDir::new().unwrap(), load, server: Server::start(options) }
    }

    fn place(&self) -> String {
        self.folder.path().join("backups").to_str().expect("a path of text").to_owned()
    }

    /// Writes until there is a segment more for a backup to copy.
    async fn write_until_flushed(&self) {
        let flushes = || async {
            let metrics = self.server.get("/metrics").await.text();
            let line = metrics.lines().find_map(|it| it.strip_prefix("kymo_store_flushes_total "));
            line.and_then(|count| count.trim().parse::<u64>().ok()).expect("a number of flushes")
        };
        let before = flushes().await;
        while flushes().await == before {
            for _ in 0..20 {
                self.load.write_one(&self.server).await;
            }
        }
    }

    /// The last backup ends as ordered, if only because it has something to copy.
    fn shoot(&self, order: Order, spelt: &str, context: &str) {
        let mut command = kymo(&self.server, &["backup", &self.place()]);
        let output = run(command.env(VARIABLE, spelt), "");
        let told = String::from_utf8_lossy(&output.stderr);
        if order.kills() {
            assert!(killed(output.status), "{context}: {} {told}", output.status);
            return;
        }
        assert_eq!(output.status.code(), Some(1), "{context}: {told}");
        assert!(told.contains(order.reason()), "{context}: {told}");
    }

    /// The next backup is whole, and so are all before it; gives how many there are.
    fn back_up(&self) -> usize {
        succeeds(&mut kymo(&self.server, &["backup", &self.place()]), "");
        succeeds(&mut offline(&["restore", &self.place(), "--verify"]), "");
        succeeds(&mut offline(&["restore", &self.place(), "--list"]), "").lines().count()
    }

    /// A segment that was copied by a backup without an end, and damaged since: it has to go.
    fn leave_a_damaged_segment(&self) {
        let place = self.place();
        let segments =
            || -> BTreeSet<PathBuf> { files(Path::new(&place), ".parquet").into_iter().collect() };
        let before = segments();
        // Metadata and journal come first, then segments.
        let new = (2..20).find_map(|file| {
            let mut command = kymo(&self.server, &["backup", &place]);
            let order = format!("backup.link=kill_after@{file}");
            assert!(killed(run(command.env(VARIABLE, order), "").status));
            segments().difference(&before).next().cloned()
        });
        std::fs::write(new.expect("a segment was copied"), b"nothing that verifies").unwrap();
    }

    async fn check_the_last_one(&self) {
        let data = self.folder.path().join("restored");
        let arguments = ["restore", &self.place(), "--data-dir", data.to_str().unwrap()];
        succeeds(&mut offline(&arguments), "");
        let copy = Server::start(busy().data_dir(&data));
        if let Err(wrong) = self.load.check(&copy).await {
            panic!("{wrong}");
        }
    }
}

#[test]
fn a_backup_that_ends_at_any_failpoint_costs_nothing_and_the_next_one_is_whole() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let backed_up = BackedUp::start(seed);
    let mut backups = backed_up.back_up();
    let effects = ["kill_after", "kill_before", "kill_torn", "eio", "enospc"];
    let orders = orders(BACKUP_FAILPOINTS, |point| {
        let fits = |effect: &&str| point.is_write() || *effect != "kill_torn";
        effects.into_iter().filter(fits).collect()
    });
    for order in orders {
        runtime.block_on(backed_up.write_until_flushed());
        let name = order.point.name();
        let first = match name {
            "backup.remove" => 1,
            // Before each file what an interrupted backup left of it is removed, if anything.
            "backup.unlink" => 2 * random.random_range(1..=2),
            _ => random.random_range(1..=3),
        };
        if name == "backup.remove" {
            backed_up.leave_a_damaged_segment();
        }
        let spelt = format!("{name}={}@{first}", order.effect);
        let context = format!("KYMO_TEST_SEED={seed} {spelt}");
        backed_up.shoot(order, &spelt, &context);
        let now = backed_up.back_up();
        // A kill after the manifest has its name leaves a backup that counts.
        let more = now - backups;
        assert!(more == 1 || (more == 2 && order.kills()), "{context}: {more} more backups");
        backups = now;
    }
    runtime.block_on(backed_up.check_the_last_one());
}

#[test]
fn a_failpoint_that_does_not_exist_is_refused_with_those_that_do() {
    let options = Options::new().environment(VARIABLE, "journal.sink=eio");
    let failed = Server::try_start(options).err().expect("a refusal");
    assert_eq!(failed.status.code(), Some(1), "{}", failed.log);
    let told = ["journal.sink", "journal.sync", "unset it"];
    assert!(told.iter().all(|word| failed.log.contains(word)), "{}", failed.log);
}

#[test]
fn each_failpoint_is_documented() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/durability.md");
    let page = std::fs::read_to_string(page).unwrap();
    let all = FAILPOINTS.iter().chain(BACKUP_FAILPOINTS);
    let silent = all.filter(|point| !page.contains(&format!("`{}`", point.name())));
    assert_eq!(silent.map(Failpoint::name).collect::<Vec<_>>(), Vec::<&str>::new());
}
