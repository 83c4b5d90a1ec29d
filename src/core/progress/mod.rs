//! The progress of a destination in one partition: the *watermark*, below which every event is settled, and the *settled
//! map*, which lists the settled offsets above it. One commit stores both, so that a restart delivers again only what was
//! really in flight.
//!
//! ```text
//!   offsets    0 ……………… 41 │ 42  43  44  45  46  47  48 …
//!              all settled  │  ·   ✓   ✓   ·   ✓   ·         ✓ settled above it: the map, as ranges
//!                       watermark = 42                        · unsettled, or not yet read
//! ```
//!
//! The map has one entry for each hole, so its size depends on the number of events in the window and not on the distance
//! between their offsets.

mod encoding;
mod users;

pub use self::encoding::unknown_format;
pub use self::users::{
    CommandFailure, ControlState, FailedCommand, FailedHead, ListedUsers, ParkedEvents, ParkedUser, Pause, UserKey,
    UserState,
};

use super::varint;
use std::collections::BTreeMap;
use std::ops::Range;

/// The progress at one moment, as a commit stores it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// Every offset below it is settled.
    pub watermark: i64,
    /// The settled ranges above the watermark: in ascending order, never empty, never adjacent to each other or the
    /// watermark.
    pub settled: Vec<Range<i64>>,
    /// The id of the last [`OffsetReset`] that was applied. It is committed with the progress, so that each reset is applied
    /// once even if its owner crashes.
    pub last_reset: Option<u64>,
    /// Users that are parked, and users whose next event has failed.
    pub users: ListedUsers,
    pub control: ControlState,
}

impl PartitionState {
    /// Every offset below `watermark` is settled, and none from there on.
    pub fn at(watermark: i64) -> Self {
        Self { watermark, ..Self::default() }
    }

    /// The initial state for delivering `range` again: its complement, so that only offsets settled here are delivered.
    ///
    /// In the result, an offset of `range` is settled if it is not settled here, and the other way round. The events of
    /// parked users that are unsettled here have to be left out too. The result lists these users for
    /// [`ParkedEvents`]: the offsets alone do not show them.
    pub fn complement_in(&self, range: Range<i64>) -> Self {
        let mut progress = Progress::new(&Self::at(range.start));
        let mut at = self.watermark.max(range.start);
        for settled in &self.settled {
            progress.settle(at..settled.start.min(range.end));
            at = at.max(settled.end);
        }
        progress.settle(at..range.end);
        PartitionState { users: users::parked_only(&self.users), ..progress.state() }
    }

    /// The part of the progress in `range`, as a state that starts at the beginning of `range`. The parked users stay
    /// listed, without anything else.
    pub fn within(&self, range: Range<i64>) -> Self {
        let mut progress = Progress::new(&Self::at(range.start));
        progress.settle(range.start..self.watermark.min(range.end));
        for settled in &self.settled {
            progress.settle(settled.start..settled.end.min(range.end));
        }
        PartitionState { users: users::parked_only(&self.users), ..progress.state() }
    }

    /// An offset is settled in the result if it is settled in `self` or in `other`. The result lists the users of both.
    pub fn union(&self, other: &Self) -> Self {
        let mut progress = Progress::new(self);
        progress.settle(self.watermark..other.watermark);
        for settled in &other.settled {
            progress.settle(settled.clone());
        }
        PartitionState { users: users::union(&self.users, &other.users), ..progress.state() }
    }

    /// A copy in which no offset from `to` on is settled. Offsets below `to` do not change.
    fn rewound(&self, to: i64) -> Self {
        let mut progress = Progress::new(&Self::at(self.watermark.min(to)));
        for settled in &self.settled {
            progress.settle(settled.start..settled.end.min(to));
        }
        progress.state()
    }

    /// A copy in which every offset below `to` is settled. Offsets from `to` on do not change.
    fn settled_below(&self, to: i64) -> Self {
        let mut progress = Progress::new(self);
        progress.settle(self.watermark..to);
        progress.state()
    }

    /// Whether this reset has not been applied yet. Ids increase, so an older reset that is read again does not count.
    pub fn lacks(&self, reset: &OffsetReset) -> bool {
        self.last_reset.is_none_or(|last_reset| last_reset < reset.id)
    }

