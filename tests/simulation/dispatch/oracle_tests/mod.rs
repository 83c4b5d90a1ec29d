//! Tests of the oracle and of the in-memory world. Hand-made cases break one promise each, and the oracle must report
//! it. The in-memory log must keep the contract of a log.

mod ended_tries;
mod replayed;

use crate::dispatch::memory_destination::Behaviour;
use crate::dispatch::memory_group::Members;
use crate::dispatch::memory_log::{MemoryEngine, TOPIC, Topics};
use crate::dispatch::oracle::{BackoffRule, Cursor, DeliveredRun, Oracle, Rules};
use crate::dispatch::world::{Rates, Role, World};
use crate::harness::Random;
use eventd::core::event::{Event, Record};
use eventd::core::progress::{OffsetReset, ParkedUser, PartitionState, ResetTarget, UserState};
use eventd::core::tries::OnExhausted;
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::BatchLimits;
use eventd::log::{CreateTopic, Engine as _, FetchError, Log, OpenError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const LIFE: u32 = 0;
const DELIVERED: Option<Verdict> = None;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn record(user: &str) -> Record {
    Record::new(Some(user.as_bytes()), Some(b"payload"), &[], 7)
}

/// Small bounds, so that a case reaches them.
fn rules(limits: BatchLimits, start_latest: bool) -> Rules {
    Rules {
        attempts: 2,
        give_up_after: None,
        on_exhausted: OnExhausted::DeadLetter,
        window_events: 4,
        window_bytes: 10_000,
        concurrency: 8,
        in_flight_events: 1_000,
        limits,
        retry_after_max: seconds(5),
        drain: seconds(5),
        commit_interval: seconds(1),
        backoff: BackoffRule { first: seconds(0), max: seconds(0), jitter: false },
        fetch_events_max: 1,
        call_max: Duration::from_millis(3),
        parked_users_max: 2,
        may_list_be_full: false,
        is_calm: true,
        may_park: false,
        start_latest,
    }
}

/// A case with one partition, built step by step.
struct Case {
    oracle: Oracle,
    users: Vec<&'static str>,
    /// The seconds of the first and the last failure of each event.
    failed: BTreeMap<usize, (u64, u64)>,
}

impl Case {
    /// A case with events of these users at the offsets 0, 1, …, and one owner that has started.
    fn of(users: &[&'static str]) -> Self {
        Self::new(users, false)
    }

    fn new(users: &[&'static str], may_park: bool) -> Self {
        let rules = rules(BatchLimits { runs_max: 3, run_events_max: 3, run_bytes_max: 1_000 }, false);
        Self::with(Rules { may_park, ..rules }, users)
    }

    fn with(rules: Rules, users: &[&'static str]) -> Self {
        let mut case = Self { oracle: Oracle::new(rules, 1), users: users.to_vec(), failed: BTreeMap::new() };
        for (user, offset) in users.iter().zip(0..) {
            case.oracle.appended(0, offset, &record(user), seconds(0));
        }
        case.oracle.committed(None, 0, &PartitionState::at(0), seconds(0));
        case.owner(LIFE, PartitionState::at(0));
        case
    }

    fn owner(&mut self, life: u32, state: PartitionState) {
        self.oracle.assigned(life, 0, seconds(0));
        self.oracle.began_with(life, 0, Some(state), seconds(0));
    }

    fn event(&self, offset: usize) -> Event {
        Event { offset: offset as i64, record: record(self.users[offset]) }
    }

    fn start_run(&mut self, offsets: &[usize], attempt: u32, at: u64) -> u64 {
        let events = offsets.iter().map(|offset| self.event(*offset)).collect();
        self.oracle.started(LIFE, 0, &[DeliveredRun { events, attempt, gap: false }], seconds(at + 100), seconds(at))
    }

    fn start(&mut self, offset: usize, attempt: u32, at: u64) -> u64 {
        self.start_run(&[offset], attempt, at)
    }

    fn end(&mut self, id: u64, verdict: Option<Verdict>, at: u64) {
        let failed = verdict.map(|verdict| Failed::new(verdict, "said"));
        self.oracle.reported(id, &[Report { delivered: usize::from(failed.is_none()), failed }], seconds(at));
    }

    fn attempt(&mut self, offset: usize, attempt: u32, verdict: Option<Verdict>, at: u64) {
        let id = self.start(offset, attempt, at);
        if verdict.is_some() {
            self.failed.entry(offset).or_insert((at, at)).1 = at;
        }
        self.end(id, verdict, at);
    }

    fn gives_up(&mut self, offset: usize, attempts: u32, reason: &str) {
        let times = self.failed.get(&offset).copied().unwrap_or_default();
        let source = format!("0:{offset}");
        let dead_letter = dead_letter_at(self.users[offset], &source, attempts, reason, b"payload", times);
        self.oracle.gives_up(LIFE, 0, &dead_letter, Duration::ZERO);
    }

    #[track_caller]
    fn is_accepted(&self) {
        assert_eq!(self.oracle.violation(), None);
    }

    #[track_caller]
    fn is_reported(&self, because: &str) {
        let violation = self.oracle.violation().unwrap_or("nothing");
        assert!(violation.contains(because), "the violation is {violation:?}, not {because:?}");
    }
}

fn dead_letter(user: &str, source: &str, attempts: u32, reason: &str, payload: &[u8]) -> Record {
    dead_letter_at(user, source, attempts, reason, payload, (1, 1))
}

/// A dead letter with the seconds of its first and its last attempt.
fn dead_letter_at(
    user: &str,
    source: &str,
    attempts: u32,
    reason: &str,
    payload: &[u8],
    (first, last): (u64, u64),
) -> Record {
    let (first, last) = (format!("{first}000"), format!("{last}000"));
    let attempts = attempts.to_string();
    let headers = [
        ("eventd-source", source),
        ("eventd-reason", reason),
        ("eventd-attempts", &attempts),
        ("eventd-answer", "said"),
        ("eventd-first-attempt", &first),
        ("eventd-last-attempt", &last),
        ("eventd-time", "7"),
        ("eventd-topic", "user-events"),
    ];
    let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
    Record::new(Some(user.as_bytes()), Some(payload), &headers, 9)
}

const RETRY: Option<Verdict> = Some(Verdict::Retry { after: None });

#[test]
fn a_correct_case_is_accepted() {
    let mut case = Case::of(&["a", "b", "a"]);
    case.attempt(0, 1, RETRY, 1);
    case.attempt(1, 1, DELIVERED, 1);
    case.oracle.committed(
        Some(LIFE),
        0,
        &PartitionState { settled: std::iter::once(1..2).collect(), ..PartitionState::at(0) },
        seconds(0),
    );
    case.attempt(0, 2, RETRY, 2);
    case.gives_up(0, 2, "exhausted");
    case.oracle.dead_letter_stored(0, &dead_letter("a", "0:0", 2, "exhausted", b"payload"), seconds(3));
    case.attempt(2, 1, DELIVERED, 4);
    case.oracle.committed(Some(LIFE), 0, &PartitionState::at(3), seconds(0));
    case.oracle.ended(LIFE, true);
    case.oracle.finished();
    case.is_accepted();
}

#[test]
fn an_event_before_an_earlier_one_of_its_user_is_reported() {
    let mut case = Case::of(&["a", "b", "a"]);
    case.start(2, 1, 1);
    case.is_reported("2 is tried before Some(0)");
}

#[test]
fn a_run_that_leaves_out_an_event_is_reported() {
    let mut case = Case::of(&["a", "a", "a"]);
    case.start_run(&[0, 2], 1, 1);
    case.is_reported("2 is tried before Some(1)");
}

#[test]
fn two_attempts_of_one_user_at_a_time_are_reported() {
    let mut case = Case::of(&["a"]);
    case.start(0, 1, 1);
    case.start(0, 1, 1);
    case.is_reported("in flight for its user");
}

#[test]
fn a_step_back_and_a_needless_repetition_are_reported() {
    let mut case = Case::of(&["a", "a"]);
    case.attempt(0, 1, DELIVERED, 1);
    case.attempt(1, 1, RETRY, 1);
    case.start(0, 1, 2);
    case.is_reported("steps back");
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, DELIVERED, 1);
    case.start(0, 1, 2);
    case.is_reported("knows it settled");
    let mut case = Case::of(&["a"]);
    case.owner(LIFE, PartitionState::at(1));
    case.start(0, 1, 1);
    case.is_reported("the commit holds it");
}

#[test]
fn changed_bytes_are_reported() {
    let mut case = Case::of(&["a"]);
    case.users[0] = "b";
    case.start(0, 1, 1);
    case.is_reported("not what was appended");
}

#[test]
fn a_commit_that_claims_too_much_or_takes_back_is_reported() {
    let mut case = Case::of(&["a", "b"]);
    case.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(0));
    case.is_reported("claims 0");
    let mut case = Case::of(&["a", "b"]);
    case.attempt(0, 1, DELIVERED, 1);
    case.oracle.committed(
        Some(LIFE),
        0,
        &PartitionState { settled: std::iter::once(2..9).collect(), ..PartitionState::at(1) },
        seconds(0),
    );
    case.is_reported("past the end");
    let mut case = Case::of(&["a", "b"]);
    case.attempt(0, 1, DELIVERED, 1);
    case.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(0));
    case.oracle.committed(None, 0, &PartitionState::at(0), seconds(0));
    case.is_reported("takes back 0");
}

#[test]
fn a_reset_that_is_not_requested_or_done_twice_or_during_an_attempt_is_reported() {
    let back = |id, to| OffsetReset { id, to: ResetTarget::Back(to) };
    let moved = |case: &mut Case, id, to| {
        case.oracle.committed(
            Some(LIFE),
            0,
            &PartitionState { last_reset: Some(id), ..PartitionState::at(to) },
            seconds(3),
        );
    };
    let delivered = || {
        let mut case = Case::of(&["a", "a"]);
        case.attempt(0, 1, DELIVERED, 1);
        case.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(1));
        case
    };
    let mut case = delivered();
    case.oracle.reset_requested(0, back(1, 0));
    assert!(case.oracle.unfinished().is_some_and(|(_, _, why)| why.contains("not reset")));
    moved(&mut case, 1, 0);
    case.attempt(0, 1, DELIVERED, 4);
    case.attempt(1, 1, DELIVERED, 5);
    moved(&mut case, 1, 2);
    case.is_accepted();
    moved(&mut case, 1, 0);
    case.is_reported("takes back 0");

    let mut case = delivered();
    moved(&mut case, 1, 0);
    case.is_reported("None was requested");

    let mut case = delivered();
    case.oracle.reset_requested(0, back(1, 0));
    case.start(1, 1, 2);
    moved(&mut case, 1, 0);
    case.is_reported("with attempt 1 in flight");

    let mut case = delivered();
    case.oracle.reset_requested(0, back(1, 0));
    moved(&mut case, 1, 1);
    case.is_reported("claims 0, which is not settled");
}

