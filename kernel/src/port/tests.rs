//! The port alone, with closures as receivers, on one thread under a simulated clock.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;

use super::*;
use crate::env::sim::{Sim, SimClock};
use crate::simulate;

struct Bytes(usize);

impl Message for Bytes {
    type Reply = usize;

    fn weight(&self) -> usize {
        self.0
    }
}

const WAIT: Duration = Duration::from_secs(1);

fn port(clock: &Arc<SimClock>, count: usize, bytes: u64) -> Port<Bytes> {
    Port::new("test", "test", Budget::bytes(count, bytes, WAIT), clock.clone())
}

/// A receiver that answers when told to.
type Held = Arc<Mutex<Vec<(Bytes, Reply<Bytes>)>>>;

fn hold(port: &Port<Bytes>) -> Held {
    let held = Held::default();
    let to = Arc::clone(&held);
    port.connect(move |message, reply| to.lock().push((message, reply)));
    held
}

fn run<T>(program: impl AsyncFnOnce(Arc<SimClock>) -> T) -> T {
    let sim = Sim::new(1);
    simulate::run(&sim.clock, program(sim.clock.clone())).unwrap()
}

fn answer_all(held: &Held) -> usize {
    let held = std::mem::take(&mut *held.lock());
    let count = held.len();
    held.into_iter().for_each(|(message, reply)| reply.ok(message.0));
    count
}

#[test]
fn queued_bytes_never_exceed_the_budget() {
    run(async |clock| {
        let port = port(&clock, 100, 1000);
        let held = hold(&port);
        let calls = join_all((0..200).map(|n| port.call(Bytes(1 + n % 300))));
        let answering = async {
            loop {
                clock.sleep(Duration::from_millis(1)).await;
                if answer_all(&held) == 0 {
                    return;
                }
            }
        };
        let (answers, ()) = futures::join!(calls, answering);
        assert!(answers.iter().all(Result::is_ok));
        let stats = port.stats();
        assert!(stats.peak_bytes <= 1000 && stats.peak_bytes > 700, "{stats:?}");
        assert_eq!((stats.queued, stats.queued_bytes, stats.accepted), (0, 0, 200));
        assert_eq!(stats.waits.iter().sum::<u64>(), 200);
    });
}

#[test]
fn a_dropped_reply_answers_down() {
    run(async |clock| {
        let port = port(&clock, 1, 10);
        port.connect(|_: Bytes, _reply: Reply<Bytes>| {});
        let error = port.call(Bytes(1)).await.unwrap_err();
        assert_eq!(error.code(), Code::Down);
        assert!(error.message().contains("test/Bytes"), "{error}");
        assert_eq!(port.stats().queued, 0);
    });
}

#[test]
fn a_vanished_caller_does_not_cancel_what_was_accepted() {
    run(async |clock| {
        let port = port(&clock, 1, 10);
        let held = hold(&port);
        let mut first = Box::pin(port.call(Bytes(1)));
        assert!(futures::poll!(&mut first).is_pending());
        drop(first);
        let mut second = Box::pin(port.call(Bytes(2)));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(port.stats().waiting, 1);
        drop(second);
        assert_eq!(port.stats().waiting, 0);
        assert!(held.lock()[0].1.is_abandoned());
        assert_eq!(answer_all(&held), 1);
        assert_eq!(port.stats().accepted, 1);
        port.try_call(Bytes(3)).unwrap();
    });
}

#[test]
fn a_full_port_makes_callers_wait_and_then_says_busy() {
    run(async |clock| {
        let port = port(&clock, 10, 10);
        let _held = hold(&port);
        port.tell(Bytes(8)).unwrap();
        assert_eq!(port.tell(Bytes(3)).unwrap_err().code(), Code::Busy);
        assert_eq!(port.try_call(Bytes(3)).map(drop).unwrap_err().code(), Code::Busy);
        let began = clock.monotonic();
        assert_eq!(port.call(Bytes(3)).await.unwrap_err().code(), Code::Busy);
        assert_eq!(clock.monotonic() - began, WAIT);
        assert_eq!(port.stats().rejected_busy, 3);
        let error = port.call(Bytes(11)).await.unwrap_err();
        assert_eq!(error.code(), Code::TooLarge);
        assert_eq!(port.stats().queued_bytes, 8);
    });
}

