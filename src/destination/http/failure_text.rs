//! Error text for connections: why an attempt did not reach the destination, and what to do about it.
//!
//! Errors of look-ups, connections and TLS become text only here. The text shows a destination as `host:port`, because the
//! rest of its URL may contain a password or a token.

use http::Uri;
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error as TlsError};
use std::error::Error;
use std::io::{self, ErrorKind};

/// Names of a certificate that the text shows.
const NAMES_SHOWN_MAX: usize = 5;

/// The stage that a connection has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectStage {
    /// The address of the host is being looked up.
    LookUp,
    /// The server has not accepted the TCP connection yet.
    Tcp,
    /// The TCP connection is open, and the TLS handshake is not finished.
    Tls,
}

/// webpki's name for the error that a server presents the certificate of an authority as its own. Most tools create such a
/// certificate if they are asked for a self-signed one.
const AUTHORITY_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Advice if a server closes a connection of an `http://` destination without an answer. Many TLS servers do this.
pub(super) const PERHAPS_TLS: &str = "If the port speaks https, write https:// in the URL";

/// The look-up of a host failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ResolveError(pub(super) io::Error);

/// `host:port` of a URL. If the URL has no port, it is the default port of the scheme.
pub(super) fn address(uri: &Uri) -> String {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// Describes why there is no connection to this address, after an error at this stage.
pub(super) fn describe(error: &(dyn Error + 'static), stage: ConnectStage, address: &str) -> String {
    if let Some(ResolveError(error)) = find(error) {
        return format!(
            "cannot find the address of {address}: {error}. Check the host in the URL, and the DNS servers of this machine"
        );
    }
    if let Some(error) = find::<TlsError>(error) {
        return of_tls(error, address);
    }
    let Some(io) = find::<io::Error>(error) else { return format!("cannot connect to {address}: {}", chain(error)) };
    match io.kind() {
        ErrorKind::ConnectionRefused => {
            format!("{address} refused the connection. Start the receiver, or correct the host and port in the URL")
        }
        ErrorKind::TimedOut => describe_timeout(stage, address),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            format!("there is no route to {address}: {io}. Check the network of this machine, and the host in the URL")
        }
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::NotConnected => {
            format!("{address} closed the connection before it was ready: {io}. Check that this port speaks TLS")
        }
        _ => format!("cannot connect to {address}: {}", chain(error)),
    }
}

/// Describes why there is no connection, if the time for it ended at this stage.
pub(super) fn describe_timeout(stage: ConnectStage, address: &str) -> String {
    match stage {
        ConnectStage::LookUp => {
            format!("the address of {address} was not found in time. Check that the DNS servers of this machine answer")
        }
        ConnectStage::Tcp => format!(
            "{address} did not accept a connection in time. Check that the receiver runs and that no firewall drops \
             packets"
        ),
        ConnectStage::Tls => format!(
            "{address} accepted a connection, but did not finish the TLS handshake in time. Check that this port speaks \
             TLS, and that the receiver is not overloaded"
        ),
    }
}

fn of_tls(error: &TlsError, address: &str) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    match error {
        TlsError::InvalidCertificate(why) => of_certificate(why, error, host, address),
        TlsError::InvalidMessage(_) => {
            format!("{address} does not speak TLS. Use http:// in the URL, or the port that speaks TLS")
        }
        TlsError::AlertReceived(_) => {
            format!("{address} ended the TLS handshake: {error}. Check the TLS settings of the receiver")
        }
        TlsError::PeerIncompatible(_) => format!(
            "{address} speaks no version or cipher of TLS that eventd takes (TLS 1.2 and 1.3): {error}. Update the receiver"
        ),
        _ => format!("the TLS connection to {address} failed: {error}"),
    }
}

fn of_certificate(why: &CertificateError, error: &TlsError, host: &str, address: &str) -> String {
    match why {
        CertificateError::Expired => {
            format!(
                "the certificate of {address} has expired. Renew it at the receiver, or correct the clock of this machine"
            )
        }
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "the certificate of {address} expired on {}. Renew it at the receiver, or correct the clock of this machine",
            time(*not_after)
        ),
        CertificateError::NotValidYet => {
            format!("the certificate of {address} is not valid yet. Check the clock of this machine")
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the certificate of {address} is not valid before {}. Check the clock of this machine",
            time(*not_before)
        ),
        CertificateError::NotValidForName => format!(
            "the certificate of {address} is not valid for the name {host}. Use a name of the certificate in the URL, or add {host} to it"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "the certificate of {address} is not valid for the name {host}, but for {}. Use a name of the certificate in \
             the URL, or add {host} to it",
            names(presented)
        ),
        // If an authority has the expected name but another key, rustls reports a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the certificate of {address} is signed by an authority that is not trusted. Add that authority to the \
             certificates of this machine, or name its file in SSL_CERT_FILE"
        ),
        // rustls wraps errors that it has no variant for. This one comes from webpki, and only its text identifies it.
        CertificateError::Other(other) if other.to_string() == AUTHORITY_AS_SERVER => format!(
            "the certificate that {address} shows as its own is that of an authority (most self-signed certificates are). \
             Give the receiver one that the authority has signed"
        ),
        CertificateError::Other(other) => format!(
            "the certificate of {address} cannot be used: {other}. Give the receiver a new one that an authority has signed"
        ),
        _ => format!("the certificate of {address} cannot be used: {error}. Renew it at the receiver"),
    }
}