#[test]
fn a_release_that_forgets_a_delivery_is_reported() {
    let mut case = Case::of(&["a", "b"]);
    case.attempt(0, 1, DELIVERED, 1);
    case.oracle.revoked(LIFE, 0, seconds(2));
    case.oracle.released(LIFE, 0, true, seconds(2));
    case.is_reported("does not hold 0 as settled");
    let mut case = Case::of(&["a", "b"]);
    case.start(0, 1, 1);
    case.oracle.released(LIFE, 0, true, seconds(1));
    case.is_reported("in flight");
}

#[test]
fn work_after_the_end_of_an_ownership_is_reported() {
    let mut case = Case::of(&["a"]);
    case.oracle.released(LIFE, 0, true, seconds(1));
    case.start(0, 1, 1);
    case.is_reported("released or lost");
    let mut case = Case::of(&["a"]);
    case.oracle.lost(LIFE, 0, seconds(1));
    case.oracle.commit_tried(LIFE, 0, seconds(2));
    case.is_reported("after it lost it");
}

/// An event with bytes of its own.
fn copied(event: Event) -> Event {
    let record = event.record.with_header("copied", b"");
    Event { record, ..event }
}

#[test]
fn a_fetch_beyond_the_window_is_reported() {
    let mut case = Case::of(&["a", "b", "c", "d", "e"]);
    let events: Vec<Event> = (0..4).map(|offset| case.event(offset)).collect();
    case.oracle.fetched(LIFE, 0, Cursor::Reader, &events[..3], seconds(0));
    case.oracle.fetch(LIFE, 0, Cursor::Reader, (3, 100), seconds(0));
    case.is_accepted();
    case.oracle.fetched(LIFE, 0, Cursor::Reader, &events[3..], seconds(0));
    case.oracle.fetch(LIFE, 0, Cursor::Reader, (4, 100), seconds(0));
    case.is_reported("4 events");
}

