//! Traces as a collector receives them: one request through two actors and a thread is one
//! trace, and every step hangs below the one that caused it. A process of its own, because
//! telemetry is set up once a process.

use std::sync::mpsc::{Sender, channel};

use kymo_config::settings::Observe;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::env::real;
use kymo_kernel::message::Message;
use kymo_kernel::observe::{self, Trace, TraceSettings};
use kymo_kernel::pools::{Group, PoolSizes, Pools};
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::span;
use kymo_kernel::supervise::{Spec, Supervisor};
use kymo_tests::collector::Collector;
use tracing::Instrument;

struct Front {
    keep: Port<Keep>,
}
struct Store {
    journal: Sender<Box<dyn FnOnce() + Send>>,
}
struct Put(u64);
struct Keep(u64);

impl Message for Put {
    type Reply = u64;
}
impl Message for Keep {
    type Reply = u64;
}
impl Actor for Front {}
impl Actor for Store {}

impl Handle<Put> for Front {
    fn handle(&mut self, Put(n): Put, reply: Reply<Put>, cx: &mut Cx<Self>) {
        let keep = self.keep.clone();
        cx.answer(reply, async move { keep.call(Keep(n)).await });
    }
}

/// Hands its work to a thread that is no actor and answers when that calls back.
impl Handle<Keep> for Store {
    fn handle(&mut self, Keep(n): Keep, reply: Reply<Keep>, cx: &mut Cx<Self>) {
        let (trace, poster) = (Trace::here(), cx.poster());
        let commit = trace.child("journal.commit");
        let work = move || {
            commit.run("journal.sync", || ());
            poster.post(move |_, _| trace.run("store.apply", || reply.ok(n + 1)));
            drop(commit);
        };
        self.journal.send(Box::new(work)).unwrap();
    }
}

#[test]
fn one_request_through_actors_and_a_thread_is_one_trace() {
    let collector = Collector::start();
    let settings = Observe { log: "info".to_owned(), log_format: "json".to_owned() };
    let telemetry =
        observe::init(&settings, TraceSettings::to(format!("{}/v1/traces", collector.endpoint())))
            .unwrap();
    assert!(telemetry.traces());
    assert!(observe::init(&settings, TraceSettings::off()).is_err(), "once a process");

    let sizes = PoolSizes { io: 1, query: 1, background: 1, foreground: 1, arbiters: [1, 1, 1, 1] };
    let pools = Pools::start(sizes).unwrap();
    let supervisor = Supervisor::new(&pools, real::env().clock, |_| {});
    let (journal, jobs) = channel::<Box<dyn FnOnce() + Send>>();
    let journal_thread = pools.thread("journal", move || jobs.into_iter().for_each(|job| job()));
    let spec = Spec::new("store.cpu", "store").on(Group::Writers);
    let store = supervisor.start_once(spec, || Store { journal });
    let keep = store.port(Budget::count(10));
    let front = supervisor.start_once(Spec::new("front", "front"), || Front { keep });
    let put: Port<Put> = front.port(Budget::count(10));

    let request = span!("http.write", bytes = 3);
    observe::join_remote(&request, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let answer = pools.block_on(put.call(Put(1)).instrument(request)).unwrap();
    assert_eq!(answer.unwrap(), 2);
    drop((put, front, store));
    journal_thread.unwrap().join().unwrap();
    pools.stop();
    telemetry.finish();

    // The client's trace goes on, under the span that it named.
    let paths = collector.paths(&0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(
        paths,
        [
            "http.write",
            "http.write > front Put",
            "http.write > front Put > store Keep",
            "http.write > front Put > store Keep > journal.commit",
            "http.write > front Put > store Keep > journal.commit > journal.sync",
            "http.write > front Put > store Keep > store.apply",
        ]
    );
}
