//! A plugin that means harm, against the real binary over the PostgreSQL wire: every way to
//! misbehave, called from a select list, a condition, a sort key and an aggregate, ends in its
//! error, the next query on the same plugin works, and no memory stays with anybody. Prints
//! the server's resident memory before and after.

use std::time::{Duration, Instant};

use kymo_tests::{Options, Server, until_async};
use reqwest::{Method, StatusCode};
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

const LAB: &[u8] = include_bytes!("../plugins/tests/fixtures/lab.wasm");

const FAILED: &str = "38000";
const LATE: &str = "57014";
const NO_MEMORY: &str = "53200";

/// How often everything is done again between the two measurements.
const ROUNDS: usize = 3;

/// Ways to misbehave of `lab.evil`, by number (`plugins/tests/support/lab.rs` has their names):
/// the SQLSTATE and a part of the message; without one, it has an answer.
const EVIL: [(i64, Option<(&str, &str)>); 24] = [
    (0, Some((LATE, "longer than 100 ms"))),
    (1, Some((FAILED, "unreachable"))),
    (2, Some((FAILED, "stack"))),
    (3, None),
    (4, Some((NO_MEMORY, "refused more memory"))),
    (5, Some((FAILED, "3 rows instead of 2"))),
    (6, Some((FAILED, "1 rows instead of 2"))),
    (7, Some((FAILED, "0 rows instead of 2"))),
    (8, Some((FAILED, "it failed"))),
    (9, Some((FAILED, "it failed"))),
    (10, Some((FAILED, "align"))),
    (11, Some((FAILED, "kind int64"))),
    (12, Some((FAILED, "it failed"))),
    (13, Some((FAILED, "bytes of validity"))),
    (14, Some((FAILED, "it failed"))),
    (15, Some((FAILED, "it failed"))),
    (16, Some((FAILED, "it failed"))),
    (17, Some(("22023", "xxxx"))),
    (18, Some((FAILED, "too much"))),
    (19, None),
    (20, Some((FAILED, "it failed"))),
    (21, Some((NO_MEMORY, "I am so"))),
    (22, Some((FAILED, "before, it logged: I am so"))),
    (23, None),
];

fn options() -> Options {
    Options::new()
        .setting("plugins.call_timeout_ms", 100)
        // Patience: every attack is to reach the plugin.
        .setting("plugins.max_faults", 1_000_000)
}

async fn install(server: &Server, name: &str, component: Vec<u8>) -> (StatusCode, String) {
    let request = server.request(Method::PUT, &format!("/api/v1/plugins/{name}"));
    let answer = kymo_tests::clients::send(request.body(component)).await.expect("an answer");
    (answer.status, answer.text())
}

/// Statements that call `lab.evil(m)` on two rows.
fn statements(mode: i64) -> [String; 5] {
    let rows = format!("(VALUES (CAST({mode} AS BIGINT)), ({mode})) AS t(m)");
    [
        format!("SELECT lab.evil(m) FROM {rows}"),
        format!("SELECT m FROM {rows} WHERE lab.evil(m) IS NOT NULL"),
        format!("SELECT m FROM {rows} ORDER BY lab.evil(m)"),
        format!("SELECT sum(lab.evil(m)) FROM {rows}"),
        format!("SELECT m, count(*) FROM {rows} GROUP BY m, lab.evil(m) HAVING count(*) > 0"),
    ]
}

fn told(error: &tokio_postgres::Error) -> &DbError {
    error.as_db_error().unwrap_or_else(|| panic!("no error of the server: {error}"))
}

/// Runs a statement that has to fail so, within seconds; the plugin then answers as ever.
async fn fails(client: &Client, sql: &str, (state, part): (&str, &str)) {
    let begin = Instant::now();
    let error = client.query(sql, &[]).await.expect_err(sql);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "{sql} took {took:?}");
    let error = told(&error);
    assert_eq!(error.code().code(), state, "{sql}: {error}");
    assert!(error.message().contains(part), "{sql}: {error}");
    assert!(error.message().contains("plugin lab ("), "{sql}: {error}");
    works(client).await;
}

