//! What every mode shares and nothing outside can disturb: no async, no I/O, no clock, no randomness of its own.
//!
//! Time comes in as a [`Moment`], randomness as a number; what goes out are values. So each of these can be held
//! against a simple model, and a failure found anywhere can be played again.
//!
//! ```text
//!  event      what is stored and delivered      outcome    ok, refused, unknown: what is known of a write
//!  partition  which partition a user has        verdict    what an attempt says of an event
//!  lanes      one FIFO a user, who is next      window     how many events and bytes may be unsettled
//!  backoff    when to try again                 progress   watermark and settled map: what a commit stores
//!  breaker    is it the event, or the destination?       random     numbers from what the caller gives
//!  token_bucket  how many events may go out now, at a configured rate
//!  names, side_topics    which names are valid, and how side topics and groups are named
//!  text       text of others, as it may be shown
//! ```

pub mod backoff;
pub mod breaker;
pub mod event;
pub mod lanes;
pub mod names;
pub mod outcome;
pub mod partition;
pub mod progress;
pub mod random;
pub mod side_topics;
pub mod text;
pub mod token_bucket;
pub mod varint;
pub mod verdict;
pub mod window;

/// A point in time: how long ago the process (or the simulation) began. The shell reads the clock, the core never.
pub type Moment = std::time::Duration;
