//! Dispatch over a log that is damaged, or trimmed while it is read.

use super::{Embedded, fixture};
use crate::conformance::{Fixture, record};
use crate::support::wait::PATIENCE;
use eventd::BoxFuture;
use eventd::clock::WallClock;
use eventd::core::backoff::Backoff;
use eventd::core::event::{Record, encode_headers};
use eventd::core::outcome::Ended;
use eventd::core::outcome::Failure;
use eventd::core::parking::ParkingLimits;
use eventd::core::progress::{FailedHead, ListedUsers, OffsetReset, PartitionState, ResetTarget, UserState};
use eventd::core::side_topics::dead_letter_topic;
use eventd::core::tries::{OnExhausted, TryPolicy};
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::{BatchLimits, DeliveryBatch, Destination};
use eventd::dispatch::{self, Config, OnGap, Parts, Start, Tally, WhenStopped, dead_letter};
use eventd::group::WhenHeld;
use eventd::group::sqlite::join;
use eventd::log::{Engine, FetchError, Fetched, Log};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// A destination that accepts one event at a time. Its latency is longer than any fetch takes. It can fail all
/// events.
#[derive(Debug, Default)]
struct Receiver {
    /// The verdict on every event.
    fails: Option<Verdict>,
    seen: Mutex<Vec<i64>>,
    answered: Notify,
}

impl Destination for Receiver {
    fn limits(&self) -> BatchLimits {
        BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 }
    }

    fn deliver(&self, delivery_batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(async move {
            self.seen.lock().unwrap().push(delivery_batch.events[0].offset);
            tokio::time::sleep(Duration::from_millis(30)).await;
            self.answered.notify_one();
            match self.fails {
                Some(verdict) => vec![Report { delivered: 0, failed: Some(Failed::new(verdict, "422 no")) }],
                None => vec![Report { delivered: 1, failed: None }],
            }
        })
    }
}

fn config(attempts: u32) -> Config {
    Config {
        tries: TryPolicy {
            attempts_max: Some(attempts),
            give_up_after: None,
            on_exhausted: OnExhausted::DeadLetter,
            backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(5), false).unwrap(),
            retry_after_max: PATIENCE,
        },
        attempt_timeout: PATIENCE,
        concurrency: 16,
        in_flight_events: 1_000,
        rate: None,
        window_events: 1_000,
        window_bytes: 1 << 20,
        parking: ParkingLimits { user_backlog: 100, users_max: 1_000, may_park: true },
        commit_interval: Duration::from_millis(50),
        start: Start::Earliest,
        on_gap: OnGap::Stop,
        when_stopped: WhenStopped::Stay,
        drain: PATIENCE,
        dead_retention: Duration::from_secs(3600),
        seed: 0,
    }
}

async fn parts(embedded: &Embedded, log: Arc<dyn Log>, receiver: &Arc<Receiver>) -> Parts {
    let group = join(&embedded.engine, "hook", log.topic(), "digest", WhenHeld::Fail).await.unwrap();
    Parts {
        engine: embedded.engine.clone(),
        log,
        group,
        destination: receiver.clone(),
        wall_clock: WallClock::system(),
    }
}

#[tokio::test]
async fn events_before_a_damaged_record_are_delivered_once_and_committed() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    log.append(0, (0..10).map(|n| record(&format!("user-{n}"), "payload")).collect()).await.unwrap();
    embedded.plain().execute("UPDATE records SET crc32c = crc32c + 1 WHERE offset = 6", []).unwrap();
    let receiver = Arc::new(Receiver::default());
    for life in 1..=2 {
        let parts = parts(&embedded, log.clone(), &receiver).await;
        let group = parts.group.clone();
        let tally = Arc::new(Tally::default());
        let mut stopped = tally.stopped_partitions();
        let shutdown = async move { drop(stopped.wait_for(|stopped| stopped.contains(&0)).await.unwrap()) };
        let dispatch = dispatch::run_counted(parts, config(3), None, tally, shutdown);
        let ended = timeout(PATIENCE, dispatch).await.expect("dispatch gets the error and stops");
        let error = format!("{:#}", ended.expect_err("the damage is an error"));
        assert!(error.contains("offset 6") && error.contains("--on-gap skip"), "life {life}: {error}");
        assert_eq!(group.committed(0).await.unwrap().map(|state| state.watermark), Some(6), "life {life}");
    }
    let mut seen = receiver.seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5], "each event once, in two lives");
}

