//! Encryption for test servers: a certificate of their own, and clients that trust it alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::Options;

/// A certificate for `localhost` and `127.0.0.1` that has signed itself, with its files.
pub struct Certificate {
    made: rcgen::CertifiedKey<rcgen::KeyPair>,
    folder: TempDir,
}

impl Certificate {
    /// A new one.
    #[must_use]
    pub fn new() -> Certificate {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let folder = TempDir::new().expect("a temporary folder");
        let certificate = Certificate { made, folder };
        std::fs::write(certificate.file(), certificate.made.cert.pem()).expect("its file");
        let key = certificate.made.signing_key.serialize_pem();
        std::fs::write(certificate.key_file(), key).expect("the file of its key");
        certificate
    }

    /// The file of the certificate, in PEM.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.path().join("cert.pem")
    }

    fn key_file(&self) -> PathBuf {
        self.path().join("key.pem")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A server with it on both ports.
    #[must_use]
    pub fn on(&self, options: Options) -> Options {
        options
            .setting("server.tls_cert", self.file().display())
            .setting("server.tls_key", self.key_file().display())
    }

    /// A client that trusts nothing else.
    #[must_use]
    pub fn client(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.made.cert.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}
