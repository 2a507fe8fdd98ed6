//! Pools with real threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;

fn pools() -> Pools {
    let sizes = PoolSizes { io: 1, query: 1, background: 2, foreground: 1, arbiters: [1, 1, 1, 1] };
    Pools::start(sizes).unwrap()
}

#[test]
fn sizes_follow_settings_and_cores() {
    let mut settings = Settings::default();
    let small = PoolSizes::of(&settings, 2);
    assert_eq!((small.io, small.query, small.background), (2, 2, 1));
    assert_eq!(small.arbiters, [1, 1, 1, 1]);
    let large = PoolSizes::of(&settings, 64);
    assert_eq!((large.background, large.arbiters), (16, [1, 2, 8, 4]));
    settings.query.threads = 5;
    assert_eq!(PoolSizes::of(&settings, 64).query, 5);
}

#[test]
fn background_jobs_are_niced_and_limited() {
    let pools = pools();
    let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let jobs: Vec<_> = (0..16)
        .map(|n| {
            let (running, peak) = (Arc::clone(&running), Arc::clone(&peak));
            pools.background("job", move || {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                // SAFETY: a plain system call on integers.
                (n, unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
            })
        })
        .collect();
    let outcomes = pools.block_on(futures::future::join_all(jobs)).unwrap();
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert!(outcomes.iter().enumerate().all(|(at, (n, nice))| at == *n && *nice >= 10));
    assert!(peak.load(Ordering::SeqCst) <= 2);
    pools.stop();
}

#[test]
fn a_panic_in_a_job_is_an_error_that_names_it() {
    let pools = pools();
    let job = pools.foreground("parse body", || -> u8 { panic!("at byte {}", 7) });
    let error = pools.block_on(job).unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert_eq!(error.message(), "parse body panicked: at byte 7");
    let thread = pools.thread("odd", || panic!("odd")).unwrap();
    assert!(thread.join().unwrap_err().message().contains("odd panicked"));
    pools.stop();
}

/// Tells when it is dropped.
struct OnDrop(std::sync::mpsc::Sender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn dropping_a_task_or_a_group_stops_what_it_owns() {
    let pools = pools();
    let (dropped, drops) = channel();
    let task = {
        let guard = OnDrop(dropped.clone());
        pools.spawn(Pool::Io, "endless", async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        })
    };
    drop(task);
    drops.recv_timeout(Duration::from_secs(20)).unwrap();
    let group = TaskGroup::new(&pools, Pool::Io);
    for number in 0..3 {
        let guard = OnDrop(dropped.clone());
        group.spawn(format!("connection {number}"), async move {
            let _guard = guard;
            if number > 0 {
                std::future::pending::<()>().await;
            }
        });
    }
    drops.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(group);
    drops.recv_timeout(Duration::from_secs(20)).unwrap();
    drops.recv_timeout(Duration::from_secs(20)).unwrap();
    pools.stop();
}

#[test]
fn a_group_tells_who_runs_and_when_all_have_ended() {
    let pools = pools();
    let group = TaskGroup::new(&pools, Pool::Io);
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    group.spawn("one", async move { drop(wait.await) });
    group.spawn("two", async { panic!("a task's own affair") });
    assert!(group.names().iter().any(|name| &**name == "one"));
    go.send(()).unwrap();
    pools.block_on(tokio_timeout(group.ended())).unwrap();
    assert!(group.is_empty());
    pools.stop();
}

async fn tokio_timeout(future: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap();
}

#[test]
fn a_job_that_has_not_started_is_taken_back() {
    let pools = pools();
    let (release, blocked) = channel::<()>();
    let first = pools.foreground("blocks", move || {
        let _ = blocked.recv();
    });
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let second = pools.foreground("waits", move || flag.store(true, Ordering::SeqCst));
    drop(second);
    release.send(()).unwrap();
    pools.block_on(first).unwrap().unwrap();
    let third = pools.foreground("last", || ());
    pools.block_on(third).unwrap().unwrap();
    assert!(!ran.load(Ordering::SeqCst));
    pools.stop();
}

#[test]
fn the_last_clone_may_go_inside_asynchronous_code() {
    let pools = pools();
    let inside = pools.clone();
    let task = pools.spawn(Pool::Query, "owner", async move { drop(inside) });
    pools.block_on(task).unwrap().unwrap();
    let inside = pools.clone();
    let (done, ended) = channel();
    let task = pools.spawn(Pool::Query, "last owner", async move {
        tokio::task::yield_now().await;
        drop(inside);
        let _ = done.send(());
    });
    let keep = pools.handle(Pool::Io).unwrap().clone();
    drop(pools);
    let _ = ended.recv_timeout(Duration::from_secs(20));
    drop((task, keep));
}
