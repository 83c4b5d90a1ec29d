//! Every bound that is not a flag, its unit and its reason. (Defaults of flags stand in `cli.rs`.)

use std::time::Duration;

/// Bytes kept of what a destination said about a failure: enough for a stack trace's head, small in a dead letter.
pub const ANSWER_BYTES_MAX: usize = 4096;

/// Successes of one destination whose rest is read in the background at a time. Beyond it a connection is closed instead, so that
/// a destination has at most `--concurrency` connections, used and unused, and these.
pub const ANSWER_DRAINS_MAX: usize = 128;

/// Bytes in one append: what a default Kafka broker takes a batch, with room for its framing.
pub const APPEND_BYTES_MAX: usize = 900 * 1024;

/// What a record costs in a batch beyond its key, value and headers, at most: seven numbers and a byte.
pub const RECORD_FRAMING_BYTES_MAX: usize = 36;

/// Bytes of such a run, unless its first event alone is larger.
pub const RUN_BYTES_MAX: usize = 1024 * 1024;

/// Events of one destination that are handed out and not yet answered, in one process.
pub const IN_FLIGHT_EVENTS_MAX: usize = 10_000;

/// Bytes that one fetch asks for at most.
pub const FETCH_BYTES_MAX: usize = 1024 * 1024;

/// How long after its deadline an attempt that has not answered is dropped. A destination answers by its deadline;
/// this is for one that does not.
pub const ATTEMPT_ABANDON_AFTER: Duration = Duration::from_secs(1);

/// Kafka's limit of a topic's name.
pub const TOPIC_CHARS_MAX: usize = 249;

/// How often a commit is written though nothing changed: brokers forget groups that do not.
pub const COMMIT_UNCHANGED_INTERVAL: Duration = Duration::from_secs(3600);

/// Users that are remembered as "after a dead letter" for the header `eventd-gap`, in one destination and process. The
/// header is a hint: the record of what is missing is the dead letter.
pub const USERS_AFTER_DEAD_LETTER_MAX: usize = 100_000;

/// Log lines about the same thing: at most one in this time.
pub const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Log lines of a destination a minute that each name another event, and as many that each name another user. What is
/// beyond is counted.
pub const LOG_LINES_A_MINUTE_MAX: u32 = 10;

/// Bytes of a user or an id in a log line: producers choose them.
pub const LOG_USER_BYTES_MAX: usize = 100;

/// How often a log line says that a destination is still out, and that a user is still stuck. A user is stuck once its
/// next event has failed for as long.
pub const LOG_REMINDER_INTERVAL: Duration = Duration::from_secs(60);

/// How often an owner looks whether a move of its position was asked for, and how long it waits for that at its start:
/// delivery does not depend on the answer.
pub const MOVES_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Users whose last attempt failed, remembered by a destination's breaker. Beyond it the one that failed first is
/// trusted again: about 6 MB where every one is taken.
pub const FAILING_USERS_MAX: usize = 100_000;

/// Users remembered as probed in one outage, so that each probe is of another one: half a day of probes. Beyond it
/// the next round begins.
pub const PROBED_USERS_MAX: usize = 10_000;

/// Bytes of one record of the embedded log: far above what ingest takes (`--max-event`) and a dead letter adds, far
/// below what one transaction and one fetch hold in memory.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Writes (appends, commits, topics) of one process that wait for the embedded log's writer.
pub const WRITE_QUEUE_ENTRIES_MAX: usize = 65_536;

/// Bytes of these: as much as ingest may hold accepted and not yet appended.
pub const WRITE_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a waiting write costs beyond its records' bytes.
pub const WRITE_OVERHEAD_BYTES: usize = 256;

/// How long a write waits for room in that queue before it is refused.
pub const WRITE_QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Writes in one transaction of the embedded log: enough that one fsync serves a burst of 25,000 a second ten times
/// over, few enough that their answers are not late.
pub const WRITE_BATCH_ENTRIES_MAX: usize = 4_096;

/// Bytes in one transaction, unless its first write alone is larger.
pub const WRITE_BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a transaction of the embedded log waits for another process's before it is refused.
pub const DATABASE_BUSY_MAX: Duration = Duration::from_secs(5);

/// How often it looks: another process leaves the database free only between two of its transactions.
pub const DATABASE_BUSY_POLL: Duration = Duration::from_micros(500);

/// Bytes that the write-ahead log grows by before what is in it is copied into the database, beside the writer.
pub const WAL_CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes at which the writer itself copies the rest, so that the next transaction begins the write-ahead log anew.
pub const WAL_RESTART_BYTES: u64 = 32 * 1024 * 1024;

/// How long the writer then waits for readers that still need the old one; a read is far shorter.
pub const WAL_RESTART_WAIT_MAX: Duration = Duration::from_millis(50);

/// How long a process that leaves waits for readers and for other writers, so that it can empty the write-ahead log.
pub const LAST_CHECKPOINT_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a process that ends waits until its database is closed. After that, a crash would leave as much behind.
pub const DATABASE_CLOSE_MAX: Duration = Duration::from_secs(15);

