//! Ingest transforms against the real binary: a stream of which a transform refuses half, under
//! `SIGKILL`; every way to write; and attachments over a restart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::SinkExt;
use kymo_tests::clients::send;
use kymo_tests::{Options, Server, seed, until, until_async};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const JSON: &[u8] = include_bytes!("../plugins/guests/json-fields/json-fields.wasm");
const ATTACH: &str = "ATTACH TRANSFORM json.json_fields TO stream \
                      WITH (column = 'payload', fields = 'v:bigint')";

const KILLS: usize = 8;
const WRITERS: usize = 4;
const ROWS: usize = 2000;

fn options() -> Options {
    Options::new()
        .setting("plugins.preview", true)
        .setting("plugins.start_timeout_ms", 10_000)
        .setting("plugins.call_timeout_ms", 30_000)
}

async fn prepare(server: &Server) {
    let put = server.request(Method::PUT, "/api/v1/plugins/json");
    let answer = send(put.body(JSON)).await.expect("an answer");
    assert!(answer.status.is_success(), "{}", answer.text());
    server
        .sql("CREATE TABLE stream (writer TEXT TAG, batch BIGINT, row BIGINT, time TIMESTAMPTZ)")
        .await;
    server.sql(ATTACH).await;
}

/// What of a batch should be where: how many rows, and the sum of their numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    rows: i64,
    sum: i64,
}

