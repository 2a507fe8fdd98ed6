//! The last things that happened to actors, kept for `system.supervision_events`.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// How many events are remembered; the oldest go first.
const EVENTS: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A panic ended it.
    Panicked,
    /// A fresh one has taken its place.
    Restarted,
    /// It stays away: restarting did not help.
    Failed,
    /// The process was told to stop because of it.
    Escalated,
    /// It has not got on for a while.
    Stuck,
    /// It gets on again.
    Recovered,
}

impl What {
    /// Its name as tables and logs show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            What::Panicked => "panicked",
            What::Restarted => "restarted",
            What::Failed => "failed",
            What::Escalated => "escalated",
            What::Stuck => "stuck",
            What::Recovered => "recovered",
        }
    }
}

/// Something that happened to an actor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SupervisionEvent {
    /// When, in nanoseconds since 1970-01-01T00:00:00Z.
    pub at_ns: i64,
    /// Name of the actor.
    pub actor: String,
    /// Its kind.
    pub kind: &'static str,
    /// What.
    pub what: What,
    /// More about it, such as the text of the panic.
    pub detail: String,
}

/// A bounded ring of events.
#[derive(Default)]
pub(crate) struct Ring(Mutex<VecDeque<SupervisionEvent>>);

impl Ring {
    pub(crate) fn push(&self, event: SupervisionEvent) {
        let mut ring = self.0.lock();
        if ring.len() == EVENTS {
            ring.pop_front();
        }
        ring.push_back(event);
    }

    pub(crate) fn all(&self) -> Vec<SupervisionEvent> {
        self.0.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_forgets_the_oldest() {
        let ring = Ring::default();
        for number in 0..EVENTS + 3 {
            let actor = number.to_string();
            let detail = String::new();
            ring.push(SupervisionEvent { at_ns: 0, actor, kind: "x", what: What::Stuck, detail });
        }
        let all = ring.all();
        assert_eq!((all.len(), all[0].actor.as_str()), (EVENTS, "3"));
    }
}
