//! A plugin under a continuous query: it is upgraded, tried in another version, withdrawn and
//! taken away while rows come. Each window of the target is one version's result and never a
//! mix, windows that change later get the version in use then, and a query whose function is
//! gone says whose it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kymo_tests::clients::send;
use kymo_tests::component::plugin;
use kymo_tests::{Answer, Options, Server, seed, until_async};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};

const LAB: &[u8] = include_bytes!("../plugins/tests/fixtures/lab.wasm");

/// Every row has the value 1, so that a total tells the factor of the version it is of.
const QUERY: &str = "SELECT time_bucket('1m', time) AS time, host, count(*) AS n, \
     lab.total(value) AS total FROM cpu GROUP BY 1, 2";
const TARGET: &str = "SELECT time, host, n, total FROM out";
const WINDOWS: i64 = 12;
const MINUTE: i64 = 60_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options::new()
        .setting("continuous.delay_ms", 20)
        .setting("continuous.cursor_ms", 50)
        .setting("continuous.check_ms", 50)
        .setting("continuous.retry_ms", 100)
}

/// The one place of these bytes.
fn place(component: &[u8], wanted: impl Fn(&[u8]) -> bool) -> usize {
    let mut places = (0..component.len()).filter(|at| wanted(&component[*at..]));
    let place = places.next().expect("a place");
    assert_eq!(places.next(), None, "one place");
    place
}

/// The laboratory as another version, whose `total` counts each value so many times, and whose
/// states are of this version.
fn lab(version: &str, factor: f64, state_version: u8) -> Vec<u8> {
    let mut component = LAB.to_vec();
    let at = place(&component, |bytes| bytes.starts_with(b"1.2.3"));
    component[at..at + 5].copy_from_slice(version.as_bytes());
    // `f64.const 1`, in taking rows in and, after it, in merging states.
    let one = [&[0x44][..], &1.0_f64.to_le_bytes()].concat();
    let at = component.windows(9).position(|bytes| bytes == one).expect("the factor");
    component[at + 1..at + 9].copy_from_slice(&factor.to_le_bytes());
    // A name of five letters, an aggregate, one overload; immutable, without NULLs.
    let at = place(&component, |bytes| {
        bytes.starts_with(&[5, 0, 0, 0, 1, 0, 0, 0])
            && bytes.get(12..25).is_some_and(|rest| rest == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    });
    component[at + 20] = state_version;
    component
}

async fn upload(server: &Server, path: &str, component: Vec<u8>) -> Answer {
    let request = server.request(Method::PUT, &format!("/api/v1/plugins/{path}"));
    send(request.body(component)).await.expect("an answer")
}

async fn install(server: &Server, path: &str, component: Vec<u8>) {
    let answer = upload(server, path, component).await;
    assert!(answer.status.is_success(), "{path}: {}", answer.text());
}

async fn begin(server: &Server) {
    // No row replaces another one, so that rows are added to states whatever their time.
    let table = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX) \
                 WITH (append_only = true)";
    server.sql(table).await;
    server.sql(&format!("CREATE CONTINUOUS QUERY q INTO out AS {QUERY}")).await;
}

/// Rows that nobody had before: each is a nanosecond later within its window.
struct Source {
    random: StdRng,
    rows: i64,
}

impl Source {
    fn new(seed: u64) -> Source {
        Source { random: StdRng::seed_from_u64(seed), rows: 0 }
    }

    fn row(&mut self, window: i64) -> String {
        self.rows += 1;
        let host = self.random.random_range(0..3);
        let time = (1_700_000_040_i64 / 60 + window) * MINUTE + self.rows;
        format!("cpu,host=h{host} value=1 {time}\n")
    }

    /// Rows in two windows: states of so few are read again, not all run as one query.
    fn rows(&mut self) -> String {
        let (first, count) =
            (self.random.random_range(1..WINDOWS), self.random.random_range(1..30));
        (0..count).map(|row| self.row(first - row % 2)).collect()
    }
}

