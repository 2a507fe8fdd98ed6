//! Alerts on their way out: what a notification says, and the queues in which notifications
//! wait for whoever carries them to people.
//!
//! ```text
//! alerts ── durable in system.alert_history ──► Outlet ──► queue of each channel ──► its carrier
//!                                                 └──────► feed (everything, for sockets)
//! ```
//!
//! A carrier (the log, a webhook, Alertmanager) opens the queue of its channel by name and takes
//! from it at its own pace; nobody waits for a carrier. A notification may come more than once,
//! after a restart for one: [`Notification::fingerprint`], [`Notification::status`] and
//! [`Notification::starts_at_ns`] tell what is the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

use super::Message;
use crate::alert::{AlertDef, ChannelDef, Matcher, SilenceDef};
use crate::observe::metrics;

/// Names and values of labels or annotations, by name.
pub type Labels = BTreeMap<String, String>;

/// A change of alert rules and silences. Alerts → catalog.
#[derive(Debug, Clone)]
pub enum AlertDdl {
    /// `CREATE ALERT`.
    Create {
        /// The rule.
        alert: Box<AlertDef>,
        /// Succeed silently where one of that name exists.
        if_not_exists: bool,
    },
    /// `DROP ALERT`.
    Drop {
        /// Its name.
        name: String,
        /// Succeed silently where it does not exist.
        if_exists: bool,
    },
    /// `ALTER ALERT … PAUSE` and `RESUME`.
    Pause {
        /// The rule.
        name: String,
        /// Whether it is not evaluated from now on.
        paused: bool,
    },
    /// What files of rules say now, in one change.
    Files {
        /// Rules of files that are new or have changed; their revisions are the catalog's to
        /// give.
        put: Vec<AlertDef>,
        /// Rules of files that are in them no more.
        drop: Vec<String>,
    },
    /// `SILENCE`; the catalog gives it its number, and forgets silences that ended before it.
    Silence(SilenceDef),
    /// `DROP SILENCE`.
    DropSilence {
        /// Its number.
        id: u64,
    },
    /// `CREATE ALERT CHANNEL`.
    CreateChannel {
        /// The channel.
        channel: ChannelDef,
        /// Succeed silently where one of that name exists.
        if_not_exists: bool,
    },
    /// `DROP ALERT CHANNEL`.
    DropChannel {
        /// Its name.
        name: String,
        /// Succeed silently where it does not exist.
        if_exists: bool,
    },
}

/// What can be asked of alerts. Query → alerts.
#[derive(Debug, Clone)]
pub enum AlertCommand {
    /// Changes definitions; answered once the change is in force.
    Change(AlertDdl),
    /// `ACK`: somebody looks after alerts that fire.
    Ack {
        /// Which.
        matcher: Matcher,
        /// Who.
        author: String,
        /// What they said.
        comment: String,
    },
    /// `RELOAD ALERT RULES`: makes the rules of files those that the files have now. What could
    /// not be loaded is in `system.alert_files`.
    Reload,
    /// Tries rules again that were read from files and could not be planned; the files are not
    /// read.
    Retry,
}

impl Message for AlertCommand {
    type Reply = AlertDone;
}

/// The answer to an [`AlertCommand`].
#[derive(Debug, Clone, Copy, Default)]
pub struct AlertDone {
    /// How many alerts were acknowledged, how many rules of files were created, changed or
    /// dropped, or 1 where a definition changed.
    pub count: u64,
}

/// Whether an alert begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertStatus {
    /// It fires.
    Firing,
    /// It fires no more.
    Resolved,
}

impl AlertStatus {
    /// The word for it, as Alertmanager writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AlertStatus::Firing => "firing",
            AlertStatus::Resolved => "resolved",
        }
    }
}

/// An alert that began or ended to fire. Its transition is durable (A1).
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// The number of the transition in `system.alert_history`: grows, also over restarts.
    pub sequence: u64,
    /// The name of the rule.
    pub rule: String,
    /// Identifies the alert among all: computed from `labels` alone.
    pub fingerprint: u64,
    /// Labels of the row and of the rule, with `alertname`.
    pub labels: Labels,
    /// Texts for people, with their placeholders filled.
    pub annotations: Labels,
    /// Whether it begins or ends.
    pub status: AlertStatus,
    /// The value that decided; `None` where the rule has no number or its data stopped.
    pub value: Option<f64>,
    /// Since when it fires, in nanoseconds since 1970-01-01T00:00:00Z.
    pub starts_at_ns: i64,
    /// When it ended, where it did.
    pub ends_at_ns: Option<i64>,
    /// Where it goes.
    pub channels: Arc<[String]>,
    /// Whether a silence covers it: the feed shows it, channels do not get it.
    pub silenced: bool,
    /// Whether somebody acknowledged it.
    pub acked: bool,
    /// Whether this may have been sent before: after a restart.
    pub repeated: bool,
}

