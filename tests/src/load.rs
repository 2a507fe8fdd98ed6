//! Concurrent writers that keep a ledger, and whoever changes definitions beside them: what a
//! server is under when it is killed or fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::{Method, StatusCode};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::clients::send;
use crate::component::plugin;
use crate::server::Server;
use crate::workload::{self, Workload};
use crate::{Batch, Ledger, Options};

/// Settings with which flushes, rotations, merges and clean-ups fall into short lives.
#[must_use]
pub fn busy() -> Options {
    Options::new()
        .setting("memtable.table_bytes", 64 * 1024)
        .setting("memtable.soft_bytes", 256 * 1024)
        .setting("journal.file_bytes", 64 * 1024)
        .setting("journal.retention", "1h")
        .setting("journal.retention_bytes", 128 * 1024)
        .setting("compaction.interval_ms", 50)
        .setting("compaction.min_segments", 2)
        .setting("compaction.grace_ms", 100)
}

/// Writers with their books, who outlive the servers that they write to.
pub struct Load {
    /// What was acknowledged.
    pub ledger: Arc<Ledger>,
    /// Where rows go.
    pub tables: Vec<String>,
    workloads: Vec<Arc<Mutex<Workload>>>,
    /// Parameters that are added to each write, such as `&durability=none`.
    parameters: String,
    /// The number of the next definition.
    next: Arc<AtomicU64>,
    /// Why changes of definitions were refused.
    refusals: Arc<std::sync::Mutex<Vec<String>>>,
}

/// Writers at work on one server.
pub struct Working {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Working {
    /// Lets all of them end, and waits for that.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await;
    }

    /// Waits for the server to be gone for all of them.
    pub async fn ended(self) {
        for task in self.tasks {
            task.await.expect("a writer");
        }
    }
}

impl Load {
    /// So many writers over so many tables, whose rows a seed repeats.
    #[must_use]
    pub fn new(seed: u64, writers: usize, tables: usize) -> Load {
        let workload = |writer| Arc::new(Mutex::new(Workload::new(seed, writer, tables)));
        Load {
            ledger: Arc::default(),
            tables: (0..tables).map(workload::table).collect(),
            workloads: (0..writers).map(workload).collect(),
            parameters: String::new(),
            next: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// Adds parameters to each write.
    #[must_use]
    pub fn with_parameters(self, parameters: &str) -> Load {
        Load { parameters: parameters.to_owned(), ..self }
    }

    /// Starts the writers on a server; they end when it is gone.
    #[must_use]
    pub fn write(&self, server: &Arc<Server>) -> Working {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |workload: &Arc<Mutex<Workload>>| {
            tokio::spawn(write(
                Arc::clone(server),
                Arc::clone(&self.ledger),
                Arc::clone(workload),
                self.parameters.clone(),
                Arc::clone(&stop),
            ))
        };
        let tasks = self.workloads.iter().map(writer).collect();
        Working { stop, tasks }
    }

    /// Starts the writers, and beside them somebody who makes and drops tables and uploads
    /// plugins. `server` has no authentication, or its administrator asks.
    #[must_use]
    pub fn write_and_define(&self, server: &Arc<Server>) -> Working {
        let mut working = self.write(server);
        working.tasks.push(tokio::spawn(define(
            Arc::clone(server),
            Arc::clone(&self.next),
            Arc::clone(&self.refusals),
            Arc::clone(&working.stop),
        )));
        working
    }

    /// Why changes of definitions were refused, since this was asked last.
    #[must_use]
    pub fn take_refusals(&self) -> Vec<String> {
        std::mem::take(&mut *self.refusals.lock().expect("no panic holds it"))
    }

    /// Writes one batch, which must be acknowledged.
    pub async fn write_one(&self, server: &Server) {
        let batch = self.workloads[0].lock().await.batch();
        self.ledger.sent(&batch);
        server.write(&batch.lines()).await;
        self.ledger.acknowledged(&batch);
    }

    /// As [`Ledger::check`].
    ///
    /// # Errors
    /// A sentence for each batch that is wrong.
    pub async fn check(&self, server: &Server) -> Result<(), String> {
        self.ledger.check(server, &self.tables).await
    }
}

/// Sends batches until told to stop or until the server is gone.
async fn write(
    server: Arc<Server>,
    ledger: Arc<Ledger>,
    workload: Arc<Mutex<Workload>>,
    parameters: String,
    stop: Arc<AtomicBool>,
) {
    let path = format!("/api/v3/write_lp?db=kymo&precision=ns&accept_partial=false{parameters}");
    let mut workload = workload.lock().await;
    while !stop.load(Ordering::Relaxed) {
        let batch: Batch = workload.batch();
        ledger.sent(&batch);
        match send(server.request(Method::POST, &path).body(batch.lines())).await {
            Ok(answer) if answer.status == StatusCode::NO_CONTENT => ledger.acknowledged(&batch),
            // A full queue, or a store that stopped: the batch may be there or not.
            Ok(answer) if answer.status.is_server_error() => {}
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => return,
        }
    }
}

/// Changes definitions until told to stop or until the server is gone.
async fn define(
    server: Arc<Server>,
    next: Arc<AtomicU64>,
    refusals: Arc<std::sync::Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let statements = [
            format!(
                "CREATE TABLE made_{number} (host TEXT TAG, v DOUBLE PRECISION, time TIMESTAMP TIME INDEX)"
            ),
            format!("DROP TABLE made_{number}"),
        ];
        for statement in statements {
            match server.try_sql(&statement).await {
                Ok(answer) if answer.status.is_server_error() => {
                    refusals.lock().expect("no panic holds it").push(answer.text());
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
        if number.is_multiple_of(16) {
            for request in uploads(&server, number) {
                match send(request).await {
                    Ok(answer) if answer.status.is_server_error() => {
                        refusals.lock().expect("no panic holds it").push(answer.text());
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        }
    }
}

/// A new version of a plugin, an upload that is not what it says it is, and the end of a plugin.
fn uploads(server: &Server, number: u64) -> [reqwest::RequestBuilder; 3] {
    let path = "/api/v1/plugins/made";
    let version = plugin(&format!("1.0.{number}"), &["f"]);
    let other = format!("sha256:{}", "0".repeat(64));
    let put = |body: Vec<u8>| server.request(Method::PUT, path).body(body);
    [
        put(version.clone()),
        put(version).header("x-kymo-digest", other),
        server.request(Method::DELETE, path),
    ]
}
