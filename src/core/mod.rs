//! The pure logic that every command shares: no async, no I/O, no clock, and no randomness of its own.
//!
//! Time is passed in as a [`Moment`], randomness as a number, and results are values. So each module can be compared with a
//! simple model, and a failure that was found once can be replayed exactly.
//!
//! | module         | what it decides or holds                                                   |
//! |----------------|----------------------------------------------------------------------------|
//! | `event`        | an event as it is stored and delivered                                     |
//! | `partition`    | the partition of a user                                                    |
//! | `names`        | which names topics, groups and destinations may have                       |
//! | `side_topics`  | how side topics and groups are named                                       |
//! | `slots`        | how many attempts may be in flight, and of which users                     |
//! | `lanes`        | one queue for each user, and which one is next                             |
//! | `parking`      | which users wait in the log, and when they are read again                  |
//! | `window`       | how many events and bytes may be unsettled                                 |
//! | `backoff`      | when to try again                                                          |
//! | `verdict`      | what an attempt says about an event                                        |
//! | `tries`        | which attempts count as tries of an event, and what comes next              |
//! | `breaker`      | whether a failure is the event's fault or the destination's                |
//! | `control`      | what an operator's command changes                                         |
//! | `progress`     | the watermark and the settled map, which a commit stores                   |
//! | `outcome`      | whether a failed write was refused or is unknown                           |
//! | `token_bucket` | how many events may be sent now, at a configured rate                      |
//! | `random`       | numbers that look random and depend only on the input                      |
//! | `text`         | escaping of text from outside                                              |
//! | `varint`       | numbers in as few bytes as they need                                       |

pub mod backoff;
pub mod breaker;
pub mod control;
pub mod event;
pub mod lanes;
pub mod names;
pub mod outcome;
pub mod parking;
pub mod partition;
pub mod progress;
pub mod random;
pub mod side_topics;
pub mod slots;
pub mod text;
pub mod token_bucket;
pub mod tries;
pub mod varint;
pub mod verdict;
pub mod window;

/// A point in time: the time since the process (or the simulation) began. Only callers read the clock; this module never
/// does.
pub type Moment = std::time::Duration;

/// One point in time, as both clocks show it. It converts between what is kept in memory and what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BothClocks {
    pub moment: Moment,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: i64,
}

impl BothClocks {
    /// The wall clock's time at this moment, in milliseconds since the Unix epoch.
    pub fn wall_ms_at(&self, moment: Moment) -> i64 {
        let ms = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        match moment.checked_sub(self.moment) {
            Some(later) => self.wall_ms.saturating_add(ms(later)),
            None => self.wall_ms.saturating_sub(ms(self.moment - moment)),
        }
    }

    /// The moment of this time of the wall clock. A time before the process began is moment 0.
    pub fn moment_at(&self, wall_ms: i64) -> Moment {
        let ms = std::time::Duration::from_millis(wall_ms.abs_diff(self.wall_ms));
        if wall_ms >= self.wall_ms { self.moment.saturating_add(ms) } else { self.moment.saturating_sub(ms) }
    }
}
