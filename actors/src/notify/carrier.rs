//! What carries the alerts of one channel: one notification after the other, in the order of
//! their numbers, each until it is taken, refused or too old.
//!
//! A carrier waits for its own receiver only. What comes meanwhile waits in the queue of its
//! channel; where that overflows, the carrier reads on in the history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::alert::ChannelKind;
use kymo_kernel::message::{AlertStatus, Inbox, Notification};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use serde_json::Value;
use tracing::{info, warn};

use super::board::Board;
use super::cursor::{self, Cursor};
use super::missed::{self, DISORDER_NS, Wanted};
use super::recent::Recent;
use super::retry::Next;
use super::{Answer, Parts, Request, payload};

/// Lines in the log between two times that their number is kept.
const LINES: u32 = 256;
/// Alertmanager is to take an alert for ended that it was not told of so many times.
const MISSED_RESENDS: u32 = 4;

/// The carrier of one channel.
pub(super) struct Carrier {
    parts: Arc<Parts>,
    board: Arc<Board>,
    inbox: Inbox,
    cursor: Cursor,
    /// Notifications since the cursor was kept.
    unkept: u32,
    /// Whether the history has what the queue has not.
    behind: bool,
    backlog: VecDeque<Arc<Notification>>,
    /// What waited in the queue when some of it was lost. What the history has of it comes in its
    /// place there; the rest, which was silenced when it happened, comes after.
    aside: VecDeque<Arc<Notification>>,
    recent: Recent,
    /// Failures in a row.
    failures: u32,
    /// What Alertmanager is told again and again.
    firing: BTreeMap<u64, Arc<Notification>>,
    /// Whether what was kept of a channel of this name is another one's.
    fresh: bool,
}

impl Carrier {
    /// A carrier that goes on where the channel was, or, where it is `fresh`, begins with what
    /// comes from now on.
    pub(super) fn new(parts: Arc<Parts>, board: Arc<Board>, inbox: Inbox, fresh: bool) -> Carrier {
        // What was read from the history may also wait in the queue.
        let recent = Recent::new(parts.settings.max_notifications.saturating_mul(2));
        Carrier {
            parts,
            board,
            inbox,
            cursor: Cursor::default(),
            unkept: 0,
            behind: false,
            backlog: VecDeque::new(),
            aside: VecDeque::new(),
            recent,
            failures: 0,
            firing: BTreeMap::new(),
            fresh,
        }
    }

    /// Carries until it is dropped.
    ///
    /// # Errors
    /// How far the channel is cannot be read.
    pub(super) async fn run(mut self) -> Result<()> {
        self.begin().await?;
        match self.board.def().kind {
            ChannelKind::Webhook | ChannelKind::Log => self.each().await,
            ChannelKind::Alertmanager => self.all().await,
        }
    }

    fn name(&self) -> &str {
        &self.board.def().name
    }

    /// Takes up where the channel was, or begins with what comes from now on.
    async fn begin(&mut self) -> Result<()> {
        let store = self.parts.store.clone();
        let read = self.parts.pools.foreground("channels", move || cursor::read(&store));
        match read.await??.remove(self.name()).filter(|_| !self.fresh) {
            Some(cursor) => {
                self.cursor = cursor;
                self.behind = true;
            }
            None => {
                self.cursor = Cursor { sequence: 0, from_ns: self.parts.clock.now_ns() };
                // A store without alerts needs no table for the log's sake; what fires is told
                // anew after a crash.
                if self.board.def().kind != ChannelKind::Log {
                    self.keep().await;
                }
            }
        }
        Ok(())
    }

    /// The next notification, from the history as long as that has some.
    async fn next(&mut self) -> Arc<Notification> {
        loop {
            self.behind |= self.inbox.take_lost() > 0;
            while self.backlog.is_empty() && self.behind {
                self.set_aside();
                self.catch_up().await;
            }
            if let Some(told) = self.held() {
                return told;
            }
            self.shows("idle");
            let told = self.inbox.next().await;
            if self.is_whole(&told) {
                return told;
            }
        }
    }

    /// The next notification, where there is one without reading the history.
    fn try_next(&mut self) -> Option<Arc<Notification>> {
        if let Some(told) = self.held() {
            return Some(told);
        }
        let told = if self.behind { None } else { self.inbox.try_next() };
        told.filter(|told| self.is_whole(told))
    }

    /// What was read, and then what the history did not have.
    fn held(&mut self) -> Option<Arc<Notification>> {
        let Some(told) = self.backlog.pop_front() else {
            return if self.behind { None } else { self.aside.pop_front() };
        };
        self.aside.retain(|aside| aside.sequence != told.sequence);
        Some(told)
    }

