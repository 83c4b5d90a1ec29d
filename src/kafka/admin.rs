//! The administrative calls, made through the crate `rskafka`: listing topics, creating a topic that needs no settings,
//! deleting a topic, and deleting the records below an offset.
//!
//! ```text
//!  call ─▶ client: shared by calls at the same time, or else new (same addresses, TLS and SASL as everything else)
//!           │ every call has a deadline of ours; rskafka itself waits for an answer without a limit
//!           ▼
//!  ok │ refused: a broker said no │ unknown: no clear answer in time, so the call may have had its effect
//! ```
//!
//! The client is dropped when the last call that uses it ends, and after every failure. So eventd keeps no connection for
//! calls that it makes once a minute or less, and a topic of 1,000 partitions costs no connection of its own.

use super::{call_timeout_ms, response_error};
use crate::limits::{BROKER_ANSWER_MAX, BROKER_CALL_MAX};
use crate::net::BrokerSettings;
use rskafka::client::Client;
use rskafka::client::error::{Error as ClientError, ProtocolError};
use rskafka::client::partition::UnknownTopicHandling;
use std::future::Future;
use std::sync::{Arc, Weak};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

/// The cluster's default replication, in a request that creates a topic.
const DEFAULT_REPLICATION: i16 = -1;

/// Kafka's numbers of errors are below this, with room for new ones.
const ERROR_NUMBERS_END: i16 = 200;

/// Why an administrative call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// No request was sent: no broker could be reached, or none accepts the login.
    #[error("{0}")]
    NotSent(String),
    /// A broker answered that it does not do this. The call had no effect.
    #[error("{text}")]
    Refused {
        code: ProtocolError,
        /// The code's name and number, and the broker's message.
        text: String,
        /// A later call may succeed.
        is_temporary: bool,
    },
    /// A broker met an error that it does not explain (`UnknownServerError`): the call may have had its effect. The same
    /// call would most likely fail again.
    #[error("{0}")]
    Unexplained(String),
    /// There was no clear answer in time: the call may have had its effect, or may still have it.
    #[error("{0}")]
    Unknown(String),
}

impl AdminError {
    fn is(&self, expected: ProtocolError) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == expected)
    }
}

/// Makes administrative calls. A client is created when the first call needs one.
#[derive(Debug)]
pub(crate) struct Admin {
    settings: BrokerSettings,
    /// The client of the calls that are being made. Only they keep it alive.
    client: Mutex<Weak<Client>>,
}

impl Admin {
    pub(crate) fn new(settings: BrokerSettings) -> Self {
        Self { settings, client: Mutex::default() }
    }

    /// The names of all topics that this login may see, apart from Kafka's internal ones.
    pub(crate) async fn list_topics(&self, deadline: Instant) -> Result<Vec<String>, AdminError> {
        let topics = self.call(deadline, |client| async move { client.list_topics().await }).await?;
        Ok(topics.into_iter().map(|topic| topic.name).collect())
    }

    /// Creates a topic with the cluster's default settings. Returns false if the topic exists already.
    pub(crate) async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        deadline: Instant,
    ) -> Result<bool, AdminError> {
        let count = i32::try_from(partitions).unwrap_or(i32::MAX);
        let create = |client: Arc<Client>| async move {
            client.controller_client()?.create_topic(name, count, DEFAULT_REPLICATION, call_timeout_ms()).await
        };
        match self.call(deadline, create).await {
            Ok(()) => Ok(true),
            Err(error) if error.is(ProtocolError::TopicAlreadyExists) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a topic. A topic that does not exist is a success.
    pub(crate) async fn delete_topic(&self, name: &str) -> Result<(), AdminError> {
        let delete = |client: Arc<Client>| async move {
            client.controller_client()?.delete_topic(name, call_timeout_ms()).await
        };
        match self.call(Instant::now() + BROKER_CALL_MAX, delete).await {
            Err(error) if error.is(ProtocolError::UnknownTopicOrPartition) => Ok(()),
            result => result,
        }
    }

    /// Deletes the records of one partition below this offset. A topic that does not exist is a success.
    pub(crate) async fn delete_records(&self, topic: &str, partition: u32, below: i64) -> Result<(), AdminError> {
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        self.call(Instant::now() + BROKER_CALL_MAX, |client| async move {
            // `rskafka` lets the broker create a topic that it asks about (`auto.create.topics.enable`). So it is asked
            // only about a topic that the list of all topics has: that question creates none.
            if !client.list_topics().await?.iter().any(|listed| listed.name == topic) {
                return Ok(());
            }
            // `Error` and not `Retry`: a topic that was deleted meanwhile does not come back.
            let partition = client.partition_client(topic, number, UnknownTopicHandling::Error).await?;
            partition.delete_records(below, call_timeout_ms()).await
        })
        .await
    }

    /// Makes one call before the deadline.
    async fn call<T, F>(&self, deadline: Instant, call: impl FnOnce(Arc<Client>) -> F) -> Result<T, AdminError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        // Rounded for the messages.
        let seconds = deadline.saturating_duration_since(Instant::now()).as_secs_f64().round();
        // `rskafka` logs every connection at level info, and answers that are expected here at level error. What matters
        // is in the result.
        let client = loop {
            // `rskafka` waits without a limit for the broker that it asks first. A second try asks the brokers in
            // another random order, so one broker that hangs does not use up the whole time.
            let connect_by = deadline.min(Instant::now() + BROKER_ANSWER_MAX);
            match timeout_at(connect_by, self.client().with_subscriber(NoSubscriber::default())).await {
                Ok(Ok(client)) => break client,
                Ok(Err(error)) => return Err(AdminError::NotSent(format!("no broker answers: {error}"))),
                Err(_) if Instant::now() < deadline => {}
                Err(_) => return Err(AdminError::NotSent(format!("no broker answers within {seconds}s"))),
            }
        };
        let call = call(Arc::clone(&client)).with_subscriber(NoSubscriber::default());
        let result = timeout_at(deadline, call).await;
        if let Ok(Ok(value)) = result {
            return Ok(value);
        }
        self.forget(&client);
        Err(match result {
            Ok(Err(error)) => classify(error),
            _ => AdminError::Unknown(format!("no answer within {seconds}s")),
        })
    }

    /// The client of other calls, or else a new one.
    async fn client(&self) -> Result<Arc<Client>, ClientError> {
        let mut shared = self.client.lock().await;
        if let Some(client) = shared.upgrade() {
            return Ok(client);
        }
        let client = Arc::new(self.settings.rskafka_client().build().await?);
        *shared = Arc::downgrade(&client);
        Ok(client)
    }

    /// The next call gets a new client: what this one knows about the brokers may be the reason of the failure.
    fn forget(&self, failed: &Arc<Client>) {
        // If the lock is held, another call is connecting, because the failed client is forgotten already. Waiting
        // for it would take this call past its deadline.
        if let Ok(mut shared) = self.client.try_lock()
            && shared.as_ptr() == Arc::as_ptr(failed)
        {
            *shared = Weak::new();
        }
    }
}

