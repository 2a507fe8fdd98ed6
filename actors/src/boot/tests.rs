//! The whole system in one thread: failures of the disk, and stopping.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kymo_config::Settings;
use kymo_kernel::env::sim::{Fault, Operation, Sim};
use kymo_kernel::pools::Pools;
use kymo_kernel::{Code, Result, simulate};

use crate::System;
use crate::engine::kit::{cpu, read, rows, write};

fn boot(sim: &Sim) -> System {
    let mut settings = Settings::default();
    settings.server.data_dir = PathBuf::from("/data");
    System::boot(Arc::new(settings), sim.env(), Pools::here()).unwrap()
}

async fn put(system: &System, time: i64) -> Result<u64> {
    let call = system.write().call(write(vec![rows(&cpu(), &[("a", time, 1.0)])]));
    call.await.map(|acked| acked.rows)
}

fn count(system: &System) -> usize {
    let store = system.engine().store();
    let id = store.catalog().table(&cpu()).unwrap().def.id;
    read(&store.table(id).unwrap().load(), "value").len()
}

#[test]
fn a_failed_sync_stops_the_system_and_loses_nothing_acknowledged() {
    let sim = Sim::new(1);
    simulate::run(&sim.clock, async {
        let system = boot(&sim);
        for time in 0..5 {
            put(&system, time).await.unwrap();
        }
        assert!(system.is_ready());
        sim.disk.fail_after(Operation::Sync, 0, Fault::Eio);
        let error = put(&system, 5).await.unwrap_err();
        assert_eq!(error.code(), Code::Io, "{error:?}");
        let reason = system.fatal().await;
        assert!(reason.message().starts_with("the store stopped"), "{reason}");
        assert!(!system.is_ready());
        let error = put(&system, 6).await.unwrap_err();
        assert!(matches!(error.code(), Code::Io | Code::Poisoned), "{error:?}");
    })
    .unwrap();
    sim.disk.crash(1);
    simulate::run(&sim.clock, async {
        let system = boot(&sim);
        assert!(count(&system) >= 5);
        put(&system, 7).await.unwrap();
    })
    .unwrap();
}

#[test]
fn a_full_disk_delays_a_flush_and_loses_nothing() {
    let sim = Sim::new(2);
    simulate::run(&sim.clock, async {
        let system = boot(&sim);
        put(&system, 1).await.unwrap();
        sim.disk.fail_after(Operation::Create, 0, Fault::Enospc);
        let began = sim.env().clock.monotonic();
        system.flush().await.unwrap();
        let took = sim.env().clock.monotonic() - began;
        assert!(took >= Duration::from_millis(200), "no attempt failed: {took:?}");
        assert!(system.poisoned().is_none());
        assert_eq!(count(&system), 1);
        assert_eq!(system.status()["segments"], 1);
    })
    .unwrap();
}

#[test]
fn stopping_answers_what_was_accepted_and_refuses_the_rest() {
    let sim = Sim::new(3);
    simulate::run(&sim.clock, async {
        let system = boot(&sim);
        let accepted: Vec<_> = (0..20)
            .map(|time| {
                let write = write(vec![rows(&cpu(), &[("a", time, 1.0)])]);
                system.write().try_call(write).unwrap()
            })
            .collect();
        let (outcomes, report) = futures::join!(join_all(accepted), system.shutdown());
        assert!(outcomes.iter().all(Result::is_ok));
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(put(&system, 99).await.unwrap_err().code(), Code::ShuttingDown);
    })
    .unwrap();
    sim.disk.crash(3);
    simulate::run(&sim.clock, async {
        let system = boot(&sim);
        assert_eq!(count(&system), 20);
    })
    .unwrap();
}

#[test]
fn the_status_counts_what_is_there() {
    let sim = Sim::new(4);
    simulate::run(&sim.clock, async {
        let system = boot(&sim);
        for time in 0..3 {
            put(&system, time).await.unwrap();
        }
        let status = system.status();
        assert_eq!(status["rows"], 3);
        assert_eq!(status["table_count"], 1);
        assert_eq!(status["tables"][0]["name"], "kymo.public.cpu");
        let ports = status["ports"].as_array().unwrap();
        assert!(ports.iter().any(|port| port["name"] == "ingest/Write"), "{ports:?}");
        let text = system.observe().unwrap();
        assert!(text.contains("kymo_store_tables 1"), "{text}");
        let actors = system.supervisor().list();
        assert!(actors.iter().any(|actor| actor.kind == "writer"));
    })
    .unwrap();
}