#[test]
fn with_parked_users_only_what_is_in_memory_counts_for_the_window() {
    let mut case = Case::new(&["a", "b", "c", "d", "e"], true);
    let events: Vec<Event> = (0..4).map(|offset| copied(case.event(offset))).collect();
    case.oracle.fetched(LIFE, 0, Cursor::Reader, &events, seconds(0));
    case.oracle.fetch(LIFE, 0, Cursor::Reader, (4, 100), seconds(0));
    case.is_accepted();
    // One event, and one answer of the other cursor, may be in memory beyond the window.
    let more: Vec<Event> = [case.event(4), case.event(3), case.event(2)].map(copied).into();
    case.oracle.fetched(LIFE, 0, Cursor::Sweep, &more[..1], seconds(0));
    case.oracle.fetch(LIFE, 0, Cursor::Sweep, (5, 100), seconds(0));
    case.is_accepted();
    case.oracle.fetched(LIFE, 0, Cursor::Sweep, &more[1..], seconds(0));
    case.oracle.fetch(LIFE, 0, Cursor::Sweep, (5, 100), seconds(0));
    case.is_reported("7 events");
    // Of events that left memory, the oracle has the only copy.
    let mut case = Case::new(&["a"], true);
    for _ in 0..9 {
        case.oracle.fetched(LIFE, 0, Cursor::Reader, &[copied(case.event(0))], seconds(0));
        case.oracle.fetch(LIFE, 0, Cursor::Reader, (1, 100), seconds(0));
    }
    case.is_accepted();
}

