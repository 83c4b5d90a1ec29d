//! The lease: until when a member may work on the partitions that it owns. Pure.
//!
//! A broker removes a member for two reasons, and the lease has to end before either of them.
//!
//! ```text
//! 1. The session: the broker has received no heartbeat for the session time-out.
//!
//!    member   sends a heartbeat ──┐                    ┌──▶ learns that it was acknowledged
//!    broker                       └─▶ restarts session ┘
//!             ▲ our session starts here, at the sending, which is before the broker's own start
//!
//! 2. The rebalance: a member that has not joined and synced when the rebalance times out is removed, even if it sends
//!    heartbeats.
//!
//!    broker   starts a rebalance ───── waits for all members to join, then for all to sync ─────▶ time-out
//!             ▲ not earlier than the last answer that showed no rebalance; we count from the sending of that request
//! ```
//!
//! Only a heartbeat starts the session again. A JoinGroup or SyncGroup does not count, because a broker answers both for
//! a stable group without restarting the session.
//!
//! # What the lease does not cover
//!
//! The lease assumes that the broker which acknowledges heartbeats is the coordinator. Suppose that a former coordinator
//! is cut off from all other brokers, but this member still reaches it. It does not know that it was replaced, so it
//! keeps acknowledging heartbeats, and each of them extends the lease. Meanwhile the new coordinator may assign the
//! partitions to another member, and both deliver. No progress is lost: commits to the former coordinator fail,
//! because no other broker replicates them. This lasts until that broker or this member is connected again.
//!
//! The lease also assumes that each rebalance ends with the claims that this member has now. That may be wrong for a
//! member with an instance id, if a JoinGroup that got no answer until its deadline arrives even later. A member without
//! an instance id prevents this with a new member id (`MemberState::join_call_ended`).

use crate::group::kafka::clocks::Clocks;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub(in crate::group::kafka) struct Lease {
    session_timeout: Duration,
    /// When the last acknowledged heartbeat was sent. `None`: no lease.
    heartbeat_sent: Option<Clocks>,
    /// When the last request was sent whose answer showed that no rebalance waits for this member.
    no_rebalance_at: Option<Clocks>,
    /// The member has joined a generation and does not know its assignment yet. The broker waits no longer for the
    /// SyncGroup than for the JoinGroup.
    awaits_sync: bool,
}

impl Lease {
    pub(super) fn new(session_timeout: Duration) -> Self {
        Self { session_timeout, heartbeat_sent: None, no_rebalance_at: None, awaits_sync: false }
    }

    /// How long a broker waits for all members in a rebalance. It is longer than a session: if a member dies just as a
    /// rebalance starts, the others wait in their JoinGroup until its session has ended. They must keep their leases
    /// meanwhile.
    pub(in crate::group::kafka) fn rebalance_timeout(session_timeout: Duration) -> Duration {
        session_timeout * 3 / 2
    }

    /// The moment at which the lease ends, as it looks `now`. Without a lease that moment is `now`.
    pub(super) fn deadline(&self, now: Clocks) -> Instant {
        let session = self.heartbeat_sent.map(|sent| sent.after(self.session_timeout, now));
        let wait = Self::rebalance_timeout(self.session_timeout);
        let rebalance = self.no_rebalance_at.map(|sent| sent.after(wait, now));
        session.zip(rebalance).map_or(now.timers, |(session, rebalance)| session.min(rebalance))
    }

    pub(super) fn exists(&self) -> bool {
        self.heartbeat_sent.is_some()
    }

    /// A JoinGroup that was sent at `sent` was answered with a generation.
    pub(super) fn joined(&mut self, sent: Clocks, is_new_generation: bool) {
        // An answer with the same generation does not show when the rebalance of that generation started.
        if is_new_generation {
            self.saw_no_rebalance(sent);
            // A heartbeat that was acknowledged in the previous generation was sent before this rebalance started.
            self.heartbeat_sent.into_iter().for_each(|sent| self.saw_no_rebalance(sent));
        }
        self.awaits_sync = true;
    }

    /// A SyncGroup that was sent at `sent` was answered with an assignment.
    pub(super) fn synced(&mut self, sent: Clocks) {
        self.awaits_sync = false;
        self.saw_no_rebalance(sent);
    }

    /// A heartbeat that was sent at `sent` was acknowledged, plainly or with the news of a rebalance.
    pub(super) fn acknowledged(&mut self, sent: Clocks, is_rebalancing: bool) {
        self.heartbeat_sent = Some(sent);
        // While the broker waits for the SyncGroup, it acknowledges heartbeats plainly. That does not show that it has
        // stopped waiting.
        if !is_rebalancing && !self.awaits_sync {
            self.saw_no_rebalance(sent);
        }
    }

    /// Ends the lease: the broker has said that this is not a member, so another member may already own the partitions.
    pub(super) fn end(&mut self) {
        self.heartbeat_sent = None;
    }

    /// Forgets everything but the session time-out.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.session_timeout);
    }

    fn saw_no_rebalance(&mut self, sent: Clocks) {
        if self.no_rebalance_at.is_none_or(|last| last.timers < sent.timers) {
            self.no_rebalance_at = Some(sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(2);

    /// The lease of a member that joined, synced and sent a heartbeat, all at `now`.
    fn lease(now: Clocks) -> Lease {
        let mut lease = Lease::new(SESSION);
        lease.joined(now, true);
        lease.synced(now);
        assert!(!lease.exists() && lease.deadline(now) == now.timers, "joining alone gives no lease");
        lease.acknowledged(now, false);
        lease
    }

    #[test]
    fn the_session_is_counted_from_the_sending_of_the_heartbeat() {
        let now = Clocks::now();
        let mut lease = lease(now);
        let sent = now.later(Duration::from_millis(300));
        lease.acknowledged(sent, false);
        assert_eq!(lease.deadline(now.later(Duration::from_secs(1))), sent.timers + SESSION);
        lease.end();
        assert_eq!(lease.deadline(sent), sent.timers);
    }

    #[test]
    fn a_rebalance_that_is_not_joined_ends_the_lease_in_spite_of_heartbeats() {
        let now = Clocks::now();
        let mut lease = lease(now);
        let removed_at = now.timers + Lease::rebalance_timeout(SESSION);
        for seconds in [1, 2] {
            let sent = now.later(Duration::from_secs(seconds));
            lease.acknowledged(sent, true);
            assert_eq!(lease.deadline(sent), removed_at.min(sent.timers + SESSION), "after {seconds} s");
        }
        let join_sent = now.later(Duration::from_millis(2_500));
        lease.joined(join_sent, true);
        assert_eq!(lease.deadline(join_sent), now.timers + SESSION * 2, "the session of the last heartbeat remains");
    }

    #[test]
    fn a_missing_sync_ends_the_lease_in_spite_of_heartbeats() {
        let now = Clocks::now();
        let mut lease = lease(now);
        lease.joined(now, true);
        let (sent, removed_at) = (now.later(SESSION), now.timers + Lease::rebalance_timeout(SESSION));
        lease.acknowledged(sent, false);
        assert_eq!(lease.deadline(sent), removed_at);
        lease.joined(sent, false);
        assert_eq!(lease.deadline(sent), removed_at, "a join into the same generation proves nothing");
        lease.synced(sent);
        assert_eq!(lease.deadline(sent), sent.timers + SESSION);
        lease.joined(sent, true);
        lease.synced(sent.later(SESSION / 2));
        assert_eq!(lease.deadline(sent), sent.timers + SESSION, "only a heartbeat restarts the session");
    }
}
