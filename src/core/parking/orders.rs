//! What an operator asks for about one user. Each order works whether the user's lane is in memory, in flight or cold, and
//! whether the user is in the list or not.
//!
//! | order | effect |
//! |---|---|
//! | hold | the user is not tried. Its events stay in the log, in their order |
//! | release | a held user is tried again, as if its next event had never failed |
//! | retry now | the user's next event is tried at once. A held user is released |
//! | give up | the user's events below an offset become dead letters |

use super::{ListedEntry, ParkedUsers, PartitionMemory, Rest};
use crate::core::Moment;
use crate::core::lanes::Token;
use crate::core::progress::UserKey;
use crate::limits::LOG_REMINDER_INTERVAL;

/// Why a user cannot be held now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    #[error("the list of parked users is full (--parked-users)")]
    ListIsFull,
    /// The reader has not passed the settled map with which this owner began, so the user's first unsettled event is not
    /// known yet. Ask again later.
    #[error("the partition is not read far enough yet")]
    NotReadYet,
    #[error("a replay holds no user")]
    NotPossible,
}

impl ParkedUsers {
    /// Holds a user. A run in flight ends first, and its answer counts.
    pub fn hold(&mut self, key: &UserKey, memory: &mut PartitionMemory<'_>, now: Moment) -> Result<(), HoldError> {
        if !self.users.contains_key(key) {
            self.list_order(key, memory)?;
        }
        if let Some(entry) = self.users.get_mut(key) {
            entry.is_held = true;
            self.has_changes = true;
        }
        self.review(key, memory, now);
        Ok(())
    }

    /// Holds the user of a lane whose head has no further try. The lane leaves memory, and the account of its tries stays.
    /// If the user cannot be held, its head is tried again after a minute.
    pub fn hold_exhausted(
        &mut self,
        token: Token,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) -> Result<(), HoldError> {
        let id = memory.lanes.back_off(token, now.saturating_add(LOG_REMINDER_INTERVAL));
        let key = memory.lanes.view(id).head.record.key().map(Into::into);
        self.hold(&key, memory, now)
    }

    /// Releases a held user: its next event is tried at once, and its tries begin anew. `false`: the user is not held.
    pub fn release(&mut self, key: &UserKey, memory: &mut PartitionMemory<'_>, now: Moment) -> bool {
        let Some(entry) = self.users.get_mut(key).filter(|entry| entry.is_held) else { return false };
        (entry.is_held, entry.failure) = (false, None);
        self.has_changes = true;
        self.review(key, memory, now);
        true
    }

    /// Tries a user's next event as soon as possible, and releases the user if it is held. `false`: the user waits for
    /// nothing, as far as it is known.
    pub fn retry_now(&mut self, key: &UserKey, memory: &mut PartitionMemory<'_>, now: Moment) -> bool {
        if self.release(key, memory, now) {
            return true;
        }
        if let Some(id) = memory.lanes.find(key.as_deref()) {
            let backs_off = memory.lanes.view(id).backs_off_until.is_some();
            memory.lanes.end_backoff(id);
            return backs_off;
        }
        let stored = self.stored_failures.values_mut().find(|(user, _)| user == key).map(|(_, failure)| failure);
        let cold = self.users.get_mut(key).and_then(|entry| entry.failure.as_mut());
        let Some(failure) = cold.or(stored) else { return false };
        failure.next_try = now;
        self.has_changes = true;
        self.review(key, memory, now);
        true
    }

    /// Gives up the user's events below this offset. `None`: only its next event. [`ParkedUsers::next_to_give_up`] returns
    /// them one after the other. `false`: the user has no such event, as far as it is known.
    pub fn give_up(
        &mut self,
        key: &UserKey,
        below: Option<i64>,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) -> Result<bool, HoldError> {
        let lane = memory.lanes.find(key.as_deref());
        let first = match (lane, self.users.get(key)) {
            (Some(id), _) => Some(memory.lanes.view(id).head.offset),
            // Nothing of the user was read yet.
            (None, Some(ListedEntry { rest: Rest::AfterEdge, failure: None, .. })) => None,
            // The exact offset is known only of an event that has failed.
            (None, Some(entry)) => Some(entry.failure.as_ref().map_or(entry.first, |failure| failure.offset)),
            (None, None) => self.stored_failures.iter().find(|(_, (user, _))| user == key).map(|(offset, _)| *offset),
        };
        let Some(first) = first.or_else(|| below.map(|_| self.edge)) else { return Ok(false) };
        let below = below.unwrap_or(first + 1);
        if below <= first {
            return Ok(false);
        }
        if !self.users.contains_key(key) {
            self.list_order(key, memory)?;
        }
        if let Some(entry) = self.users.get_mut(key) {
            entry.give_up_below = entry.give_up_below.max(Some(below));
            self.giving_up.insert(key.clone());
            self.has_changes = true;
        }
        self.review(key, memory, now);
        Ok(true)
    }

    /// A lane whose head an operator has given up, and whose dead letter is to be written now. Ask for it after events were
    /// admitted and before an attempt starts.
    pub fn next_to_give_up(&mut self, memory: &mut PartitionMemory<'_>) -> Option<Token> {
        // `review` and `admit_listed` add a user again when its lane has changed.
        while let Some(key) = self.maybe_give_up.pop_first() {
            let Some(id) = memory.lanes.find(key.as_deref()) else { continue };
            let offset = memory.lanes.view(id).head.offset;
            if self.users.get(&key).is_some_and(|entry| entry.gives_up(offset))
                && let Some(token) = memory.lanes.give_up_head(id)
            {
                return Some(token);
            }
        }
        None
    }

    /// Puts a user into the list that an order is about.
    fn list_order(&mut self, key: &UserKey, memory: &mut PartitionMemory<'_>) -> Result<(), HoldError> {
        if !self.limits.may_park {
            return Err(HoldError::NotPossible);
        }
        if self.users.len() >= self.limits.users_max {
            return Err(HoldError::ListIsFull);
        }
        if let Some(id) = memory.lanes.find(key.as_deref()) {
            self.list(id, memory);
            return Ok(());
        }
        let stored = self.stored_failures.iter().find(|(_, (user, _))| user == key).map(|(offset, _)| *offset);
        if stored.is_none() && self.edge < self.settled_until {
            return Err(HoldError::NotReadYet);
        }
        // Without an unsettled event, all events of the user from the edge on are unsettled.
        let mut entry = ListedEntry::new(stored.unwrap_or(self.edge), Rest::AfterEdge);
        entry.failure = stored.and_then(|offset| self.stored_failures.remove(&offset)).map(|(_, failure)| failure);
        self.users.insert(key.clone(), entry);
        self.has_changes = true;
        Ok(())
    }
}
