//! Bounds that several modules share, each with its unit and its reason.
//!
//! A bound with one user is next to that user. Defaults of flags are in `cli/defaults.rs`.

use std::time::Duration;

// Sizes of events, batches and answers.

/// Bytes that are kept of a destination's answer to a failed attempt. Enough for the beginning of a stack trace, and small
/// in a dead letter.
pub const ANSWER_BYTES_MAX: usize = 4096;

/// Bytes of one append: what a Kafka broker accepts in a batch by default, less room for the framing.
pub const APPEND_BYTES_MAX: usize = 900 * 1024;

/// Bytes of a record in a batch in addition to its key, value and headers, at most: seven numbers and a byte.
pub const RECORD_FRAMING_BYTES_MAX: usize = 36;

/// Bytes of one delivery batch for a lane, unless its first event alone is larger.
pub const RUN_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of the events in one http request with several events, unless its first event alone is larger. In base64 and with
/// the other fields, the body of the request may be half as large again.
pub const HTTP_BATCH_BYTES_MAX: usize = 512 * 1024;

/// Events in one http request.
pub const HTTP_BATCH_EVENTS_MAX: usize = 1_000;

/// Bytes that one fetch asks for.
pub const FETCH_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of lines in one write to a file. Large enough that the cost of the sync does not matter, and small enough to have
/// twice in memory.
pub const WRITE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that a dead letter may have in addition to its event, for the answer and the headers.
pub const DEAD_LETTER_EXTRA_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one answer of a broker. A fetch asks for far less, but a broker always sends a whole batch, and the topic's
/// settings allow large ones. Anything beyond this does not come from a Kafka broker.
pub const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;

// Names.

/// Characters of a topic's name: Kafka's limit.
pub const TOPIC_CHARS_MAX: usize = 249;

/// Bytes of a user. It is the key of every record and a header of every attempt.
pub const USER_BYTES_MAX: usize = 1024;

/// Characters of a replay's id. Another eventd that replays into our ingest sends its id, too.
pub const REPLAY_ID_CHARS_MAX: usize = 64;

// Work in progress, and what a process remembers.

/// Successful answers of one destination that are read to their end in the background at the same time. Beyond it the
/// connection is closed instead. So a destination has at most `--concurrency` connections and these.
pub const ANSWER_DRAINS_MAX: usize = 128;

/// Events of one destination that are handed to it and not answered yet, in one process. Http may exceed it if half of it is
/// less than an event for each attempt.
pub const IN_FLIGHT_EVENTS_MAX: usize = 10_000;

/// Users whose last attempt failed, as remembered by the breaker of a destination. Beyond it the user that failed first
/// counts as healthy again. About 6 MB if all are used.
pub const FAILING_USERS_MAX: usize = 100_000;

/// Users that were served, as remembered by the breaker of a destination: they are probed first in an outage. About 2 MB
/// if all are used.
pub const SERVED_USERS_MAX: usize = 100_000;

/// Quick probes of an open breaker that begin while others are in flight, if those have taken less than a second.
pub const PROBES_AT_ONCE_MAX: usize = 5;

/// Probes of an open breaker in flight: of users of one rank, and in all if the destination cannot be reached. More
/// than a few only if the destination does not answer within a second.
pub const PROBES_IN_FLIGHT_MAX: usize = 20;

/// Users of one destination that make room in memory in one outage, or at a time while it is slow for every user, in
/// one process. So users behind them are found ([`core::parking`](crate::core::parking)). Many more than usually fail
/// or are slow by themselves, and few enough that a destination that is out or slow parks hardly any.
pub const LOOK_AHEAD_USERS_MAX: usize = 1_000;

/// Users whose pace is remembered: whether their last attempt was quick or slow, in one destination and process. A user that
/// is forgotten counts as new. About 5 MB if all are used.
pub const PACED_USERS_MAX: usize = 100_000;

/// Bytes of the buffer of one connection, and so of the head of one request. Together with `--max-connections` it bounds
/// the memory of requests that were sent in part.
pub const HTTP_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Bytes of the dead letters of one destination that are being written, in one process. Each partition has an equal share,
/// and at least one dead letter. A write has a copy of its event. If the topic of dead letters cannot be used, the others
/// wait without one. Thousands of usual size are written at the same time.
pub const DEAD_LETTER_WRITES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of the answers that dead letters keep until they are written, in one destination and process. Each partition has an
/// equal share. Beyond it, a dead letter has the first 64 bytes of its answer. 2,000 of the longest answers, and far more
/// of usual length.
pub const WAITING_ANSWERS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Users that are remembered as "after a dead letter" for the header `eventd-gap`, in one destination and process. The
/// header is a hint: the record of what is missing is the dead letter.
pub const USERS_AFTER_DEAD_LETTER_MAX: usize = 100_000;

