//! Until when a member may act upon what it has. Pure.
//!
//! ```text
//!   a heartbeat is sent ──▶ the broker takes it: the session begins anew there ──▶ it is answered: we hear of it
//!   └─ our session begins here, which is earlier
//!
//!   a rebalance begins at the broker ── all join, all sync ──▶ those who have not by then are dropped, alive or not
//!   └─ no earlier than the last answer that told of none, and our time of a rebalance begins with that one's sending
//! ```
//!
//! Nothing but a heartbeat begins the session anew: a broker answers a JoinGroup or a SyncGroup of a stable group without.

use super::clocks::Clocks;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Lease {
    session_timeout: Duration,
    /// When the last heartbeat that was acknowledged was sent.
    acknowledged: Option<Clocks>,
    /// The same of the last request whose answer showed that no rebalance waits for us.
    undisturbed: Option<Clocks>,
    /// We have joined, and have yet to hear what we are assigned: the broker waits for that no longer than for a join.
    syncs: bool,
}

impl Lease {
    pub(super) fn new(session_timeout: Duration) -> Self {
        Self { session_timeout, acknowledged: None, undisturbed: None, syncs: false }
    }

    /// How long a rebalance waits for its members. Longer than a session by a few heartbeats: where one dies as a
    /// rebalance begins, the others' leases pass after it was given up.
    pub(super) fn rebalance_timeout(session_timeout: Duration) -> Duration {
        session_timeout * 3 / 2
    }

    pub(super) fn at(&self, now: Clocks) -> Instant {
        let session = self.acknowledged.map(|sent| sent.after(self.session_timeout, now));
        let wait = Self::rebalance_timeout(self.session_timeout);
        let rebalance = self.undisturbed.map(|sent| sent.after(wait, now));
        session.zip(rebalance).map_or(now.timers, |(session, rebalance)| session.min(rebalance))
    }

    pub(super) fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    /// Whether there is one at all.
    pub(super) fn is_there(&self) -> bool {
        self.acknowledged.is_some()
    }

    /// A JoinGroup was answered. The same generation again began whenever it did.
    pub(super) fn joined(&mut self, sent: Clocks, is_new_generation: bool) {
        if is_new_generation {
            self.undisturbed_at(sent);
            // What was acknowledged to the generation before was so before this one began.
            self.acknowledged.into_iter().for_each(|sent| self.undisturbed_at(sent));
        }
        self.syncs = true;
    }

    /// A SyncGroup was answered.
    pub(super) fn synced(&mut self, sent: Clocks) {
        self.syncs = false;
        self.undisturbed_at(sent);
    }

    /// A heartbeat was answered, by "rebalance" or plainly.
    pub(super) fn acknowledged(&mut self, sent: Clocks, rebalances: bool) {
        self.acknowledged = Some(sent);
        if !rebalances && !self.syncs {
            self.undisturbed_at(sent);
        }
    }

    /// Others may be at work already.
    pub(super) fn falls(&mut self) {
        self.acknowledged = None;
    }

    fn undisturbed_at(&mut self, sent: Clocks) {
        if self.undisturbed.is_none_or(|last| last.timers < sent.timers) {
            self.undisturbed = Some(sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(2);

    /// Of one that joined, asked for its assignment and sent a heartbeat, all `now`.
    fn lease_deadline(now: Clocks) -> Lease {
        let mut lease = Lease::new(SESSION);
        lease.joined(now, true);
        lease.synced(now);
        assert!(!lease.is_there() && lease.at(now) == now.timers, "joining makes no lease");
        lease.acknowledged(now, false);
        lease
    }

    #[test]
    fn it_is_counted_from_the_sending_of_a_heartbeat() {
        let now = Clocks::now();
        let mut lease = lease_deadline(now);
        let sent = now.later(Duration::from_millis(300));
        lease.acknowledged(sent, false);
        assert_eq!(lease.at(now.later(Duration::from_secs(1))), sent.timers + SESSION);
        lease.falls();
        assert_eq!(lease.at(sent), sent.timers);
    }

    #[test]
    fn a_rebalance_that_is_not_joined_ends_it_whatever_heartbeats_are_told() {
        let now = Clocks::now();
        let mut lease = lease_deadline(now);
        let given_up = now.timers + Lease::rebalance_timeout(SESSION);
        for seconds in [1, 2] {
            let sent = now.later(Duration::from_secs(seconds));
            lease.acknowledged(sent, true);
            assert_eq!(lease.at(sent), given_up.min(sent.timers + SESSION), "after {seconds} s");
        }
        let joins = now.later(Duration::from_millis(2_500));
        lease.joined(joins, true);
        assert_eq!(lease.at(joins), now.timers + SESSION * 2, "the last heartbeat's session is left");
    }

    #[test]
    fn an_assignment_that_is_not_asked_for_ends_it_too() {
        let now = Clocks::now();
        let mut lease = lease_deadline(now);
        lease.joined(now, true);
        let (sent, given_up) = (now.later(SESSION), now.timers + Lease::rebalance_timeout(SESSION));
        lease.acknowledged(sent, false);
        assert_eq!(lease.at(sent), given_up);
        lease.joined(sent, false);
        assert_eq!(lease.at(sent), given_up, "after a join that brought nothing new");
        lease.synced(sent);
        assert_eq!(lease.at(sent), sent.timers + SESSION);
        lease.joined(sent, true);
        lease.synced(sent.later(SESSION / 2));
        assert_eq!(lease.at(sent), sent.timers + SESSION, "which only a heartbeat moves");
    }
}
