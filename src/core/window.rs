//! How many events, and how many bytes, may be in memory and unsettled: one partition's share of `--window` and
//! `--window-bytes`.

/// Counts the admitted events that are not settled yet, and compares them with two limits.
#[derive(Debug, Clone)]
pub struct Window {
    events_max: usize,
    bytes_max: usize,
    events: usize,
    bytes: usize,
}

impl Window {
    /// An empty window with these limits.
    pub fn new(events_max: usize, bytes_max: usize) -> Self {
        Self { events_max, bytes_max, events: 0, bytes: 0 }
    }

    /// Changes the limits. Events in the window stay, and no event is admitted until the window is below the limits again.
    pub fn resize(&mut self, events_max: usize, bytes_max: usize) {
        (self.events_max, self.bytes_max) = (events_max, bytes_max);
    }

    /// Whether an event of this many bytes may be admitted. An empty window admits any event: one that is larger than the
    /// window has to be delivered too.
    pub fn admits(&self, bytes: usize) -> bool {
        self.events == 0 || (self.events < self.events_max && self.bytes.saturating_add(bytes) <= self.bytes_max)
    }

    /// The bytes that may still be admitted. 0: the window is full. An empty window is never full.
    pub fn room_bytes(&self) -> usize {
        if self.events == 0 {
            self.bytes_max.max(1)
        } else if self.events < self.events_max {
            self.bytes_max.saturating_sub(self.bytes)
        } else {
            0
        }
    }

    /// Counts an admitted event of this many bytes.
    pub fn add(&mut self, bytes: usize) {
        self.events += 1;
        self.bytes += bytes;
    }

    /// Counts an event as settled. `bytes` is the number with which it was added.
    ///
    /// # Panics
    /// If the event was never added.
    pub fn remove(&mut self, bytes: usize) {
        self.events = self.events.checked_sub(1).expect("a settled event was admitted");
        self.bytes = self.bytes.checked_sub(bytes).expect("a settled event's bytes were admitted");
    }

    /// The number of events in the window.
    pub fn events(&self) -> usize {
        self.events
    }

    /// The bytes of the events in the window.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
