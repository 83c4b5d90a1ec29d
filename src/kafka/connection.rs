//! One connection to one broker: frames, correlation ids, versions of the protocol, and SASL.

use super::requests::Request;
use super::{describe, response_error};
use crate::core::text::shown;
use crate::limits::{BROKER_ANSWER_MAX, FRAME_BYTES_MAX};
use crate::net::{self, BrokerSettings, BrokerStream, CLIENT_ID, ConnectError, Sasl};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes, VersionRange};
use rsasl::prelude::{Mechname, SASLClient, SASLConfig};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Cursor};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

/// How long connecting to a broker may take. A healthy broker accepts within milliseconds. After this time the next
/// broker is asked.
const BROKER_CONNECT_MAX: Duration = Duration::from_secs(3);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request was never sent, so it had no effect.
    #[error("{0}")]
    NotSent(String),
    /// The request was sent, at least in part. Whether it had an effect is unknown.
    #[error("{0}")]
    NoAnswer(String),
    /// An operator has to change something first: a password, the broker's version, or an address that does not belong
    /// to a broker.
    #[error("{0}")]
    Configuration(String),
    /// The brokers accept the login, but do not allow eventd to use this topic or group.
    #[error("{0}")]
    NotAllowed(String),
}

/// A connection whose broker has reported its versions and has accepted the login.
pub(super) struct Connection {
    stream: Box<dyn BrokerStream>,
    address: String,
    correlation_id: i32,
    /// The broker's range of versions for each kind of request, by API key.
    versions: HashMap<i16, VersionRange>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to `host:port` and logs in, until the deadline, and at most for as long as a healthy broker needs.
    pub(super) async fn open(settings: &BrokerSettings, address: &str, deadline: Instant) -> Result<Self, Error> {
        let connect_by = deadline.min(Instant::now() + BROKER_CONNECT_MAX);
        let stream = match timeout_at(connect_by, net::connect(address, settings.tls.as_ref())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(ConnectError::Unavailable(why))) => {
                return Err(Error::NotSent(format!("cannot connect to {address}: {why}")));
            }
            Ok(Err(ConnectError::Configuration(why))) => {
                return Err(Error::Configuration(format!("cannot connect to {address}: {why}")));
            }
            Err(_) => return Err(Error::NotSent(format!("cannot connect to {address}: no answer in time"))),
        };
        let mut connection = Self { stream, address: address.to_owned(), correlation_id: 0, versions: HashMap::new() };
        let handshake_by = deadline.min(Instant::now() + BROKER_ANSWER_MAX);
        match connection.handshake(settings, handshake_by).await {
            Ok(()) => Ok(connection),
            // The handshake got no answer. The caller's own request was not sent yet.
            Err(Error::NoAnswer(detail)) => Err(Error::NotSent(detail)),
            Err(error) => Err(error),
        }
    }

    /// Asks for the broker's versions and logs in.
    async fn handshake(&mut self, settings: &BrokerSettings, deadline: Instant) -> Result<(), Error> {
        self.versions.insert(ApiVersionsRequest::KEY as i16, ApiVersionsRequest::VERSIONS);
        let (version, frame) = self.frame(&ApiVersionsRequest::default())?;
        let answer = timeout_at(deadline, self.exchange(&frame)).await;
        if let Ok(Err(error)) = &answer
            && let Some(error) = handshake_failure(&self.address, error, settings)
        {
            return Err(error);
        }
        let answer = self.answer::<ApiVersionsRequest>(answer, version)?;
        if let Some(error) = response_error(answer.error_code) {
            return Err(Error::Configuration(format!(
                "{} does not report its versions: {}",
                self.address,
                describe(error)
            )));
        }
        let versions = answer.api_keys.iter();
        self.versions =
            versions.map(|api| (api.api_key, VersionRange { min: api.min_version, max: api.max_version })).collect();
        match &settings.sasl {
            Some(sasl) => self.authenticate(sasl, deadline).await,
            None => Ok(()),
        }
    }

    async fn authenticate(&mut self, sasl: &Sasl, deadline: Instant) -> Result<(), Error> {
        let mechanism = sasl.mechanism.as_str();
        let (address, username) = (self.address.clone(), &sasl.username);
        let refused = |why: String| {
            Error::Configuration(format!("{address} rejects the login of {username:?} with SASL {mechanism}: {why}"))
        };
        let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = self.call(&request, deadline).await?;
        if let Some(error) = response_error(answer.error_code) {
            let offered: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
            let change = match offered.as_slice() {
                [] => "this port has no login, leave --sasl-mechanism out".into(),
                offered => format!("--sasl-mechanism may be one of {}", offered.join(", ")),
            };
            return Err(refused(format!("{}: {change}", describe(error))));
        }
        let credentials = SASLConfig::with_credentials(None, sasl.username.clone(), sasl.password.clone());
        let client = SASLClient::new(credentials.map_err(|error| refused(error.to_string()))?);
        let name = Mechname::parse(mechanism.as_bytes()).map_err(|error| refused(error.to_string()))?;
        let mut session = client.start_suggested(&[name]).map_err(|error| refused(error.to_string()))?;
        let mut received: Option<Bytes> = None;
        loop {
            let mut to_send = Cursor::new(Vec::new());
            let state = session.step(received.as_deref(), &mut to_send).map_err(|error| refused(error.to_string()))?;
            if state.has_sent_message() {
                let request = SaslAuthenticateRequest::default().with_auth_bytes(to_send.into_inner().into());
                let answer = self.call(&request, deadline).await?;
                if let Some(error) = response_error(answer.error_code) {
                    let message = answer.error_message.map(|text| format!(": {text}")).unwrap_or_default();
                    return Err(refused(format!("{}{message}", describe(error))));
                }
                received = Some(answer.auth_bytes);
            }
            if state.is_finished() {
                return Ok(());
            }
        }
    }

    /// Sends the request and waits for its answer. After an error, or if the future is dropped, the connection must not
    /// be used again: an answer may still arrive, and would be taken for that of a later request.
    pub(super) async fn call<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let (version, frame) = self.frame(request)?;
        let answer = timeout_at(deadline, self.exchange(&frame)).await;
        self.answer::<R>(answer, version)
    }

    /// Encodes the next request. Returns its version and its frame.
    fn frame<R: Request>(&mut self, request: &R) -> Result<(i16, BytesMut), Error> {
        let version = self.version_of::<R>()?;
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let frame = encode(request, version, self.correlation_id)
            .map_err(|error| Error::NotSent(format!("{:?} version {version} cannot be encoded: {error:#}", R::KEY)))?;
        Ok((version, frame))
    }

    fn answer<R: Request>(
        &self,
        answer: Result<io::Result<Bytes>, Elapsed>,
        version: i16,
    ) -> Result<R::Response, Error> {
        match answer {
            Ok(Ok(answer)) => decode::<R>(answer, version, self.correlation_id)
                .map_err(|why| Error::NoAnswer(format!("{} answers {:?} with {why}", self.address, R::KEY))),
            Ok(Err(error)) => {
                Err(Error::NoAnswer(format!("{} closed the connection during {:?}: {error}", self.address, R::KEY)))
            }
            Err(_) => Err(Error::NoAnswer(format!("{} did not answer {:?} in time", self.address, R::KEY))),
        }
    }

    /// The highest version of the request that the broker and eventd both support.
    fn version_of<R: Request>(&self) -> Result<i16, Error> {
        let supported = self.versions.get(&(R::KEY as i16)).copied().unwrap_or(VersionRange { min: 0, max: -1 });
        let common = supported.intersect(&R::VERSIONS);
        if common.is_empty() {
            return Err(Error::Configuration(format!(
                "{} supports {:?} in versions {supported}, eventd in {}: use Kafka 2.8 or later",
                self.address,
                R::KEY,
                R::VERSIONS
            )));
        }
        Ok(common.max)
    }

    async fn exchange(&mut self, frame: &[u8]) -> io::Result<Bytes> {
        self.stream.write_all(frame).await?;
        self.stream.flush().await?;
        let size = self.stream.read_i32().await?;
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= FRAME_BYTES_MAX) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, not_kafka(size.to_be_bytes())));
        };
        let mut answer = BytesMut::with_capacity(size);
        let mut rest = (&mut self.stream).take(size as u64);
        while answer.len() < size {
            if rest.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(answer.freeze())
    }
}

