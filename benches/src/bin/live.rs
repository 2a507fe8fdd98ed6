//! How long a change takes from its acknowledgement to who follows it, while others write:
//!
//! ```sh
//! cargo run --release -p kymo-benches --bin live -- --url http://127.0.0.1:7878 --token T
//! ```
//!
//! One connection writes a numbered row every few milliseconds; subscribers over WebSockets
//! wait for it, each for one query. The line of a query tells the quantiles of (time of
//! arrival − time of the acknowledgement) over all numbers and subscribers; what arrives before
//! its acknowledgement counts as 0. The server acknowledges as it is configured to, after an
//! fsync by default. Background rows go into the same table, and so through every subscription.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time, with tasks of its own")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures::future::{join_all, try_join_all};
use futures::{SinkExt, StreamExt};
use kymo_benches::server::{Outcome, exit, text};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// The table that everybody writes to.
const TABLE: &str = "live_bench";

/// How long the last numbers may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is followed: how the class is called, and a query whose column `n` is, or grows to, the
/// number of the newest row with `host = 'probe'`.
const QUERIES: [(&str, &str); 3] = [
    ("rows", "SELECT n FROM live_bench WHERE host = 'probe'"),
    (
        "windows",
        "SELECT time_bucket('10s', time) AS w, max(n) AS n, count(*) AS c, avg(v) AS v \
         FROM live_bench WHERE host = 'probe' GROUP BY 1",
    ),
    (
        "windows, all hosts",
        "SELECT time_bucket('10s', time) AS w, host, max(n) AS n, count(*) AS c, avg(v) AS v \
         FROM live_bench GROUP BY 1, 2",
    ),
];

/// Write-to-push latency under load.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:7878")]
    url: String,
    /// Token of an account that may write
    #[arg(long, env = "KYMO_TOKEN", hide_env_values = true)]
    token: String,
    /// Background rows a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Rows of a background request
    #[arg(long, default_value_t = 2_500)]
    batch: u64,
    /// Hosts of the background rows
    #[arg(long, default_value_t = 100)]
    hosts: u64,
    /// Milliseconds between two numbered rows
    #[arg(long, default_value_t = 20)]
    every_ms: u64,
    /// Seconds for each query
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Subscribers of the query
    #[arg(long, default_value_t = 5)]
    subscribers: usize,
    /// Only the query of this name
    #[arg(long)]
    only: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(run(Arc::new(Arguments::parse())).await)
}

async fn run(arguments: Arc<Arguments>) -> Outcome<()> {
    println!(
        "{:<20} {:>9} {:>9} {:>9} {:>9} {:>8} {:>12}",
        "query", "p50 ms", "p90 ms", "p99 ms", "max ms", "numbers", "rows/s beside"
    );
    write(&Client::new(), &arguments, format!("{TABLE},host=probe n=0i,v=0\n")).await?;
    for (name, query) in QUERIES {
        if arguments.only.as_ref().is_none_or(|only| only == name) {
            measure(&arguments, name, query).await?;
        }
    }
    Ok(())
}

/// When each number was acknowledged, in microseconds since the beginning.
#[derive(Debug)]
struct Numbers {
    begun: Instant,
    acknowledged: Vec<AtomicU64>,
}

async fn measure(arguments: &Arc<Arguments>, name: &str, query: &'static str) -> Outcome<()> {
    let count = arguments.seconds * 1000 / arguments.every_ms.max(1);
    let acknowledged = (0..=count).map(|_| AtomicU64::default()).collect();
    let numbers = Arc::new(Numbers { begun: Instant::now(), acknowledged });
    // Numbers grow from query to query, so that none is mistaken for an earlier one.
    let since = std::time::UNIX_EPOCH.elapsed().map_err(text)?;
    let first = u64::try_from(since.as_micros()).map_err(text)?;
    let sockets =
        try_join_all((0..arguments.subscribers).map(|_| subscribe(arguments, query))).await?;
    let done = Arc::new(AtomicBool::new(false));
    let background = tokio::spawn(background(arguments.clone(), done.clone()));
    let listening =
        sockets.into_iter().map(|socket| tokio::spawn(listen(socket, first, numbers.clone())));
    let listening: Vec<_> = listening.collect();
    let probed = probe(arguments, first, &numbers).await;
    done.store(true, Ordering::Relaxed);
    let beside = background.await.map_err(text)??;
    probed?;
    let mut all = Vec::new();
    for heard in join_all(listening).await {
        let arrived = heard.map_err(text)??.into_iter();
        let pairs = arrived.zip(&numbers.acknowledged);
        all.extend(pairs.map(|(at, acked)| at.saturating_sub(acked.load(Ordering::Acquire))));
    }
    all.sort_unstable();
    let at = |share: f64| {
        all.get(((all.len() as f64 - 1.0) * share) as usize).map_or(f64::NAN, |us| *us as f64 / 1e3)
    };
    println!(
        "{name:<20} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>8} {:>12.0}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        all.len(),
        beside as f64 / arguments.seconds as f64,
    );
    Ok(())
}

