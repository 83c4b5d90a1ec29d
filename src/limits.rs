//! Every bound that is not a flag, its unit and its reason. (Defaults of flags stand in `cli.rs`.)

use std::time::Duration;

/// Bytes kept of what a destination said about a failure: enough for a stack trace's head, small in a dead letter.
pub const ANSWER_BYTES_MAX: usize = 4096;

/// Bytes of an answer's body that are read, so that its connection can be used again; a longer one costs the
/// connection.
pub const ANSWER_DRAIN_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a user id: the key of every record, a header of every attempt.
pub const USER_BYTES_MAX: usize = 1024;

/// Bytes of an event's id.
pub const ID_BYTES_MAX: usize = 255;

/// Bytes of an event's type.
pub const TYPE_BYTES_MAX: usize = 255;

/// Bytes in one append: what a default Kafka broker takes a batch, with room for its framing.
pub const APPEND_BYTES_MAX: usize = 900 * 1024;

/// Events of one lane in one run of a destination that writes many at once.
pub const RUN_EVENTS_MAX: usize = 1_000;

/// Bytes of such a run, unless its first event alone is larger.
pub const RUN_BYTES_MAX: usize = 1024 * 1024;

/// Events of one destination that are handed out and not yet answered, in one process.
pub const IN_FLIGHT_EVENTS_MAX: usize = 10_000;

/// Happenings of one kind that a partition's owner handles before the others get a turn.
pub const HAPPENINGS_IN_A_ROW_MAX: usize = 256;

/// Bytes that one fetch asks for at most.
pub const FETCH_BYTES_MAX: usize = 1024 * 1024;

/// How long a fetch waits for a record before it answers with none.
pub const FETCH_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long after its deadline an attempt that has not answered is dropped. A destination answers by its deadline;
/// this is for one that does not.
pub const ATTEMPT_ABANDON_AFTER: Duration = Duration::from_secs(1);

/// How long connecting may take, where `--attempt-timeout` allows more: a host that is gone is told apart from a slow
/// one early.
pub const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// A destination's name is a consumer group, and with topic and suffix a topic of at most 249 characters.
pub const DESTINATION_NAME_CHARS_MAX: usize = 100;

/// Kafka's limit of a topic's name.
pub const TOPIC_CHARS_MAX: usize = 249;

/// How often a commit is written though nothing changed: brokers forget groups that do not.
pub const COMMIT_UNCHANGED_INTERVAL: Duration = Duration::from_secs(3600);

/// Users of which "one of their events was given up" is remembered for the header `eventd-gap`, a destination and
/// process. The record of a gap is the dead letter; this is a hint.
pub const GAPS_REMEMBERED_MAX: usize = 100_000;

/// Log lines about the same thing: at most one in this time.
pub const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Hand-overs in flight of a partition to a destination that takes many lanes at once: while one is written, the next
/// one fills.
pub const HAND_OVERS_OF_MANY_MAX: usize = 2;

/// Ready lanes that are looked at for a probe of a user who was not probed yet.
pub const PROBE_LOOK_MAX: usize = 64;

/// How often the fence of a group is looked at while it lets nothing start.
pub const FENCE_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long the last commit of a stop may take, also where `--drain` is over.
pub const LAST_COMMIT_WAIT: Duration = Duration::from_secs(2);

/// Users whose last attempt failed, remembered by a destination's breaker. Beyond it the one that failed first is
/// trusted again: about 6 MB where every one is taken.
pub const FAILING_USERS_MAX: usize = 100_000;

/// Users remembered as probed in one outage, so that each probe is of another one: half a day of probes. Beyond it
/// the next round begins.
pub const PROBED_USERS_MAX: usize = 10_000;

/// Turns for the worse whose tries are taken back lazily. Beyond it the tries of the oldest one stay counted.
pub const VOID_MARKS_MAX: usize = 1024;
