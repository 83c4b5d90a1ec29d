//! The unsettled events of one user, found in the log.

use super::CommandContext;
use crate::core::progress::{PartitionState, Progress, UserState};
use crate::limits::FETCH_BYTES_MAX;
use crate::log::FetchError;
use anyhow::{Context as _, bail};
use serde::Serialize;
use std::time::Duration;
use tokio::time::sleep;

/// Records that are read to count the events of a user. A count beyond it is a lower bound.
pub(super) const RECORDS_READ_MAX: u64 = 500_000;

const RETRIES_MAX: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Which unsettled events of a user to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    First,
    /// All events up to this offset.
    Until(i64),
    All,
}

/// The unsettled events of one user in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct UserEvents {
    pub(super) events: u64,
    /// The offsets of the first and the last of them.
    pub(super) first: Option<i64>,
    pub(super) last: Option<i64>,
    /// There may be more: not all of the log was read.
    pub(super) is_lower_bound: bool,
    /// The end of the offsets that were asked for. It is never behind the end of the log at that time.
    #[serde(skip)]
    pub(super) end: i64,
}

/// What the state lists about the user.
pub(super) fn listed<'s>(state: &'s PartitionState, user: &str) -> Option<&'s UserState> {
    state.users.get(&Some(user.as_bytes().into()))
}

/// Looks for events of the user that this state has not settled. Reads the log from the first one that can be unsettled.
pub(super) async fn find(
    context: &CommandContext,
    partition: u32,
    state: &PartitionState,
    user: &str,
    wanted: Wanted,
) -> anyhow::Result<UserEvents> {
    let progress = Progress::new(state);
    let parked = listed(state, user).and_then(|user| user.parked);
    let failed = listed(state, user).and_then(|user| user.failed.as_ref());
    // The settled events of a user are always the first ones, so its failed event is its first unsettled one.
    let from = parked.map(|parked| parked.first).or(failed.map(|failed| failed.offset)).unwrap_or(state.watermark);
    let is_unsettled = |offset: i64| match parked {
        Some(parked) => offset >= parked.first,
        None => !progress.is_settled(offset),
    };
    let end = context.log.latest(partition).await?;
    let end = if let Wanted::Until(until) = wanted { end.min(until.saturating_add(1)) } else { end };
    let mut found = UserEvents { end, ..UserEvents::default() };
    let mut at = from.max(context.log.earliest(partition).await?);
    let (mut read, mut failures) = (0, 0);
    while at < end {
        match context.log.fetch(partition, at, FETCH_BYTES_MAX, Duration::ZERO).await {
            Ok(fetched) if fetched.next > at => {
                read += fetched.events.len() as u64;
                let own = fetched.events.iter().filter(|event| event.record.key() == Some(user.as_bytes()));
                for event in own.filter(|event| event.offset < end && is_unsettled(event.offset)) {
                    found.events += 1;
                    found.first = found.first.or(Some(event.offset));
                    found.last = Some(event.offset);
                    if wanted == Wanted::First {
                        return Ok(found);
                    }
                }
                at = fetched.next;
            }
            Ok(_) | Err(FetchError::Unavailable(_)) if failures < RETRIES_MAX => {
                failures += 1;
                sleep(RETRY_DELAY).await;
            }
            Ok(_) => bail!("{:?} returns no records at offset {at} of partition {partition}", context.log.topic()),
            // Retention removed these records meanwhile, or they cannot be read: they are not the user's any more.
            Err(FetchError::OutOfRange { earliest, .. }) if earliest > at => at = earliest,
            Err(FetchError::Corrupt { offset, .. }) => at = offset + 1,
            Err(error) => return Err(error).context("cannot look for the user's events"),
        }
        if read > RECORDS_READ_MAX {
            found.is_lower_bound = true;
            break;
        }
    }
    Ok(found)
}
