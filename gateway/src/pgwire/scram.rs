//! The server's side of SCRAM-SHA-256 (RFC 5802 and 7677), against a stored verifier.
//!
//! The exchange of a name that does not exist runs to its end against a decoy, so that
//! neither its course nor its time tells. Channel binding is not offered; a client that
//! demands it is told so. A client that could bind but saw no offer (`y`) is let through, as
//! the RFC wants of a server without it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kymo_kernel::user::ScramVerifier;
use kymo_kernel::{Code, Error, Result};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::wire::protocol;
use crate::auth::scram::hmac;

/// The one mechanism.
pub(super) const MECHANISM: &str = "SCRAM-SHA-256";

/// An exchange that waits for the client's proof.
pub(super) struct Challenge {
    verifier: ScramVerifier,
    gs2_header: String,
    nonce: String,
    client_first_bare: String,
    /// What to send.
    pub(super) server_first: String,
}

impl Challenge {
    /// Answers the client's first message. `server_nonce` is fresh printable text.
    ///
    /// # Errors
    /// `protocol` for a malformed message, `unsupported` where it demands channel binding.
    pub(super) fn new(
        client_first: &str,
        server_nonce: &str,
        verifier: ScramVerifier,
    ) -> Result<Self> {
        let (flag, rest) = client_first.split_once(',').ok_or_else(malformed)?;
        match flag {
            "n" | "y" => {}
            _ if flag.starts_with("p=") => {
                return Err(Error::new(Code::Unsupported, "channel binding is not offered")
                    .with_hint("connect with channel_binding=prefer or disable"));
            }
            _ => return Err(malformed()),
        }
        let (identity, bare) = rest.split_once(',').ok_or_else(malformed)?;
        if !identity.is_empty() && !identity.starts_with("a=") {
            return Err(malformed());
        }
        // PostgreSQL takes the name from the start-up packet and ignores this one.
        let mut parts = bare.split(',');
        let name = parts.next().filter(|name| name.starts_with("n="));
        let nonce = parts.next().and_then(|nonce| nonce.strip_prefix("r="));
        let (Some(_), Some(client_nonce)) = (name, nonce) else { return Err(malformed()) };
        if client_nonce.is_empty() || !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed());
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let salt = STANDARD.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        Ok(Challenge {
            verifier,
            gs2_header: format!("{flag},{identity},"),
            nonce,
            client_first_bare: bare.to_owned(),
            server_first,
        })
    }

    /// Checks the client's last message; returns the server's own proof.
    ///
    /// # Errors
    /// `protocol` for a malformed message, `not_authenticated` for a wrong proof.
    pub(super) fn verify(&self, client_final: &str) -> Result<String> {
        let (without_proof, proof) = client_final.rsplit_once(",p=").ok_or_else(malformed)?;
        let proof: [u8; 32] = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or_else(malformed)?;
        let mut parts = without_proof.split(',');
        let binding = parts.next().and_then(|part| part.strip_prefix("c="));
        let nonce = parts.next().and_then(|part| part.strip_prefix("r="));
        if binding != Some(STANDARD.encode(&self.gs2_header).as_str()) {
            return Err(protocol("SCRAM channel binding does not repeat the first message"));
        }
        if nonce != Some(self.nonce.as_str()) {
            return Err(protocol("SCRAM nonce does not match"));
        }
        let message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = hmac(&self.verifier.stored_key, message.as_bytes());
        let mut client_key = [0; 32];
        for (key, (proof, mask)) in client_key.iter_mut().zip(proof.iter().zip(signature)) {
            *key = proof ^ mask;
        }
        let hash: [u8; 32] = Sha256::digest(client_key).into();
        if !bool::from(hash.ct_eq(&self.verifier.stored_key)) {
            return Err(Error::new(Code::NotAuthenticated, "password authentication failed"));
        }
        let own = hmac(&self.verifier.server_key, message.as_bytes());
        Ok(format!("v={}", STANDARD.encode(own)))
    }
}

fn malformed() -> Error {
    protocol("malformed SCRAM message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::salted_password;

    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn verifier(password: &[u8]) -> ScramVerifier {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = salted_password(password, &salt, 4096);
        ScramVerifier {
            salt,
            iterations: 4096,
            stored_key: Sha256::digest(hmac(&salted, b"Client Key")).into(),
            server_key: hmac(&salted, b"Server Key"),
        }
    }

    fn challenge(password: &[u8]) -> Challenge {
        Challenge::new(CLIENT_FIRST, SERVER_NONCE, verifier(password)).unwrap()
    }

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_exchange_of_the_rfc() {
        let challenge = challenge(b"pencil");
        assert_eq!(
            challenge.server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        assert_eq!(
            challenge.verify(CLIENT_FINAL).unwrap(),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }

    #[test]
    fn a_wrong_password_a_changed_nonce_and_an_overlong_proof_are_refused() {
        let wrong = challenge(b"pencils").verify(CLIENT_FINAL).unwrap_err();
        assert_eq!(wrong.code(), Code::NotAuthenticated);
        let right = challenge(b"pencil");
        let nonce = CLIENT_FINAL.replace("k0,p", "k1,p");
        assert_eq!(right.verify(&nonce).unwrap_err().code(), Code::Protocol);
        let long = CLIENT_FINAL.replace("AndVQ=", "AndVQAAAA");
        assert_eq!(right.verify(&long).unwrap_err().code(), Code::Protocol);
        let downgrade = CLIENT_FINAL.replace("c=biws", "c=eSws");
        assert_eq!(right.verify(&downgrade).unwrap_err().code(), Code::Protocol);
    }

    #[test]
    fn malformed_first_messages_are_refused() {
        for first in ["", "n", "n,,", "n,,r=x", "n,,n=u", "n,,n=u,r=", "x,,n=u,r=a", "n,b,n=u,r=a"]
        {
            assert!(Challenge::new(first, "s", verifier(b"x")).is_err(), "{first:?}");
        }
        let binding = Challenge::new("p=tls-unique,,n=u,r=a", "s", verifier(b"x"));
        assert_eq!(binding.err().unwrap().code(), Code::Unsupported);
    }
}
