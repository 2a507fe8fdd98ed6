//! Carriers over a whole system and a simulated clock: each transition once, in order, also
//! through failures, overflow and crashes; one channel's trouble is its own.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kymo_config::Settings;
use kymo_config::settings::AlertChannel;
use kymo_kernel::alert::AlertDef;
use kymo_kernel::env::Clock;
use kymo_kernel::env::sim::{Sim, SimClock};
use kymo_kernel::message::{AlertDdl, AlertStatus, Ddl, Labels, Notification, Outlet, WriteOwn};
use kymo_kernel::pools::Pools;
use kymo_kernel::{Result, simulate};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::{Answer, Notifier, Post, Request};
use crate::System;
use crate::alert::history;
use crate::alert::machine::State;
use crate::alert::sets::Set;

const SECOND: i64 = 1_000_000_000;
/// Where simulated clocks begin: 2026-01-01.
const START_S: i64 = 1_767_225_600;

/// A notification of the alert of host `a`, which fires for a minute.
pub(super) fn told(sequence: u64, rule: &str, status: AlertStatus) -> Notification {
    let labels = [("alertname", rule), ("host", "a")];
    let starts_at_ns = 1_700_000_000 * SECOND;
    Notification {
        sequence,
        rule: rule.to_owned(),
        fingerprint: 0xab,
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        annotations: Labels::from([("summary".to_owned(), "a is at 97.5".to_owned())]),
        status,
        value: Some(97.5),
        starts_at_ns,
        ends_at_ns: (status == AlertStatus::Resolved).then_some(starts_at_ns + 60 * SECOND),
        channels: Arc::new(["ops".to_owned()]),
        silenced: false,
        acked: false,
        repeated: false,
    }
}

/// One of many transitions, which follow one another in time: odd ones fire.
fn transition(sequence: u64) -> Notification {
    let fires = sequence % 2 == 1;
    let status = if fires { AlertStatus::Firing } else { AlertStatus::Resolved };
    let round = i64::try_from(sequence.div_ceil(2)).unwrap();
    let starts_at_ns = (START_S + 100 * round) * SECOND;
    let ends_at_ns = (!fires).then_some(starts_at_ns + 50 * SECOND);
    Notification { starts_at_ns, ends_at_ns, ..told(sequence, "hot", status) }
}

/// How a receiver answers.
#[derive(Clone, Copy)]
enum Reply {
    Status(u16),
    Later(u16, u64),
    Hangs,
}

/// A receiver that answers as it is told to, and then takes everything.
#[derive(Default)]
struct Receivers {
    clock: Option<Arc<SimClock>>,
    replies: Mutex<BTreeMap<String, VecDeque<Reply>>>,
    got: Mutex<Vec<(Duration, Request)>>,
    wake: Notify,
}

impl Receivers {
    fn new(sim: &Sim) -> Arc<Receivers> {
        Arc::new(Receivers { clock: Some(sim.clock.clone()), ..Receivers::default() })
    }

    fn answers(&self, url: &str, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().entry(url.to_owned()).or_default().extend(replies);
    }

    /// The first requests to an address, once so many have come.
    async fn requests(&self, url: &str, count: usize) -> Vec<(Duration, Request)> {
        loop {
            let woken = self.wake.notified();
            let got: Vec<_> =
                self.got.lock().iter().filter(|(_, request)| request.url == url).cloned().collect();
            if got.len() >= count {
                return got;
            }
            woken.await;
        }
    }

    fn count(&self) -> usize {
        self.got.lock().len()
    }
}

impl Post for Receivers {
    fn post(&self, request: Request) -> BoxFuture<'static, Result<Answer>> {
        let now = self.clock.as_ref().unwrap().monotonic();
        let reply = self.replies.lock().get_mut(&request.url).and_then(VecDeque::pop_front);
        self.got.lock().push((now, request));
        self.wake.notify_waiters();
        let (status, retry_after) = match reply.unwrap_or(Reply::Status(200)) {
            Reply::Status(status) => (status, None),
            Reply::Later(status, seconds) => (status, Some(Duration::from_secs(seconds))),
            Reply::Hangs => return std::future::pending().boxed(),
        };
        let said = "so it is".to_owned();
        async move { Ok(Answer { status, retry_after, said }) }.boxed()
    }
}

const OPS: &str = "http://ops/hook";
const SLOW: &str = "http://slow/hook";
const MANAGER: &str = "http://manager:9093";

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.server.data_dir = PathBuf::from("/data");
    for (name, kind, url) in
        [("ops", "webhook", OPS), ("slow", "webhook", SLOW), ("manager", "alertmanager", MANAGER)]
    {
        let secret = if name == "ops" { "sesame".to_owned() } else { String::new() };
        let channel = AlertChannel { r#type: kind.to_owned(), url: url.to_owned(), secret };
        settings.alerts.channels.insert(name.to_owned(), channel);
    }
    settings
}

