//! Another position, asked for from outside: a handover to oneself.
//!
//! ```text
//!  look ── a move that is not in our state ──▶ start nothing, let end ──▶ commit the state after it ──▶ begin anew
//! ```
//!
//! The commit holds the move's id, so whoever owns the partition next knows that it is done: it is applied once.

use super::{Happening, Left, Worker};
use crate::core::Moment;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState, Progress, ResetTarget};
use crate::group::{Group, is_final};
use crate::limits;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

impl Worker {
    pub(super) fn look(&mut self, now: Moment) {
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        self.look_at = None;
        let (group, partition) = (Arc::clone(&self.shared.parts.group), self.partition);
        self.outside
            .spawn(async move { Happening::Looked(requested(&*group, partition, limits::MOVES_LOOK_MAX).await) });
    }

    pub(super) fn looked(&mut self, found: Result<Option<OffsetReset>, Failure>) {
        self.look_at = Some(self.shared.now() + limits::MOVES_LOOK_INTERVAL);
        match found {
            Ok(found) => self.wanted = found.filter(|wanted| self.committed.lacks(wanted)),
            Err(failure) => {
                if let Some(suppressed) = self.log_limiter.allows("look") {
                    let partition = self.partition;
                    tracing::warn!(partition, suppressed, "cannot see whether a rewind was asked for: {failure}");
                }
            }
        }
    }

    /// Moves to the other position, and stores that. Told to stop meanwhile, it leaves the rest to the next owner.
    pub(super) async fn apply(
        &mut self,
        wanted: &OffsetReset,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Left> {
        let deadline = Instant::now() + self.shared.config.drain;
        tokio::select! {
            biased;
            () = stopped(stop) => return self.hand_over().await.map(Left::Stopped),
            ended = self.let_end(deadline) => { ended?; }
        }
        // What did not end is delivered again, or left out: its answer must not come between.
        self.outside.shutdown().await;
        (self.hand_overs, self.letters_writing, self.committing) = (0, 0, false);
        let state = self.progress.state().with_reset(wanted);
        self.progress = Progress::new(&state);
        tokio::select! {
            biased;
            // Whether it was stored is unknown, so what is handed over is the state after the move.
            () = stopped(stop) => return self.hand_over().await.map(Left::Stopped),
            stored = self.store(&state) => stored?,
        }
        let (way, to) = match wanted.to {
            ResetTarget::Back(to) => ("back", to),
            ResetTarget::Ahead(to) => ("ahead", to),
        };
        let (destination, partition) = (self.shared.parts.group.name(), self.partition);
        tracing::info!(destination, partition, to, "the position was moved {way}, as was asked for");
        Ok(Left::Moved(state))
    }

    /// Until it is stored: nothing may be attempted before.
    async fn store(&self, state: &PartitionState) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            match self.commit(state.clone()).await {
                Err(failure) if !is_final(&failure) => {
                    failures += 1;
                    if let Some(suppressed) = self.log_limiter.allows("move") {
                        let partition = self.partition;
                        tracing::warn!(partition, suppressed, "cannot move yet, trying again: {failure}");
                    }
                    sleep(self.shared.config.backoff.delay(failures, self.shared.random())).await;
                }
                answer => return answer,
            }
        }
    }
}

/// What is asked for, if the group says so in time.
pub(in crate::dispatch) async fn requested(
    group: &dyn Group,
    partition: u32,
    within: Duration,
) -> Result<Option<OffsetReset>, Failure> {
    let answer = timeout(within, group.requested_reset(partition)).await;
    answer.unwrap_or_else(|_| Err(Failure::refused("group-unavailable", format!("no answer within {within:?}"))))
}

/// Told to stop, or nobody is there any more who could tell.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _gone = stop.wait_for(|stop| *stop).await;
}
