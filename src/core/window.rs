//! How many events, and how many bytes, may be in memory and unsettled: one partition's share of `--window` and
//! `--window-bytes`.
//!
//! The events of parked users may take half of the window. So that neither these nor the others wait for room that the
//! other ones take again and again, each have their half in any case: if the window is full of the other ones, one event
//! may exceed it. So at most one event is in memory in addition to the window.
//!
//! While an event exceeds the window, parked users get nothing more. The others get what is left of their half, as far as all
//! events but that one are within the window. So a parked user with an event that is larger than the window, and whose
//! attempt hangs, does not stop the reader.
//!
//! A limit may be lowered below what is in memory, because the process was assigned more partitions. If all events but
//! the largest one are within the new limits, that one exceeds the window from then on.

/// Counts the admitted events that are not settled yet, and compares them with two limits.
#[derive(Debug, Clone)]
pub struct Window {
    max: Usage,
    all: Usage,
    /// The part of `all` that belongs to parked users.
    parked: Usage,
    /// The bytes of the event with which the window exceeds its limits: all others are within the limits. `None`: the
    /// window is within them, or a lowered limit is exceeded by more than one event.
    extra: Option<usize>,
    /// No event in the window has more bytes. The largest one may have fewer.
    largest_at_most: usize,
}

/// A number of events, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    events: usize,
    bytes: usize,
}

impl Usage {
    fn add(&mut self, bytes: usize) {
        self.events += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.events = self.events.checked_sub(1).expect("a settled event was admitted");
        self.bytes = self.bytes.checked_sub(bytes).expect("a settled event's bytes were admitted");
    }

    /// Whether one more event of this many bytes is within the half of `max` that these events have in any case.
    fn has_half_for(self, bytes: usize, max: &Self) -> bool {
        self.events == 0 || !Self { events: self.events + 1, bytes: self.bytes.saturating_add(bytes) }.exceeds(4, max)
    }

    /// The bytes that are left of that half. 0: not even an event without bytes is within it.
    fn free_half_bytes(self, max: &Self) -> usize {
        if self.events == 0 {
            (max.bytes / 2).max(1)
        } else if self.has_half_for(0, max) {
            max.bytes / 2 - self.bytes
        } else {
            0
        }
    }

    /// Whether this is more than so many eighths of `max`.
    fn exceeds(&self, eighths: usize, max: &Self) -> bool {
        let exceeds = |used: usize, max: usize| used.saturating_mul(8) > max.saturating_mul(eighths);
        exceeds(self.events, max.events) || exceeds(self.bytes, max.bytes)
    }
}

impl Window {
    /// An empty window with these limits.
    pub fn new(events_max: usize, bytes_max: usize) -> Self {
        let max = Usage { events: events_max, bytes: bytes_max };
        Self { max, all: Usage::default(), parked: Usage::default(), extra: None, largest_at_most: 0 }
    }

    /// Changes the limits. Events in the window stay. If they exceed the new limits, [`Window::look_for_extra`] says
    /// whether other events are admitted meanwhile.
    pub fn resize(&mut self, events_max: usize, bytes_max: usize) {
        self.max = Usage { events: events_max, bytes: bytes_max };
        self.extra = self.extra.filter(|extra| self.is_exceeded() && self.is_within_without(*extra));
    }

    /// If a lowered limit is exceeded by one event alone, lets this event leave room for others, like one that was
    /// admitted beyond the limits. Until then no event is admitted.
    ///
    /// `events` are the bytes of all events in the window. Call this as often as you like: they are looked at only if
    /// one of them may be large enough.
    pub fn look_for_extra<I: Iterator<Item = usize>>(&mut self, events: impl FnOnce() -> I) {
        if self.extra.is_none() && self.is_exceeded() && self.is_within_without(self.largest_at_most) {
            self.largest_at_most = events().max().unwrap_or(0);
            self.extra = Some(self.largest_at_most).filter(|largest| self.is_within_without(*largest));
        }
    }

    /// Whether all events but one of this many bytes are within the limits.
    fn is_within_without(&self, bytes: usize) -> bool {
        let Self { max, all, .. } = self;
        all.events.saturating_sub(1) <= max.events && all.bytes.saturating_sub(bytes) <= max.bytes
    }

    /// Whether an event of this many bytes may be admitted. If there is no event yet that the reader has admitted, any event
    /// may: one that is larger than the window has to be delivered too.
    pub fn admits(&self, bytes: usize) -> bool {
        let Self { max, all, .. } = self;
        let has_room = all.events < max.events && all.bytes.saturating_add(bytes) <= max.bytes;
        let has_half = !self.is_exceeded() && self.others().has_half_for(bytes, max);
        has_room || has_half || self.has_room_beside_extra(bytes)
    }

    /// Whether the event that exceeds the window leaves room for another one: both the others and all events but that one stay
    /// within what they may have.
    fn has_room_beside_extra(&self, bytes: usize) -> bool {
        let Self { max, all, extra: Some(extra), .. } = self else { return false };
        let (mut others, mut rest) = (self.others(), *all);
        rest.remove(*extra);
        rest.add(bytes);
        others.add(bytes);
        !others.exceeds(4, max) && !rest.exceeds(8, max)
    }