    /// Whether nothing was lost before what was just taken from the queue: if so, it is put
    /// aside, and what was lost comes first.
    fn is_whole(&mut self, told: &Arc<Notification>) -> bool {
        if self.inbox.take_lost() == 0 {
            return true;
        }
        self.behind = true;
        self.aside.push_back(told.clone());
        false
    }

    /// Takes from the queue what there is room for. The rest may be lost, and is read later.
    fn set_aside(&mut self) {
        while self.aside.len() < self.parts.settings.max_notifications
            && let Some(told) = self.inbox.try_next()
        {
            self.aside.push_back(told);
        }
    }

    async fn catch_up(&mut self) {
        let (store, cursor) = (self.parts.store.clone(), self.cursor);
        let (name, most) = (self.name().to_owned(), self.parts.settings.max_notifications);
        let job = move || missed::read(&store, Wanted::Channel(&name), cursor, most);
        let read = self.parts.pools.foreground("missed notifications", job).await;
        match read.and_then(|read| read) {
            Ok((found, more)) => {
                self.behind = more;
                self.backlog.extend(found.into_iter().map(Arc::new));
            }
            Err(error) => {
                warn!(channel = self.name(), %error, "the history of alerts cannot be read");
                let now = self.parts.clock.now_ns();
                self.board.failed(0, error.message().to_owned(), now);
                self.parts.clock.sleep(self.parts.policy.first).await;
            }
        }
    }

    /// Whether the channel has not been sent this: not by an earlier process, as far as that
    /// was kept, and not by this one.
    fn is_new(&self, told: &Notification) -> bool {
        let before = told.repeated && told.sequence <= self.cursor.sequence;
        !before && !self.recent.has(told)
    }

    /// One notification after the other.
    async fn each(&mut self) -> Result<()> {
        loop {
            let told = self.next().await;
            if !self.is_new(&told) {
                metrics().channels.repeated.with_label_values(&[self.name()]).inc();
                continue;
            }
            if self.board.def().kind == ChannelKind::Log {
                log(&told);
                self.taken(1);
            } else {
                let body = payload::webhook(self.name(), &told, &self.parts.links);
                let key = Some(payload::key(&told));
                self.deliver(1, &self.board.def().url.clone(), &body, key).await;
            }
            self.recent.add(&told);
            self.passed(told.sequence, self.board.def().kind == ChannelKind::Log).await;
        }
    }

    /// Alertmanager: what changed at once, and what fires in every interval.
    async fn all(&mut self) -> Result<()> {
        let every = Duration::from_millis(self.parts.settings.resend_ms);
        let clock = self.parts.clock.clone();
        let mut due = clock.monotonic().saturating_add(every);
        loop {
            let pause = due.saturating_sub(clock.monotonic());
            tokio::select! {
                biased;
                () = clock.sleep(pause) => {
                    self.resend().await;
                    due = clock.monotonic().saturating_add(every);
                }
                told = self.next() => self.tell(told).await,
            }
        }
    }

    /// Tells Alertmanager what changed, with all that waits already.
    async fn tell(&mut self, first: Arc<Notification>) {
        let mut some = vec![first];
        let most = self.parts.settings.max_request_alerts;
        while some.len() < most
            && let Some(told) = self.try_next()
        {
            some.push(told);
        }
        for told in &some {
            match told.status {
                AlertStatus::Firing => drop(self.firing.insert(told.fingerprint, told.clone())),
                AlertStatus::Resolved => drop(self.firing.remove(&told.fingerprint)),
            }
        }
        let body = self.alerts(&some);
        let url = self.alertmanager_url();
        self.deliver(some.len() as u64, &url, &body, None).await;
        if let Some(last) = some.iter().map(|told| told.sequence).max() {
            self.passed(last, false).await;
        }
    }

    async fn resend(&mut self) {
        let all: Vec<Arc<Notification>> = self.firing.values().cloned().collect();
        let url = self.alertmanager_url();
        for some in all.chunks(self.parts.settings.max_request_alerts) {
            let body = self.alerts(some);
            let outcome = self.attempt(&url, &body, None).await;
            // The next interval is the next attempt.
            match self.follow(&outcome, Duration::ZERO) {
                Next::Done => self.failures = 0,
                Next::Again(_, why) | Next::Refused(why) | Next::Expired(why) => {
                    return self.retries(why);
                }
            }
        }
    }

