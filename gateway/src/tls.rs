//! TLS for both ports, by rustls on ring, from one certificate chain and one key.

use std::path::Path;
use std::sync::Arc;

use kymo_config::settings::Server;
use kymo_kernel::env::Disk;
use kymo_kernel::{Code, Error, Result};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What HTTP offers in the handshake.
pub const ALPN_HTTP: &[&[u8]] = &[b"http/1.1"];
/// What the PostgreSQL wire protocol offers in the handshake.
pub const ALPN_PG: &[&[u8]] = &[b"postgresql"];

/// A PEM file larger than this is not a certificate chain.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The TLS side of a port, or `None` where no certificate is set.
///
/// # Errors
/// `invalid_settings` naming the key concerned when only one of certificate and key is set,
/// when a file cannot be read or holds nothing of its kind, or when the two do not match.
pub fn acceptor(server: &Server, disk: &dyn Disk, alpn: &[&[u8]]) -> Result<Option<TlsAcceptor>> {
    let (cert, key) = match (&server.tls_cert, &server.tls_key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => return Err(unusable("server.tls_cert is set without server.tls_key")),
        (None, Some(_)) => return Err(unusable("server.tls_key is set without server.tls_cert")),
    };
    let chain = certificates(cert, disk)?;
    let key = private_key(key, disk)?;
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(format!("TLS versions: {error}")))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| {
                unusable(format!("server.tls_cert and server.tls_key: {error}"))
                    .with_hint("check that the key belongs to the first certificate")
            })?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

fn certificates(path: &Path, disk: &dyn Disk) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read("server.tls_cert", path, disk)?;
    let chain = rustls_pemfile::certs(&mut pem.as_slice())
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| unusable(format!("server.tls_cert {}: {error}", path.display())))?;
    if chain.is_empty() {
        return Err(unusable(format!("server.tls_cert {} holds no certificate", path.display())));
    }
    Ok(chain)
}

fn private_key(path: &Path, disk: &dyn Disk) -> Result<PrivateKeyDer<'static>> {
    let pem = read("server.tls_key", path, disk)?;
    rustls_pemfile::private_key(&mut pem.as_slice())
        .map_err(|error| unusable(format!("server.tls_key {}: {error}", path.display())))?
        .ok_or_else(|| unusable(format!("server.tls_key {} holds no private key", path.display())))
}

fn read(setting: &str, path: &Path, disk: &dyn Disk) -> Result<Vec<u8>> {
    let fail = |error| unusable(format!("{setting} {}: {error}", path.display()));
    let file = disk.open(path).map_err(fail)?;
    let len = file.len().map_err(fail)?;
    if len > MAX_PEM_BYTES {
        return Err(unusable(format!("{setting} {} is not a PEM file", path.display())));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = file.read_at(&mut bytes, 0).map_err(fail)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn unusable(what: impl Into<String>) -> Error {
    Error::new(Code::Settings, what)
}
