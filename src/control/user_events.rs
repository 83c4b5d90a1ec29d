//! The unsettled events of one user, found in the log.

use super::CommandContext;
use super::scan::{RECORDS_READ_MAX, scan};
use crate::core::progress::{PartitionState, Progress, UserState};
use serde::Serialize;
use std::ops::ControlFlow;

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

/// Whether the state holds the user.
pub(super) fn is_held(state: &PartitionState, user: &str) -> bool {
    listed(state, user).and_then(|user| user.parked).is_some_and(|parked| parked.held)
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
    let is_complete = scan(&*context.log, partition, from..end, RECORDS_READ_MAX, |event| {
        if event.record.key() != Some(user.as_bytes()) || !is_unsettled(event.offset) {
            return ControlFlow::Continue(());
        }
        found.events += 1;
        found.first = found.first.or(Some(event.offset));
        found.last = Some(event.offset);
        if wanted == Wanted::First { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await?;
    found.is_lower_bound = !is_complete;
    Ok(found)
}