/// A system and carriers of its own.
struct House {
    system: System,
    outlet: Arc<Outlet>,
    notifier: Notifier,
}

impl House {
    fn new(sim: &Sim, receivers: &Arc<Receivers>, settings: Settings) -> House {
        let (env, pools) = (sim.env(), Pools::here());
        let settings = Arc::new(settings);
        let system = System::boot(settings.clone(), env.clone(), pools.clone()).unwrap();
        let outlet = Arc::new(Outlet::new(settings.alerts.max_notifications));
        let engine = system.engine();
        let (store, write) = (engine.store().clone(), engine.write_own().clone());
        let post = Some(receivers.clone() as Arc<dyn Post>);
        let notifier = Notifier::start(&settings, &env, &pools, store, outlet.clone(), write, post);
        House { system, outlet, notifier }
    }

    fn send(&self, channel: &str, notification: Notification) {
        let channels = Arc::new([channel.to_owned()]);
        self.outlet.send(Notification { channels, ..notification });
    }

    fn row(&self, channel: &str) -> crate::query::ChannelRow {
        let rows = self.notifier.rows();
        rows.into_iter().find(|row| row.channel == channel).unwrap()
    }

    /// The row of a channel once it does nothing any more.
    async fn idle(&self, clock: &SimClock, channel: &str) -> crate::query::ChannelRow {
        loop {
            let row = self.row(channel);
            if row.state == "idle" && row.queued == 0 {
                return row;
            }
            clock.sleep(Duration::from_millis(10)).await;
        }
    }

    /// A rule that tells `ops`.
    async fn rule(&self) {
        let summary = "{{ $labels.host }} is at {{ $value }}".to_owned();
        let alert = AlertDef {
            annotations: BTreeMap::from([("summary".to_owned(), summary)]),
            channels: vec!["ops".to_owned()],
            paused: true,
            ..AlertDef::new("hot", "ada", "SELECT 1")
        };
        let alert = AlertDdl::Create { alert: Box::new(alert), if_not_exists: false };
        self.system.ddl().call(Ddl::Alert(alert)).await.unwrap();
    }

    /// Makes transitions durable as those who evaluate rules do.
    async fn keep(&self, transitions: &[Notification]) {
        let entries: Vec<history::Entry> = transitions.iter().map(entry).collect();
        let (states, transitions) = history::rows(&entries).unwrap();
        let write = WriteOwn { rows: transitions.unwrap(), beside: Some(states) };
        self.system.engine().write_own().call(write).await.unwrap();
    }
}

fn entry(told: &Notification) -> history::Entry {
    let mut set = Set::new(Box::new(["a".into()]));
    set.sequence = told.sequence;
    let (from, to) = match told.status {
        AlertStatus::Firing => (State::Pending, State::Firing),
        AlertStatus::Resolved => (State::Firing, State::Resolved),
    };
    let kept = history::Kept {
        fingerprint: told.fingerprint,
        labels: serde_json::to_string(&told.labels).unwrap(),
        from,
        to,
        value: told.value,
        since_ns: told.starts_at_ns - told.ends_at_ns.map_or(SECOND, |_| 0),
        silenced: told.silenced,
        at_ns: told.ends_at_ns.unwrap_or(told.starts_at_ns),
    };
    history::Entry { rule: "hot".into(), key: told.fingerprint, set, kept: Some(kept) }
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

fn seconds(gap: Duration) -> f64 {
    gap.as_secs_f64()
}

#[test]
fn a_notification_is_tried_with_growing_pauses_until_it_is_taken_once() {
    let sim = Sim::new(1);
    let receivers = Receivers::new(&sim);
    receivers.answers(OPS, [Reply::Status(500), Reply::Hangs, Reply::Later(503, 30)]);
    simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        house.send("ops", told(1, "hot", AlertStatus::Firing));
        house.send("ops", told(2, "hot", AlertStatus::Resolved));
        let got = receivers.requests(OPS, 5).await;
        let gaps: Vec<f64> = got.windows(2).map(|two| seconds(two[1].0 - two[0].0)).collect();
        assert!((0.5..=1.0).contains(&gaps[0]), "{gaps:?}");
        assert!((11.0..=12.0).contains(&gaps[1]), "its time is up, and a pause: {gaps:?}");
        assert!((30.0..=30.1).contains(&gaps[2]), "what it asked for: {gaps:?}");
        assert!(gaps[3] < 1.0, "the next one waits for nothing: {gaps:?}");
        let keys: Vec<_> = got.iter().map(|(_, request)| request.key.clone().unwrap()).collect();
        assert!(keys[..4].iter().all(|key| *key == keys[0]), "{keys:?}");
        assert_ne!(keys[4], keys[0]);
        assert!(got[..4].iter().all(|(_, request)| request.body == got[0].1.body));
        assert_eq!(got[0].1.secret.as_deref(), Some("sesame"));
        let times: Vec<i64> = got.iter().map(|(_, request)| request.at_s).collect();
        assert!(times[3] > times[0], "each attempt is signed anew: {times:?}");
        assert_eq!(body(&got[4].1)["alerts"][0]["status"], "resolved");
        let row = house.idle(&sim.clock, "ops").await;
        assert_eq!((row.sent, row.failed, row.retried, got.len()), (2, 0, 3, 5));
        assert!(row.last_error.unwrap().contains("503"));
    })
    .unwrap();
}