#[test]
fn giving_up_without_cause_or_with_wrong_content_is_reported() {
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, RETRY, 1);
    case.gives_up(0, 1, "exhausted");
    case.is_reported("after 1 tries of 2");
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, Some(Verdict::Unreachable), 1);
    case.attempt(0, 2, Some(Verdict::Unreachable), 2);
    case.gives_up(0, 2, "exhausted");
    case.is_reported("after 0 tries");
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, RETRY, 1);
    case.gives_up(0, 1, "refused");
    case.is_reported("no refusal counts");
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, Some(Verdict::Refused), 1);
    case.oracle.gives_up(LIFE, 0, &dead_letter("a", "0:0", 1, "refused", b"other"), Duration::ZERO);
    case.is_reported("payload of 0 differ");
    let mut case = Case::of(&["a", "a"]);
    case.oracle.dead_letter_stored(0, &dead_letter("a", "0:1", 1, "refused", b"payload"), seconds(1));
    case.is_reported("before an earlier event");
}

#[test]
fn an_attempt_before_the_requested_time_is_reported() {
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, Some(Verdict::Busy { after: Some(seconds(3)) }), 1);
    case.start(0, 2, 3);
    case.is_reported("the destination asked for");
}

/// Six users that fail together in a phase.
fn outage(verdict: Verdict) -> Case {
    let mut case = Case::of(&["a", "b", "c", "d", "e", "f"]);
    case.oracle.phase_begins();
    for offset in 0..6 {
        case.attempt(offset, 1, Some(verdict), 1 + offset as u64);
    }
    case
}

#[test]
fn giving_up_in_an_evident_outage_is_reported_but_not_before() {
    let mut case = outage(Verdict::Refused);
    case.gives_up(0, 1, "refused");
    case.is_accepted();
    case.gives_up(5, 1, "refused");
    case.is_reported("in an outage that 5 users had shown");
}

#[test]
fn counting_tries_of_an_outage_against_an_event_is_reported() {
    let mut case = outage(Verdict::Retry { after: None });
    case.oracle.phase_ends();
    case.attempt(0, 2, RETRY, 20);
    case.gives_up(0, 2, "exhausted");
    case.is_reported("after 1 tries of 2");
}

