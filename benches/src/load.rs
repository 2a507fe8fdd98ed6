//! Sends generated rows to a server over several connections, and measures.

use std::io::{self, Write};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::tsbs::{Generator, Shape};

/// Where to and how.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address, such as `http://127.0.0.1:7878`.
    pub url: String,
    /// Database.
    pub database: String,
    /// The value of the `Authorization` header.
    pub authorization: Option<String>,
    /// Requests under way at a time.
    pub connections: usize,
    /// Rows in one request.
    pub batch: usize,
}

/// What a load came to.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// Rows that were acknowledged.
    pub rows: usize,
    /// Bytes of line protocol.
    pub bytes: usize,
    /// From the first request to the last answer.
    pub took: Duration,
}

impl Loaded {
    /// Acknowledged rows a second.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        self.rows as f64 / self.took.as_secs_f64()
    }
}

/// Sends all rows of a shape. They are made before the watch starts, so that it measures
/// the server and not the generator.
///
/// # Errors
/// A sentence on the first request that failed.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub fn load(target: &Target, shape: Shape) -> Result<Loaded, String> {
    let mut generator = Generator::new(shape);
    let mut bodies = Vec::with_capacity(shape.rows().div_ceil(target.batch));
    loop {
        let mut body = Vec::with_capacity(target.batch * 360);
        if generator.lines(&mut body, target.batch) == 0 {
            break;
        }
        bodies.push(body);
    }
    let bytes = bodies.iter().map(Vec::len).sum();
    let watch = Instant::now();
    send(target, bodies)?;
    Ok(Loaded { rows: shape.rows(), bytes, took: watch.elapsed() })
}

/// Sends all rows of a shape that is too large to be made before: what making them costs is
/// in the time.
///
/// # Errors
/// A sentence on the first request that failed.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub fn stream(target: &Target, shape: Shape) -> Result<Loaded, String> {
    let mut generator = Generator::new(shape);
    let mut bytes = 0;
    let bodies = std::iter::from_fn(|| {
        let mut body = Vec::with_capacity(target.batch * 360);
        let rows = generator.lines(&mut body, target.batch);
        bytes += body.len();
        (rows > 0).then_some(body)
    });
    let watch = Instant::now();
    send(target, bodies)?;
    Ok(Loaded { rows: shape.rows(), bytes, took: watch.elapsed() })
}

fn send(target: &Target, bodies: impl IntoIterator<Item = Vec<u8>>) -> Result<(), String> {
    let (queue, waiting) = sync_channel::<Vec<u8>>(target.connections);
    let waiting = Mutex::new(waiting);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..target.connections)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    let client = reqwest::blocking::Client::builder()
                        .timeout(None)
                        .build()
                        .map_err(|error| error.to_string())?;
                    loop {
                        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(body) = next else { return Ok(()) };
                        post(&client, target, body)?;
                    }
                })
            })
            .collect();
        for body in bodies {
            if queue.send(body).is_err() {
                break;
            }
        }
        drop(queue);
        for worker in workers {
            worker.join().map_err(|_| "a sending thread panicked".to_owned())??;
        }
        Ok(())
    })
}

/// Sends one body; waits and repeats while the server is busy.
#[expect(clippy::disallowed_methods, reason = "waits as long as the server asks for")]
fn post(client: &reqwest::blocking::Client, target: &Target, body: Vec<u8>) -> Result<(), String> {
    let url = format!(
        "{}/api/v3/write_lp?db={}&precision=ns&accept_partial=false",
        target.url, target.database
    );
    for _ in 0..60 {
        let mut request = client.post(&url).body(body.clone());
        if let Some(authorization) = &target.authorization {
            request = request.header("authorization", authorization);
        }
        let answer = request.send().map_err(|error| format!("no answer: {error}"))?;
        if answer.status().is_success() {
            return Ok(());
        }
        if answer.status().as_u16() != 503 {
            let status = answer.status();
            return Err(format!("{status}: {}", answer.text().unwrap_or_default()));
        }
        thread::sleep(Duration::from_millis(500));
    }
    Err("the server stayed busy".to_owned())
}

/// Writes all rows of a shape as line protocol.
///
/// # Errors
/// The output cannot be written.
pub fn print(shape: Shape, out: &mut dyn Write) -> io::Result<()> {
    let mut generator = Generator::new(shape);
    let mut body = Vec::new();
    while generator.lines(&mut body, 10_000) > 0 {
        out.write_all(&body)?;
        body.clear();
    }
    out.flush()
}