#[test]
fn what_is_refused_or_too_old_makes_way() {
    let sim = Sim::new(2);
    let receivers = Receivers::new(&sim);
    receivers.answers(OPS, [Reply::Status(400)]);
    receivers.answers(SLOW, [Reply::Status(500); 10]);
    simulate::run(&sim.clock, async {
        let mut settings = settings();
        settings.alerts.retry_for_ms = 60_000;
        let house = House::new(&sim, &receivers, settings);
        house.send("ops", told(1, "hot", AlertStatus::Firing));
        house.send("ops", told(2, "hot", AlertStatus::Resolved));
        let got = receivers.requests(OPS, 2).await;
        assert_ne!(got[0].1.key, got[1].1.key, "what is refused is not tried again");
        let row = house.idle(&sim.clock, "ops").await;
        assert_eq!((row.sent, row.failed), (1, 1));
        assert!(row.last_error.unwrap().contains("400: so it is"));

        house.send("slow", told(1, "hot", AlertStatus::Firing));
        let row = house.idle(&sim.clock, "slow").await;
        assert_eq!((row.sent, row.failed), (0, 1), "{row:?}");
        let got = receivers.requests(SLOW, 6).await;
        assert!(seconds(got.last().unwrap().0 - got[0].0) <= 60.0);
    })
    .unwrap();
}

#[test]
fn a_receiver_that_hangs_costs_only_its_own_channel() {
    let sim = Sim::new(3);
    let receivers = Receivers::new(&sim);
    receivers.answers(SLOW, [Reply::Hangs; 100]);
    simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        let began = sim.clock.monotonic();
        for sequence in 1..=10 {
            house.send("slow", transition(sequence));
            house.send("ops", transition(sequence));
        }
        receivers.requests(OPS, 10).await;
        let row = house.idle(&sim.clock, "ops").await;
        assert_eq!(row.sent, 10);
        assert!(sim.clock.monotonic() - began < Duration::from_secs(1), "ops waited for slow");
        let slow = receivers.requests(SLOW, 3).await;
        assert!(slow.iter().all(|(_, request)| request.key == slow[0].1.key));
        let row = house.row("slow");
        assert_eq!((row.sent, row.queued), (0, 10), "{row:?}");
        assert!(row.last_error.unwrap().contains("no answer within 10000 ms"));
    })
    .unwrap();
}

#[test]
fn the_same_alert_in_the_same_state_is_sent_once() {
    let sim = Sim::new(4);
    let receivers = Receivers::new(&sim);
    simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        let fires = told(1, "hot", AlertStatus::Firing);
        house.send("ops", fires.clone());
        house.send("ops", fires.clone());
        house.send("ops", Notification { repeated: true, ..fires });
        house.send("ops", told(2, "hot", AlertStatus::Resolved));
        house.send("ops", Notification { repeated: true, ..told(2, "hot", AlertStatus::Resolved) });
        house.idle(&sim.clock, "ops").await;
        assert_eq!(receivers.count(), 2);
        // The same alert again, later.
        house.send("ops", transition(3));
        receivers.requests(OPS, 3).await;
    })
    .unwrap();
}

