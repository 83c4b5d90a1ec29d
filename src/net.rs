//! How brokers are reached: addresses, TLS and SASL. This is the only place that configures TLS, for brokers as well as
//! for http destinations.
//!
//! ```text
//!  host:port ── name look-up, TCP with TCP_NODELAY ──▶ TLS, if configured ──▶ BrokerStream
//! ```
//!
//! Both clients of Kafka use the same [`BrokerSettings`]: our own connection through `connect`, and `rskafka` through
//! `BrokerSettings::rskafka_client`.

use crate::small_file::{self, CERTIFICATE_FILE_BYTES_MAX};
use rskafka::BackoffConfig;
use rskafka::client::{ClientBuilder, Credentials, SaslConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The name under which eventd appears in a broker's log and quotas.
pub(crate) const CLIENT_ID: &str = "eventd";

/// How `rskafka` repeats a failed request. By default it would repeat for ever; with this it reports the last error after
/// a few tries, before our own deadline hides what was wrong.
const RSKAFKA_BACKOFF: BackoffConfig = BackoffConfig {
    init_backoff: Duration::from_millis(50),
    max_backoff: Duration::from_secs(1),
    base: 2.0,
    deadline: Some(Duration::from_secs(3)),
};

/// Addresses, TLS and login of a Kafka cluster.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Bootstrap addresses (`host:port`), at least one. The cluster reports the addresses of its other brokers.
    pub brokers: Vec<String>,
    /// `None`: plain TCP.
    pub tls: Option<Arc<ClientConfig>>,
    /// `None`: no login.
    pub sasl: Option<Sasl>,
}

impl BrokerSettings {
    /// Plain TCP without a login.
    pub fn plain(brokers: Vec<String>) -> Self {
        Self { brokers, tls: None, sasl: None }
    }

    /// A client of `rskafka` with the same addresses, TLS and login.
    pub(crate) fn rskafka_client(&self) -> ClientBuilder {
        let mut builder = ClientBuilder::new(self.brokers.clone()).client_id(CLIENT_ID).backoff_config(RSKAFKA_BACKOFF);
        if let Some(tls) = &self.tls {
            builder = builder.tls_config(Arc::clone(tls));
        }
        if let Some(Sasl { mechanism, username, password }) = &self.sasl {
            let credentials = Credentials::new(username.clone(), password.clone());
            builder = builder.sasl_config(match mechanism {
                SaslMechanism::Plain => SaslConfig::Plain(credentials),
                SaslMechanism::ScramSha256 => SaslConfig::ScramSha256(credentials),
                SaslMechanism::ScramSha512 => SaslConfig::ScramSha512(credentials),
            });
        }
        builder
    }
}

/// A login with a username and a password.
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
    /// The mechanism's registered name: `SCRAM-SHA-256`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The files of a TLS configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM certificates of the trusted authorities. `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain and PEM private key, for servers that require a client certificate.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Reads the files and builds the configuration.
    ///
    /// # Errors
    /// Names the file that cannot be used, and says why.
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

/// A configuration that trusts no certificate, for a client that requires one although its connections never use TLS.
pub(crate) fn no_tls() -> Result<ClientConfig, String> {
    Ok(client_config()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

// The provider is named, and not taken from the process: if another crate brings a second provider into the build,
// `ClientConfig::builder()` panics.
fn client_config() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))
}

/// Logs one line if `SSL_CERT_FILE` names a missing file. Without it the mistake is hard to find: certificates of
/// `SSL_CERT_DIR` are used alone, and only the servers of the missing authorities fail.
fn warn_of_missing_certificate_file() {
    static WARNED: std::sync::Once = std::sync::Once::new();
    let Some(file) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).filter(|file| !file.exists()) else { return };
    WARNED.call_once(|| {
        tracing::warn!(
            file = %file.display(),
            "SSL_CERT_FILE names a file that does not exist: correct it, or unset it to trust the system's certificates"
        );
    });
}

fn system_roots() -> Result<RootCertStore, String> {
    warn_of_missing_certificate_file();
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "none are installed".into(), ToString::to_string);
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
    if roots.is_empty() { Err(failed("the file contains no certificate".into())) } else { Ok(roots) }
}

/// A connection to a broker: plain TCP or TLS.
pub(crate) trait BrokerStream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> BrokerStream for T {}

/// Why connecting failed.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// It may work later.
    Unavailable(String),
    /// An operator has to change something first.
    Configuration(String),
}

/// Connects to `host:port` and tries each address that the name resolves to. The caller bounds the time.
pub(crate) async fn connect(
    address: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Box<dyn BrokerStream>, ConnectError> {
    let unavailable = |error: io::Error| ConnectError::Unavailable(error.to_string());
    let stream = TcpStream::connect(address).await.map_err(unavailable)?;
    // Without this, a small frame after a large one waits for the delayed acknowledgement of the other side: 44 ms on
    // loopback.
    stream.set_nodelay(true).map_err(unavailable)?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ConnectError::Configuration(format!("{host:?} is not a valid host name for TLS")))?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|error| match tls_fault(&error) {
        Some(why) => ConnectError::Configuration(why),
        // A server that does not speak TLS mostly closes the connection when it reads a TLS handshake.
        None => ConnectError::Unavailable(format!("{error}: does this port speak TLS (--tls)?")),
    })?))
}

/// If TLS is the reason of this error, says what is wrong and what to change. (With TLS 1.3, the server's verdict on our
/// own certificate arrives only with the first read.)
pub(crate) fn tls_fault(error: &io::Error) -> Option<String> {
    let fault = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let change = match fault {
        // An authority with the same name but another key leads to a bad signature.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "--tls-ca-file names the authorities to trust"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "use an address with the server's name: it has to be reached by the name in its certificate",
        rustls::Error::InvalidCertificate(_) => return Some(fault.to_string()),
        rustls::Error::AlertReceived(_) => {
            "if the server requires a client certificate, set --tls-cert-file and --tls-key-file"
        }
        rustls::Error::InvalidMessage(_) => "this port does not speak TLS: leave --tls out",
        _ => return None,
    };
    Some(format!("{fault}: {change}"))
}
