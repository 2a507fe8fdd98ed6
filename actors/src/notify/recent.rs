//! What a channel was sent lately, so that it is not sent again: by alert, status and the time
//! since when it fires. Bounded; the oldest are forgotten.

use std::collections::VecDeque;

use hashbrown::HashSet;
use kymo_kernel::message::{AlertStatus, Notification};

/// What tells a notification from all others.
type Mark = (u64, bool, i64);

/// The marks of notifications.
pub struct Recent {
    known: HashSet<Mark>,
    order: VecDeque<Mark>,
    most: usize,
}

impl Recent {
    /// Remembers so many.
    #[must_use]
    pub fn new(most: usize) -> Recent {
        Recent { known: HashSet::new(), order: VecDeque::new(), most: most.max(1) }
    }

    /// Whether this was added.
    #[must_use]
    pub fn has(&self, told: &Notification) -> bool {
        self.known.contains(&mark(told))
    }

    /// Remembers a notification.
    pub fn add(&mut self, told: &Notification) {
        let mark = mark(told);
        if !self.known.insert(mark) {
            return;
        }
        self.order.push_back(mark);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn mark(told: &Notification) -> Mark {
    (told.fingerprint, told.status == AlertStatus::Firing, told.starts_at_ns)
}

#[cfg(test)]
mod tests {
    use super::super::tests::told;
    use super::*;

    #[test]
    fn an_alert_is_the_same_by_its_labels_its_status_and_its_beginning() {
        let mut recent = Recent::new(2);
        let fires = told(1, "hot", AlertStatus::Firing);
        recent.add(&fires);
        assert!(recent.has(&Notification { sequence: 5, ..fires.clone() }));
        let other = Notification { fingerprint: 9, ..fires.clone() };
        let later = Notification { starts_at_ns: 9, ..fires.clone() };
        let ended = told(1, "hot", AlertStatus::Resolved);
        assert!([&other, &later, &ended].into_iter().all(|each| !recent.has(each)));
        recent.add(&other);
        recent.add(&other);
        assert!(recent.has(&fires), "the same again takes no place");
        recent.add(&later);
        assert!(!recent.has(&fires) && recent.has(&other) && recent.has(&later));
    }
}