/// The factor of each window of the target, of which no window has two.
async fn factors(server: &Server) -> BTreeMap<String, u64> {
    let rows = server.sql("SELECT time, host, total / n AS factor, total, n FROM out").await;
    let mut windows: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for row in &rows {
        let factor = row["factor"].as_f64().expect("a number");
        assert_eq!(factor.fract(), 0.0, "rows of two versions in one state: {row}");
        let window = row["time"].as_str().expect("a time").to_owned();
        windows.entry(window).or_default().insert(factor as u64);
    }
    let one = |(window, factors): (String, BTreeSet<u64>)| {
        assert_eq!(factors.len(), 1, "rows of two versions in window {window}: {rows:?}");
        (window, factors.into_iter().next().expect("one"))
    };
    windows.into_iter().map(one).collect()
}

async fn sorted(server: &Server, sql: &str) -> Vec<String> {
    let mut rows: Vec<String> = server.sql(sql).await.iter().map(ToString::to_string).collect();
    rows.sort();
    rows
}

async fn states(server: &Server) -> Vec<String> {
    sorted(server, "SELECT name, state, reason, last_error FROM system.continuous_queries").await
}

/// Waits until the target has what a query over the source finds now.
async fn equal(server: &Server, target: &str, query: &str) {
    let end = std::time::Instant::now() + PATIENCE;
    until_async(target, PATIENCE + Duration::from_secs(5), || async {
        let (found, wanted) = (sorted(server, target).await, sorted(server, query).await);
        if std::time::Instant::now() > end {
            panic!("{target}: {found:?} and not {wanted:?}; {:?}", states(server).await);
        }
        (found == wanted).then_some(())
    })
    .await;
}

