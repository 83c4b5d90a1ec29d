//! What the owner of a partition tells for the log lines of its destination.

use super::{Happening, Worker};
use crate::core::Moment;
use crate::dispatch::notices::{Backlog, Stuck};
use crate::limits;
use std::sync::Arc;

impl Worker {
    /// With every tick: what waits here, users that are stuck, and what the destination has to say.
    pub(super) fn tell(&mut self, now: Moment) {
        let shared = Arc::clone(&self.shared);
        shared.notices.waits(self.partition, Some(self.backlog()));
        let snapshot = {
            let mut breaker = shared.breaker();
            breaker.users_wait(self.partition, self.lanes.each_user());
            breaker.snapshot(now)
        };
        shared.notices.look(&snapshot, now);
        if snapshot.out_since.is_some() {
            self.look_at_latest(now);
        }
        if snapshot.open.is_some() {
            return;
        }
        let (partition, topic) = (self.partition, &*shared.topic);
        let (breaker, mut stuck) = (shared.breaker(), Vec::new());
        self.lanes.look_at_stuck(limits::STUCK_USERS_LOOK_MAX, now, |event, history, user| {
            // After an outage every user that waited has its chance first. If no other user is served, nothing shows that
            // the failures are the user's own, so it has a minute for that chance.
            let others_are_served = breaker.is_suspect(user);
            let had_its_chance =
                others_are_served || now >= snapshot.since.saturating_add(limits::LOG_REMINDER_INTERVAL);
            let is_stuck = history.last_failure >= snapshot.since && had_its_chance;
            if is_stuck && shared.notices.allows_stuck(now) {
                stuck.push(Stuck::new(event, &event.id(topic, partition), history, others_are_served, now));
            }
        });
        drop(breaker);
        for stuck in &stuck {
            shared.notices.stuck(partition, stuck);
        }
    }

    pub(super) fn backlog(&self) -> Backlog {
        let unread = u64::try_from(self.latest.saturating_sub(self.position)).unwrap_or(0);
        let read = self.pending.len() + self.lanes.events();
        Backlog { users: self.lanes.users(), lag: unread + read as u64 }
    }

    /// When the window is full nothing is fetched, which would say where the log ends.
    fn look_at_latest(&mut self, now: Moment) {
        if self.latest_at.is_none_or(|at| now < at.saturating_add(limits::LOG_REPEAT_INTERVAL)) {
            return;
        }
        self.latest_at = None;
        let (log, partition) = (Arc::clone(&self.shared.parts.log), self.partition);
        self.outside.spawn(async move { Happening::Latest(log.latest(partition).await) });
    }
}
