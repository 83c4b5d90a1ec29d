//! Tells an operator what a destination starts with. A destination without commits may deliver the whole log again, and the
//! only reason may be a changed name. So a log line says that the destination is new, and how many events wait.

use super::open::OpenLog;
use crate::core::outcome::Failure;
use crate::core::text::shell_flag;
use crate::destination::spec::Spec;
use crate::dispatch::Start;
use crate::group::JoinError;
use crate::log::{FetchError, Log};
use std::time::Duration;
use tokio::time::timeout;

/// The most partitions of which the log line has the first offset and the oldest time. A person cannot read more.
const PARTITIONS_SHOWN_MAX: usize = 16;

/// How long reading the commits may take. The destination starts after it. If it takes longer, nothing is reported.
const READ_COMMITS_MAX: Duration = Duration::from_secs(2);

/// What a destination had committed before it delivered anything.
#[derive(Debug)]
pub(super) struct FirstStart {
    /// For each partition, from 0 on, whether it has a commit. An error is reported. `None`: reading took too long.
    has_commit: Option<Result<Vec<bool>, JoinError>>,
}

impl FirstStart {
    /// Reads the commits of the destination with this name.
    pub(super) async fn read(opened: &OpenLog, name: &str) -> Self {
        let read = async {
            let states = opened.groups.committed(name, &opened.log).await?;
            Ok(states.iter().map(Option::is_some).collect())
        };
        Self { has_commit: timeout(READ_COMMITS_MAX, read).await.ok() }
    }

    /// Logs once what the destination starts with, while the destination delivers already. Then never ends.
    pub(super) async fn report(
        &self,
        log: &dyn Log,
        start: Start,
        name: &str,
        spec: &Spec,
    ) -> std::convert::Infallible {
        if spec.name != name {
            tracing::warn!(
                destination = %name,
                "this name ends in a checksum of the URL with its password and query, so they can be guessed from it: \
                 write {}=URL to keep the name, and then change the password or token",
                shell_flag("--dest", name)
            );
        }
        let Some(has_commit) = &self.has_commit else {
            tracing::debug!(
                destination = %name,
                "does not report what the destination starts with: its commits were not read in time"
            );
            return std::future::pending().await;
        };
        let reported = match has_commit {
            Ok(has_commit) => report_start(has_commit, log, start, name).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = reported {
            tracing::warn!(destination = %name, "cannot count the events that are still to be delivered: {error}");
        }
        std::future::pending().await
    }
}

/// Logs whether the destination is new, and how many events it will deliver or skip.
async fn report_start(has_commit: &[bool], log: &dyn Log, start: Start, destination: &str) -> Result<(), String> {
    let is_new = !has_commit.contains(&true);
    let partitions = (0u32..).zip(has_commit).filter(|(_, has_commit)| !**has_commit).map(|(partition, _)| partition);
    let failed = |failure: Failure| failure.to_string();
    let (mut events, mut starts, mut oldest) = (0, Vec::new(), None);
    for partition in partitions {
        let earliest = log.earliest(partition).await.map_err(failed)?;
        let latest = log.latest(partition).await.map_err(failed)?;
        events += latest - earliest;
        if earliest < latest && starts.len() < PARTITIONS_SHOWN_MAX {
            starts.push(format!("p{partition}:{earliest}"));
            oldest = oldest.into_iter().chain(first_timestamp(log, partition, earliest).await?).min();
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
            "this destination has no commit for some partitions yet: it starts there at --start"
        ),
        Start::Latest => tracing::warn!(
            %destination,
            events,
            oldest,
            "new destination: it starts at the end of the log, so earlier events will NOT be delivered. To deliver \
             them, use --start earliest with another name"
        ),
        Start::Earliest => tracing::warn!(
            %destination,
            events,
            oldest,
            first_offsets,
            "new destination: it starts at the earliest event, so all events in the log will be delivered. If this \
             is a mistake, use --start latest, or NAME= if the destination has a name already"
        ),
    }
    Ok(())
}

/// The time of the first event at or after this offset, in milliseconds since the Unix epoch.
async fn first_timestamp(log: &dyn Log, partition: u32, from: i64) -> Result<Option<i64>, String> {
    match log.fetch(partition, from, 1, Duration::ZERO).await {
        Ok(fetched) => Ok(fetched.events.first().map(|event| event.record.timestamp_ms)),
        // Retention has removed the event meanwhile, or it is damaged, which the delivery will report.
        Err(FetchError::OutOfRange { .. } | FetchError::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
