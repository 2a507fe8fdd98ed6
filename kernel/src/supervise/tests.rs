//! Actors as they run: once on one thread under a simulated clock, and once on real threads.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;

use super::*;
use crate::actor::{Cx, Handle, Reply};
use crate::env::real::RealClock;
use crate::env::sim::{Sim, SimClock};
use crate::error::{Code, Error};
use crate::message::Message;
use crate::pools::PoolSizes;
use crate::port::{Budget, Port};
use crate::simulate;

/// Adds up; each order tells what else happens.
struct Adder {
    sum: u64,
    said: Said,
}

type Said = Arc<Mutex<Vec<String>>>;

enum Order {
    Add(u64),
    Panic,
    /// Answer after this long, by a task of the actor.
    Later(Duration),
    /// A task that panics.
    PanicLater,
    Stop,
}

impl Message for Order {
    type Reply = u64;

    fn weight(&self) -> usize {
        10
    }
}

impl Actor for Adder {
    fn started(&mut self, cx: &mut Cx<Self>) {
        let at = cx.clock().monotonic().as_millis();
        self.said.lock().push(format!("{} started at {at}", cx.name()));
    }

    fn observe(&self) -> serde_json::Value {
        serde_json::json!({ "sum": self.sum })
    }
}

impl Handle<Order> for Adder {
    fn handle(&mut self, order: Order, reply: Reply<Order>, cx: &mut Cx<Self>) {
        match order {
            Order::Add(n) => {
                self.sum += n;
                reply.ok(self.sum);
            }
            Order::Panic => panic!("told to at {}", self.sum),
            Order::Later(wait) => {
                let sleep = cx.clock().sleep(wait);
                cx.then(sleep, move |adder, (), _| {
                    adder.sum += 1;
                    reply.ok(adder.sum);
                });
            }
            Order::PanicLater => {
                cx.answer(reply, async { panic!("in a task") });
            }
            Order::Stop => cx.stop(),
        }
    }
}

struct World {
    clock: Arc<SimClock>,
    supervisor: Supervisor,
    said: Said,
    escalated: Said,
}

impl World {
    fn adder(&self, restart: Restart) -> (Running<Adder>, Port<Order>) {
        let said = Arc::clone(&self.said);
        let spec = Spec::new("adder", "adder").restart(restart);
        let adder = self.supervisor.start(spec, move || Adder { sum: 0, said: Arc::clone(&said) });
        let port = adder.port(Budget::bytes(100, 1000, Duration::from_secs(1)));
        (adder, port)
    }

    fn state(&self) -> Option<State> {
        self.supervisor.0.children.lock().values().next().map(|entry| entry.state)
    }

    fn events(&self) -> Vec<(What, String)> {
        self.supervisor.events().into_iter().map(|event| (event.what, event.detail)).collect()
    }
}

fn run<T>(program: impl AsyncFnOnce(World) -> T) -> T {
    let sim = Sim::new(1);
    let clock = sim.clock.clone();
    simulate::run(&sim.clock, async move {
        let escalated = Said::default();
        let to = Arc::clone(&escalated);
        let escalate = move |escalation: Escalation| {
            to.lock().push(format!("{}: {}", escalation.actor, escalation.reason));
        };
        let supervisor = Supervisor::new(&Pools::here(), clock.clone(), escalate);
        program(World { clock, supervisor, said: Said::default(), escalated }).await
    })
    .unwrap()
}

