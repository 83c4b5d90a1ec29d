//! The address of a log, as `--url` takes it.

use anyhow::{Error, bail};
use std::path::PathBuf;
use std::str::FromStr;

/// Which log to open, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogUrl {
    /// The embedded log: the path of a database file.
    Sqlite(PathBuf),
    /// A Kafka cluster: `host:port` of some of its brokers.
    Kafka(Vec<String>),
}

impl FromStr for LogUrl {
    type Err = Error;

    /// Reads `sqlite:PATH`, `host:port[,host:port…]` or the latter with `kafka://` before it.
    ///
    /// # Errors
    /// The text is not the address of a log. The error repeats the text only if it cannot hold a password.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.contains(char::is_control) {
            bail!("the value contains a line break or another invisible character: remove it");
        }
        if let Some(path) = text.strip_prefix("sqlite:") {
            return sqlite(path);
        }
        // The value is not shown, because it may hold a password.
        if text.contains(['@', '?']) {
            bail!(
                "the address of a Kafka broker has no user, password or parameters: write HOST:PORT[,HOST:PORT…], and \
                 log in with --sasl-username and --sasl-password-file. (For the embedded log, write sqlite:PATH.)"
            );
        }
        let list = text.strip_prefix("kafka://").unwrap_or(text);
        let brokers: Vec<String> = list.split(',').map(|broker| broker.trim().to_owned()).collect();
        match brokers.iter().find(|broker| !is_host_and_port(broker)) {
            None => Ok(Self::Kafka(brokers)),
            Some(_) if !text.starts_with("kafka:") && !text.contains(',') => bail!(
                "{text:?} is not the address of a log: write sqlite:PATH, for example sqlite:eventd.db, or the address \
                 of a Kafka broker, for example localhost:9092"
            ),
            Some(broker) => {
                bail!("{broker:?} is not the address of a Kafka broker: write HOST:PORT[,HOST:PORT…]")
            }
        }
    }
}

fn sqlite(path: &str) -> Result<LogUrl, Error> {
    if path.is_empty() {
        bail!("the file is missing after sqlite: write the path of a database, for example sqlite:eventd.db");
    }
    // `sqlite:///var/lib/eventd.db` is an absolute path, but `sqlite://host/…` looks like a URL with a host. The value is
    // not shown, because such a URL may hold a password.
    let has_host = path.starts_with("//") && !path.starts_with("///");
    if has_host || path.contains('?') {
        bail!(
            "a database has no host, user or parameters: write sqlite:PATH, for example sqlite:eventd.db or \
             sqlite:/var/lib/eventd.db"
        );
    }
    Ok(LogUrl::Sqlite(path.into()))
}

/// Whether the text is `host:port`. An IPv6 address has to be in brackets.
fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_in_brackets = host.starts_with('[') && host.ends_with(']');
        let is_name = !host.is_empty() && !host.contains([':', '/', '@', ' ']);
        (is_name || is_in_brackets) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_by_its_path() {
        for (text, path) in
            [("sqlite:eventd.db", "eventd.db"), ("sqlite:/var/lib/a@b.db", "/var/lib/a@b.db"), ("sqlite:///x", "///x")]
        {
            assert_eq!(text.parse::<LogUrl>().unwrap(), LogUrl::Sqlite(path.into()), "{text}");
        }
    }

    #[test]
    fn a_kafka_cluster_is_named_by_some_of_its_brokers() {
        let brokers = |text: &str| match text.parse::<LogUrl>() {
            Ok(LogUrl::Kafka(brokers)) => brokers,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(brokers("localhost:9092"), ["localhost:9092"]);
        assert_eq!(brokers("kafka://h1:1, [::1]:2"), ["h1:1", "[::1]:2"]);
    }

    #[test]
    fn an_error_repeats_the_value_unless_it_may_hold_a_password() {
        let error = |text: &str| text.parse::<LogUrl>().unwrap_err().to_string();
        assert!(error("postgres:").contains("\"postgres:\""));
        assert!(error("h1:1,h2").contains("\"h2\" is not the address of a Kafka broker"));
        for text in ["postgres://u:s3cret@h/db", "sqlite://u:s3cret@h/db", "sqlite:x.db?key=s3cret", "u:s3cret@h:1\n"] {
            assert!(!error(text).contains("s3cret"), "{text}");
        }
    }
}
