//! From the start-up packet to the first `ReadyForQuery`, or to one FATAL error and the end.
//!
//! [`Admitted`] can only be made here, after the proof: a connection cannot serve a query
//! without it.

use ::pgwire::messages::PgWireBackendMessage;
use ::pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, SecretKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use kymo_kernel::message::SessionContext;
use kymo_kernel::schema::{DEFAULT_DATABASE, DEFAULT_SCHEMA};
use kymo_kernel::{Code, Error, Result};

use super::backend::Conversation;
use super::cancel::Registered;
use super::decode;
use super::failure;
use super::frontend::Body;
use super::listener::Gate;
use super::parameters::Wanted;
use super::scram::{Challenge, MECHANISM};
use super::wire::{Broken, Wire, protocol};
use crate::auth::Identity;

/// The newest minor version of protocol 3 that is spoken.
const NEWEST_MINOR: u16 = 2;

/// A client that has proven who it is, with its session.
pub(super) struct Admitted {
    pub(super) wire: Wire,
    pub(super) identity: Identity,
    pub(super) session: Box<dyn Conversation>,
    pub(super) registered: Registered,
}

/// Lets a client in, or tells it why not and closes.
///
/// # Errors
/// What the client was told, or that it is gone. There is no error after which the
/// connection goes on.
pub(super) async fn admit(
    gate: &Gate,
    mut wire: Wire,
    minor: u16,
    packet: Bytes,
) -> Result<Admitted, Broken> {
    match talk(gate, &mut wire, minor, packet).await {
        Ok((identity, session, registered)) => {
            wire.set_budget(gate.settings.pg.max_message_bytes);
            Ok(Admitted { wire, identity, session, registered })
        }
        Err(Broken::Refused(error)) => {
            wire.put(&failure::fatal(&error));
            wire.close().await;
            Err(Broken::Refused(error))
        }
        Err(gone) => Err(gone),
    }
}

async fn talk(
    gate: &Gate,
    wire: &mut Wire,
    minor: u16,
    packet: Bytes,
) -> Result<(Identity, Box<dyn Conversation>, Registered), Broken> {
    let wanted = pairs(packet).and_then(Wanted::read).map_err(Broken::Refused)?;
    if minor > NEWEST_MINOR || !wanted.unknown_options.is_empty() {
        let reply = NegotiateProtocolVersion::new(
            3 << 16 | i32::from(NEWEST_MINOR.min(minor)),
            wanted.unknown_options.clone(),
        );
        wire.put(&PgWireBackendMessage::NegotiateProtocolVersion(reply));
    }
    let identity = prove(gate, wire, &wanted.user).await?;
    let session = open(gate, &wanted, &identity).await.map_err(Broken::Refused)?;
    let registered = gate.registry.enter(minor, session.canceller(), gate.random.as_ref());
    wire.put(&PgWireBackendMessage::Authentication(Authentication::Ok));
    let key = BackendKeyData::new(registered.pid, SecretKey::Bytes(registered.secret.clone()));
    wire.put(&PgWireBackendMessage::BackendKeyData(key));
    Ok((identity, session, registered))
}

fn pairs(packet: Bytes) -> Result<Vec<(String, String)>> {
    let mut body = Body(packet);
    let mut pairs = Vec::new();
    loop {
        let name = body.text()?;
        if name.is_empty() {
            return Ok(pairs);
        }
        pairs.push((name, body.text()?));
    }
}

/// Trust where authentication is off, SCRAM-SHA-256 and nothing else where it is on.
async fn prove(gate: &Gate, wire: &mut Wire, user: &str) -> Result<Identity, Broken> {
    if !gate.authenticator.enabled() {
        let anybody = gate.authenticator.anybody();
        return Ok(Identity { name: user.into(), admin: anybody.admin });
    }
    let offer = Authentication::SASL(vec![MECHANISM.to_owned()]);
    wire.put(&PgWireBackendMessage::Authentication(offer));
    wire.flush().await?;
    let first = initial_response(answer(wire).await?).map_err(Broken::Refused)?;
    let mut nonce = [0; 18];
    gate.random.fill(&mut nonce);
    let nonce = STANDARD_NO_PAD.encode(nonce);
    let verifier = gate.authenticator.scram(user);
    let challenge = Challenge::new(&first, &nonce, verifier).map_err(Broken::Refused)?;
    let data = Bytes::from(challenge.server_first.clone());
    wire.put(&PgWireBackendMessage::Authentication(Authentication::SASLContinue(data)));
    wire.flush().await?;
    let last = answer(wire).await?;
    let last = text(&last).map_err(Broken::Refused)?;
    let proof = challenge.verify(last).and_then(|proof| {
        // The account may have gone while the client computed.
        Ok((proof, gate.authenticator.identity(user)?))
    });
    let (proof, identity) = proof.map_err(|error| Broken::Refused(refused(error, user)))?;
    let data = Bytes::from(proof);
    wire.put(&PgWireBackendMessage::Authentication(Authentication::SASLFinal(data)));
    Ok(identity)
}

