//! A certificate authority that belongs to one test.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use tempfile::NamedTempFile;

pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    file: NamedTempFile,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let file = pem_file(&params.self_signed(&key).unwrap().pem());
        Self { issuer: rcgen::Issuer::new(params, key), file }
    }

    /// The file with its certificate.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// A certificate for `localhost`, and its key.
    pub(crate) fn issue(&self) -> (rcgen::Certificate, rcgen::KeyPair) {
        self.issue_with(|_| ())
    }

    /// Like [`Authority::issue`], after `change` has changed the certificate's parameters.
    pub(crate) fn issue_with(
        &self,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        // The subject must not have the authority's own name: a certificate whose subject and issuer are equal counts
        // as self-signed.
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// A self-signed certificate of an authority for `localhost`, which a server shows as its own.
pub(crate) fn self_signed() -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap(), key)
}

/// Starts a TLS server on a port of `localhost` that answers one request on each connection with 200. Returns the port.
pub(crate) fn serve_tls((certificate, key): (rcgen::Certificate, rcgen::KeyPair)) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let (config, listener) = (Arc::new(config), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            // A client that does not trust the certificate ends the handshake. The next connection may be another
            // test's.
            if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        }
    });
    port
}

/// A temporary file with this text. It is deleted when the value is dropped.
pub(crate) fn pem_file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}