/// Says what kind of server answered, from the first bytes of its answer. They are not the length of a Kafka frame.
fn not_kafka(bytes: [u8; 4]) -> String {
    match bytes {
        // A TLS record: a handshake (0x16) or an alert (0x15), and the major version.
        [0x15 | 0x16, 3, ..] => "this port speaks TLS: add --tls".into(),
        _ if &bytes == b"HTTP" => "an HTTP server answers: --url names the port of a Kafka broker".into(),
        _ => {
            let first = shown(&bytes, bytes.len());
            format!("the answer starts with \"{first}\", which a Kafka broker never sends: check --url")
        }
    }
}

/// The likely cause if the first request of a connection got no answer. `None`: unknown.
fn handshake_failure(address: &str, error: &io::Error, settings: &BrokerSettings) -> Option<Error> {
    use io::ErrorKind as Kind;
    let has_no_certificate = settings.tls.as_ref().is_some_and(|tls| !tls.client_auth_cert_resolver.has_certs());
    match error.kind() {
        Kind::InvalidData => {
            let why = net::tls_fault(error).unwrap_or_else(|| error.to_string());
            Some(Error::Configuration(format!("{address}: {why}")))
        }
        // With TLS 1.3 a server rejects a missing client certificate only after the handshake, and may close the
        // connection before its alert has reached us.
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe if has_no_certificate => {
            Some(Error::NotSent(format!(
                "{address} closed the connection: {error}: does it require a client certificate (--tls-cert-file)?"
            )))
        }
        _ => None,
    }
}

fn encode<R: Request>(request: &R, version: i16, correlation_id: i32) -> anyhow::Result<BytesMut> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY as i16)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
    let header_version = R::header_version(version);
    let size = header.compute_size(header_version)? + request.compute_size(version)?;
    let mut frame = BytesMut::with_capacity(4 + size);
    frame.put_i32(i32::try_from(size)?);
    header.encode(&mut frame, header_version)?;
    request.encode(&mut frame, version)?;
    Ok(frame)
}

fn decode<R: Request>(mut answer: Bytes, version: i16, correlation_id: i32) -> Result<R::Response, String> {
    let unreadable = |error: anyhow::Error| format!("an unreadable message: {error:#}");
    let header_version = <R::Response as HeaderVersion>::header_version(version);
    let header = ResponseHeader::decode(&mut answer, header_version).map_err(unreadable)?;
    if header.correlation_id != correlation_id {
        return Err(format!("the answer to request {} instead of {correlation_id}", header.correlation_id));
    }
    R::Response::decode(&mut answer, version).map_err(unreadable)
}