fn code<T>(result: crate::Result<T>) -> Code {
    result.map(drop).unwrap_err().code()
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn backoff(limit: usize, then: Exhausted) -> Restart {
    Restart::Backoff { first: ms(100), max: ms(300), limit, within: ms(60_000), then }
}

#[test]
fn after_a_panic_a_fresh_actor_takes_over_behind_the_same_port() {
    run(async |world| {
        let (_adder, port) = world.adder(backoff(10, Exhausted::GiveUp));
        assert_eq!(port.call(Order::Add(5)).await.unwrap(), 5);
        for pause in [100, 200, 300, 300] {
            let queued = port.try_call(Order::Panic).unwrap();
            let behind = port.try_call(Order::Add(1)).unwrap();
            assert_eq!(code(queued.await), Code::Down);
            assert_eq!(code(behind.await), Code::Down, "broken state takes no more turns");
            world.clock.sleep(ms(pause - 1)).await;
            assert_eq!(code(port.call(Order::Add(1)).await), Code::Down);
            world.clock.sleep(ms(2)).await;
            assert_eq!(port.call(Order::Add(7)).await.unwrap(), 7, "state is fresh");
        }
        let starts = ["0", "100", "301", "602", "903"].map(|at| format!("adder started at {at}"));
        assert_eq!(*world.said.lock(), starts);
        assert_eq!(port.stats().queued, 0);
        assert_eq!(world.events()[0], (What::Panicked, "told to at 5".to_owned()));
        assert_eq!(world.events()[1].0, What::Restarted);
        assert!(world.escalated.lock().is_empty());
    });
}

#[test]
fn too_many_panics_end_in_failure_or_escalation() {
    for (then, state) in [(Exhausted::GiveUp, 0), (Exhausted::Escalate, 1)] {
        run(async |world| {
            let (_adder, port) = world.adder(backoff(2, then));
            for _ in 0..3 {
                assert_eq!(code(port.call(Order::Panic).await), Code::Down);
                world.clock.sleep(ms(1000)).await;
            }
            assert_eq!(code(port.call(Order::Add(1)).await), Code::Down);
            assert_eq!(world.state(), Some(State::Failed));
            assert_eq!(world.said.lock().len(), 3, "started once and restarted twice");
            assert_eq!(world.escalated.lock().len(), state);
            let last = [What::Failed, What::Escalated][state];
            assert_eq!(world.events().last().map(|event| event.0), Some(last));
        });
    }
}

#[test]
fn an_owner_of_state_takes_the_process_with_it() {
    run(async |world| {
        let (_adder, port) = world.adder(Restart::FailStop);
        port.call(Order::Add(3)).await.unwrap();
        assert_eq!(code(port.call(Order::Panic).await), Code::Down);
        world.clock.sleep(ms(10_000)).await;
        assert_eq!(*world.escalated.lock(), ["adder: told to at 3"]);
        assert_eq!(code(port.call(Order::Add(1)).await), Code::Down, "it is not made again");
        assert_eq!(world.said.lock().len(), 1);
    });
}

#[test]
fn a_panic_in_a_task_counts_as_one_of_its_actor() {
    run(async |world| {
        let (_adder, port) = world.adder(Restart::FailStop);
        assert_eq!(code(port.call(Order::PanicLater).await), Code::Down);
        world.clock.sleep(ms(1)).await;
        assert_eq!(*world.escalated.lock(), ["adder: in a task"]);
    });
}

#[test]
fn a_factory_that_panics_is_a_death_too() {
    run(async |world| {
        let mut first = true;
        let said = Arc::clone(&world.said);
        let factory = move || {
            assert!(std::mem::take(&mut first), "no second one");
            Adder { sum: 0, said: Arc::clone(&said) }
        };
        let spec = Spec::new("adder", "adder").restart(backoff(2, Exhausted::GiveUp));
        let adder = world.supervisor.start(spec, factory);
        let port: Port<Order> = adder.port(Budget::count(10));
        assert_eq!(code(port.call(Order::Panic).await), Code::Down);
        world.clock.sleep(ms(10_000)).await;
        assert_eq!(world.state(), Some(State::Failed));
        assert_eq!(code(port.call(Order::Add(1)).await), Code::Down);
    });
}

#[test]
fn stopping_handles_what_is_queued_and_is_no_failure() {
    run(async |world| {
        let (adder, port) = world.adder(backoff(2, Exhausted::Escalate));
        let answers: Vec<_> = (0..50).map(|_| port.try_call(Order::Add(1)).unwrap()).collect();
        drop(adder);
        let answers = join_all(answers).await;
        assert_eq!(answers.into_iter().map(Result::unwrap).last(), Some(50));
        world.clock.sleep(ms(1)).await;
        assert_eq!(code(port.call(Order::Add(1)).await), Code::Down);
        assert!(world.supervisor.actors().await.is_empty());
        assert!(world.events().is_empty());
    });
}

#[test]
fn an_actor_that_stops_itself_drops_the_queue_and_its_tasks() {
    run(async |world| {
        let (_adder, port) = world.adder(backoff(2, Exhausted::Escalate));
        let later = port.try_call(Order::Later(ms(500))).unwrap();
        let stop = port.try_call(Order::Stop).unwrap();
        let behind = port.try_call(Order::Add(1)).unwrap();
        assert_eq!(code(stop.await), Code::Down);
        assert_eq!(code(behind.await), Code::Down);
        assert_eq!(code(later.await), Code::Down);
        assert_eq!(world.clock.monotonic(), Duration::ZERO, "nobody waited for the task");
        assert!(world.events().is_empty());
    });
}

#[test]
fn a_restart_that_is_under_way_can_be_called_off() {
    run(async |world| {
        let (adder, port) = world.adder(backoff(2, Exhausted::Escalate));
        assert_eq!(code(port.call(Order::Panic).await), Code::Down);
        world.clock.sleep(ms(1)).await;
        drop(adder);
        world.clock.sleep(ms(1000)).await;
        assert_eq!(world.said.lock().len(), 1);
        assert_eq!(world.state(), None);
    });
}

#[test]
fn timers_turn_at_their_time_and_never_pile_up() {
    struct Ticker(Said);
    impl Actor for Ticker {
        fn started(&mut self, cx: &mut Cx<Self>) {
            let say = |what: &'static str| {
                move |ticker: &mut Ticker, cx: &mut Cx<Ticker>| {
                    ticker.0.lock().push(format!("{what} {}", cx.clock().monotonic().as_millis()));
                }
            };
            cx.every(ms(40), say("tick"));
            cx.after(ms(100), say("once"));
            cx.after(ms(50), say("never")).cancel();
        }
    }
    run(async |world| {
        let said = Arc::clone(&world.said);
        let ticker = world.supervisor.start_once(Spec::new("t", "ticker"), move || Ticker(said));
        world.clock.sleep(ms(130)).await;
        drop(ticker);
        world.clock.sleep(ms(1000)).await;
        assert_eq!(*world.said.lock(), ["tick 40", "tick 80", "once 100", "tick 120"]);
    });
}

