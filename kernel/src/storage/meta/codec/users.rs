//! The frozen form of users and what verifies them.

use serde::{Deserialize, Serialize};

use crate::user::{ScramVerifier, User};

#[derive(Serialize, Deserialize)]
pub(super) struct UserRecord {
    name: String,
    admin: bool,
    argon2: String,
    scram_salt: Vec<u8>,
    scram_iterations: u32,
    scram_stored_key: [u8; 32],
    scram_server_key: [u8; 32],
    tokens: Vec<[u8; 32]>,
}

impl From<&User> for UserRecord {
    fn from(from: &User) -> Self {
        UserRecord {
            name: from.name.clone(),
            admin: from.admin,
            argon2: from.argon2.clone(),
            scram_salt: from.scram.salt.clone(),
            scram_iterations: from.scram.iterations,
            scram_stored_key: from.scram.stored_key,
            scram_server_key: from.scram.server_key,
            tokens: from.tokens.clone(),
        }
    }
}

impl From<UserRecord> for User {
    fn from(from: UserRecord) -> Self {
        User {
            name: from.name,
            admin: from.admin,
            argon2: from.argon2,
            scram: ScramVerifier {
                salt: from.scram_salt,
                iterations: from.scram_iterations,
                stored_key: from.scram_stored_key,
                server_key: from.scram_server_key,
            },
            tokens: from.tokens,
        }
    }
}