impl Share {
    fn add(&mut self, row: i64) {
        self.rows += 1;
        self.sum += row;
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    accepted: Share,
    refused: Share,
    acknowledged: bool,
}

type Key = (String, i64);

/// What was sent and what was acknowledged.
#[derive(Default)]
struct Book {
    entries: Mutex<BTreeMap<Key, Entry>>,
    acknowledged: AtomicU64,
}

/// A batch, of which a random half is no JSON.
fn batch(random: &mut StdRng, writer: usize, number: i64) -> (String, Entry) {
    let mut text = String::with_capacity(ROWS * 96);
    let mut entry =
        Entry { accepted: Share::default(), refused: Share::default(), acknowledged: false };
    for row in 0..ROWS as i64 {
        let time = 1_700_000_000_000_000_000 + number * 1_000_000 + row;
        let _ = write!(text, "stream,writer=w{writer} batch={number}i,row={row}i,payload=");
        let _ = if random.random_bool(0.5) {
            entry.accepted.add(row);
            writeln!(text, "\"{{\\\"v\\\": {row}}}\" {time}")
        } else {
            entry.refused.add(row);
            writeln!(text, "\"v is {row}\" {time}")
        };
    }
    (text, entry)
}

async fn stream(
    server: Arc<Server>,
    book: Arc<Book>,
    writer: usize,
    seed: u64,
    first: i64,
    stop: Arc<AtomicBool>,
) -> i64 {
    let mut random = StdRng::seed_from_u64(seed ^ ((writer as u64) << 40) ^ first as u64);
    let mut number = first;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (text, entry) = batch(&mut random, writer, number);
        let key = (format!("w{writer}"), number);
        book.entries.lock().unwrap().insert(key.clone(), entry);
        match server.try_write(&text).await {
            Ok(answer) if answer.status == StatusCode::NO_CONTENT => {
                let refused = &answer.headers["x-kymo-refused-rows"];
                assert_eq!(refused.to_str().unwrap(), entry.refused.rows.to_string());
                book.entries.lock().unwrap().get_mut(&key).expect("sent").acknowledged = true;
                book.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // The plugin is being loaded, or a queue is full: nothing or all of it is there.
            Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {}
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => break,
        }
    }
    number
}

const ACCEPTED: &str = "SELECT writer, batch, count(*) AS rows, \
     CAST(sum(row) AS BIGINT) AS sum, CAST(sum(v) AS BIGINT) AS same FROM stream \
     GROUP BY writer, batch";

/// The raw rows are JSON objects.
fn refused_sql() -> String {
    let member =
        |name: &str| format!("rtrim(split_part(split_part(row, '\"{name}\":', 2), ',', 1), '}}')");
    let number = |name: &str| format!("CAST({} AS BIGINT)", member(name));
    format!(
        "SELECT trim(both '\"' from {writer}) AS writer, {batch} AS batch, count(*) AS rows, \
         CAST(sum({row}) AS BIGINT) AS sum FROM system.rejected_writes \
         WHERE transform = 'json.json_fields' AND \"table\" = 'stream' GROUP BY 1, 2",
        writer = member("writer"),
        batch = number("batch"),
        row = number("row"),
    )
}

fn shares(rows: &[Value]) -> BTreeMap<Key, Share> {
    let number = |row: &Value, key: &str| row[key].as_i64().unwrap_or_else(|| panic!("{row}"));
    let share = |row: &Value| {
        let key = (row["writer"].as_str().expect("a writer").to_owned(), number(row, "batch"));
        (key, Share { rows: number(row, "rows"), sum: number(row, "sum") })
    };
    rows.iter().map(share).collect()
}

impl Book {
    /// Compares with what the server holds; says what differs.
    async fn check(&self, server: &Server) -> Vec<String> {
        let kept = server.sql(ACCEPTED).await;
        let mut wrong: Vec<String> = kept
            .iter()
            .filter(|row| row["sum"] != row["same"])
            .map(|row| format!("{row} was not transformed"))
            .collect();
        let mut accepted = shares(&kept);
        let mut refused = shares(&server.sql(&refused_sql()).await);
        for (key, entry) in self.entries.lock().unwrap().iter() {
            let found = (accepted.remove(key), refused.remove(key));
            let whole = (Some(entry.accepted), Some(entry.refused));
            let nothing = found == (None, None);
            if found != whole && (entry.acknowledged || !nothing) {
                wrong.push(format!("{key:?}: {found:?} of {entry:?}"));
            }
        }
        wrong
            .extend(accepted.keys().chain(refused.keys()).map(|key| format!("{key:?} is foreign")));
        wrong.truncate(20);
        wrong
    }
}

/// How many rows a second were acknowledged is printed, not demanded: `KYMO_TEST_SEED` repeats
/// the rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_transform_refuses_and_what_it_keeps_add_up_through_sigkill() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let small = options()
        .setting("memtable.table_bytes", 256 * 1024)
        .setting("memtable.soft_bytes", 2 * 1024 * 1024)
        .setting("journal.file_bytes", 512 * 1024)
        .setting("compaction.interval_ms", 100)
        .setting("compaction.min_segments", 2)
        .setting("compaction.grace_ms", 100);
    let mut server = Server::start(small);
    prepare(&server).await;
    let book = Arc::new(Book::default());
    let mut next = [0; WRITERS];
    let mut writing = Duration::ZERO;
    for kill in 0..KILLS {
        let running = Arc::new(server);
        let stop = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (server, book, stop) = (running.clone(), book.clone(), stop.clone());
                tokio::spawn(stream(server, book, writer, seed, next[writer], stop))
            })
            .collect();
        // After a seeded number of acknowledgements and a moment that no seed controls.
        let target = book.acknowledged.load(Ordering::Relaxed) + random.random_range(1..30);
        let spin = Duration::from_micros(random.random_range(0..20_000));
        let waiting = book.clone();
        tokio::task::spawn_blocking(move || {
            until("batches are acknowledged", Duration::from_secs(120), || {
                (waiting.acknowledged.load(Ordering::Relaxed) >= target).then_some(())
            });
            let start = Instant::now();
            while start.elapsed() < spin {
                std::hint::spin_loop();
            }
        })
        .await
        .unwrap();
        let pid = libc::pid_t::try_from(running.pid()).unwrap();
        // SAFETY: plain system call on a child that is not reaped yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        writing += began.elapsed();
        stop.store(true, Ordering::Relaxed);
        for (writer, task) in writers.into_iter().enumerate() {
            next[writer] = task.await.unwrap();
        }
        server = Arc::into_inner(running).expect("all writers have ended");
        server.wait(Duration::from_secs(10));
        server = server.restart();
        let wrong = book.check(&server).await;
        assert!(wrong.is_empty(), "KYMO_TEST_SEED={seed}, kill {kill}:\n{}", wrong.join("\n"));
    }
    let entries = book.entries.lock().unwrap();
    let acknowledged = || entries.values().filter(|entry| entry.acknowledged);
    let kept: i64 = acknowledged().map(|entry| entry.accepted.rows).sum();
    let refused: i64 = acknowledged().map(|entry| entry.refused.rows).sum();
    assert!(kept > 0 && refused > 0);
    println!(
        "{KILLS} kills, {} batches acknowledged: {kept} rows kept, {refused} refused, all there; \
         {:.0} rows/s while writing",
        acknowledged().count(),
        (kept + refused) as f64 / writing.as_secs_f64()
    );
}