/// Only a broker's own answer proves that a call had no effect. `rskafka` repeats a call whose connection broke, so any
/// other error may hide a request that a broker has carried out.
fn classify(error: ClientError) -> AdminError {
    let ClientError::ServerError { protocol_error: code, error_message, .. } = error else {
        return AdminError::Unknown(error.to_string());
    };
    let text = format!("{}{}", describe(code), error_message.map(|text| format!(": {text}")).unwrap_or_default());
    match code {
        ProtocolError::RequestTimedOut => AdminError::Unknown(text),
        ProtocolError::UnknownServerError => AdminError::Unexplained(text),
        code => AdminError::Refused { code, text, is_temporary: is_temporary(code) },
    }
}

/// The code's name and number, like [`super::describe`].
fn describe(code: ProtocolError) -> String {
    // `rskafka` makes codes of numbers, but does not say the number of a code.
    let is_number = |number: &i16| ProtocolError::new(*number) == Some(code);
    match (-1..ERROR_NUMBERS_END).find(is_number).and_then(response_error) {
        Some(error) => super::describe(error),
        None => format!("{code:?}"),
    }
}

/// The codes after which the same call may succeed. (`rskafka` does not say which of Kafka's codes are retriable.)
fn is_temporary(code: ProtocolError) -> bool {
    matches!(
        code,
        ProtocolError::BrokerNotAvailable
            | ProtocolError::LeaderNotAvailable
            | ProtocolError::NetworkException
            | ProtocolError::NotController
            | ProtocolError::NotLeaderOrFollower
            | ProtocolError::ReplicaNotAvailable
            | ProtocolError::ThrottlingQuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Tests run on paused time: the deadline passes as soon as nothing else can happen.
    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline_if_no_broker_answers() {
        // It accepts connections and never answers.
        let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = Admin::new(BrokerSettings::plain(vec![hanging.local_addr().unwrap().to_string()]));
        let error = admin.delete_topic("topic").await.unwrap_err();
        assert!(matches!(error, AdminError::NotSent(_)), "{error:?}");
    }

    #[test]
    fn only_an_answer_of_a_broker_is_a_refusal() {
        let unknown = classify(ClientError::InvalidResponse("no topic in it".into()));
        assert!(matches!(unknown, AdminError::Unknown(_)), "{unknown:?}");
        assert!(matches!(classify(ClientError::Timeout), AdminError::Unknown(_)));
    }

    #[test]
    fn an_error_of_a_broker_has_its_name_and_number() {
        let error = |code| {
            let (name, message) = ("topic".to_owned(), Some("why".to_owned()));
            let request = rskafka::client::error::RequestContext::Topic(name);
            let server_error = ClientError::ServerError {
                protocol_error: code,
                error_message: message,
                request,
                response: None,
                is_virtual: false,
            };
            classify(server_error)
        };
        let refused = error(ProtocolError::TopicAuthorizationFailed);
        assert!(matches!(refused, AdminError::Refused { is_temporary: false, .. }), "{refused:?}");
        assert_eq!(refused.to_string(), "TopicAuthorizationFailed (29): why");
        let unexplained = error(ProtocolError::UnknownServerError);
        assert!(matches!(unexplained, AdminError::Unexplained(_)), "{unexplained:?}");
        assert_eq!(unexplained.to_string(), "UnknownServerError (-1): why");
        assert!(matches!(error(ProtocolError::RequestTimedOut), AdminError::Unknown(_)));
    }
}
