//! Accounts as they are stored: verifiers only, never a password or a token.

use serde::{Deserialize, Serialize};

/// Somebody who may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Log-in name.
    pub name: String,
    /// Whether they may change definitions and accounts.
    pub admin: bool,
    /// Argon2id hash of the password in PHC string format, for HTTP.
    pub argon2: String,
    /// Verifier of the password for SCRAM-SHA-256, for the PostgreSQL wire protocol.
    pub scram: ScramVerifier,
    /// SHA-256 of each API token.
    pub tokens: Vec<[u8; 32]>,
}

/// What a server keeps to verify SCRAM-SHA-256 (RFC 5802): it proves a password to nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScramVerifier {
    /// Salt of the password hash.
    pub salt: Vec<u8>,
    /// Rounds of PBKDF2.
    pub iterations: u32,
    /// `H(HMAC(SaltedPassword, "Client Key"))`.
    pub stored_key: [u8; 32],
    /// `HMAC(SaltedPassword, "Server Key")`.
    pub server_key: [u8; 32],
}
