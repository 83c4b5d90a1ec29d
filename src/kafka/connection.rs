//! One connection to one broker: frames, correlation, versions, and who we are.

use super::requests::Request;
use super::{describe, refusal};
use crate::core::text::shown;
use crate::limits::{BROKER_ANSWER_MAX, BROKER_CONNECT_MAX, FRAME_BYTES_MAX};
use crate::net::{self, BrokerSettings, BrokerStream, ConnectError, Sasl};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes, VersionRange};
use rsasl::prelude::{Mechname, SASLClient, SASLConfig};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Cursor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

/// How eventd names itself in a broker's log and quotas.
const CLIENT_ID: &str = "eventd";

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The request never left: it had no effect.
    NotSent(String),
    /// It was sent, perhaps in part: whether it had an effect is unknown.
    NoAnswer(String),
    /// Somebody has to change something: a password, a version, an address that is no broker's.
    Configuration(String),
    /// The brokers let us in, and refuse us this topic or this group.
    NotAllowed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(detail) | Self::NoAnswer(detail) | Self::Configuration(detail) | Self::NotAllowed(detail) => {
                f.write_str(detail)
            }
        }
    }
}

impl std::error::Error for Error {}

/// A connection that has told its versions and knows who we are.
pub(super) struct Connection {
    stream: Box<dyn BrokerStream>,
    address: String,
    correlation_id: i32,
    /// By api key.
    versions: HashMap<i16, VersionRange>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to `host:port`, until the deadline or for as long as a broker that is there needs.
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
        let greet_by = deadline.min(Instant::now() + BROKER_ANSWER_MAX);
        match connection.greet(settings, greet_by).await {
            Ok(()) => Ok(connection),
            // What was lost is the greeting, and not the caller's request.
            Err(Error::NoAnswer(detail)) => Err(Error::NotSent(detail)),
            Err(error) => Err(error),
        }
    }

    async fn greet(&mut self, settings: &BrokerSettings, deadline: Instant) -> Result<(), Error> {
        self.versions.insert(ApiVersionsRequest::KEY as i16, ApiVersionsRequest::VERSIONS);
        let (version, frame) = self.frame(&ApiVersionsRequest::default())?;
        let answer = timeout_at(deadline, self.exchange(&frame)).await;
        if let Ok(Err(error)) = &answer
            && let Some(error) = no_broker(&self.address, error, settings)
        {
            return Err(error);
        }
        let answer = self.answer::<ApiVersionsRequest>(answer, version)?;
        if let Some(error) = refusal(answer.error_code) {
            return Err(Error::Configuration(format!(
                "{} does not tell its versions: {}",
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
        let (address, name) = (self.address.clone(), &sasl.username);
        let refused = |why: String| {
            Error::Configuration(format!("{address} does not let {name:?} in by SASL {mechanism}: {why}"))
        };
        let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = self.call(&request, deadline).await?;
        if let Some(error) = refusal(answer.error_code) {
            let offered: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
            let change = match offered.as_slice() {
                [] => "this port asks nobody who they are, leave --sasl-mechanism out".into(),
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
                if let Some(error) = refusal(answer.error_code) {
                    let said = answer.error_message.map(|text| format!(": {text}")).unwrap_or_default();
                    return Err(refused(format!("{}{said}", describe(error))));
                }
                received = Some(answer.auth_bytes);
            }
            if state.is_finished() {
                return Ok(());
            }
        }
    }

    /// Sends the request and waits for its answer. After an error, or where the future was dropped, the connection is
    /// good for nothing any more.
    pub(super) async fn call<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let (version, frame) = self.frame(request)?;
        let answer = timeout_at(deadline, self.exchange(&frame)).await;
        self.answer::<R>(answer, version)
    }

    /// The next request, and its version.
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
            Ok(Err(error)) => Err(Error::NoAnswer(format!("{} broke off in {:?}: {error}", self.address, R::KEY))),
            Err(_) => Err(Error::NoAnswer(format!("{} did not answer {:?} in time", self.address, R::KEY))),
        }
    }

    /// The highest version that both sides know.
    fn version_of<R: Request>(&self) -> Result<i16, Error> {
        let theirs = self.versions.get(&(R::KEY as i16)).copied().unwrap_or(VersionRange { min: 0, max: -1 });
        let both = theirs.intersect(&R::VERSIONS);
        if both.is_empty() {
            return Err(Error::Configuration(format!(
                "{} speaks {:?} in versions {theirs}, eventd in {}: Kafka 2.8 or later is needed",
                self.address,
                R::KEY,
                R::VERSIONS
            )));
        }
        Ok(both.max)
    }

    async fn exchange(&mut self, frame: &[u8]) -> io::Result<Bytes> {
        self.stream.write_all(frame).await?;
        self.stream.flush().await?;
        let size = self.stream.read_i32().await?;
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= FRAME_BYTES_MAX) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, foreign_tongue(size.to_be_bytes())));
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

/// What speaks there, by the first bytes of its answer, which are no frame's length.
fn foreign_tongue(bytes: [u8; 4]) -> String {
    match bytes {
        // A handshake's record, or an alert's, and the version.
        [0x15 | 0x16, 3, ..] => "this port speaks TLS: add --tls".into(),
        _ if &bytes == b"HTTP" => "an HTTP server answers: --url names the port of a Kafka broker".into(),
        _ => {
            let first = shown(&bytes, bytes.len());
            format!("the answer starts with \"{first}\", which a Kafka broker never sends: check --url")
        }
    }
}

/// Why a greeting has no answer, where it can be told.
fn no_broker(address: &str, error: &io::Error, settings: &BrokerSettings) -> Option<Error> {
    use io::ErrorKind as Kind;
    let nameless = settings.tls.as_ref().is_some_and(|tls| !tls.client_auth_cert_resolver.has_certs());
    match error.kind() {
        Kind::InvalidData => {
            let why = net::tls_fault(error).unwrap_or_else(|| error.to_string());
            Some(Error::Configuration(format!("{address}: {why}")))
        }
        // What it has against us may be lost on the way, where it does not wait until we have heard it.
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe if nameless => {
            Some(Error::NotSent(format!("{address} broke off: {error}: does it ask who we are (--tls-cert-file)?")))
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
    let unreadable = |error: anyhow::Error| format!("what cannot be read: {error:#}");
    let header_version = <R::Response as HeaderVersion>::header_version(version);
    let header = ResponseHeader::decode(&mut answer, header_version).map_err(unreadable)?;
    if header.correlation_id != correlation_id {
        return Err(format!("the answer to request {} instead of {correlation_id}", header.correlation_id));
    }
    R::Response::decode(&mut answer, version).map_err(unreadable)
}