#[test]
fn an_end_with_open_work_is_reported() {
    let mut case = Case::of(&["a"]);
    case.oracle.ended(LIFE, false);
    case.oracle.finished();
    case.is_reported("not settled");
    let mut case = Case::of(&["a"]);
    case.attempt(0, 1, DELIVERED, 1);
    case.oracle.ended(LIFE, true);
    case.is_reported("a drained stop");
}

fn world() -> Arc<World> {
    let rules = rules(BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 }, false);
    let topics = Topics::new(1, 0, 1_000);
    let oracle = Oracle::new(rules, 1);
    World::new(Random::new(1), oracle, topics, Members::new(1), Behaviour::default(), Rates::default())
}

#[tokio::test(start_paused = true)]
async fn the_in_memory_log_keeps_the_contract_of_a_log() {
    let world = world();
    let engine = MemoryEngine(world.begin_life(Role::Replay));
    let missing = engine.open("nowhere", None).await.unwrap_err();
    assert_eq!(missing, OpenError::Missing { topic: "nowhere".into() });
    let create = CreateTopic { partitions: 2, retention: None };
    for again in [2, 5] {
        let create = CreateTopic { partitions: again, ..create };
        let log = engine.open("side", Some(create)).await.unwrap();
        assert_eq!(
            (log.topic(), log.partitions().await.unwrap()),
            ("side", 2),
            "the topic exists, so any count is fine"
        );
    }
    let log = engine.open("side", None).await.unwrap();
    for round in 0..3 {
        let records = vec![record("a"), record("b")];
        assert_eq!(log.append(1, records).await.unwrap(), round * 2, "consecutive offsets, all or none");
    }
    assert_eq!((log.earliest(1).await.unwrap(), log.latest(1).await.unwrap()), (0, 6));
    let fetched = log.fetch(1, 2, 1, Duration::ZERO).await.unwrap();
    assert_eq!(
        (fetched.events.len(), fetched.next, fetched.latest),
        (1, 3, 6),
        "at least one record, whatever its size"
    );
    let nothing = log.fetch(1, 6, 1_000, seconds(2)).await.unwrap();
    assert_eq!((nothing.events.len(), nothing.next), (0, 6), "waits, and returns no records");
    let beyond = log.fetch(1, 7, 1_000, Duration::ZERO).await.unwrap_err();
    assert_eq!(beyond, FetchError::OutOfRange { from: 7, earliest: 0, latest: 6 });
    assert!(log.append(1, Vec::new()).await.is_err(), "an append without records is an error");
    assert_eq!(log.offset_at(1, 8).await.unwrap(), None);
    assert_eq!(log.offset_at(1, 7).await.unwrap(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_append_wakes_a_waiting_fetch() {
    let world = world();
    let engine = MemoryEngine(world.begin_life(Role::Replay));
    let log = engine.open("side", Some(CreateTopic { partitions: 1, retention: None })).await.unwrap();
    let waiting = {
        let log: Arc<dyn Log> = Arc::clone(&log);
        tokio::spawn(async move { log.fetch(0, 0, 1_000, seconds(60)).await })
    };
    tokio::time::sleep(seconds(1)).await;
    world.append("side", 0, &[record("a")]);
    let fetched = waiting.await.unwrap().unwrap();
    assert_eq!((fetched.events.len(), fetched.next), (1, 1));
    assert_eq!(world.now().as_secs(), 1, "at once, not at the end of the wait");
    assert_ne!(TOPIC, log.topic());
}

#[test]
fn more_parked_users_than_the_list_takes_are_reported() {
    let parked = |users: &[&str]| {
        let listed = |user: &&str| {
            let parked = Some(ParkedUser { first: 0, ..ParkedUser::default() });
            (Some(user.as_bytes().into()), UserState { parked, failed: None })
        };
        PartitionState { users: users.iter().map(listed).collect(), ..PartitionState::at(0) }
    };
    let mut case = Case::new(&["a", "b", "c"], true);
    case.oracle.committed(Some(LIFE), 0, &parked(&["a", "b"]), seconds(1));
    case.is_accepted();
    case.oracle.committed(Some(LIFE), 0, &parked(&["a", "b", "c"]), seconds(2));
    case.is_reported("parks 3 users, the one before 2");
}
