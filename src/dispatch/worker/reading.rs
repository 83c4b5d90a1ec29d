//! From the log into the lanes, as far as the window has room.

use super::{Happening, Worker};
use crate::core::Moment;
use crate::destination::spec::flag_of;
use crate::dispatch::OnGap;
use crate::limits;
use crate::log::{FetchError, Fetched};
use anyhow::ensure;
use std::fmt;
use std::sync::Arc;

/// Why a partition cannot be read. Everything before was delivered and committed.
#[derive(Debug)]
pub(in crate::dispatch) struct Unreadable {
    why: String,
    /// The topic is another one now. Only who opens it again can read that.
    pub(in crate::dispatch) is_recreated: bool,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Unreadable {}

impl Worker {
    pub(super) fn next_fetch(&self) -> Option<Moment> {
        let may = !self.fetching && self.unreadable.is_none() && self.pending.is_empty();
        (may && self.window.room_bytes() > 0).then_some(self.fetch_at)
    }

    /// Admits what fits, and fetches more while there is room.
    pub(super) fn read(&mut self, now: Moment) {
        let config = &self.shared.config;
        self.window.resize(self.shared.share(config.window_events), self.shared.share(config.window_bytes));
        while let Some(event) = self.pending.front() {
            let bytes = event.record.window_bytes();
            if !self.window.admits(bytes) {
                return;
            }
            self.window.add(bytes);
            if let Some(event) = self.pending.pop_front() {
                self.lanes.admit(event);
            }
        }
        let room = self.window.room_bytes();
        if self.fetching || self.unreadable.is_some() || room == 0 || now < self.fetch_at {
            return;
        }
        self.fetching = true;
        let (log, partition, from) = (Arc::clone(&self.shared.parts.log), self.partition, self.position);
        let max_bytes = room.min(limits::FETCH_BYTES_MAX);
        self.outside.spawn(async move {
            Happening::Fetched(log.fetch(partition, from, max_bytes, limits::FETCH_WAIT_MAX).await)
        });
    }

    pub(super) fn fetched(&mut self, fetched: Result<Fetched, FetchError>) -> anyhow::Result<()> {
        self.fetching = false;
        let error = match fetched {
            Ok(fetched) => {
                self.fetch_failures = 0;
                (self.latest, self.latest_at) = (fetched.latest, Some(self.shared.now()));
                self.has_read.notify_one();
                let mut at = self.position;
                for event in fetched.events {
                    ensure!(event.offset >= at, "the log gave offset {} where {at} was to come", event.offset);
                    self.progress.settle(at..event.offset);
                    at = event.offset + 1;
                    if event.offset >= self.settled_until || !self.progress.is_settled(event.offset) {
                        self.pending.push_back(event);
                    }
                }
                self.progress.settle(at..fetched.next);
                self.dirty |= fetched.next > at;
                self.position = fetched.next.max(at);
                return Ok(());
            }
            Err(error) => error,
        };
        let skip_to = match &error {
            FetchError::Unavailable(detail) => {
                self.fetch_failures = self.fetch_failures.saturating_add(1);
                let delay = self.shared.config.backoff.delay(self.fetch_failures, self.shared.random());
                self.fetch_at = self.shared.now().saturating_add(delay);
                if let Some(suppressed) = self.log_limiter.allows("fetch") {
                    tracing::warn!(
                        partition = self.partition,
                        suppressed,
                        "cannot read the log, trying again: {detail}"
                    );
                }
                return Ok(());
            }
            // Nothing can be skipped: what stands at any offset is another topic's.
            FetchError::TopicRecreated { .. } => self.position,
            FetchError::OutOfRange { from, earliest, .. } if from < earliest => *earliest,
            FetchError::OutOfRange { from, .. } => *from,
            FetchError::Corrupt { offset, .. } => *offset + 1,
        };
        if skip_to == self.position || self.shared.config.on_gap == OnGap::Stop {
            let partition = self.partition;
            let what_to_do = match &error {
                FetchError::TopicRecreated { .. } => {
                    "--start earliest or --start latest says where to begin in the new one".to_owned()
                }
                _ if skip_to == self.position => {
                    "the log was cut: give the destination another --name to begin anew".to_owned()
                }
                _ => format!(
                    "eventd replay --dest {} --fast-forward p{partition}:{skip_to} --execute (with the same --url and \
                     --topic) passes it, or a restart with --on-gap skip; what cannot be read is lost",
                    flag_of(self.shared.parts.group.name())
                ),
            };
            let why = format!("{error}; {what_to_do}");
            let is_recreated = matches!(error, FetchError::TopicRecreated { .. });
            self.unreadable = Some(Unreadable { why, is_recreated }.into());
            return Ok(());
        }
        tracing::error!(
            destination = self.shared.parts.group.name(),
            partition = self.partition,
            from = self.position,
            to = skip_to,
            "skipped, by --on-gap: {error}"
        );
        self.progress.settle(self.position..skip_to);
        self.position = skip_to;
        self.dirty = true;
        Ok(())
    }
}