// The embedded log, and the queue of writes that both logs use.

/// Bytes of one record of the embedded log: far above what ingest takes (`--max-event`) and a dead letter adds, far
/// below what one transaction and one fetch hold in memory.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Writes (appends, commits, topics) of one process that wait for the embedded log's writer.
pub const WRITE_QUEUE_ENTRIES_MAX: usize = 65_536;

/// Bytes of these: as much as ingest may hold accepted and not yet appended.
pub const WRITE_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a waiting write costs beyond its records' bytes.
pub const WRITE_OVERHEAD_BYTES: usize = 256;

/// Writes in one transaction of the embedded log: enough that one fsync serves a burst of 25,000 a second ten times
/// over, few enough that their answers are not late.
pub const WRITE_BATCH_ENTRIES_MAX: usize = 4_096;

/// Bytes in one transaction, unless its first write alone is larger.
pub const WRITE_BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a transaction of the embedded log waits for another process's before it is refused.
pub const DATABASE_BUSY_MAX: Duration = Duration::from_secs(5);

/// How often it looks: another process leaves the database free only between two of its transactions.
pub const DATABASE_BUSY_POLL: Duration = Duration::from_micros(500);

/// Each time that the write-ahead log has grown by this many bytes, a thread copies it into the database and syncs it.
pub const WAL_CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;

/// From this length of the write-ahead log on, the writer itself copies the rest after a sync by the thread. The next
/// transaction then starts at the beginning of the log.
pub const WAL_RESTART_BYTES: u64 = 32 * 1024 * 1024;

/// From this length of the write-ahead log on, the writer no longer waits for the thread.
pub const WAL_RESTART_LATEST_BYTES: u64 = 48 * 1024 * 1024;

/// Reads of the embedded log at the same time, in one process: each has a connection and a thread meanwhile.
pub const DATABASE_READERS_MAX: usize = 4;

/// Permissions of a new database: only its owner may read users' events. Its -wal, -shm and lock files get the same ones.
pub const DATABASE_MODE: u32 = 0o600;

// Kafka.

/// How often a commit is written even if nothing changed. Brokers forget groups that do not commit for a long time.
pub const COMMIT_UNCHANGED_INTERVAL: Duration = Duration::from_secs(3600);

/// How long a broker may take to answer if another broker can be asked instead, or if it answers from memory.
pub const BROKER_ANSWER_MAX: Duration = Duration::from_secs(5);

/// The shortest time between two requests for the leaders of a topic. While a partition has no leader, every worker asks.
pub const METADATA_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How long a request to a broker may take if its caller repeats it after a failure.
pub const BROKER_CALL_MAX: Duration = Duration::from_secs(10);

/// How long after its last heartbeat a member counts as gone, if no flag says otherwise.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

// Intervals and waits.

/// How long after its deadline an attempt without an answer is dropped. A destination should answer by its deadline; this
/// is for one that does not.
pub const ATTEMPT_ABANDON_AFTER: Duration = Duration::from_secs(1);

/// At most one log line about the same thing is written in this time.
pub const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// How often a log line repeats that a destination is in an outage, or that a user is stuck. A user is stuck if its next
/// event has failed for this long.
pub const LOG_REMINDER_INTERVAL: Duration = Duration::from_secs(60);

/// How often the owner of a partition checks for a requested offset reset. Also how long it waits for the answer at its
/// start, because delivery does not depend on it.
pub const RESET_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the owner of a partition looks for commands of operators.
pub const CONTROL_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often ingest and groups check whether the topic's number of partitions changed.
pub const PARTITION_COUNT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long an unused connection is kept. Shorter than the minute after which most servers and proxies close theirs, so
/// that a request seldom uses a connection that is being closed.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(30);

/// How long after a failure `up` starts a destination again, and `dispatch` tries to join its group again.
pub const RESTART_AFTER: Duration = Duration::from_secs(1);