#[test]
fn a_deadline_covers_both_waiting_for_room_and_for_the_answer() {
    run(async |clock| {
        let port = port(&clock, 1, 10);
        let held = hold(&port);
        let limit = Duration::from_millis(300);
        let error = port.call_within(Bytes(1), limit).await.unwrap_err();
        assert_eq!((error.code(), clock.monotonic()), (Code::Deadline, limit));
        assert_eq!(held.lock()[0].1.deadline(), Some(limit));
        let error = port.call_within(Bytes(1), limit).await.unwrap_err();
        assert_eq!((error.code(), clock.monotonic()), (Code::Deadline, limit * 2));
        assert_eq!(answer_all(&held), 1, "the first stays accepted, the second never was");
    });
}

#[test]
fn draining_answers_everything_accepted_and_refuses_the_rest() {
    run(async |clock| {
        let port = port(&clock, 3, 100);
        let held = hold(&port);
        let calls = join_all((0..5).map(|n| port.call(Bytes(n))));
        let drained = async {
            clock.sleep(Duration::from_millis(10)).await;
            let drain = port.drain();
            futures::pin_mut!(drain);
            assert!(futures::poll!(&mut drain).is_pending());
            let refused = port.call(Bytes(1)).await.unwrap_err();
            assert_eq!(refused.code(), Code::ShuttingDown);
            assert_eq!(answer_all(&held), 3);
            drain.await;
            assert_eq!(port.stats().queued, 0);
        };
        let (answers, ()) = futures::join!(calls, drained);
        let codes: Vec<_> = answers.into_iter().map(|each| each.map_err(|e| e.code())).collect();
        let closed = Err(Code::ShuttingDown);
        assert_eq!(codes, [Ok(0), Ok(1), Ok(2), closed, closed]);
        assert!(port.is_closed());
    });
}

#[test]
fn answers_are_out_before_the_port_counts_as_drained() {
    run(async |clock| {
        let port = port(&clock, 1, 10);
        let held = hold(&port);
        let answer = port.try_call(Bytes(7)).unwrap();
        port.close();
        let (message, mut reply) = held.lock().pop().unwrap();
        reply.permit.free_room();
        let mut drain = Box::pin(port.drain());
        assert!(futures::poll!(&mut drain).is_pending(), "room is free, the answer is not given");
        reply.ok(message.0);
        assert!(futures::poll!(&mut drain).is_ready());
        assert_eq!(answer.await.unwrap(), 7);
    });
}

#[test]
fn a_swap_moves_new_messages_and_leaves_the_old_ones() {
    run(async |clock| {
        let port = port(&clock, 10, 100);
        assert_eq!(port.tell(Bytes(1)).unwrap_err().code(), Code::Down);
        let old = hold(&port);
        let first = port.try_call(Bytes(1)).unwrap();
        let new = hold(&port);
        let second = port.try_call(Bytes(2)).unwrap();
        assert_eq!((answer_all(&old), answer_all(&new)), (1, 1));
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (1, 2));
        port.disconnect();
        assert_eq!(port.call(Bytes(1)).await.unwrap_err().code(), Code::Down);
        assert_eq!(port.stats().rejected_down, 2);
    });
}

#[test]
fn the_oldest_message_is_the_one_that_shows() {
    run(async |clock| {
        let port = port(&clock, 10, 100);
        let held = hold(&port);
        port.tell(Bytes(1)).unwrap();
        clock.sleep(Duration::from_secs(2)).await;
        port.tell(Bytes(1)).unwrap();
        clock.sleep(Duration::from_secs(3)).await;
        assert_eq!(port.stats().oldest_age_ns, 5_000_000_000);
        drop(held.lock().remove(0));
        assert_eq!(port.stats().oldest_age_ns, 3_000_000_000);
        let text = crate::observe::text(&[port.stats(), port.stats()]).unwrap();
        let labels = r#"{kind="test",message="Bytes"}"#;
        assert!(text.contains(&format!("kymo_port_queued{labels} 2")), "{text}");
        assert!(text.contains(&format!("kymo_port_wait_seconds_count{labels} 4")), "{text}");
    });
}
