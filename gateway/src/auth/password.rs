//! Passwords and tokens: making, hashing and verifying them.

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use kymo_kernel::env::Random;
use kymo_kernel::{Error, Result};
use sha2::{Digest, Sha256};

/// Longest password that is hashed; hashing time must not be the client's choice.
pub const MAX_BYTES: usize = 1024;

/// Letters and digits that cannot be taken for one another.
const ALPHABET: &[u8; 56] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz";

/// A new password: 20 characters, 116 bits.
#[must_use]
pub fn generate(random: &dyn Random) -> String {
    characters(random, 20)
}

/// A new API token: recognisable, 40 random characters, 232 bits.
#[must_use]
pub fn generate_token(random: &dyn Random) -> String {
    format!("kymo_{}", characters(random, 40))
}

fn characters(random: &dyn Random, count: usize) -> String {
    let mut text = String::with_capacity(count);
    // Bytes beyond the largest multiple of 56 are thrown away: no character is likelier.
    while text.len() < count {
        let mut bytes = [0_u8; 32];
        random.fill(&mut bytes);
        let usable = bytes.iter().filter(|byte| **byte < 224);
        for byte in usable.take(count - text.len()) {
            text.push(char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        }
    }
    text
}

/// Argon2id with the crate's defaults (19 MiB, 2 passes), in PHC string format.
///
/// # Errors
/// `internal` where the hash cannot be computed.
pub fn hash(password: &str, random: &dyn Random) -> Result<String> {
    let mut salt = [0; 16];
    random.fill(&mut salt);
    let broken = |error| Error::internal(format!("hash a password: {error}"));
    let salt = SaltString::encode_b64(&salt).map_err(broken)?;
    Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(broken)
}

/// Whether the password has this hash. Takes the time of one hash.
#[must_use]
pub fn verify(password: &str, hash: &str) -> bool {
    if password.len() > MAX_BYTES {
        return false;
    }
    PasswordHash::new(hash)
        .is_ok_and(|parsed| Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
}

/// What is kept of a token. Tokens are long and random: a plain hash is enough.
#[must_use]
pub fn token_digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
