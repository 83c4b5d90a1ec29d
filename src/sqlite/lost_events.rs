//! Counts the events that retention removes although a destination had not settled them, and logs them at a bounded rate.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A destination that committed this recently keeps what it has not settled from being removed.
pub(super) const RETENTION_PROTECTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// The shortest time between two log lines about one destination. A destination that is out of use may lose events all
/// day. Each line counts all events since the line before.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Events that retention removed although a destination had not settled them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LostEvents {
    pub(super) destination: String,
    pub(super) topic: String,
    pub(super) events: u64,
}

impl LostEvents {
    pub(super) fn log(&self) {
        let Self { destination, topic, events } = self;
        tracing::warn!(
            %destination,
            %topic,
            events,
            without_commit_days = RETENTION_PROTECTION.as_secs() / (24 * 3600),
            "removed events past their retention that this destination had not settled: they will NEVER be delivered to \
             it, because it has not committed anything for days"
        );
    }
}

/// Lost events that are not logged yet.
#[derive(Debug, Default)]
pub(super) struct LostEventsLog {
    /// By destination and topic. An entry stays after its first loss, so there is one for each destination at most.
    entries: BTreeMap<(String, String), DestinationLosses>,
}

#[derive(Debug, Default)]
struct DestinationLosses {
    events: u64,
    logged_at: Option<Instant>,
}

impl LostEventsLog {
    pub(super) fn add(&mut self, losses: Vec<LostEvents>) {
        for LostEvents { destination, topic, events } in losses {
            self.entries.entry((destination, topic)).or_default().events += events;
        }
    }

    /// Takes the losses whose last log line is long enough ago.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<LostEvents> {
        self.take(|logged_at| logged_at.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL), now)
    }

    pub(super) fn take_all(&mut self) -> Vec<LostEvents> {
        self.take(|_| true, Instant::now())
    }

    fn take(&mut self, is_due: impl Fn(Option<Instant>) -> bool, now: Instant) -> Vec<LostEvents> {
        let due = self.entries.iter_mut().filter(|(_, entry)| entry.events > 0 && is_due(entry.logged_at));
        due.map(|((destination, topic), entry)| {
            entry.logged_at = Some(now);
            let events = std::mem::take(&mut entry.events);
            LostEvents { destination: destination.clone(), topic: topic.clone(), events }
        })
        .collect()
    }
}