    fn alerts(&self, some: &[Arc<Notification>]) -> Value {
        let ahead = self.parts.settings.resend_ms.saturating_mul(u64::from(MISSED_RESENDS));
        let ahead = i64::try_from(ahead.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        let until = self.parts.clock.now_ns().saturating_add(ahead);
        some.iter().map(|told| payload::alertmanager(told, &self.parts.links, until)).collect()
    }

    fn alertmanager_url(&self) -> String {
        format!("{}/api/v2/alerts", self.board.def().url.trim_end_matches('/'))
    }

    /// Sends a request until it is taken, refused or too old.
    async fn deliver(&mut self, count: u64, url: &str, body: &Value, key: Option<String>) {
        let clock = self.parts.clock.clone();
        let began = clock.monotonic();
        loop {
            self.shows("sending");
            let outcome = self.attempt(url, body, key.clone()).await;
            let age = clock.monotonic().saturating_sub(began);
            match self.follow(&outcome, age) {
                Next::Done => return self.taken(count),
                Next::Again(pause, why) => {
                    self.retries(why);
                    self.shows("retrying");
                    clock.sleep(pause).await;
                }
                Next::Refused(why) => return self.gave_up(count, "refused", why),
                Next::Expired(why) => return self.gave_up(count, "expired", why),
            }
        }
    }

    /// One request, within its time.
    async fn attempt(&self, url: &str, body: &Value, key: Option<String>) -> Result<Answer> {
        let Some(post) = &self.parts.post else {
            return Err(Error::new(Code::Unsupported, "this program has no client for channels"));
        };
        let (clock, limit) = (self.parts.clock.clone(), self.parts.timeout);
        let request = Request {
            url: url.to_owned(),
            body: body.to_string().into_bytes(),
            key,
            secret: Some(self.board.def().secret.clone()).filter(|secret| !secret.is_empty()),
            at_s: clock.now_ns().div_euclid(1_000_000_000),
        };
        let began = clock.monotonic();
        let answer = tokio::select! {
            answer = post.post(request) => answer,
            () = clock.sleep(limit) => Err(Error::new(
                Code::Deadline,
                format!("no answer within {} ms", limit.as_millis()),
            )),
        };
        let took = clock.monotonic().saturating_sub(began);
        let seconds = metrics().channels.request_seconds.with_label_values(&[self.name()]);
        seconds.observe(took.as_secs_f64());
        answer
    }

    fn follow(&self, outcome: &Result<Answer>, age: Duration) -> Next {
        self.parts.policy.next(outcome, self.failures, age, self.parts.random.next_u64())
    }

    fn taken(&mut self, count: u64) {
        self.failures = 0;
        metrics().channels.sent.with_label_values(&[self.name()]).inc_by(count);
        self.board.sent(count, self.parts.clock.now_ns());
    }

    fn retries(&mut self, why: String) {
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            warn!(channel = self.name(), why, "a channel does not take alerts; trying again");
        }
        metrics().channels.retried.with_label_values(&[self.name()]).inc();
        self.board.failed(0, why, self.parts.clock.now_ns());
    }

    fn gave_up(&mut self, count: u64, how: &'static str, why: String) {
        warn!(channel = self.name(), how, why, "a notification is not sent");
        if how == "expired" {
            self.failures = self.failures.saturating_add(1);
        } else {
            self.failures = 0;
        }
        metrics().channels.failed.with_label_values(&[self.name(), how]).inc_by(count);
        self.board.failed(count, why, self.parts.clock.now_ns());
    }

    /// The channel is done with everything up to a number.
    async fn passed(&mut self, sequence: u64, may_wait: bool) {
        // One that was silenced at first comes late, with the number that it had.
        self.cursor.sequence = self.cursor.sequence.max(sequence);
        self.cursor.from_ns = self.parts.clock.now_ns().saturating_sub(DISORDER_NS);
        self.unkept += 1;
        let more = self.inbox.waiting() + self.backlog.len() + self.aside.len() > 0;
        if may_wait && more && self.unkept < LINES {
            return;
        }
        self.keep().await;
    }

    /// Keeps how far the channel is. Where that fails, a crash repeats what was sent since.
    async fn keep(&mut self) {
        self.unkept = 0;
        if let Err(error) = cursor::keep(&self.parts.write, self.name(), self.cursor).await {
            info!(channel = self.name(), %error, "how far the channel is was not kept");
        }
    }

    fn shows(&self, state: &'static str) {
        let held = self.backlog.len() + self.aside.len() + usize::from(state != "idle");
        self.board.doing(state, held);
    }
}

/// A line in the server's log.
fn log(told: &Notification) {
    let json = |labels| serde_json::to_string(labels).unwrap_or_default();
    warn!(
        alert = told.rule,
        status = told.status.as_str(),
        value = told.value,
        labels = json(&told.labels),
        annotations = json(&told.annotations),
        "alert"
    );
}