#[tokio::test]
async fn a_state_whose_failures_are_misplaced_stops_its_partition_and_is_named() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    log.append(0, vec![record("user-1", "first"), record("user-1", "second")]).await.unwrap();
    let parts = parts(&embedded, log, &Arc::default()).await;
    let failed = Some(FailedHead { offset: 1, failures: 1, tries: 1, ..FailedHead::default() });
    let users = ListedUsers::from([(Some(Arc::from(*b"user-1")), UserState { parked: None, failed })]);
    parts.group.commit(0, PartitionState { users, ..PartitionState::at(0) }).await.unwrap();
    let tally = Arc::new(Tally::default());
    let mut stopped = tally.stopped_partitions();
    let shutdown = async move { drop(stopped.wait_for(|stopped| stopped.contains(&0)).await.unwrap()) };
    let dispatch = dispatch::run_counted(parts, config(3), None, tally, shutdown);
    let ended = timeout(PATIENCE, dispatch).await.expect("dispatch gets the error and stops");
    let error = format!("{:#}", ended.expect_err("the state is wrong"));
    assert!(error.contains("the stored state of partition 0 is damaged") && error.contains("offset 1"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

#[tokio::test]
async fn a_dead_letter_of_a_dead_letter_has_the_identity_of_its_own_source() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    let old: [(&[u8], Option<&[u8]>); 4] = [
        (dead_letter::SOURCE.as_bytes(), Some(b"7:99")),
        (b"\xff no text", None),
        (dead_letter::TOPIC.as_bytes(), Some(b"elsewhere")),
        (b"eventd-id", Some(b"kept")),
    ];
    let mut encoded = Vec::new();
    encode_headers(&old, &mut encoded);
    log.append(0, vec![Record::from_parts(Some(b"user"), Some(b"payload"), &encoded, 0)]).await.unwrap();
    let receiver = Arc::new(Receiver { fails: Some(Verdict::Refused), ..Receiver::default() });
    let parts = parts(&embedded, log.clone(), &receiver).await;
    let group = parts.group.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(dispatch::run(parts, config(1), async {
        stopped.await.expect("the test tells dispatch to stop");
    }));
    let dead = dead_letter_topic("events", "hook");
    let settled = async {
        while group.committed(0).await.unwrap().is_none_or(|state| state.watermark < 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, settled).await.expect("the event is given up");
    stop.send(()).unwrap();
    assert_eq!(running.await.unwrap().unwrap(), Ended::Drained);
    let letters = embedded.engine.open(&dead, None).await.unwrap().fetch(0, 0, 1 << 20, PATIENCE).await.unwrap().events;
    let [letter] = &letters[..] else { panic!("expected one dead letter: {letters:?}") };
    assert_eq!(letter.record.headers().filter(|(name, _)| *name == dead_letter::SOURCE).count(), 1);
    assert_eq!(letter.record.header_text(dead_letter::SOURCE), Some("0:0"));
    assert_eq!(letter.record.header_text(dead_letter::TOPIC), Some("events"));
    assert_eq!(letter.record.headers_raw().take(2).collect::<Vec<_>>(), [old[1], old[3]], "kept unchanged");
}

/// The breaker needs 5 users to find an outage. After a rewind, the users that failed before it must not count twice: in
/// an outage, no event is given up.
#[tokio::test]
async fn a_rewind_does_not_let_three_failing_users_look_like_an_outage() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    log.append(0, (0..3).map(|n| record(&format!("user-{n}"), "payload")).collect()).await.unwrap();
    let receiver = Arc::new(Receiver { fails: Some(Verdict::Retry { after: None }), ..Receiver::default() });
    let parts = parts(&embedded, log, &receiver).await;
    let (tally, (stop, stopped)) = (Arc::new(Tally::default()), tokio::sync::oneshot::channel::<()>());
    let running = tokio::spawn(dispatch::run_counted(parts, config(3), None, tally.clone(), async {
        stopped.await.expect("the test tells dispatch to stop");
    }));
    for rewinds in 0..3 {
        if rewinds > 0 {
            let back = OffsetReset { id: rewinds, to: ResetTarget::Back(0) };
            assert!(!embedded.request_reset("hook", "events", 0, back).await, "the owner applies it");
        }
        let given_up = async {
            while tally.given_up() < 3 * (rewinds + 1) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // The answers of an outage are forgotten after a minute, and then the events are given up, too.
        let in_time = timeout(Duration::from_secs(20), given_up).await;
        assert!(in_time.is_ok(), "{} given up after {rewinds} rewinds", tally.given_up());
    }
    stop.send(()).unwrap();
    assert_eq!(running.await.unwrap().unwrap(), Ended::Drained);
}

/// A log whose retention passes the first offset just before a new group protects it.
#[derive(Debug)]
struct Overtaken {
    log: Arc<dyn Log>,
    asked: AtomicI64,
}

impl Log for Overtaken {
    fn topic(&self) -> &str {
        self.log.topic()
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        self.log.partitions()
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.append(partition, records)
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        match from {
            0..4 => Box::pin(async move { Err(FetchError::OutOfRange { from, earliest: 4, latest: 10 }) }),
            _ => self.log.fetch(partition, from, max_bytes, wait),
        }
    }

    fn earliest(&self, _partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        let first = self.asked.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move { Ok(if first { 0 } else { 4 }) })
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.latest(partition)
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        self.log.offset_at(partition, timestamp_ms)
    }
}

#[tokio::test]
async fn a_new_group_that_retention_overtakes_starts_at_the_logs_start() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    log.append(0, (0..10).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
    let receiver = Arc::new(Receiver::default());
    let log = Arc::new(Overtaken { log, asked: AtomicI64::new(0) });
    let parts = parts(&embedded, log, &receiver).await;
    let told = receiver.clone();
    let run = dispatch::run(parts, config(3), async move { told.answered.notified().await });
    let ended = timeout(PATIENCE, run).await.expect("it stops").expect("a new group must not start with a gap");
    assert_eq!((ended, receiver.seen.lock().unwrap()[0]), (Ended::Drained, 4));
}