    /// The events that do not belong to parked users.
    fn others(&self) -> Usage {
        Usage { events: self.all.events - self.parked.events, bytes: self.all.bytes - self.parked.bytes }
    }

    /// Whether an event of a parked user may be admitted that was left in the log: parked users have room in their half of
    /// the window. An event that is larger than this half waits for none of their other events.
    pub fn admits_parked(&self, bytes: usize) -> bool {
        let is_large = bytes.saturating_mul(2) > self.max.bytes;
        !self.is_exceeded() && (is_large || self.parked.has_half_for(bytes, &self.max))
    }

    /// Whether more is in the window than its limits allow: one event more, or events that were admitted before a limit was
    /// lowered.
    fn is_exceeded(&self) -> bool {
        self.all.events > self.max.events || self.all.bytes > self.max.bytes
    }

    /// The bytes that the reader may fetch. 0: the window is full. 1: only the next event, because there is room in the half
    /// of the other users alone, and more than one event must not exceed the window.
    pub fn room_bytes(&self) -> usize {
        let Self { max, all, .. } = self;
        if self.is_exceeded() {
            usize::from(self.has_room_beside_extra(1))
        } else if all.events < max.events && all.bytes < max.bytes {
            max.bytes - all.bytes
        } else {
            self.others().free_half_bytes(max).min(1)
        }
    }

    /// The bytes of events that parked users may have in their half of the window in addition to those that they have. They
    /// may be more than the whole window has room for now.
    pub fn parked_room_bytes(&self) -> usize {
        self.parked.free_half_bytes(&self.max)
    }

    /// Whether at least half of the window is used.
    pub fn is_half_full(&self) -> bool {
        let Self { max, all, .. } = self;
        all.events > 0 && (all.events.saturating_mul(2) >= max.events || all.bytes.saturating_mul(2) >= max.bytes)
    }

    /// Whether parked users have more than three quarters of their half, or no room for another event.
    pub fn is_parked_nearly_full(&self) -> bool {
        let Usage { events, bytes } = self.parked;
        let twice = Usage { events: events.saturating_mul(2), bytes: bytes.saturating_mul(2) };
        // In a window of 3 events, one parked event fills the half, and is less than three quarters of it.
        twice.exceeds(6, &self.max) || self.parked_room_bytes() == 0
    }

    /// Whether more than three quarters of the window are used.
    pub fn is_nearly_full(&self) -> bool {
        self.all.exceeds(6, &self.max)
    }

    /// Whether more than three eighths of the window are used. If the window is half full, room is made until this is
    /// not so, so that the next few events do not need room again.
    pub fn is_above_three_eighths(&self) -> bool {
        self.all.exceeds(3, &self.max)
    }

    /// Whether more than five eighths of the window are used. Room that is made in a nearly full window ends only then.
    pub fn is_above_five_eighths(&self) -> bool {
        self.all.exceeds(5, &self.max)
    }

    /// Which part of the window so many events and bytes are, in thousandths: the larger one of the two.
    pub fn permille(&self, events: usize, bytes: usize) -> usize {
        let permille = |used: usize, max: usize| used.saturating_mul(1_000) / max.max(1);
        permille(events, self.max.events).max(permille(bytes, self.max.bytes))
    }

    /// Counts an admitted event of this many bytes.
    pub fn add(&mut self, bytes: usize) {
        self.all.add(bytes);
        self.largest_at_most = self.largest_at_most.max(bytes);
        if self.is_exceeded() && self.extra.is_none() {
            self.extra = Some(bytes);
        }
    }

    /// Counts an event as settled, or as left in the log. `bytes` is the number with which it was added.
    ///
    /// # Panics
    /// If the event was never added.
    pub fn remove(&mut self, bytes: usize) {
        self.all.remove(bytes);
        // Of two events with as many bytes, either one may be the extra one.
        self.extra = self.extra.filter(|extra| *extra != bytes && self.is_exceeded());
        if self.all.events == 0 {
            self.largest_at_most = 0;
        }
    }

    /// An event in the window belongs to a parked user from now on.
    pub fn add_parked(&mut self, bytes: usize) {
        self.parked.add(bytes);
    }

    /// The event does not belong to a parked user any more. Call it before [`Window::remove`] if the event ends.
    ///
    /// # Panics
    /// If the event did not belong to a parked user.
    pub fn remove_parked(&mut self, bytes: usize) {
        self.parked.remove(bytes);
    }

    /// The bytes that the whole window has room for.
    pub fn bytes_max(&self) -> usize {
        self.max.bytes
    }

    /// The events that the whole window has room for.
    pub fn events_max(&self) -> usize {
        self.max.events
    }

    /// The number of events in the window.
    pub fn events(&self) -> usize {
        self.all.events
    }

    /// The number of events of parked users in the window.
    pub fn parked_events(&self) -> usize {
        self.parked.events
    }

