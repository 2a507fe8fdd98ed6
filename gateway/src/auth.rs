//! Who may come in.
//!
//! Accounts live in the catalog as verifiers only ([`kymo_kernel::user::User`]). A request
//! brings [`Credentials`]; an [`Authenticator`] turns them into an [`Identity`]. Passwords
//! are hashed with argon2id off the I/O threads, a bounded number at a time, and what was
//! proven is remembered under a keyed hash until the account changes. An unknown name costs
//! the same hash as a wrong password, so that the answer's time tells nothing.

pub mod accounts;
mod cache;
pub mod credentials;
pub mod first_start;
pub mod password;
pub mod scram;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::env::Random;
use kymo_kernel::user::{ScramVerifier, User};
use kymo_kernel::{Code, Error, Result};

use crate::limits::Turns;
pub use accounts::Accounts;
use cache::Proven;
pub use credentials::Credentials;

/// How long a log-in waits for its turn to be hashed.
const HASHING_WAIT: Duration = Duration::from_secs(5);

/// Somebody who has proven who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Log-in name.
    pub name: Arc<str>,
    /// Whether they may change definitions and accounts.
    pub admin: bool,
}

impl Identity {
    fn of(user: &User) -> Self {
        Identity { name: user.name.as_str().into(), admin: user.admin }
    }
}

/// Checks credentials against the accounts. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    enabled: bool,
    admin_user: Arc<str>,
    accounts: Arc<dyn Accounts>,
    hashing: Turns,
    proven: Proven,
    decoy: String,
}

impl Authenticator {
    /// An authenticator over these accounts.
    ///
    /// # Errors
    /// `internal` if the password hash cannot be computed at all.
    pub fn new(
        settings: &Settings,
        accounts: Arc<dyn Accounts>,
        random: &dyn Random,
    ) -> Result<Self> {
        let auth = &settings.auth;
        Ok(Authenticator(Arc::new(Inner {
            enabled: auth.enabled,
            admin_user: auth.admin_user.as_str().into(),
            accounts,
            hashing: Turns::new("password hashing", auth.max_hashing, HASHING_WAIT),
            proven: Proven::new(auth.cache_entries, random),
            decoy: password::hash(&password::generate(random), random)?,
        })))
    }

    /// Whether anybody has to prove who they are.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.0.enabled
    }

    /// Who everybody is where nobody has to prove it: the administrator.
    #[must_use]
    pub fn anybody(&self) -> Identity {
        Identity { name: Arc::clone(&self.0.admin_user), admin: true }
    }

    /// Proves credentials.
    ///
    /// # Errors
    /// `not_authenticated` for wrong ones, always with the same words; `busy` where too
    /// many passwords are being hashed.
    pub async fn check(&self, credentials: &Credentials) -> Result<Identity> {
        if !self.0.enabled {
            return Ok(self.anybody());
        }
        match credentials {
            Credentials::Token(token) => self.token(token).ok_or_else(refused),
            Credentials::Password { user, password } => self.password(user, password).await,
        }
    }

    /// What SCRAM needs to know about a name. An unknown name gets a verifier that nothing
    /// satisfies, stable for the name, so that the exchange does not tell it from a known one.
    #[must_use]
    pub fn scram(&self, name: &str) -> ScramVerifier {
        match self.0.accounts.user(name) {
            Some(user) => user.scram,
            None => scram::decoy(name, &self.0.proven.keyed(b"scram", name.as_bytes(), b"")),
        }
    }

    /// The identity of an account whose log-in was proven elsewhere, as by SCRAM.
    ///
    /// # Errors
    /// `not_authenticated` if the account has gone.
    pub fn identity(&self, name: &str) -> Result<Identity> {
        self.0.accounts.user(name).map(|user| Identity::of(&user)).ok_or_else(refused)
    }

    fn token(&self, token: &str) -> Option<Identity> {
        let digest = password::token_digest(token);
        self.0.accounts.by_token(&digest).map(|user| Identity::of(&user))
    }

    async fn password(&self, name: &str, given: &str) -> Result<Identity> {
        let user = self.0.accounts.user(name);
        if let Some(user) = user.as_ref().filter(|user| self.0.proven.knows(user, given)) {
            return Ok(Identity::of(user));
        }
        // Clients of InfluxDB put their token where the password goes.
        if let Some(identity) = self.token(given) {
            return Ok(identity);
        }
        let hash = user.as_ref().map_or_else(|| self.0.decoy.clone(), |user| user.argon2.clone());
        let turn = self.0.hashing.take().await?;
        let candidate = given.to_owned();
        let matches = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            password::verify(&candidate, &hash)
        })
        .await
        .map_err(|error| Error::internal(format!("hash a password: {error}")))?;
        match user {
            Some(user) if matches => {
                self.0.proven.remember(&user, given);
                Ok(Identity::of(&user))
            }
            _ => Err(refused()),
        }
    }
}

/// The one answer to wrong credentials.
fn refused() -> Error {
    Error::new(Code::NotAuthenticated, "authorization failed")
        .with_hint("check user and password, or the token")
}

/// Refuses to open the door to a network: without authentication only loopback is served.
///
/// # Errors
/// `invalid_settings` naming the address that others could reach.
pub fn check_open_door(settings: &Settings) -> Result<()> {
    if settings.auth.enabled {
        return Ok(());
    }
    let server = &settings.server;
    for (key, host) in
        [("server.http_host", &server.http_host), ("server.pg_host", &server.pg_host)]
    {
        if !is_loopback(host) {
            return Err(Error::new(
                Code::Settings,
                format!("authentication is off while {key} is {host}, which others can reach"),
            )
            .with_hint("bind to 127.0.0.1, or leave authentication on"));
        }
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests;
