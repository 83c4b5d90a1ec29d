//! Which partitions of this process are paused, and the log lines about that.

use super::record::REASON_BYTES_MAX;
use crate::clock::show_ms;
use crate::core::control::ControlRecord;
use crate::core::progress::{ControlState, Pause};
use crate::core::text;
use crate::destination::spec::dest_flag;
use crate::dispatch::partition_log::PartitionLog;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of an operator's name or a reason that are shown. A reason can have no more.
const SHOWN_BYTES_MAX: usize = REASON_BYTES_MAX;

/// The partitions that are paused now. All partitions of a process are paused and resumed within a second or so, and one
/// line is written for all of them.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct Pauses(Mutex<BTreeMap<u32, Pause>>);

impl Pauses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Pause>> {
        // It holds plain values, so a panic elsewhere leaves nothing half done in it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a partition is paused.
    pub(in crate::dispatch) fn is_any(&self) -> bool {
        !self.lock().is_empty()
    }

    /// The partition has this state now: because of a command, or because its worker begins with it.
    pub(in crate::dispatch) fn set(&self, log: &PartitionLog, control: &ControlState, command: Option<&ControlRecord>) {
        let destination = log.destination.as_str();
        let was_paused = {
            let mut pauses = self.lock();
            let was_paused = !pauses.is_empty();
            match &control.paused {
                Some(pause) => _ = pauses.insert(log.partition, pause.clone()),
                None => _ = pauses.remove(&log.partition),
            }
            was_paused
        };
        match (&control.paused, command) {
            (Some(pause), _) if !was_paused => {
                tracing::warn!(
                    destination,
                    "{}; attempts in flight end, and none starts. To continue: eventd control resume {}",
                    shown_pause(pause),
                    dest_flag(destination)
                );
            }
            (None, Some(record)) if was_paused && self.lock().is_empty() => {
                let (by, reason) = (shown(&record.by), shown(&record.reason));
                tracing::info!(destination, by, reason, "the destination was resumed");
            }
            _ => {}
        }
    }

    /// The partition is not owned any more.
    pub(in crate::dispatch) fn remove(&self, partition: u32) {
        self.lock().remove(&partition);
    }

    /// Reminds that the destination is paused.
    pub(in crate::dispatch) fn log_reminder(&self, destination: &str) {
        let (paused, partitions) = {
            let pauses = self.lock();
            (pauses.values().next().map(shown_pause), pauses.len())
        };
        if let Some(paused) = paused {
            tracing::warn!(destination, partitions, "{paused}");
        }
    }
}

/// A pause in words: since when, by whom, and why.
fn shown_pause(pause: &Pause) -> String {
    let Pause { since_ms, by, reason } = pause;
    format!("the destination is paused {}", shown_since(*since_ms, by, reason))
}

/// Since when, by whom and why something is as it is: `since … by … (why)`.
pub fn shown_since(since_ms: i64, by: &str, reason: &str) -> String {
    let reason = match reason {
        "" => String::new(),
        reason => format!(" ({})", shown(reason)),
    };
    format!("since {} by {}{reason}", show_ms(since_ms), shown(by))
}

fn shown(text: &str) -> String {
    text::shown(text.as_bytes(), SHOWN_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_with_its_time_operator_and_reason() {
        let pause = Pause { since_ms: 1_767_350_000_000, by: "ann@ops".into(), reason: "deploy\n2".into() };
        assert_eq!(
            shown_pause(&pause),
            "the destination is paused since 2026-01-02T10:33:20.000Z by ann@ops (deploy\\n2)"
        );
        let without_reason = Pause { reason: "".into(), ..pause };
        assert!(shown_pause(&without_reason).ends_with("by ann@ops"));
    }
}
