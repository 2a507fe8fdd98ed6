//! Which connection a cancel request means: a number and a secret, known to its client only.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use bytes::Bytes;
use hashbrown::HashMap;
use kymo_kernel::env::Random;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;

/// Stops what a connection runs.
pub(super) type Canceller = Arc<dyn Fn() + Send + Sync>;

/// The secret's length under protocol 3.2; version 3.0 knows four bytes only.
const LONG_SECRET: usize = 32;

struct Entry {
    secret: Bytes,
    cancel: Canceller,
}

/// The open connections by number.
#[derive(Default)]
pub(super) struct Registry {
    last: AtomicI32,
    open: Mutex<HashMap<i32, Entry>>,
}

/// A connection's place in the registry, given up when dropped.
pub(super) struct Registered {
    registry: Arc<Registry>,
    pub(super) pid: i32,
    pub(super) secret: Bytes,
}

impl Registry {
    /// Enters a connection under a new number and a fresh secret.
    pub(super) fn enter(
        self: &Arc<Self>,
        minor: u16,
        cancel: Canceller,
        random: &dyn Random,
    ) -> Registered {
        let mut secret = vec![0; if minor >= 2 { LONG_SECRET } else { 4 }];
        random.fill(&mut secret);
        let secret = Bytes::from(secret);
        let mut open = self.open.lock();
        let pid = loop {
            let pid = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX;
            if pid != 0 && !open.contains_key(&pid) {
                break pid;
            }
        };
        open.insert(pid, Entry { secret: secret.clone(), cancel });
        drop(open);
        Registered { registry: Arc::clone(self), pid, secret }
    }

    /// Stops what a connection runs, if the secret is its own. Silent otherwise, as the
    /// protocol wants: an answer would help who guesses.
    pub(super) fn cancel(&self, pid: i32, secret: &[u8]) -> bool {
        let found = self.open.lock().get(&pid).and_then(|entry| {
            bool::from(entry.secret.ct_eq(secret)).then(|| Arc::clone(&entry.cancel))
        });
        // Called without the lock: it belongs to somebody else's code.
        found.inspect(|cancel| cancel()).is_some()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.open.lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Counting;

    impl Random for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    #[test]
    fn only_the_secret_of_the_connection_cancels_it() {
        let registry = Arc::new(Registry::default());
        let hits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&hits);
        let cancel: Canceller = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let entered = registry.enter(2, cancel, &Counting);
        assert_eq!(entered.secret.len(), 32);
        assert!(!registry.cancel(entered.pid, &[7; 4]));
        assert!(!registry.cancel(entered.pid + 1, &[7; 32]));
        assert!(registry.cancel(entered.pid, &[7; 32]));
        assert_eq!(hits.load(Ordering::Relaxed), 1);
        let pid = entered.pid;
        drop(entered);
        assert!(!registry.cancel(pid, &[7; 32]));
    }
}