/// Where notifications go out.
pub struct Outlet {
    queues: Mutex<BTreeMap<String, Arc<Queue>>>,
    feed: broadcast::Sender<Arc<Notification>>,
    capacity: usize,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Arc<Notification>>>,
    wake: Notify,
    lost: AtomicU64,
    opened: AtomicBool,
}

impl Outlet {
    /// An outlet whose queues hold `capacity` notifications each; beyond, the oldest goes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let (feed, _) = broadcast::channel(capacity);
        Outlet { queues: Mutex::default(), feed, capacity }
    }

    /// Opens the queue of a channel for its carrier. What was sent to the channel before,
    /// within the bound, is in it already.
    #[must_use]
    pub fn open(&self, channel: &str) -> Inbox {
        let queue = self.queue(channel);
        queue.opened.store(true, Ordering::Relaxed);
        Inbox(queue)
    }

    /// How many wait for a channel.
    #[must_use]
    pub fn waiting(&self, channel: &str) -> usize {
        let queues = self.queues.lock();
        queues.get(channel).map_or(0, |queue| queue.waiting.lock().len())
    }

    /// Closes the queue of a channel: what waits in it is not carried any more.
    pub fn close(&self, channel: &str) {
        self.queues.lock().remove(channel);
    }

    /// The channels whose queues were opened.
    #[must_use]
    pub fn channels(&self) -> Vec<String> {
        let queues = self.queues.lock();
        let opened = queues.iter().filter(|(_, queue)| queue.opened.load(Ordering::Relaxed));
        opened.map(|(name, _)| name.clone()).collect()
    }

    /// Sends a notification: to the feed, and to its channels unless it is silenced.
    pub fn send(&self, notification: Notification) {
        let notification = Arc::new(notification);
        // Nobody may be listening.
        let _ = self.feed.send(notification.clone());
        if notification.silenced {
            return;
        }
        for channel in notification.channels.iter() {
            let queue = self.queue(channel);
            let mut waiting = queue.waiting.lock();
            if waiting.len() >= self.capacity {
                waiting.pop_front();
                queue.lost.fetch_add(1, Ordering::Relaxed);
                metrics().alerts.dropped_notifications.with_label_values(&[channel]).inc();
            }
            waiting.push_back(notification.clone());
            drop(waiting);
            metrics().alerts.notifications.with_label_values(&[channel]).inc();
            queue.wake.notify_one();
        }
    }

    /// Everything from now on, silenced ones included. A receiver that does not keep up is told
    /// how many it missed, and finds them in `system.alert_history` by their sequence.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<Notification>> {
        self.feed.subscribe()
    }

    fn queue(&self, channel: &str) -> Arc<Queue> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(channel) {
            return queue.clone();
        }
        queues.entry(channel.to_owned()).or_default().clone()
    }
}

/// The receiving end of a channel's queue, for its one carrier.
pub struct Inbox(Arc<Queue>);

impl Inbox {
    /// The next notification, oldest first. Waits for one; loses none if it is dropped.
    pub async fn next(&mut self) -> Arc<Notification> {
        loop {
            if let Some(notification) = self.0.waiting.lock().pop_front() {
                return notification;
            }
            self.0.wake.notified().await;
        }
    }

    /// The next notification, where one waits.
    pub fn try_next(&mut self) -> Option<Arc<Notification>> {
        self.0.waiting.lock().pop_front()
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiting.lock().len()
    }

    /// How many went for newer ones since this was asked last. They are in
    /// `system.alert_history`.
    pub fn take_lost(&mut self) -> u64 {
        self.0.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(sequence: u64, silenced: bool) -> Notification {
        Notification {
            sequence,
            rule: "hot".to_owned(),
            fingerprint: 1,
            labels: Labels::new(),
            annotations: Labels::new(),
            status: AlertStatus::Firing,
            value: Some(1.0),
            starts_at_ns: 0,
            ends_at_ns: None,
            channels: Arc::new(["ops".to_owned()]),
            silenced,
            acked: false,
            repeated: false,
        }
    }

    #[tokio::test]
    async fn a_channel_that_opens_late_gets_the_newest_and_the_feed_gets_all() {
        let outlet = Outlet::new(2);
        let mut feed = outlet.follow();
        for sequence in 1..=2 {
            outlet.send(notification(sequence, false));
            assert_eq!(feed.recv().await.unwrap().sequence, sequence);
        }
        outlet.send(notification(3, true));
        assert!(feed.recv().await.unwrap().silenced);
        outlet.send(notification(4, false));
        assert!(outlet.channels().is_empty());
        let mut inbox = outlet.open("ops");
        assert_eq!((inbox.waiting(), inbox.take_lost(), inbox.take_lost()), (2, 1, 0));
        assert_eq!(outlet.channels(), ["ops"]);
        assert_eq!(inbox.next().await.sequence, 2);
        assert_eq!(inbox.next().await.sequence, 4);
        outlet.send(notification(5, false));
        assert_eq!(inbox.next().await.sequence, 5);
        outlet.close("ops");
        assert!(outlet.channels().is_empty());
    }
}
