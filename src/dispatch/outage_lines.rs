//! Which log line about an outage is due. Pure: it is told the state of the breaker and the time.

use crate::core::Moment;
use crate::limits::{LOG_REMINDER_INTERVAL, LOG_REPEAT_INTERVAL};

/// The outages of one destination as a reader of the log sees them.
#[derive(Debug, Default)]
pub(super) struct OutageLines {
    outage: Option<Outage>,
    /// When the last line about the beginning of an outage was written.
    began_line_at: Option<Moment>,
    /// Outages that ended before a line about their beginning was written.
    suppressed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Outage {
    first_failure: Moment,
    /// When the last line about it was written. `None`: none yet, because the line about another outage was written just
    /// before.
    line_at: Option<Moment>,
}

/// A line that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutageLine {
    /// An outage has begun. `suppressed`: outages before it without a line.
    Began { lasted: Moment, suppressed: u64 },
    /// It still lasts.
    Lasts { lasted: Moment },
    /// An event was delivered.
    Ended { lasted: Moment },
    /// Outages without a line, a minute later.
    Suppressed { suppressed: u64 },
}

impl OutageLines {
    /// The line that is due now. `out_since` is when the outage began, if there is one. `events_wait`: events
    /// wait for its end.
    ///
    /// If some machines of a receiver can be reached and others cannot, outages begin and end with every answer. So at
    /// most one is written in [`LOG_REPEAT_INTERVAL`], and the others are counted.
    pub(super) fn due(&mut self, out_since: Option<Moment>, events_wait: bool, now: Moment) -> Option<OutageLine> {
        match (&mut self.outage, out_since) {
            (None, None) => {
                let is_overdue = self.began_line_at.is_none_or(|at| now >= at.saturating_add(LOG_REMINDER_INTERVAL));
                let suppressed = if is_overdue { std::mem::take(&mut self.suppressed) } else { 0 };
                (suppressed > 0).then_some(OutageLine::Suppressed { suppressed })
            }
            (Some(outage), None) => {
                let Outage { first_failure, line_at } = *outage;
                self.outage = None;
                self.suppressed += u64::from(line_at.is_none());
                line_at.map(|_| OutageLine::Ended { lasted: now.saturating_sub(first_failure) })
            }
            (Some(Outage { first_failure, line_at: Some(line_at) }), Some(out_since)) => {
                // If something was delivered meanwhile and the next event failed at once, a reader sees one outage.
                *first_failure = (*first_failure).min(out_since);
                // If every event was given up and no other has come, an outage holds up no event.
                if !events_wait || now < line_at.saturating_add(LOG_REMINDER_INTERVAL) {
                    return None;
                }
                *line_at = now;
                Some(OutageLine::Lasts { lasted: now.saturating_sub(*first_failure) })
            }
            (unwritten, Some(first_failure)) => {
                let may_write = self.began_line_at.is_none_or(|at| now >= at.saturating_add(LOG_REPEAT_INTERVAL));
                *unwritten = Some(Outage { first_failure, line_at: may_write.then_some(now) });
                if !may_write {
                    return None;
                }
                self.began_line_at = Some(now);
                let suppressed = std::mem::take(&mut self.suppressed);
                Some(OutageLine::Began { lasted: now.saturating_sub(first_failure), suppressed })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_outage_has_a_line_at_its_beginning_each_minute_and_at_its_end() {
        let mut lines = OutageLines::default();
        let out = |seconds| Some(at(seconds));
        assert_eq!(lines.due(None, true, at(1)), None);
        assert_eq!(lines.due(out(9), true, at(10)), Some(OutageLine::Began { lasted: at(1), suppressed: 0 }));
        assert_eq!(lines.due(out(9), true, at(69)), None);
        assert_eq!(lines.due(out(9), true, at(70)), Some(OutageLine::Lasts { lasted: at(61) }));
        assert_eq!(lines.due(out(9), true, at(71)), None);
        assert_eq!(lines.due(out(9), false, at(131)), None, "no event waits");
        assert_eq!(lines.due(out(9), true, at(132)), Some(OutageLine::Lasts { lasted: at(123) }));
        assert_eq!(lines.due(None, true, at(135)), Some(OutageLine::Ended { lasted: at(126) }));
        assert_eq!(lines.due(None, true, at(500)), None);
    }

    #[test]
    fn outages_that_begin_and_end_with_every_answer_are_counted_in_one_line() {
        let mut lines = OutageLines::default();
        assert!(matches!(lines.due(Some(at(1)), true, at(1)), Some(OutageLine::Began { .. })));
        assert!(matches!(lines.due(None, true, at(2)), Some(OutageLine::Ended { .. })));
        for second in [3, 5, 7] {
            assert_eq!(lines.due(Some(at(second)), true, at(second)), None);
            assert_eq!(lines.due(None, true, at(second + 1)), None);
        }
        assert_eq!(lines.due(None, true, at(60)), None);
        assert_eq!(lines.due(None, true, at(61)), Some(OutageLine::Suppressed { suppressed: 3 }));
        assert_eq!(lines.due(None, true, at(62)), None);
    }

    #[test]
    fn an_outage_that_lasts_has_a_line_although_another_one_was_just_before() {
        let mut lines = OutageLines::default();
        lines.due(Some(at(1)), true, at(1));
        lines.due(None, true, at(2));
        assert_eq!(lines.due(Some(at(3)), true, at(3)), None);
        assert_eq!(lines.due(Some(at(3)), true, at(11)), Some(OutageLine::Began { lasted: at(8), suppressed: 0 }));
        assert_eq!(lines.due(None, true, at(12)), Some(OutageLine::Ended { lasted: at(9) }));
    }
}