#[tokio::test]
async fn every_way_to_write_passes_the_transform_and_a_restart_keeps_it() {
    let server = Server::start(options());
    prepare(&server).await;
    server.sql("ATTACH TRANSFORM json.json_fields TO stream WITH (column = 'payload', fields = 'v:bigint') ON ERROR dead_letter").await;
    let line = |v: &str, time: u32| format!("stream,writer=lp batch=1i,payload=\"{v}\" {time}");
    for path in
        ["/write?db=kymo", "/api/v2/write?bucket=kymo", "/api/v3/write_lp?db=kymo&precision=ns"]
    {
        let body = format!("{}\n{}", line(r#"{\"v\": 1}"#, 1), line("none", 2));
        let answer = send(server.request(Method::POST, path).body(body)).await.unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{path}: {}", answer.text());
        assert_eq!(answer.headers["x-kymo-refused-rows"], "1", "{path}");
    }
    let records = json!([
        { "writer": "json", "payload": "{\"v\": 2}", "time": "2024-01-01T00:00:00Z" },
        { "writer": "json", "payload": "none", "time": "2024-01-01T00:00:00Z" },
    ]);
    let request = server.request(Method::POST, "/write/kymo%2Fstream");
    let answer = send(request.body(records.to_string())).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.json()["written"], 1, "{}", answer.text());
    // SQL names columns of the table only.
    server.sql("CREATE TABLE other (writer TEXT TAG, payload TEXT, time TIMESTAMPTZ)").await;
    server.sql(&ATTACH.replace("stream", "other")).await;
    server
        .sql(
            "INSERT INTO other (writer, payload, time) VALUES \
             ('sql', '{\"v\": 3}', to_timestamp(1)), ('sql', 'none', to_timestamp(2))",
        )
        .await;
    let client = server.pg().await;
    let copy = "COPY other (writer, payload, time) FROM STDIN";
    let mut sink = Box::pin(client.copy_in::<_, bytes::Bytes>(copy).await.unwrap());
    let lines = "copy\t{\"v\": 4}\t2024-01-01T00:00:00Z\ncopy\tnone\t2024-01-01T00:00:01Z\n";
    sink.send(bytes::Bytes::from_static(lines.as_bytes())).await.unwrap();
    sink.as_mut().finish().await.unwrap();

    let kept = "SELECT writer, v FROM stream UNION ALL SELECT writer, v FROM other ORDER BY v";
    let refused = "SELECT \"table\", count(*) AS rows FROM system.rejected_writes \
                   GROUP BY 1 ORDER BY 1";
    let listed = "SELECT \"table\", plugin, function, on_error, settings FROM system.transforms \
                  ORDER BY 1";
    let expected = [
        json!({ "writer": "lp", "v": 1 }),
        json!({ "writer": "json", "v": 2 }),
        json!({ "writer": "sql", "v": 3 }),
        json!({ "writer": "copy", "v": 4 }),
    ];
    assert_eq!(server.sql(kept).await, expected);
    let counted = [json!({ "table": "other", "rows": 2 }), json!({ "table": "stream", "rows": 4 })];
    assert_eq!(server.sql(refused).await, counted);
    let attached = server.sql(listed).await;
    assert_eq!(attached.len(), 2, "{attached:?}");
    assert_eq!(attached[1]["on_error"], "dead_letter");
    let sums = server
        .sql("SELECT sum(rows_in) AS a, sum(rows_out) AS b, sum(refused) AS c FROM system.transforms")
        .await;
    assert_eq!(sums, [json!({ "a": 12, "b": 6, "c": 6 })]);
    let metrics = server.get("/metrics").await.text();
    let family = "kymo_transform_rows_total{outcome=\"refused\",table=\"kymo.public.stream\",\
                  transform=\"json.json_fields\"} 4";
    assert!(metrics.contains(family), "{metrics}");

    let server = server.restart();
    assert_eq!(server.sql(listed).await, attached);
    assert_eq!(server.sql(kept).await, expected);
    assert_eq!(server.sql(refused).await, counted);
    // The plugin may still be on its way into memory: then the sender is told to come back.
    let answer = until_async("a write is taken", Duration::from_secs(60), || async {
        let answer = server.try_write(&line(r#"{\"v\": 5}"#, 9)).await.unwrap();
        (answer.status != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
    assert_eq!(server.sql("SELECT v FROM stream WHERE v = 5").await.len(), 1);
    assert_eq!(server.sql(refused).await, counted);
    let replayed = server.sql("SELECT row FROM system.rejected_writes WHERE \"table\" = 'other'");
    let raw = replayed.await[0]["row"].as_str().expect("a row").to_owned();
    server.sql("DETACH TRANSFORM json.json_fields FROM other").await;
    let request = server.request(Method::POST, "/write/kymo%2Fother");
    let answer = send(request.body(raw)).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(server.sql("SELECT v FROM other WHERE payload = 'none'").await.len(), 1);
}