/// Waits until every row is counted, whatever the version.
async fn counted(server: &Server) {
    equal(
        server,
        "SELECT time, host, n FROM out",
        "SELECT time_bucket('1m', time) AS time, host, count(*) AS n FROM cpu GROUP BY 1, 2",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_window_is_of_one_version_while_the_plugin_is_upgraded_under_the_query() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let server = Server::start(options());
    install(&server, "lab", lab("1.0.0", 1.0, 1)).await;
    begin(&server).await;
    let stop = AtomicBool::new(false);
    let writing = async {
        let mut source = Source::new(seed);
        while !stop.load(Ordering::SeqCst) {
            server.write(&source.rows()).await;
        }
    };
    let upgrading = async {
        // Other results with other states, with the same states, and a version before.
        let versions = [("2.0.0", 2.0, 2), ("3.0.0", 4.0, 2), ("4.0.0", 8.0, 1), ("1.0.0", 1.0, 1)];
        let mut allowed = BTreeSet::from([1]);
        for (version, factor, state_version) in versions {
            install(&server, "lab", lab(version, factor, state_version)).await;
            allowed.insert(factor as u64);
            // The writer comes by every window.
            until_async("the version in every window", PATIENCE, || async {
                let factors = factors(&server).await;
                let known = factors.values().all(|each| allowed.contains(each));
                assert!(known, "{factors:?} and not of {allowed:?}");
                let all = i64::try_from(factors.len()) == Ok(WINDOWS)
                    && factors.values().all(|each| *each == factor as u64);
                all.then_some(())
            })
            .await;
            allowed = BTreeSet::from([factor as u64]);
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(writing, upgrading);
    equal(&server, TARGET, QUERY).await;
    assert_eq!(
        server.sql("SELECT failures FROM system.continuous_queries").await[0]["failures"],
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_windows_that_change_get_the_new_version_and_none_gets_one_on_trial() {
    let server = Server::start(options());
    let mut source = Source::new(7);
    install(&server, "lab", lab("1.0.0", 1.0, 1)).await;
    begin(&server).await;
    let all: String = (0..WINDOWS).map(|window| source.row(window)).collect();
    server.write(&all).await;
    equal(&server, TARGET, QUERY).await;
    install(&server, "lab", lab("2.0.0", 2.0, 2)).await;
    server.write(&source.row(3)).await;
    counted(&server).await;
    let found: Vec<u64> = factors(&server).await.into_values().collect();
    let wanted: Vec<u64> = (0..WINDOWS).map(|window| if window == 3 { 2 } else { 1 }).collect();
    assert_eq!(found, wanted);
    // A version on trial takes part in most queries that people ask, and in no result that is
    // kept: some of its windows would be of one version and some of the other.
    install(&server, "lab?activate=false", lab("3.0.0", 4.0, 2)).await;
    server.sql("ALTER PLUGIN lab SET CANARY '3.0.0' PERCENT 99").await;
    for round in 0..20 {
        if round == 15 {
            server.sql("ALTER PLUGIN lab DROP CANARY").await;
        }
        server.write(&(source.row(3) + &source.row(5))).await;
        counted(&server).await;
        let found = factors(&server).await.into_values().collect::<Vec<_>>();
        assert_eq!((found[3], found[4], found[5]), (2, 1, 2), "{found:?}");
    }
    server.sql("BACKFILL q FROM '2000-01-01' TO now()").await;
    assert!(factors(&server).await.into_values().all(|factor| factor == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_whose_plugin_is_gone_names_it_and_goes_on_when_it_is_back() {
    let mut server = Server::start(options());
    let mut source = Source::new(11);
    let function = "CREATE FUNCTION total_of(DOUBLE PRECISION) RETURNS DOUBLE PRECISION \
                    LANGUAGE wasm AS PLUGIN lab FUNCTION total";
    let other = QUERY.replace("lab.total", "total_of");
    let plain = "SELECT time_bucket('1m', time) AS time, count(*) AS n FROM cpu GROUP BY 1";
    install(&server, "lab", lab("1.0.0", 1.0, 1)).await;
    server.sql(function).await;
    begin(&server).await;
    server.sql(&format!("CREATE CONTINUOUS QUERY other INTO other_out AS {other}")).await;
    server.sql(&format!("CREATE CONTINUOUS QUERY plain INTO plain_out AS {plain}")).await;
    let other_out = TARGET.replace("out", "other_out");
    let running = async |server: &Server| {
        equal(server, TARGET, QUERY).await;
        equal(server, &other_out, &other).await;
    };
    server.write(&source.rows()).await;
    running(&server).await;
    // What the catalog knows to be in use stays.
    let lacking = plugin("9.0.0", &["f"]);
    let answer = upload(&server, "lab", lacking.clone()).await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.text());
    assert!(answer.text().contains("total_of"), "{}", answer.text());
    let answer = server.try_sql("DROP PLUGIN lab").await.expect("an answer");
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.text());
    for round in 0..2 {
        match round {
            0 => install(&server, "lab?force=true", lacking.clone()).await,
            _ => drop(server.sql("DROP PLUGIN lab CASCADE").await),
        }
        server.write(&source.rows()).await;
        until_async("both are paused", PATIENCE, || async {
            let states = states(&server).await;
            let failed = states.iter().filter(|state| state.contains(r#""state":"failed""#));
            (failed.count() == 2).then_some(())
        })
        .await;
        let reasons = server.sql("SELECT name, reason FROM system.continuous_queries").await;
        for row in reasons.iter().filter(|row| row["name"] != "plain") {
            let reason = row["reason"].as_str().expect("a reason");
            // With the plugin went the function that was made of it.
            let names = if round == 1 && row["name"] == "other" { "total_of" } else { "lab" };
            assert!(reason.contains(names) && reason.contains("total"), "{row}");
        }
        // Nobody else is disturbed.
        equal(&server, "SELECT time, n FROM plain_out", plain).await;
        install(&server, "lab", lab("1.0.0", 1.0, 1)).await;
        if round == 1 {
            server.sql(function).await;
        }
        server.sql("ALTER CONTINUOUS QUERY q RESUME").await;
        server.sql("ALTER CONTINUOUS QUERY other RESUME").await;
        server.write(&source.rows()).await;
        running(&server).await;
    }
    // A start loads plugins while queries already run: these wait for them.
    server.kill();
    server = server.restart();
    server.write(&source.rows()).await;
    until_async("the plugin is loaded", PATIENCE, || async {
        let answer = server.try_sql(QUERY).await.expect("an answer");
        answer.status.is_success().then_some(())
    })
    .await;
    running(&server).await;
    let states = server.sql("SELECT DISTINCT state FROM system.continuous_queries").await;
    assert_eq!(states.len(), 1, "{states:?}");
    assert_eq!(states[0]["state"], "running");
}
