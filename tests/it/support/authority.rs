//! A certificate authority of a test's own.

use std::io::Write;
use std::path::Path;
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
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        // Not the authority's own name: a certificate whose issuer has its name is taken for an authority's.
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// A file with this text, gone with the value.
pub(crate) fn pem_file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}