#[test]
fn an_actor_that_owes_answers_and_does_nothing_is_reported() {
    run(async |world| {
        let (_adder, port) = world.adder(Restart::Never);
        let _late = port.try_call(Order::Later(ms(15_000))).unwrap();
        for _ in 0..20 {
            world.clock.sleep(ms(1000)).await;
            world.supervisor.look();
        }
        let events: Vec<_> = world.events().into_iter().map(|event| event.0).collect();
        assert_eq!(events, [What::Stuck, What::Recovered]);
    });
}

#[test]
fn actors_and_ports_can_be_looked_at() {
    run(async |world| {
        let (adder, port) = world.adder(Restart::STATELESS);
        port.call(Order::Add(4)).await.unwrap();
        let actors = world.supervisor.actors().await;
        assert_eq!(actors[0].observed, serde_json::json!({ "sum": 4 }));
        assert_eq!((actors[0].state, actors[0].restarts), (State::Running, 0));
        assert_eq!(adder.observe().await, serde_json::json!({ "sum": 4 }));
        let ports = world.supervisor.ports();
        assert_eq!((ports[0].name.as_str(), ports[0].accepted), ("adder/Order", 1));
    });
}

#[test]
fn a_closed_supervisor_keeps_nothing_that_actors_are_made_from() {
    let (held, looked_at) = run(async |world| {
        let held = Arc::new(world.supervisor.clone());
        let (weak, said) = (Arc::downgrade(&held), Arc::clone(&world.said));
        let adder = world.supervisor.start(Spec::new("circle", "circle"), move || {
            assert!(held.events().is_empty());
            Adder { sum: 0, said: Arc::clone(&said) }
        });
        world.clock.sleep(ms(1)).await;
        world.supervisor.close();
        drop(adder);
        (weak, Arc::downgrade(&world.supervisor.0))
    });
    assert_eq!((held.strong_count(), looked_at.strong_count()), (0, 0));
}

/// A day of a few actors that work, wait, fail and restart; returns all that can be seen.
fn day(seed: u64) -> Vec<String> {
    run(async |world| {
        let sim = Sim::new(seed);
        let random = sim.env().random;
        let (_a, first) = world.adder(backoff(1000, Exhausted::GiveUp));
        let (_b, second) = world.adder(backoff(1000, Exhausted::GiveUp));
        let mut calls = Vec::new();
        for number in 0..2000 {
            let port = if random.next_u64() & 1 == 0 { first.clone() } else { second.clone() };
            let order = match random.next_u64() % 20 {
                0 => Order::Panic,
                1..5 => Order::Later(ms(random.next_u64() % 5000)),
                _ => Order::Add(random.next_u64() % 9),
            };
            let (clock, said) = (world.clock.clone(), Arc::clone(&world.said));
            let call = async move {
                let answer = port.call_within(order, ms(3000)).await.map_err(|error| error.code());
                said.lock().push(format!("{number} {answer:?} at {:?}", clock.monotonic()));
            };
            calls.push(world.supervisor.pools().spawn(Pool::Io, "caller", call));
            world.clock.sleep(ms(random.next_u64() % 43_200 * 2)).await;
        }
        join_all(calls).await;
        let events = world.events().into_iter().map(|event| format!("{event:?}"));
        let said = std::mem::take(&mut *world.said.lock());
        said.into_iter().chain(events).collect()
    })
}

