//! What was proven lately, so that each request does not pay for a password hash.
//!
//! An entry is a keyed hash of name, password and the account's stored hash: it names no
//! password, is worthless in another process, and no longer matches once the password
//! changes. The oldest entries make room for new ones.

use std::collections::VecDeque;

use foldhash::HashSet;
use kymo_kernel::env::Random;
use kymo_kernel::user::User;
use parking_lot::Mutex;

use super::scram::hmac;

/// A bounded set of proven credentials.
pub(super) struct Proven {
    key: [u8; 32],
    max: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    known: HashSet<[u8; 32]>,
    by_age: VecDeque<[u8; 32]>,
}

impl Proven {
    /// An empty set of at most `max` entries under a key of its own.
    pub(super) fn new(max: usize, random: &dyn Random) -> Self {
        let mut key = [0; 32];
        random.fill(&mut key);
        Proven { key, max, entries: Mutex::default() }
    }

    /// A keyed hash of three parts, told apart by their lengths.
    pub(super) fn keyed(&self, a: &[u8], b: &[u8], c: &[u8]) -> [u8; 32] {
        let mut message = Vec::with_capacity(24 + a.len() + b.len() + c.len());
        for part in [a, b, c] {
            message.extend_from_slice(&(part.len() as u64).to_le_bytes());
            message.extend_from_slice(part);
        }
        hmac(&self.key, &message)
    }

    /// Whether this password was proven for the account as it is now.
    pub(super) fn knows(&self, user: &User, password: &str) -> bool {
        let entry = self.entry(user, password);
        self.entries.lock().known.contains(&entry)
    }

    /// Remembers a password that was proven just now.
    pub(super) fn remember(&self, user: &User, password: &str) {
        let entry = self.entry(user, password);
        let mut entries = self.entries.lock();
        if self.max == 0 || !entries.known.insert(entry) {
            return;
        }
        entries.by_age.push_back(entry);
        while entries.by_age.len() > self.max {
            if let Some(oldest) = entries.by_age.pop_front() {
                entries.known.remove(&oldest);
            }
        }
    }

    fn entry(&self, user: &User, password: &str) -> [u8; 32] {
        self.keyed(user.name.as_bytes(), password.as_bytes(), user.argon2.as_bytes())
    }
}