/// Bytes of the write-ahead log at which writes are refused: a reader outside of eventd holds it, or the disk is full.
pub const WAL_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Reads of the embedded log at the same time, in one process: each has a connection and a thread meanwhile.
pub const DATABASE_READERS_MAX: usize = 4;

/// How long a read waits for one of these.
pub const DATABASE_READ_WAIT_MAX: Duration = Duration::from_secs(10);

/// Records in one fetch: bounds how long one read transaction lasts where records are tiny.
pub const FETCH_EVENTS_MAX: usize = 10_000;

/// How often the embedded log looks for writes of other processes, in the second after it saw one.
pub const WATCH_INTERVAL_BUSY: Duration = Duration::from_millis(5);

/// The same, while nothing is written.
pub const WATCH_INTERVAL_IDLE: Duration = Duration::from_millis(50);

/// How long after the last change it counts as busy.
pub const WATCH_BUSY_AFTER_CHANGE: Duration = Duration::from_secs(1);

/// How often the embedded log looks for records that are past their retention.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// Records that are removed in one transaction: others wait for it.
pub const TRIM_RECORDS_MAX: usize = 2_000;

/// How far the wall clock gets ahead of the monotonic one between two looks at both, a second apart, before it counts as
/// a jump: clocks that are kept in step by small corrections stay far below.
pub const CLOCK_JUMP: Duration = Duration::from_secs(60);

/// How long the wall clock is in doubt after a start and after a jump: until each destination that is at work has
/// committed again, though nothing changed, and a minute for it to do so.
pub const TRIM_DOUBT: Duration = Duration::from_secs(COMMIT_UNCHANGED_INTERVAL.as_secs() + 60);

/// Log lines about events that were removed and that a destination had not settled: at most one a destination in this
/// time. Each has the number of all events since the line before. A destination that is out of use loses some all day.
pub const TRIM_LOSS_INTERVAL: Duration = Duration::from_secs(60);

/// How long a partition is left as it is after its trimming met damage: nobody repairs that from one second to the next,
/// and each try is a log line.
pub const TRIM_DAMAGED_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// A group that committed this recently keeps what it has not settled from being removed.
pub const RETENTION_PROTECTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Bytes beyond `--max-db-bytes` in which dead letters and commits still find room.
pub const DATABASE_HEADROOM_BYTES: u64 = 64 * 1024 * 1024;

/// Records between two entries of the index by time: what finding an offset by its time reads at most.
pub const TIME_INDEX_RECORDS: i64 = 1_024;

/// Permissions of a database that is made: nobody else reads users' events. Its -wal, -shm and lock files get the same.
pub const DATABASE_MODE: u32 = 0o600;

/// Bytes of the file that is written to learn whether an error of a disk was a full quota: more than one page, which is
/// what SQLite writes at once.
pub const ROOM_PROBE_BYTES: usize = 64 * 1024;

/// Bytes that one connection's reads and writes are buffered in, and so of one request's head: with `--max-connections`
/// this bounds what half-sent requests can hold.
pub const HTTP_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// How often ingest looks whether the topic's partition count changed.
pub const PARTITION_COUNT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Users, or ids, that a replay may be told one by one: the list is kept with its audit record.
pub const REPLAY_NAMED_MAX: usize = 10_000;

/// Bytes of these together.
pub const REPLAY_NAMED_BYTES_MAX: usize = 512 * 1024;

/// Characters of a replay's id, also of another eventd's that replays into our ingest.
pub const REPLAY_ID_CHARS_MAX: usize = 64;

/// Bytes of lines in one write of a file: large enough that the sync disappears in it, small enough to be kept twice.
pub const WRITE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long an unused connection to a destination is kept: shorter than the minute after which most servers and
/// middle boxes close theirs, so that a request seldom meets a connection that is just being closed.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(30);

/// Partitions of a topic that eventd makes: each costs every destination a task, a position and a commit.
pub const PARTITIONS_MAX: u32 = 1_000;

/// How long an end waits for threads that cannot be interrupted, a hanging look-up of a name above all.
pub const RUNTIME_SHUTDOWN_MAX: Duration = Duration::from_millis(500);

/// How long after a destination's failure `up` starts it again, and `dispatch` asks for its place again.
pub const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Bytes that a dead letter may have beyond its event: the answer, and the headers that tell its story.
pub const LETTER_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one answer of a broker: a fetch asks for far less, but one batch is always given whole, and its topic says
/// how large it may be. Anything beyond is no broker speaking.
pub const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;

/// How long a broker may take to answer where another one may be asked, and for what it answers from memory.
pub const BROKER_ANSWER_MAX: Duration = Duration::from_secs(5);

/// How often a topic's leaders are looked up at most: while a partition has none, everybody asks.
pub const METADATA_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How long a request to a broker may take that is repeated by its caller where it failed.
pub const BROKER_CALL_MAX: Duration = Duration::from_secs(10);

/// How long after its last heartbeat a member counts as gone, where nobody says.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