/// The innermost error of this type among an error and its sources. An [`io::Error`] hides the error that it wraps from
/// `source()`, so that error is examined too.
fn find<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    let mut innermost = None;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            innermost = Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source());
    }
    innermost
}

/// The text of an error and its sources, without repetitions.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for error in std::iter::successors(Some(error), |&error| error.source()) {
        let text = error.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

fn time(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "an unknown date".into(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// The names of a certificate. rustls writes each as `DnsName("example.org")`.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name".into();
    }
    let plain = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    let mut shown: Vec<String> = presented.iter().take(NAMES_SHOWN_MAX).map(plain).collect();
    if presented.len() > NAMES_SHOWN_MAX {
        shown.push(format!("{} more", presented.len() - NAMES_SHOWN_MAX));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use std::time::Duration;

    fn certificate(why: CertificateError) -> String {
        // hyper-rustls wraps the error in this way.
        let error = io::Error::other(io::Error::new(ErrorKind::InvalidData, TlsError::InvalidCertificate(why)));
        describe(&error, ConnectStage::Tls, "example.org:8443")
    }

    fn io(kind: ErrorKind) -> String {
        describe(&io::Error::from(kind), ConnectStage::Tcp, "example.org:8443")
    }

    #[test]
    fn an_address_is_host_and_port_and_never_shows_a_secret() {
        for (url, expected) in [
            ("https://example.org/hook?token=s3cret", "example.org:443"),
            ("http://example.org/t0ken", "example.org:80"),
            ("https://user:pass@example.org:8443/", "example.org:8443"),
            ("http://[::1]:9/", "[::1]:9"),
        ] {
            assert_eq!(address(&url.parse().unwrap()), expected);
        }
    }

    #[test]
    fn the_text_says_what_is_wrong_with_a_certificate_and_what_to_do() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext { time: at(1_800_000_000), not_after: at(1_700_000_000) };
        assert!(
            certificate(expired)
                .starts_with("the certificate of example.org:8443 expired on 2023-11-14 22:13 UTC. Renew")
        );
        let early = CertificateError::NotValidYetContext { time: at(1), not_before: at(1_700_000_000) };
        assert!(certificate(early).contains("not valid before 2023-11-14 22:13 UTC"));
        let presented = vec!["DnsName(\"other.example\")".to_owned()];
        let expected = ServerName::try_from("example.org").unwrap();
        let wrong = certificate(CertificateError::NotValidForNameContext { expected, presented });
        assert!(wrong.contains("not valid for the name example.org, but for other.example."), "{wrong}");
        for why in [CertificateError::UnknownIssuer, CertificateError::BadSignature] {
            assert!(certificate(why).contains("authority that is not trusted"));
        }
        assert!(certificate(CertificateError::Revoked).contains("cannot be used"));
    }

    #[test]
    fn the_text_says_why_a_connection_failed() {
        for (kind, expected) in [
            (ErrorKind::ConnectionRefused, "example.org:8443 refused the connection"),
            (ErrorKind::TimedOut, "example.org:8443 did not accept a connection in time"),
            (ErrorKind::HostUnreachable, "there is no route to example.org:8443"),
            (ErrorKind::NetworkUnreachable, "there is no route to example.org:8443"),
            (ErrorKind::UnexpectedEof, "example.org:8443 closed the connection before it was ready"),
            (ErrorKind::AddrInUse, "cannot connect to example.org:8443"),
        ] {
            assert!(io(kind).starts_with(expected), "{}", io(kind));
        }
        let look_up_error = io::Error::other(ResolveError(io::Error::other("Name or service not known")));
        let words = describe(&look_up_error, ConnectStage::LookUp, "nosuch.example:443");
        assert!(
            words.starts_with("cannot find the address of nosuch.example:443: Name or service not known"),
            "{words}"
        );
        let plain = io::Error::new(
            ErrorKind::InvalidData,
            TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
        );
        assert!(describe(&plain, ConnectStage::Tls, "a:1").starts_with("a:1 does not speak TLS. Use http://"));
    }

    #[test]
    fn the_text_of_a_time_out_names_what_did_not_answer() {
        for (stage, expected) in [
            (ConnectStage::LookUp, "the address of a:1 was not found in time. Check that the DNS servers"),
            (ConnectStage::Tcp, "a:1 did not accept a connection in time. Check that the receiver runs"),
            (ConnectStage::Tls, "a:1 accepted a connection, but did not finish the TLS handshake in time"),
        ] {
            let words = describe_timeout(stage, "a:1");
            assert!(words.starts_with(expected), "{words}");
            // The operating system may also give up by itself.
            assert_eq!(describe(&io::Error::from(ErrorKind::TimedOut), stage, "a:1"), words);
        }
    }
}