    /// The bytes of the events in the window.
    pub fn bytes(&self) -> usize {
        self.all.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parked_users_without_room_have_nearly_all_of_their_half() {
        for events_max in 1..20 {
            let mut window = Window::new(events_max, usize::MAX / 8);
            while window.parked_room_bytes() > 0 {
                window.add(1);
                window.add_parked(1);
            }
            assert!(window.is_parked_nearly_full(), "{events_max} events");
        }
    }

    #[test]
    fn an_event_that_exceeds_a_lowered_limit_leaves_room_for_others() {
        let mut window = Window::new(100, 5_000);
        for bytes in [10, 3_000, 1_500] {
            window.add(bytes);
            window.add_parked(bytes);
        }
        window.resize(100, 1_000);
        window.look_for_extra(|| [10, 3_000, 1_500].into_iter());
        assert_eq!(window.room_bytes(), 0, "without the largest one it is still exceeded");
        window.remove_parked(1_500);
        window.remove(1_500);
        window.look_for_extra(|| [10, 3_000].into_iter());
        assert!(window.room_bytes() > 0 && window.admits(500) && !window.admits(501));
        assert!(!window.admits_parked(1));
        window.add(500);
        window.look_for_extra(|| -> std::iter::Empty<usize> { unreachable!("it is known") });
        window.resize(100, 300);
        window.look_for_extra(|| [10, 3_000, 500].into_iter());
        assert_eq!(window.room_bytes(), 0);
    }

    /// A step: whether an event is added and otherwise removed, whether it is one of a parked user, and its bytes.
    type Step = (bool, bool, usize);

    proptest! {
        #[test]
        fn the_window_exceeds_its_limits_by_one_event_at_most_and_each_half_has_room(
            events_max in 1usize..6, bytes_max in 1usize..100,
            steps in proptest::collection::vec(any::<(bool, bool)>().prop_flat_map(|(add, is_parked)| {
                (Just(add), Just(is_parked), 1usize..200)
            }), 0..100),
        ) {
            let mut window = Window::new(events_max, bytes_max);
            let mut model: Vec<(bool, usize)> = Vec::new();
            for (add, is_parked, bytes) in steps as Vec<Step> {
                let admits = if is_parked { window.admits_parked(bytes) } else { window.admits(bytes) };
                if add && admits {
                    window.add(bytes);
                    if is_parked {
                        window.add_parked(bytes);
                    }
                    model.push((is_parked, bytes));
                } else if !add && !model.is_empty() {
                    let (is_parked, bytes) = model.remove(0);
                    if is_parked {
                        window.remove_parked(bytes);
                    }
                    window.remove(bytes);
                }
                let (events, bytes) = (model.len(), model.iter().map(|(_, bytes)| bytes).sum::<usize>());
                prop_assert_eq!((window.events(), window.bytes()), (events, bytes));
                prop_assert!(events <= events_max + 1);
                let largest = model.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
                prop_assert!(bytes - largest <= bytes_max, "{model:?}");
                let is_within = events <= events_max && bytes <= bytes_max;
                prop_assert_eq!(is_within, !window.is_exceeded());
                prop_assert!(!is_within || window.room_bytes() == 0 || window.admits(window.room_bytes()));
                let parked_room = window.parked_room_bytes();
                prop_assert!(!is_within || parked_room == 0 || window.admits_parked(parked_room));
                let has_others = model.iter().any(|(is_parked, _)| !is_parked);
                prop_assert!(!is_within || has_others || window.admits(usize::MAX));
                let has_parked = model.iter().any(|(is_parked, _)| *is_parked);
                prop_assert!(!is_within || has_parked || window.admits_parked(usize::MAX));
            }
        }

        #[test]
        fn whatever_the_limits_become_at_most_one_event_exceeds_them_when_one_is_admitted(
            steps in proptest::collection::vec((any::<(bool, bool)>(), 1usize..200, 1usize..6, 1usize..400), 0..100),
        ) {
            let mut window = Window::new(5, 100);
            let mut model: Vec<usize> = Vec::new();
            for ((add, is_changed), bytes, events_max, bytes_max) in steps {
                if is_changed {
                    window.resize(events_max, bytes_max);
                } else if add && window.admits(bytes) {
                    window.add(bytes);
                    model.push(bytes);
                    prop_assert!(window.is_within_without(model.iter().copied().max().unwrap_or(0)), "{model:?}");
                } else if !add && !model.is_empty() {
                    window.remove(model.remove(bytes % model.len()));
                }
                window.look_for_extra(|| model.iter().copied());
                let largest = model.iter().copied().max().unwrap_or(0);
                prop_assert!(largest <= window.largest_at_most);
                let is_exceeded_by_one = window.is_exceeded() && window.is_within_without(largest);
                prop_assert_eq!(window.extra.is_some(), is_exceeded_by_one, "{:?}", window);
                if let Some(extra) = window.extra {
                    prop_assert!(model.contains(&extra) && window.is_within_without(extra));
                }
            }
        }
    }
}
