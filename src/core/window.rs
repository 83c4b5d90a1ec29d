//! How many events, and how many bytes, may be in memory and unsettled: one partition's share of `--window` and
//! `--window-bytes`.

/// Counts the admitted events that are not settled yet, and compares them with two limits. The events of parked users are
/// counted a second time: they may take half of the window.
#[derive(Debug, Clone)]
pub struct Window {
    max: Held,
    all: Held,
    /// The part of `all` that belongs to parked users.
    parked: Held,
}

/// A number of events, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    events: usize,
    bytes: usize,
}

impl Held {
    fn add(&mut self, bytes: usize) {
        self.events += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.events = self.events.checked_sub(1).expect("a settled event was admitted");
        self.bytes = self.bytes.checked_sub(bytes).expect("a settled event's bytes were admitted");
    }

    /// Whether this is more than `quarters` quarters of `max`.
    fn exceeds(&self, quarters: usize, max: &Self) -> bool {
        let exceeds = |held: usize, max: usize| held.saturating_mul(4) > max.saturating_mul(quarters);
        exceeds(self.events, max.events) || exceeds(self.bytes, max.bytes)
    }
}

impl Window {
    /// An empty window with these limits.
    pub fn new(events_max: usize, bytes_max: usize) -> Self {
        let max = Held { events: events_max, bytes: bytes_max };
        Self { max, all: Held::default(), parked: Held::default() }
    }

    /// Changes the limits. Events in the window stay, and no event is admitted until the window is below the limits again.
    pub fn resize(&mut self, events_max: usize, bytes_max: usize) {
        self.max = Held { events: events_max, bytes: bytes_max };
    }

    /// Whether an event of this many bytes may be admitted. An empty window admits any event: one that is larger than the
    /// window has to be delivered too.
    pub fn admits(&self, bytes: usize) -> bool {
        let Self { max, all, .. } = self;
        all.events == 0 || (all.events < max.events && all.bytes.saturating_add(bytes) <= max.bytes)
    }

    /// Whether an event of a parked user may be admitted that was left in the log: parked users have room in their half of
    /// the window. They have room for one event in any case.
    pub fn admits_parked(&self, bytes: usize) -> bool {
        self.admits(bytes) && (self.parked.events == 0 || !self.with_parked(bytes).exceeds(2, &self.max))
    }

    /// The bytes that may still be admitted. 0: the window is full. An empty window is never full.
    pub fn room_bytes(&self) -> usize {
        if self.all.events == 0 {
            self.max.bytes.max(1)
        } else if self.all.events < self.max.events {
            self.max.bytes.saturating_sub(self.all.bytes)
        } else {
            0
        }
    }

    /// The bytes of events that parked users may have in their half of the window in addition to those that they have. They
    /// may be more than the whole window has room for now.
    pub fn parked_room_bytes(&self) -> usize {
        if self.parked.events == 0 {
            (self.max.bytes / 2).max(1)
        } else if self.with_parked(0).exceeds(2, &self.max) {
            0
        } else {
            self.max.bytes / 2 - self.parked.bytes
        }
    }

    /// Whether at least half of the window is used.
    pub fn is_half_full(&self) -> bool {
        let Self { max, all, .. } = self;
        all.events > 0 && (all.events.saturating_mul(2) >= max.events || all.bytes.saturating_mul(2) >= max.bytes)
    }

    /// Whether parked users have more than three quarters of their half, or no room for another event.
    pub fn is_parked_nearly_full(&self) -> bool {
        let Held { events, bytes } = self.parked;
        let twice = Held { events: events.saturating_mul(2), bytes: bytes.saturating_mul(2) };
        // In a window of 3 events, one parked event fills the half, and is less than three quarters of it.
        twice.exceeds(3, &self.max) || self.parked_room_bytes() == 0
    }

    /// Whether more than three quarters of the window are used.
    pub fn is_nearly_full(&self) -> bool {
        self.all.exceeds(3, &self.max)
    }

    /// Counts an admitted event of this many bytes.
    pub fn add(&mut self, bytes: usize) {
        self.all.add(bytes);
    }

    /// Counts an event as settled, or as left in the log. `bytes` is the number with which it was added.
    ///
    /// # Panics
    /// If the event was never added.
    pub fn remove(&mut self, bytes: usize) {
        self.all.remove(bytes);
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

    fn with_parked(&self, bytes: usize) -> Held {
        Held { events: self.parked.events + 1, bytes: self.parked.bytes.saturating_add(bytes) }
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

    proptest! {
        #[test]
        fn the_window_never_holds_more_than_its_limits_or_one_event(
            events_max in 1usize..6, bytes_max in 1usize..100,
            steps in proptest::collection::vec((any::<bool>(), 1usize..200), 0..100),
        ) {
            let mut window = Window::new(events_max, bytes_max);
            let mut model: Vec<usize> = Vec::new();
            for (add, bytes) in steps {
                if add && window.admits(bytes) {
                    window.add(bytes);
                    model.push(bytes);
                } else if !add && !model.is_empty() {
                    window.remove(model.remove(0));
                }
                prop_assert_eq!((window.events(), window.bytes()), (model.len(), model.iter().sum::<usize>()));
                prop_assert!(window.events() <= events_max);
                prop_assert!(window.events() <= 1 || window.bytes() <= bytes_max);
                prop_assert!(!model.is_empty() || (window.admits(usize::MAX) && window.room_bytes() > 0));
                prop_assert!(window.room_bytes() == 0 || window.admits(window.room_bytes()));
            }
        }
    }
}