    /// A copy to which the reset has been applied.
    pub fn with_reset(&self, reset: &OffsetReset) -> Self {
        let changed = match reset.to {
            ResetTarget::Back(to) => self.rewound(to),
            ResetTarget::Ahead(to) => self.settled_below(to),
        };
        let users = users::with_reset(&self.users, reset);
        Self { last_reset: Some(reset.id), users, control: self.control.clone(), ..changed }
    }

    /// The lowest offset whose event may be unsettled: the watermark, or the first event of a parked user if that is
    /// lower. The log has to keep the events from there on.
    pub fn needed_from(&self) -> i64 {
        let firsts = self.users.values().filter_map(|user| Some(user.parked?.first));
        firsts.fold(self.watermark, i64::min)
    }

    /// The end of the last settled range, or the watermark if there is none.
    pub fn settled_end(&self) -> i64 {
        self.settled.last().map_or(self.watermark, |range| range.end)
    }
}

/// A request to change the position of a destination in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetReset {
    /// Higher than the id of every earlier reset.
    pub id: u64,
    pub to: ResetTarget,
}

/// The direction of a reset, and its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTarget {
    /// Rewinds: no offset from this one on is settled.
    Back(i64),
    /// Fast-forwards: every offset below this one is settled.
    Ahead(i64),
}

impl OffsetReset {
    /// The offset. It is stored separately from the text of [`OffsetReset::encode`].
    pub fn offset(&self) -> i64 {
        match self.to {
            ResetTarget::Back(to) | ResetTarget::Ahead(to) => to,
        }
    }

    /// The direction and the id as ASCII text.
    pub fn encode(&self) -> String {
        let direction = match self.to {
            ResetTarget::Back(_) => BACK,
            ResetTarget::Ahead(_) => AHEAD,
        };
        format!("{direction}{:x}", self.id)
    }

    /// Decodes the text that [`OffsetReset::encode`] returned for a reset to this offset.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn decode(offset: i64, text: &str) -> Result<Self, String> {
        let to = match text.chars().next() {
            Some(BACK) => ResetTarget::Back(offset),
            Some(AHEAD) => ResetTarget::Ahead(offset),
            direction => {
                return Err(format!(
                    "the offset reset has a direction that this eventd does not know ({direction:?}): it was written by a newer \
                     version"
                ));
            }
        };
        let id = u64::from_str_radix(&text[1..], 16)
            .map_err(|error| format!("the offset reset has no valid id: {error}"))?;
        Ok(Self { id, to })
    }
}

const BACK: char = 'r';
const AHEAD: char = 'f';

/// The progress that the owner of a partition keeps. It starts from a committed [`PartitionState`], is told which offsets
/// are settled, and returns the next state to commit.
#[derive(Debug, Clone)]
pub struct Progress {
    watermark: i64,
    /// The start of each settled range, with its end. Ranges are never adjacent to each other or the watermark.
    settled: BTreeMap<i64, i64>,
    last_reset: Option<u64>,
    users: ListedUsers,
    control: ControlState,
}

impl Progress {
    pub fn new(state: &PartitionState) -> Self {
        let mut progress = Self {
            watermark: state.watermark,
            settled: BTreeMap::new(),
            last_reset: state.last_reset,
            users: state.users.clone(),
            control: state.control.clone(),
        };
        for range in &state.settled {
            progress.settle(range.clone());
        }
        progress
    }

    /// Removes the listed users. Their owner keeps them elsewhere.
    pub fn take_users(&mut self) -> ListedUsers {
        std::mem::take(&mut self.users)
    }

    pub fn watermark(&self) -> i64 {
        self.watermark
    }

    /// The number of settled ranges above the watermark.
    pub fn settled_ranges(&self) -> usize {
        self.settled.len()
    }