async fn works(client: &Client) {
    let row = client.query_one("SELECT lab.c2f(100.0)", &[]).await.expect("the plugin goes on");
    assert_eq!(row.get::<_, f64>(0), 212.0);
}

/// Everything once.
async fn attack(client: &Client) {
    for (mode, failure) in EVIL {
        for sql in statements(mode) {
            match failure {
                Some(failure) => fails(client, &sql, failure).await,
                None => drop(client.query(&sql, &[]).await.expect(&sql)),
            }
        }
    }
    for mode in 0..8 {
        let rows = format!("(VALUES (CAST({mode} AS BIGINT)), ({mode})) AS t(m)");
        let text = format!("SELECT lab.evil_text(m) FROM {rows}");
        fails(client, &text, (FAILED, "it broke the interface")).await;
        if mode < 7 {
            let frame = format!("SELECT lab.evil_frame(m) FROM {rows}");
            fails(client, &frame, (FAILED, "Arrow message")).await;
        }
    }
    // A trap in the middle of an aggregate over a thousand groups.
    let groups = "SELECT n % 1000, lab.total(CASE WHEN n = 4321 THEN 666.0 ELSE 1.0 END) \
                  FROM generate_series(1, 10000) AS s(n) GROUP BY 1";
    fails(client, groups, (FAILED, "total.update: it trapped")).await;
}

/// The loop of a plugin ends when its query is cancelled, long before its own time is over.
async fn cancel(server: &Server, client: &Client) {
    for sql in statements(0) {
        let victim = server.pg().await;
        let token = victim.cancel_token();
        let running = tokio::spawn(async move { victim.query(&sql, &[]).await });
        until_async("the loop runs", Duration::from_secs(10), || async {
            (metric(server, "kymo_plugin_instances").await > 0.0).then_some(())
        })
        .await;
        token.cancel_query(tokio_postgres::NoTls).await.expect("cancelled");
        let error = running.await.expect("joined").expect_err("cancelled");
        assert_eq!(told(&error).code().code(), LATE, "{error}");
        works(client).await;
    }
}

async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").await.text();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no metric {name}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// Waits until nobody holds an instance or memory of queries.
async fn idle(server: &Server) {
    until_async("everything is given back", Duration::from_secs(10), || async {
        let instances = metric(server, "kymo_plugin_instances").await;
        let memory = metric(server, "kymo_query_memory_bytes").await;
        (instances == 0.0 && memory == 0.0).then_some(())
    })
    .await;
}

fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("alive");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_ends_in_its_error_and_leaves_nothing_behind() {
    let server = Server::start(options());
    let (status, text) = install(&server, "lab", LAB.to_vec()).await;
    assert_eq!(status, StatusCode::CREATED, "{text}");
    let client = server.pg().await;
    // Once before, so that what allocators and pools keep is there when it is measured.
    attack(&client).await;
    idle(&server).await;
    let before = resident(&server);
    for _ in 0..ROUNDS {
        attack(&client).await;
    }
    idle(&server).await;
    let after = resident(&server);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "resident memory: {:.1} MiB before, {:.1} MiB after {} attacks",
        mib(before),
        mib(after),
        ROUNDS * (EVIL.len() * 5 + 16),
    );
    assert!(after < before + before / 10 + (16 << 20), "{before} grew to {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_ends_when_its_query_is_cancelled_wherever_it_is_called() {
    let server = Server::start(options().setting("plugins.call_timeout_ms", 60_000));
    let (status, text) = install(&server, "lab", LAB.to_vec()).await;
    assert_eq!(status, StatusCode::CREATED, "{text}");
    let client = server.pg().await;
    cancel(&server, &client).await;
    idle(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_keeps_the_plugin_it_was_opened_with() {
    let server = Server::start(options());
    let (status, text) = install(&server, "lab", LAB.to_vec()).await;
    assert_eq!(status, StatusCode::CREATED, "{text}");
    let client = server.pg().await;
    let open = "BEGIN; DECLARE c CURSOR FOR SELECT n, lab.c2f(CAST(n AS DOUBLE PRECISION)) \
                FROM generate_series(1, 200000) AS s(n)";
    client.batch_execute(open).await.expect("a cursor");
    let fetch = async || {
        let rows = client.query("FETCH 50000 FROM c", &[]).await.expect("rows");
        for row in &rows {
            let (n, found): (i64, f64) = (row.get(0), row.get(1));
            assert_eq!(found, n as f64 * 1.8 + 32.0);
        }
        rows.len()
    };
    assert_eq!(fetch().await, 50_000);
    let gone = server.request(Method::DELETE, "/api/v1/plugins/lab");
    let gone = kymo_tests::clients::send(gone).await.expect("an answer");
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.text());
    let other = server.pg().await;
    let error = other.query("SELECT lab.c2f(1.0)", &[]).await.expect_err("it is gone");
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("lab")), "{error}");
    for _ in 0..3 {
        assert_eq!(fetch().await, 50_000);
    }
    assert_eq!(fetch().await, 0);
    client.batch_execute("COMMIT").await.expect("the end");
    drop(client);
    idle(&server).await;
}

/// A component that is nothing but one module with one function of so many nested loops over
/// so many locals: 21 KiB that keep a compiler busy for seconds.
fn loops(depth: usize, locals: usize) -> Vec<u8> {
    let variables = " i64".repeat(locals);
    let open: String = (0..depth)
        .map(|number| {
            let (a, b) = (1 + number % locals, 1 + (number + 1) % locals);
            format!("(loop $l{number} (local.set {a} (i64.add (local.get {b}) (i64.const 1)))")
        })
        .collect();
    let close: String =
        (0..depth).rev().map(|number| format!("(br_if $l{number} (local.get 0)))")).collect();
    let module = wat::parse_str(format!(
        "(module (func (param i32) (result i32) (local{variables}) {open}{close} (local.get 0)))"
    ))
    .expect("a module");
    let mut component = b"\0asm\x0d\0\x01\0\x01".to_vec();
    let mut length = module.len();
    while length >= 0x80 {
        component.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    component.push(length as u8);
    component.extend(module);
    component
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_bombs_the_compiler_or_is_damaged_is_refused_while_queries_go_on() {
    let server = Server::start(options().setting("plugins.compile_timeout_ms", 1000));
    let (status, text) = install(&server, "lab", LAB.to_vec()).await;
    assert_eq!(status, StatusCode::CREATED, "{text}");
    let client = server.pg().await;
    let bomb = loops(2000, 300);
    assert!(bomb.len() < 64 << 10, "{} bytes", bomb.len());
    let (refused, _) = tokio::join!(install(&server, "bomb", bomb), works(&client));
    assert_eq!(refused.0, StatusCode::PAYLOAD_TOO_LARGE, "{}", refused.1);
    assert!(refused.1.contains("compiling"), "{}", refused.1);
    // Cut off and flipped all over: refused, or as harmless as any other plugin.
    for at in (0..LAB.len()).step_by(LAB.len() / 20) {
        let cut = install(&server, "damaged", LAB[..at].to_vec()).await;
        assert!(cut.0.is_client_error(), "cut at {at}: {} {}", cut.0, cut.1);
        let mut flipped = LAB.to_vec();
        flipped[at] ^= 0x10;
        let flipped = install(&server, "damaged", flipped).await;
        assert!(!flipped.0.is_server_error(), "flipped at {at}: {} {}", flipped.0, flipped.1);
    }
    works(&client).await;
}