/// Writes a number every few milliseconds and notes when it was acknowledged.
async fn probe(arguments: &Arguments, first: u64, numbers: &Numbers) -> Outcome<()> {
    let client = Client::new();
    let mut tick = tokio::time::interval(Duration::from_millis(arguments.every_ms.max(1)));
    for (index, acknowledged) in numbers.acknowledged.iter().enumerate() {
        tick.tick().await;
        let number = first + index as u64;
        write(&client, arguments, format!("{TABLE},host=probe n={number}i,v=1\n")).await?;
        acknowledged.store(micros(numbers.begun), Ordering::Release);
    }
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Writes rows of many hosts at a rate until told that it is done; says how many.
async fn background(arguments: Arc<Arguments>, done: Arc<AtomicBool>) -> Outcome<u64> {
    if arguments.rate == 0 {
        return Ok(0);
    }
    let client = Client::new();
    let lines = (0..arguments.batch).map(|row| {
        let (host, sensor) = (row % arguments.hosts.max(1), row / arguments.hosts.max(1));
        format!("{TABLE},host=h{host},sensor=s{sensor} n=0i,v={row}\n")
    });
    let body: String = lines.collect();
    let pause = Duration::from_secs_f64(arguments.batch as f64 / arguments.rate as f64);
    let mut tick = tokio::time::interval(pause);
    let mut rows = 0;
    while !done.load(Ordering::Relaxed) {
        tick.tick().await;
        write(&client, &arguments, body.clone()).await?;
        rows += arguments.batch;
    }
    Ok(rows)
}

async fn write(client: &Client, arguments: &Arguments, body: String) -> Outcome<()> {
    let url = format!("{}/api/v3/write_lp?db=kymo", arguments.url.trim_end_matches('/'));
    let answer = client.post(url).bearer_auth(&arguments.token).body(body).send().await;
    let answer = answer.map_err(text)?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("{}: {}", answer.status(), answer.text().await.map_err(text)?))
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn subscribe(arguments: &Arguments, query: &str) -> Outcome<Socket> {
    let url = arguments.url.trim_end_matches('/').replacen("http", "ws", 1);
    let mut request = format!("{url}/ws").into_client_request().map_err(text)?;
    let header = format!("Bearer {}", arguments.token).parse().map_err(text)?;
    request.headers_mut().insert("Authorization", header);
    let (mut socket, _) = connect_async(request).await.map_err(text)?;
    let wish = json!({"type": "subscribe", "id": 1, "sql": query, "snapshot": false});
    socket.send(Message::text(wish.to_string())).await.map_err(text)?;
    loop {
        let message = next(&mut socket).await?;
        match message["type"].as_str() {
            Some("snapshot_end") => return Ok(socket),
            Some("error") => return Err(message.to_string()),
            _ => {}
        }
    }
}

async fn next(socket: &mut Socket) -> Outcome<Value> {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await;
        match message.map_err(|_| "nothing more came")? {
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text).map_err(self::text);
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(text(error)),
            None => return Err("the server ended the connection".into()),
        }
    }
}

/// When each number arrived, in microseconds since the beginning.
async fn listen(mut socket: Socket, first: u64, numbers: Arc<Numbers>) -> Outcome<Vec<u64>> {
    let count = numbers.acknowledged.len();
    let mut arrived = Vec::with_capacity(count);
    while arrived.len() < count {
        let message = next(&mut socket).await?;
        if message["type"] == "error" {
            return Err(message.to_string());
        }
        let at = micros(numbers.begun);
        let rows = message["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
        let newest = rows.iter().filter_map(|row| row["n"].as_u64()?.checked_sub(first)).max();
        // One push may bring several numbers: the newest of a window stands for those before.
        while newest.is_some_and(|newest| newest >= arrived.len() as u64) && arrived.len() < count {
            arrived.push(at);
        }
    }
    Ok(arrived)
}