#[test]
fn what_was_durable_and_not_sent_is_sent_after_a_crash_under_the_same_key() {
    let sim = Sim::new(5);
    let receivers = Receivers::new(&sim);
    let all: Vec<Notification> = (1..=4).map(transition).collect();
    receivers.answers(OPS, [Reply::Status(200), Reply::Hangs]);
    let before = simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        house.rule().await;
        house.idle(&sim.clock, "ops").await;
        house.keep(&all).await;
        house.send("ops", all[0].clone());
        house.idle(&sim.clock, "ops").await;
        all[1..].iter().for_each(|told| house.send("ops", told.clone()));
        receivers.requests(OPS, 2).await
    })
    .unwrap();
    sim.disk.crash(5);
    let receivers = Receivers::new(&sim);
    let after = simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        // As rules do after a start: what fires or was resolved lately is told again.
        house.send("ops", Notification { repeated: true, ..all[3].clone() });
        house.send("ops", Notification { repeated: true, ..all[0].clone() });
        let after = receivers.requests(OPS, 3).await;
        house.idle(&sim.clock, "ops").await;
        assert_eq!(receivers.count(), 3, "each once");
        after
    })
    .unwrap();
    assert_eq!(before[1].1.key, after[0].1.key, "the one that was under way");
    assert_eq!(before[1].1.body, after[0].1.body);
    let keys: Vec<_> = after.iter().map(|(_, request)| request.key.clone().unwrap()).collect();
    let wanted: Vec<_> = all[1..].iter().map(super::payload::key).collect();
    assert_eq!(keys, wanted, "in their order");
}

#[test]
fn what_a_queue_cannot_hold_is_read_from_the_history() {
    let sim = Sim::new(6);
    let receivers = Receivers::new(&sim);
    receivers.answers(OPS, [Reply::Hangs]);
    simulate::run(&sim.clock, async {
        let mut settings = settings();
        settings.alerts.max_notifications = 3;
        let house = House::new(&sim, &receivers, settings);
        house.rule().await;
        house.idle(&sim.clock, "ops").await;
        let all: Vec<Notification> = (1..=20).map(transition).collect();
        house.keep(&all[..10]).await;
        house.send("ops", all[0].clone());
        receivers.requests(OPS, 1).await;
        all[1..10].iter().for_each(|told| house.send("ops", told.clone()));
        house.idle(&sim.clock, "ops").await;
        house.keep(&all[10..]).await;
        all[10..].iter().for_each(|told| house.send("ops", told.clone()));
        let row = house.idle(&sim.clock, "ops").await;
        assert_eq!((row.sent, row.failed), (20, 0));
        let got = receivers.requests(OPS, 21).await;
        let keys: Vec<_> =
            got[1..].iter().map(|(_, request)| request.key.clone().unwrap()).collect();
        assert_eq!(keys, all.iter().map(super::payload::key).collect::<Vec<_>>());
    })
    .unwrap();
}

#[test]
fn alertmanager_is_told_again_what_fires_until_it_ends() {
    let sim = Sim::new(7);
    let receivers = Receivers::new(&sim);
    let url = format!("{MANAGER}/api/v2/alerts");
    simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        let other = Notification { fingerprint: 0xcd, ..told(2, "hot", AlertStatus::Firing) };
        house.send("manager", told(1, "hot", AlertStatus::Firing));
        house.send("manager", other);
        let got = receivers.requests(&url, 3).await;
        assert!(got[0].1.key.is_none());
        let sizes: Vec<_> = got.iter().map(|(_, it)| body(it).as_array().unwrap().len()).collect();
        assert_eq!(sizes, [2, 2, 2], "all at once, and again");
        let gap = seconds(got[2].0 - got[1].0);
        assert!((60.0..61.0).contains(&gap), "{gap}");
        let ends = |at: usize| body(&got[at].1)[0]["endsAt"].as_str().unwrap().to_owned();
        assert!(ends(0).starts_with("2026-01-01T00:04:00"), "four intervals: {}", ends(0));
        assert!(ends(1) < ends(2));
        house.send("manager", told(3, "hot", AlertStatus::Resolved));
        let got = receivers.requests(&url, 5).await;
        assert_eq!(body(&got[3].1)[0]["endsAt"], "2023-11-14T22:14:20Z");
        assert_eq!(body(&got[4].1).as_array().unwrap().len(), 1, "the other one fires on");
    })
    .unwrap();
}

#[test]
fn channels_are_shown_without_their_secrets() {
    let sim = Sim::new(8);
    let receivers = Receivers::new(&sim);
    simulate::run(&sim.clock, async {
        let house = House::new(&sim, &receivers, settings());
        let rows = house.notifier.rows();
        let names: Vec<_> = rows.iter().map(|row| row.channel.as_str()).collect();
        assert_eq!(names, ["log", "manager", "ops", "slow"]);
        assert!(house.outlet.channels().iter().eq(names.iter().copied()));
        let shown = format!("{rows:?}");
        assert!(!shown.contains("sesame") && !shown.contains("/hook"), "{shown}");
        let ops = house.row("ops");
        assert_eq!((ops.url.as_deref(), ops.signed), (Some("http://ops/…"), true));
        house.send("log", told(1, "hot", AlertStatus::Firing));
        assert_eq!(house.idle(&sim.clock, "log").await.sent, 1);
    })
    .unwrap();
}
