//! How a server is reached: addresses, TLS, SASL, and a socket without Nagle's delay. One structure for every
//! connection of a mode to its brokers, and the one place where TLS is configured.
//!
//! ```text
//!  host:port ── look-up, TCP with TCP_NODELAY ──▶ TLS, if asked for ──▶ BrokerStream
//! ```

use crate::small_file::{self, CERTIFICATE_FILE_BYTES_MAX};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How the brokers of a log are reached.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// `host:port`, at least one: where the first connection goes. The cluster names the others.
    pub brokers: Vec<String>,
    pub tls: Option<Arc<ClientConfig>>,
    pub sasl: Option<Sasl>,
}

impl BrokerSettings {
    /// Plain connections, nobody's name.
    pub fn plain(brokers: Vec<String>) -> Self {
        Self { brokers, tls: None, sasl: None }
    }
}

/// How a client tells who it is. The mechanisms that need no third party.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: SaslMechanism,
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Sasl {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl").field("mechanism", &self.mechanism).field("username", &self.username).finish()
    }
}

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl SaslMechanism {
    /// Its registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Whom TLS trusts, and who we say we are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM certificates of the authorities that are trusted; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain and private key, for a server that wants to know its clients.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// The configuration, with the one provider of this build.
    ///
    /// # Errors
    /// Says which file cannot be used, and why.
    pub fn config(&self) -> Result<ClientConfig, String> {
        let roots = self.ca_file.as_deref().map_or_else(system_roots, read_roots)?;
        let builder = client_config()?.with_root_certificates(roots);
        let Some((certificates, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let unusable = |path: &Path, why: String| format!("{} cannot be used: {why}", path.display());
        let read = |path: &Path| small_file::read(path, CERTIFICATE_FILE_BYTES_MAX);
        let chain = read(certificates).map_err(|error| unusable(certificates, error.to_string()))?;
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| unusable(certificates, error.to_string()))?;
        let private = read(key).map_err(|error| unusable(key, error.to_string()))?;
        let private = PrivateKeyDer::from_pem_slice(&private).map_err(|error| unusable(key, error.to_string()))?;
        builder.with_client_auth_cert(chain, private).map_err(|error| unusable(certificates, error.to_string()))
    }
}

/// For connections that never use TLS, where a client has to be given a configuration all the same.
pub(crate) fn no_tls() -> Result<ClientConfig, String> {
    Ok(client_config()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn client_config() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".into(), ToString::to_string);
        return Err(format!(
            "the system's certificates cannot be used: {why}: install them (ca-certificates), or set SSL_CERT_FILE"
        ));
    }
    Ok(roots)
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let failed = |why: String| format!("the certificates in {} cannot be used: {why}", path.display());
    let mut roots = RootCertStore::empty();
    let pem = small_file::read(path, CERTIFICATE_FILE_BYTES_MAX).map_err(|error| failed(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() { Err(failed("there is none".into())) } else { Ok(roots) }
}

/// A connection, whatever it is made of.
pub(crate) trait BrokerStream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> BrokerStream for T {}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// It may work later.
    Unavailable(String),
    /// Somebody has to change something first.
    Configuration(String),
}

/// Connects to `host:port`, each address that it resolves to in turn. The caller bounds the time.
pub(crate) async fn connect(
    address: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Box<dyn BrokerStream>, ConnectError> {
    let unavailable = |error: io::Error| ConnectError::Unavailable(error.to_string());
    let stream = TcpStream::connect(address).await.map_err(unavailable)?;
    // A small frame behind a large one would wait for the other side's delayed acknowledgement: 44 ms on loopback.
    stream.set_nodelay(true).map_err(unavailable)?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ConnectError::Configuration(format!("{host:?} is no name for TLS")))?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|error| match tls_fault(&error) {
        Some(why) => ConnectError::Configuration(why),
        // A server that does not speak TLS most often hangs up on what it takes for nonsense.
        None => ConnectError::Unavailable(format!("{error}: does this port speak TLS (--tls)?")),
    })?))
}

/// What has to be changed, where TLS is why a connection failed. (A server's word on our own certificate comes only
/// once we read.)
pub(crate) fn tls_fault(error: &io::Error) -> Option<String> {
    let fault = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let change = match fault {
        // One of the same name, but with another key, gives a bad signature.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "--tls-ca-file names the authorities to trust"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "it has to be reached by the name in its certificate",
        rustls::Error::InvalidCertificate(_) => return Some(fault.to_string()),
        rustls::Error::AlertReceived(_) => "--tls-cert-file and --tls-key-file say who we are, to those who ask",
        rustls::Error::InvalidMessage(_) => "this port does not speak TLS: leave --tls out",
        _ => return None,
    };
    Some(format!("{fault}: {change}"))
}