    pub fn is_settled(&self, offset: i64) -> bool {
        offset < self.watermark || self.settled.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// Settles these offsets: events that were delivered or given up, and offsets without an event.
    pub fn settle(&mut self, offsets: Range<i64>) {
        let (mut start, mut end) = (offsets.start.max(self.watermark), offsets.end);
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.settled.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&after, &after_end)) = self.settled.range(start..=end).next() {
            end = end.max(after_end);
            self.settled.remove(&after);
        }
        if start <= self.watermark {
            self.watermark = end;
        } else {
            self.settled.insert(start, end);
        }
    }

    /// Makes these offsets unsettled again: the events of a user that leaves the list of parked users, which accounted
    /// for them.
    ///
    /// # Panics
    /// If an offset is below the watermark, which never moves back.
    pub fn reopen(&mut self, offsets: Range<i64>) {
        assert!(offsets.start >= self.watermark, "offset {} is below the watermark", offsets.start);
        while let Some((&start, &end)) = self.settled.range(..offsets.end).next_back()
            && end > offsets.start
        {
            self.settled.remove(&start);
            for rest in [start..offsets.start, offsets.end..end] {
                if rest.start < rest.end {
                    self.settled.insert(rest.start, rest.end);
                }
            }
            // What is left of this range ends before `offsets`, or begins after it.
            if start <= offsets.start {
                break;
            }
        }
    }

    /// What of the control topic has been applied.
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    pub fn control_mut(&mut self) -> &mut ControlState {
        &mut self.control
    }

    /// The state to commit now.
    pub fn state(&self) -> PartitionState {
        PartitionState {
            watermark: self.watermark,
            settled: self.settled.iter().map(|(start, end)| *start..*end).collect(),
            last_reset: self.last_reset,
            users: self.users.clone(),
            control: self.control.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    proptest! {
        #[test]
        fn the_watermark_is_the_first_unsettled_offset_of_a_plain_set(
            start in 0i64..20,
            settles in proptest::collection::vec((0i64..80, 1i64..6, any::<bool>()), 0..80),
            last_reset in any::<Option<u64>>(),
        ) {
            let mut progress = Progress::new(&PartitionState { last_reset, ..PartitionState::at(start) });
            let mut model: BTreeSet<i64> = (0..start).collect();
            for (from, len, reopen) in settles {
                if reopen && from >= progress.watermark() {
                    progress.reopen(from..from + len);
                    model.retain(|offset| !(from..from + len).contains(offset));
                } else {
                    progress.settle(from..from + len);
                    model.extend(from..from + len);
                }
                let watermark = (0..).find(|offset| !model.contains(offset)).unwrap();
                prop_assert_eq!(progress.watermark(), watermark);
                for offset in 0..90 {
                    prop_assert_eq!(progress.is_settled(offset), model.contains(&offset), "offset {}", offset);
                }
                let state = progress.state();
                prop_assert!(state.settled.iter().all(|range| range.start > watermark && range.start < range.end));
                prop_assert!(state.settled.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(Progress::new(&state).state(), state);
            }
        }

        #[test]
        fn operations_on_a_state_agree_with_operations_on_a_plain_set(
            settles in proptest::collection::vec((0i64..80, 1i64..6), 0..30),
            start in 0i64..60,
            len in 0i64..40,
        ) {
            let mut settled = Progress::new(&PartitionState::at(5));
            for (from, len) in settles {
                settled.settle(from..from + len);
            }
            let state = settled.state();
            let (inverted, within) = (Progress::new(&state.complement_in(start..start + len)), state.within(start..start + len));
            let within = Progress::new(&within);
            for offset in start..start + len {
                prop_assert_eq!(inverted.is_settled(offset), !settled.is_settled(offset), "inverted, {}", offset);
                prop_assert_eq!(within.is_settled(offset), settled.is_settled(offset), "within, {}", offset);
            }
            prop_assert_eq!(PartitionState::at(start).union(&state), state.union(&PartitionState::at(start)));
            let (rewound, ahead) = (Progress::new(&state.rewound(start)), Progress::new(&state.settled_below(start)));
            let both = Progress::new(&state.union(&PartitionState::at(start)));
            for offset in 0..100 {
                prop_assert_eq!(both.is_settled(offset), ahead.is_settled(offset), "both, {}", offset);
                let was = settled.is_settled(offset);
                prop_assert_eq!(rewound.is_settled(offset), was && offset < start, "rewound, {}", offset);
                prop_assert_eq!(ahead.is_settled(offset), was || offset < start, "ahead, {}", offset);
            }
            for (name, part) in [("inverted", inverted), ("within", within)] {
                prop_assert!(!part.is_settled(start + len), "{}", name);
                prop_assert!(part.watermark() >= start && part.state().settled_end() <= start + len, "{}", name);
            }
        }

        /// The model is a plain set of settled offsets, with the user of each offset. A user's settled events are its
        /// first ones, as they always are.
        #[test]
        fn resets_and_complements_of_a_state_with_parked_users_agree_with_a_plain_set(
            users in proptest::collection::vec(0u8..4, 1..60),
            settled_of in proptest::collection::vec(0usize..20, 4),
            parked in proptest::collection::vec(any::<bool>(), 4),
            held in any::<bool>(),
            to in 0i64..60,
            ahead in any::<bool>(),
        ) {
            let end = users.len() as i64;
            let key = |user: u8| Some(Arc::from([user].as_slice()));
            let offsets_of = |user: u8| (0..end).filter(|at| users[*at as usize] == user).collect::<Vec<i64>>();
            let (mut progress, mut listed) = (Progress::new(&PartitionState::at(0)), ListedUsers::new());
            let mut settled: BTreeSet<i64> = BTreeSet::new();
            for user in 0..4u8 {
                let of_user = offsets_of(user);
                let first_unsettled = of_user.get(settled_of[user as usize]).copied();
                settled.extend(of_user.iter().take(settled_of[user as usize]));
                let is_parked = parked[user as usize] && first_unsettled.is_some();
                for at in of_user.iter().filter(|at| is_parked || settled.contains(at)) {
                    progress.settle(*at..*at + 1);
                }
                if let Some(first) = first_unsettled.filter(|_| is_parked) {
                    let parked = Some(ParkedUser { first, held, give_up_below: None });
                    listed.insert(key(user), UserState { parked, failed: None });
                }
            }
            let state = PartitionState { users: listed, ..progress.state() };
            // Whether a state says that an offset is settled: the list decides for the users that it has.
            let is_settled = |state: &PartitionState, at: i64| {
                match state.users.get(&key(users[at as usize])).and_then(|user| user.parked) {
                    Some(parked) => at < parked.first,
                    None => Progress::new(state).is_settled(at),
                }
            };
            for at in 0..end {
                prop_assert_eq!(is_settled(&state, at), settled.contains(&at), "before, {}", at);
            }
            let target = if ahead { ResetTarget::Ahead(to) } else { ResetTarget::Back(to) };
            let after = state.with_reset(&OffsetReset { id: 1, to: target });
            for at in 0..end {
                let expected = if ahead { at < to || settled.contains(&at) } else { at < to && settled.contains(&at) };
                prop_assert_eq!(is_settled(&after, at), expected, "after {:?}, {}", target, at);
            }
            if held {
                prop_assert_eq!(after.users.len(), state.users.len(), "a held user stays listed");
            }
            let lowest = (0..end).find(|at| !settled.contains(at)).unwrap_or(end);
            prop_assert_eq!(state.needed_from(), lowest);
            // What a replay of everything delivers: what is settled, and nothing of a parked user that waits.
            let complement = state.complement_in(0..end);
            let left_out = ParkedEvents::of(&complement.users);
            let progress = Progress::new(&complement);
            for at in 0..end {
                let is_delivered =
                    !progress.is_settled(at) && !left_out.contains(Some(&[users[at as usize]]), at);
                prop_assert_eq!(is_delivered, settled.contains(&at), "replayed, {}", at);
            }
        }

        #[test]
        fn an_offset_reset_survives_encoding_and_is_applied_once(
            id in 1u64.., offset in 0i64..100, ahead in any::<bool>(), watermark in 0i64..100,
        ) {
            let wanted = OffsetReset { id, to: if ahead { ResetTarget::Ahead(offset) } else { ResetTarget::Back(offset) } };
            prop_assert_eq!(OffsetReset::decode(wanted.offset(), &wanted.encode()), Ok(wanted));
            let state = PartitionState::at(watermark);
            prop_assert!(state.lacks(&wanted));
            let after = state.with_reset(&wanted);
            prop_assert_eq!(after.watermark, if ahead { watermark.max(offset) } else { watermark.min(offset) });
            let older = OffsetReset { id: id - 1, ..wanted };
            prop_assert!(!after.lacks(&wanted) && !after.lacks(&older));
            prop_assert_eq!(Progress::new(&after).state(), after);
        }

        #[test]
        fn decoding_an_invalid_offset_reset_is_an_error_and_never_a_panic(text in ".{0,20}", offset in any::<i64>()) {
            if let Ok(wanted) = OffsetReset::decode(offset, &text) {
                prop_assert_eq!(wanted.offset(), offset);
            }
        }
    }
}