#[test]
fn two_runs_of_one_seed_are_equal() {
    let (one, again, other) = (day(7), day(7), day(8));
    assert!(one.len() > 2000 && one.iter().any(|line| line.contains("Panicked")));
    assert_eq!(one, again);
    assert_ne!(one, other);
}

fn threads() -> Pools {
    let sizes = PoolSizes { io: 2, query: 1, background: 1, foreground: 1, arbiters: [1, 2, 1, 1] };
    Pools::start(sizes).unwrap()
}

#[test]
fn the_same_actors_on_real_threads_keep_their_promises() {
    let pools = threads();
    let clock = Arc::new(RealClock::new());
    let supervisor = Supervisor::new(&pools, clock, |_| {});
    let said = Said::default();
    let spec = Spec::new("adder", "adder").on(Group::Ingest).restart(Restart::STATELESS);
    let to = Arc::clone(&said);
    let adder = supervisor.start(spec, move || Adder { sum: 0, said: Arc::clone(&to) });
    let port: Port<Order> = adder.port(Budget::bytes(50, 200, Duration::from_secs(30)));
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let port = port.clone();
            pools.spawn(Pool::Query, "caller", async move {
                for _ in 0..500 {
                    port.call(Order::Add(1)).await?;
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    pools
        .block_on(async {
            for call in calls {
                call.await.unwrap().unwrap();
            }
            assert_eq!(port.call(Order::Add(0)).await.unwrap(), 4000);
            assert_eq!(code(port.call(Order::Panic).await), Code::Down);
            // The restart takes 10 ms; until then callers read `down`, which is retryable.
            let back = async {
                loop {
                    match port.call(Order::Add(2)).await {
                        Ok(sum) => return sum,
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            };
            let back = tokio::time::timeout(Duration::from_secs(20), back).await;
            assert_eq!(back.unwrap(), 2, "a fresh one");
            port.drain().await;
            assert_eq!(code(port.call(Order::Add(1)).await), Code::ShuttingDown);
        })
        .unwrap();
    let stats = port.stats();
    assert!(stats.peak_bytes <= 200, "{stats:?}");
    assert_eq!((stats.queued, said.lock().len()), (0, 2));
    drop(adder);
    pools.stop();
}

#[test]
fn the_watchdog_sees_a_turn_that_does_not_end() {
    struct Blocker;
    struct Block(std::sync::mpsc::Receiver<()>);
    impl Message for Block {
        type Reply = ();
    }
    impl Actor for Blocker {}
    impl Handle<Block> for Blocker {
        fn handle(&mut self, block: Block, reply: Reply<Block>, _cx: &mut Cx<Self>) {
            let _ = block.0.recv();
            reply.ok(());
        }
    }
    let pools = threads();
    let supervisor = Supervisor::new(&pools, Arc::new(RealClock::new()), |_| {});
    let _watchdog = supervisor.watchdog().unwrap();
    let spec = Spec::new("blocker", "blocker").stuck_after(Duration::from_millis(1));
    let blocker = supervisor.start_once(spec, || Blocker);
    let (unblock, blocked) = std::sync::mpsc::channel();
    let port: Port<Block> = blocker.port(Budget::count(1));
    let answer = port.try_call(Block(blocked)).unwrap();
    let until = std::time::Duration::from_secs(20);
    let began = supervisor.clock().monotonic();
    while supervisor.events().is_empty() {
        assert!(supervisor.clock().monotonic() - began < until, "the watchdog saw nothing");
        std::thread::yield_now();
    }
    assert_eq!(supervisor.events()[0].what, What::Stuck);
    unblock.send(()).unwrap();
    pools.block_on(answer).unwrap().unwrap();
    drop(blocker);
    pools.stop();
}
