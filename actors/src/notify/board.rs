//! What is known of a channel at this moment, for `system.alert_channels`.

use kymo_kernel::alert::ChannelDef;
use parking_lot::Mutex;

use crate::query::ChannelRow;

/// The state of one channel; its carrier writes it, whoever looks reads it.
pub struct Board {
    def: ChannelDef,
    defined_in: &'static str,
    now: Mutex<Now>,
}

#[derive(Debug, Clone)]
struct Now {
    state: &'static str,
    held: usize,
    sent: u64,
    failed: u64,
    retried: u64,
    sent_at_ns: Option<i64>,
    error: Option<(String, i64)>,
}

impl Board {
    /// A channel that has done nothing yet.
    #[must_use]
    pub fn new(def: ChannelDef, defined_in: &'static str) -> Board {
        let now = Now {
            state: "starting",
            held: 0,
            sent: 0,
            failed: 0,
            retried: 0,
            sent_at_ns: None,
            error: None,
        };
        Board { def, defined_in, now: Mutex::new(now) }
    }

    /// The definition.
    #[must_use]
    pub fn def(&self) -> &ChannelDef {
        &self.def
    }

    /// Where it is defined: `built in`, `settings` or `sql`.
    #[must_use]
    pub fn defined_in(&self) -> &'static str {
        self.defined_in
    }

    /// Notes what it does, and how many notifications it holds beside those of the queue.
    pub fn doing(&self, state: &'static str, held: usize) {
        let mut now = self.now.lock();
        (now.state, now.held) = (state, held);
    }

    /// Notes that notifications were taken.
    pub fn sent(&self, count: u64, at_ns: i64) {
        let mut now = self.now.lock();
        now.sent += count;
        now.sent_at_ns = Some(at_ns);
    }

    /// Notes a failure; `count` notifications will not be tried again.
    pub fn failed(&self, count: u64, why: String, at_ns: i64) {
        let mut now = self.now.lock();
        if count == 0 {
            now.retried += 1;
        }
        now.failed += count;
        now.error = Some((why, at_ns));
    }

    /// The row of the table, where so many wait in the queue.
    #[must_use]
    pub fn row(&self, waiting: usize) -> ChannelRow {
        let now = self.now.lock().clone();
        ChannelRow {
            channel: self.def.name.clone(),
            kind: self.def.kind.as_str().to_owned(),
            url: Some(self.def.shown_url()).filter(|url| !url.is_empty()),
            signed: !self.def.secret.is_empty(),
            defined_in: self.defined_in.to_owned(),
            state: now.state.to_owned(),
            queued: (now.held + waiting) as u64,
            sent: now.sent,
            failed: now.failed,
            retried: now.retried,
            last_sent: now.sent_at_ns,
            last_error: now.error.as_ref().map(|(why, _)| why.clone()),
            last_error_at: now.error.map(|(_, at)| at),
        }
    }
}
