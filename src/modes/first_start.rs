//! What an operator is told before a destination delivers its first event. A destination without commits may deliver
//! the whole log again, because of nothing but a changed name: so the log says that it is new, and how many events wait.

use super::OpenLog;
use crate::core::outcome::Failure;
use crate::destination::spec::Spec;
use crate::dispatch::Start;
use crate::group::JoinError;
use crate::log::{FetchError, Log};
use std::time::Duration;
use tokio::time::timeout;

/// Partitions that are asked for the time of their oldest event: enough for a line that a person reads.
const OLDEST_LOOK_MAX: usize = 16;

/// How long the look may take: the destination starts after it. Without an answer in this time, nothing is told.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// What a destination had committed before it delivered anything.
#[derive(Debug)]
pub(crate) struct FirstStart {
    /// Whether each partition, from 0 on, has a commit. An error is told. `None`: the look took too long.
    has_commit: Option<Result<Vec<bool>, JoinError>>,
}

impl FirstStart {
    pub(super) async fn look(opened: &OpenLog, name: &str) -> Self {
        let look = async {
            let states = opened.groups.committed(name, &opened.log).await?;
            Ok(states.iter().map(Option::is_some).collect())
        };
        Self { has_commit: timeout(LOOK_MAX, look).await.ok() }
    }

    /// Says once what the destination begins with, while it delivers already, and then never ends.
    pub(super) async fn tell(&self, log: &dyn Log, start: Start, name: &str, spec: &Spec) -> std::convert::Infallible {
        if spec.name != name {
            tracing::warn!(
                destination = %name,
                "the end of this name is a checksum of the URL with its password and query, from which they can be \
                 guessed: write --dest {name}=URL to keep the name, and then change the password or token"
            );
        }
        let Some(has_commit) = &self.has_commit else {
            tracing::debug!(destination = %name, "not told what it begins with: its commits were not read in {LOOK_MAX:?}");
            return std::future::pending().await;
        };
        let told = match has_commit {
            Ok(has_commit) => tell_start(has_commit, log, start, name).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = told {
            tracing::warn!(destination = %name, "cannot tell how many events are still to be delivered: {error}");
        }
        std::future::pending().await
    }
}

/// Says if the destination is new, and how many events it will get or pass over.
async fn tell_start(has_commit: &[bool], log: &dyn Log, start: Start, destination: &str) -> Result<(), String> {
    let is_new = !has_commit.contains(&true);
    let partitions = (0u32..).zip(has_commit).filter(|(_, has_commit)| !**has_commit).map(|(partition, _)| partition);
    let failed = |failure: Failure| failure.to_string();
    let (mut events, mut starts, mut oldest) = (0, Vec::new(), None);
    for partition in partitions {
        let earliest = log.earliest(partition).await.map_err(failed)?;
        let latest = log.latest(partition).await.map_err(failed)?;
        events += latest - earliest;
        if earliest < latest && starts.len() < OLDEST_LOOK_MAX {
            starts.push(format!("p{partition}:{earliest}"));
            oldest = oldest.into_iter().chain(first_stamp(log, partition, earliest).await?).min();
        }
    }
    let first_offsets = starts.join(",");
    let oldest = oldest.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).map(|time| time.to_string());
    let oldest = oldest.as_deref();
    match start {
        _ if events == 0 && is_new => {
            tracing::info!(%destination, "new destination: the log has no events yet");
        }
        _ if events == 0 => {}
        _ if !is_new => tracing::warn!(
            %destination,
            events,
            first_offsets,
            %start,
            "some partitions have no commit of this destination yet: they start at --start"
        ),
        Start::Latest => tracing::warn!(
            %destination,
            events,
            oldest,
            "new destination: it starts at the end of the log, so the events before it will NOT be delivered. If \
             they should be, use --start earliest with another name"
        ),
        Start::Earliest => tracing::warn!(
            %destination,
            events,
            oldest,
            first_offsets,
            "new destination: it starts at the earliest event, and all events in the log will be delivered. If \
             that is not meant, use --start latest, or NAME= if it has a name already"
        ),
    }
    Ok(())
}

/// The time of the first event from this offset on, in milliseconds since the Unix epoch.
async fn first_stamp(log: &dyn Log, partition: u32, from: i64) -> Result<Option<i64>, String> {
    match log.fetch(partition, from, 1, Duration::ZERO).await {
        Ok(fetched) => Ok(fetched.events.first().map(|event| event.record.timestamp_ms)),
        // Retention has removed it meanwhile, or the delivery will say that it is damaged.
        Err(FetchError::OutOfRange { .. } | FetchError::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
