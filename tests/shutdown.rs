//! SIGTERM under load: the server ends within 30 seconds with code 0, every write it
//! accepted is answered, and its log names each phase.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kymo_tests::{Ledger, Options, Server, Workload, workload};
use reqwest::StatusCode;

const WRITERS: usize = 6;
const TABLES: usize = 3;
const PHASES: [&str; 8] =
    ["doors", "schedulers", "statements", "writes", "background", "flush", "journal", "last"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_answers_what_was_accepted_and_names_its_phases() {
    let server = Arc::new(Server::start(Options::new()));
    let ledger = Arc::new(Ledger::default());
    let refused = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (server, ledger) = (Arc::clone(&server), Arc::clone(&ledger));
            let refused = Arc::clone(&refused);
            tokio::spawn(async move {
                let mut workload = Workload::new(7, writer, TABLES);
                loop {
                    let batch = workload.batch();
                    ledger.sent(&batch);
                    match server.try_write(&batch.lines()).await {
                        Ok(answer) if answer.status == StatusCode::NO_CONTENT => {
                            ledger.acknowledged(&batch);
                        }
                        Ok(answer) => {
                            assert_eq!(
                                answer.status,
                                StatusCode::SERVICE_UNAVAILABLE,
                                "{}",
                                answer.text()
                            );
                            assert!(answer.headers.contains_key("retry-after"));
                            ledger.refused(&batch);
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) => return,
                    }
                }
            })
        })
        .collect();
    let waiting = Arc::clone(&ledger);
    tokio::task::spawn_blocking(move || waiting.wait_for(200, Duration::from_secs(60)))
        .await
        .unwrap();

    let start = Instant::now();
    server.signal_terminate();
    for writer in writers {
        tokio::time::timeout(Duration::from_secs(30), writer).await.unwrap().unwrap();
    }
    let mut server = Arc::into_inner(server).unwrap();
    let status = server.wait(Duration::from_secs(30).saturating_sub(start.elapsed()));
    let took = start.elapsed();
    let log = server.log();
    println!("ended in {took:?} with {status}, {} refused", refused.load(Ordering::Relaxed));
    assert!(status.success(), "{status}\n{log}");
    assert!(took < Duration::from_secs(30));
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("phase")).collect();
    for phase in PHASES {
        assert!(
            lines.iter().any(|line| line.contains(&format!("phase={phase}"))),
            "the log does not name the phase {phase}:\n{log}"
        );
    }

    let server = server.restart();
    let tables: Vec<String> = (0..TABLES).map(workload::table).collect();
    ledger.check(&server, &tables).await.unwrap();
}

#[tokio::test]
async fn a_clean_stop_and_a_start_keep_everything() {
    let mut server = Server::start(Options::new());
    server.write("m,t=a v=1i 1\nm,t=b v=2i 2").await;
    assert!(server.terminate().success());
    let server = server.restart();
    let log = server.log();
    let opened = log.lines().find(|line| line.contains("store opened")).unwrap();
    assert!(opened.contains(" rows=0 "), "a clean stop leaves nothing to replay: {opened}");
    let rows = server.sql("SELECT t, v FROM m ORDER BY t").await;
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[1]["t"], &rows[1]["v"]), (&"b".into(), &2.into()));
}
