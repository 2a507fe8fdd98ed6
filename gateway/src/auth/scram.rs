//! What a server keeps for SCRAM-SHA-256 (RFC 5802, RFC 7677): derived from a password once.

use hmac::{Hmac, Mac};
use kymo_kernel::env::Random;
use kymo_kernel::user::ScramVerifier;
use sha2::{Digest, Sha256};

/// Rounds of PBKDF2, as PostgreSQL's default.
pub const ITERATIONS: u32 = 4096;

/// The verifier of a password under a fresh salt.
#[must_use]
pub fn verifier(password: &str, random: &dyn Random) -> ScramVerifier {
    let mut salt = vec![0; 16];
    random.fill(&mut salt);
    let salted = salted_password(password.as_bytes(), &salt, ITERATIONS);
    from_salted(&salted, salt, ITERATIONS)
}

/// A verifier that no password satisfies in practice, the same each time for the same seed.
#[must_use]
pub fn decoy(name: &str, seed: &[u8; 32]) -> ScramVerifier {
    let salt = hmac(seed, name.as_bytes())[..16].to_vec();
    from_salted(seed, salt, ITERATIONS)
}

fn from_salted(salted: &[u8; 32], salt: Vec<u8>, iterations: u32) -> ScramVerifier {
    let client_key = hmac(salted, b"Client Key");
    ScramVerifier {
        salt,
        iterations,
        stored_key: Sha256::digest(client_key).into(),
        server_key: hmac(salted, b"Server Key"),
    }
}

/// `Hi(password, salt, iterations)` of RFC 5802: PBKDF2 with HMAC-SHA-256, one block.
#[must_use]
pub fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
    let mut block = salt.to_vec();
    block.extend_from_slice(&1_u32.to_be_bytes());
    let mut step = hmac(password, &block);
    let mut sum = step;
    for _ in 1..iterations {
        step = hmac(password, &step);
        for (sum, step) in sum.iter_mut().zip(step) {
            *sum ^= step;
        }
    }
    sum
}

/// HMAC-SHA-256.
#[must_use]
pub fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length: the constructor cannot fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// The example exchange of RFC 7677, section 3.
    #[test]
    fn the_verifier_checks_the_proof_of_the_rfc() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = salted_password(b"pencil", &salt, 4096);
        let verifier = from_salted(&salted, salt, 4096);
        let auth_message = b"n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = STANDARD.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let signature = hmac(&verifier.stored_key, auth_message);
        let client_key: Vec<u8> = proof.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        assert_eq!(<[u8; 32]>::from(Sha256::digest(&client_key)), verifier.stored_key);
        let server = STANDARD.encode(hmac(&verifier.server_key, auth_message));
        assert_eq!(server, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_decoy_is_stable_for_its_name() {
        assert_eq!(decoy("a", &[7; 32]), decoy("a", &[7; 32]));
        assert_ne!(decoy("a", &[7; 32]).salt, decoy("b", &[7; 32]).salt);
    }
}
