//! Where accounts are looked up, and how one is made.

use std::sync::Arc;

use kymo_kernel::env::Random;
use kymo_kernel::user::User;
use kymo_kernel::{Code, Error, Result};
use parking_lot::RwLock;
use subtle::ConstantTimeEq;

use super::{password, scram};

/// The accounts as they are now: in a server the catalog's snapshot.
pub trait Accounts: Send + Sync {
    /// The account of a name.
    fn user(&self, name: &str) -> Option<User>;
    /// The account that a token belongs to, by the token's SHA-256.
    fn by_token(&self, digest: &[u8; 32]) -> Option<User>;
    /// Whether there is nobody at all, as before the first start.
    fn is_empty(&self) -> bool;
}

/// Finds the owner of a token; looks at every account and every token whatever it finds.
pub fn owner_of_token<'a>(
    users: impl Iterator<Item = &'a User>,
    digest: &[u8; 32],
) -> Option<&'a User> {
    let mut owner = None;
    for user in users {
        for token in &user.tokens {
            if bool::from(token.ct_eq(digest)) {
                owner = Some(user);
            }
        }
    }
    owner
}

/// An account with this password and these tokens, ready to be stored. Takes about 100 ms:
/// it belongs on a thread that may block.
///
/// # Errors
/// `invalid_input` for an empty or overlong name or password.
pub fn make(
    name: &str,
    password: &str,
    admin: bool,
    tokens: &[&str],
    random: &dyn Random,
) -> Result<User> {
    kymo_kernel::schema::check_name("user", name)?;
    if password.is_empty() || password.len() > password::MAX_BYTES {
        return Err(Error::new(
            Code::InvalidInput,
            format!("the password of {name} must have 1 to {} bytes", password::MAX_BYTES),
        ));
    }
    Ok(User {
        name: name.to_owned(),
        admin,
        argon2: password::hash(password, random)?,
        scram: scram::verifier(password, random),
        tokens: tokens.iter().map(|token| password::token_digest(token)).collect(),
    })
}

/// Accounts held in memory, for tests and tools.
#[derive(Debug, Default)]
pub struct InMemory(RwLock<Vec<User>>);

impl InMemory {
    /// These accounts.
    #[must_use]
    pub fn new(users: Vec<User>) -> Arc<Self> {
        Arc::new(InMemory(RwLock::new(users)))
    }

    /// Creates or replaces one.
    pub fn put(&self, user: User) {
        let mut users = self.0.write();
        users.retain(|other| other.name != user.name);
        users.push(user);
    }
}

impl Accounts for InMemory {
    fn user(&self, name: &str) -> Option<User> {
        self.0.read().iter().find(|user| user.name == name).cloned()
    }

    fn by_token(&self, digest: &[u8; 32]) -> Option<User> {
        owner_of_token(self.0.read().iter(), digest).cloned()
    }

    fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }
}