/// The same words whether the name or the password is wrong.
fn refused(error: Error, user: &str) -> Error {
    match error.code() {
        Code::NotAuthenticated => Error::new(
            Code::NotAuthenticated,
            format!("password authentication failed for user \"{user}\""),
        ),
        _ => error,
    }
}

async fn answer(wire: &mut Wire) -> Result<Bytes, Broken> {
    let frame = wire.frame().await?;
    if frame.kind == b'p' {
        return Ok(frame.body);
    }
    Err(Broken::Refused(protocol(format!(
        "expected SASL response, got message type {}",
        frame.kind
    ))))
}

fn initial_response(body: Bytes) -> Result<String> {
    let mut body = Body(body);
    let mechanism = body.text()?;
    if mechanism != MECHANISM {
        return Err(protocol("client selected an invalid SASL authentication mechanism")
            .with_hint("the server offers SCRAM-SHA-256"));
    }
    let length = usize::try_from(body.i32()?).ok();
    if length != Some(body.0.len()) {
        return Err(protocol("SASL initial response has the wrong length"));
    }
    text(&body.0).map(str::to_owned)
}

fn text(bytes: &[u8]) -> Result<&str> {
    decode::utf8(bytes).map_err(|_| protocol("malformed SCRAM message"))
}

async fn open(gate: &Gate, wanted: &Wanted, identity: &Identity) -> Result<Box<dyn Conversation>> {
    let database = wanted.database.as_deref().unwrap_or(DEFAULT_DATABASE);
    if !gate.backend.has_database(database) {
        return Err(Error::new(
            Code::DatabaseNotFound,
            format!("database \"{database}\" does not exist"),
        )
        .with_hint(format!("the database made at the first start is {DEFAULT_DATABASE}")));
    }
    let context = SessionContext {
        user: wanted.user.clone(),
        admin: identity.admin,
        database: database.to_owned(),
        schema: DEFAULT_SCHEMA.to_owned(),
        settings: wanted.settings.clone(),
        read_only: false,
    };
    gate.backend.open(context).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::verifier;

    struct Zeros;

    impl kymo_kernel::env::Random for Zeros {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
    }

    /// Nothing that a stranger sends before the proof may panic, or pass for one.
    #[test]
    fn mutated_packets_of_a_start_up_are_read_or_refused() {
        let known = verifier("secret", &Zeros);
        let corpus = [
            b"user\0admin\0database\0kymo\0application_name\0psql\0client_encoding\0UTF8\0\0"
                .to_vec(),
            b"user\0a\0options\0-c statement_timeout=5s --search-path=a\\ b\0_pq_.x\x001\0\0"
                .to_vec(),
            b"user\0a\0replication\0database\0\0".to_vec(),
            b"SCRAM-SHA-256\0\0\0\0\x20n,,n=,r=rOprNGfwEbeRWgbNEkqO%hvY".to_vec(),
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYxyz,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
                .to_vec(),
        ];
        crate::fuzz::fuzz("start-up", &corpus, |bytes| {
            let packet = Bytes::copy_from_slice(bytes);
            if let Ok(wanted) = pairs(packet.clone()).and_then(Wanted::read) {
                assert!(!wanted.user.is_empty());
            }
            let first = initial_response(packet).unwrap_or_else(|_| "n,,n=,r=x".to_owned());
            let Ok(challenge) = Challenge::new(&first, "xyz", known.clone()) else { return };
            if let Ok(last) = text(bytes) {
                assert!(challenge.verify(last).is_err(), "nobody knows the password");
            }
        });
    }
}
