//! The oracle and the world, judged themselves: bad stories made by hand, each told by its first wrong sentence; and
//! the in-memory log held to its contract.

mod replayed;

use crate::dispatch::memory_destination::Behaviour;
use crate::dispatch::memory_group::Members;
use crate::dispatch::memory_log::{MemoryEngine, TOPIC, Topics};
use crate::dispatch::oracle::{Handed, Oracle, Rules};
use crate::dispatch::random::Random;
use crate::dispatch::world::{Rates, Role, World};
use eventd::core::event::{Event, Record};
use eventd::core::progress::{OffsetReset, PartitionState, ResetTarget};
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::BatchLimits;
use eventd::log::{CreateTopic, Engine as _, FetchError, Log, OpenError};
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

/// A story of one partition, told sentence by sentence.
struct Story {
    oracle: Oracle,
    users: Vec<&'static str>,
}

impl Story {
    /// Events of these users, at the offsets 0, 1, …, and one owner that has begun.
    fn of(users: &[&'static str]) -> Self {
        let limits = BatchLimits { runs_max: 3, run_events_max: 3, run_bytes_max: 1_000 };
        let rules = Rules {
            attempts: 2,
            window_events: 4,
            window_bytes: 10_000,
            concurrency: 8,
            limits,
            retry_after_max: seconds(5),
            drain: seconds(5),
            start_latest: false,
        };
        let mut story = Self { oracle: Oracle::new(rules, 1), users: users.to_vec() };
        for (user, offset) in users.iter().zip(0..) {
            story.oracle.appended(0, offset, &record(user), seconds(0));
        }
        story.oracle.committed(None, 0, &PartitionState::at(0), seconds(0));
        story.owner(LIFE, PartitionState::at(0));
        story
    }

    fn owner(&mut self, life: u32, state: PartitionState) {
        self.oracle.given(life, 0);
        self.oracle.began_with(life, 0, Some(state));
    }

    fn event(&self, offset: usize) -> Event {
        Event { offset: offset as i64, record: record(self.users[offset]) }
    }

    fn start_run(&mut self, offsets: &[usize], attempt: u32, at: u64) -> u64 {
        let events = offsets.iter().map(|offset| self.event(*offset)).collect();
        self.oracle.started(LIFE, 0, &[Handed { events, attempt, gap: false }], seconds(at + 100), seconds(at))
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
        self.end(id, verdict, at);
    }

    fn gives_up(&mut self, offset: usize, attempts: u32, reason: &str) {
        let letter = letter(self.users[offset], &format!("0:{offset}"), attempts, reason, b"payload");
        self.oracle.gives_up(LIFE, 0, &letter);
    }

    #[track_caller]
    fn is_fine(&self) {
        assert_eq!(self.oracle.violation(), None);
    }

    #[track_caller]
    fn is_wrong(&self, because: &str) {
        let violation = self.oracle.violation().unwrap_or("nothing");
        assert!(violation.contains(because), "{violation:?} was said, {because:?} is wrong");
    }
}

fn letter(user: &str, source: &str, attempts: u32, reason: &str, payload: &[u8]) -> Record {
    let attempts = attempts.to_string();
    let headers = [
        ("eventd-source", source),
        ("eventd-reason", reason),
        ("eventd-attempts", &attempts),
        ("eventd-answer", "said"),
        ("eventd-first-attempt", "1"),
        ("eventd-last-attempt", "2"),
        ("eventd-time", "7"),
        ("eventd-topic", "user-events"),
    ];
    let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
    Record::new(Some(user.as_bytes()), Some(payload), &headers, 9)
}

const RETRY: Option<Verdict> = Some(Verdict::Retry { after: None });

#[test]
fn a_good_story_is_fine() {
    let mut story = Story::of(&["a", "b", "a"]);
    story.attempt(0, 1, RETRY, 1);
    story.attempt(1, 1, DELIVERED, 1);
    story.oracle.committed(
        Some(LIFE),
        0,
        &PartitionState { watermark: 0, settled: std::iter::once(1..2).collect(), moved: None },
        seconds(0),
    );
    story.attempt(0, 2, RETRY, 2);
    story.gives_up(0, 2, "exhausted");
    story.oracle.dead_letter_stored(0, &letter("a", "0:0", 2, "exhausted", b"payload"), seconds(3));
    story.attempt(2, 1, DELIVERED, 4);
    story.oracle.committed(Some(LIFE), 0, &PartitionState::at(3), seconds(0));
    story.oracle.ended(LIFE, true);
    story.oracle.finished();
    story.is_fine();
}

#[test]
fn an_event_before_an_earlier_one_of_its_user_is_wrong() {
    let mut story = Story::of(&["a", "b", "a"]);
    story.start(2, 1, 1);
    story.is_wrong("2 is tried before Some(0)");
}

#[test]
fn a_run_that_leaves_out_an_event_is_wrong() {
    let mut story = Story::of(&["a", "a", "a"]);
    story.start_run(&[0, 2], 1, 1);
    story.is_wrong("2 is tried before Some(1)");
}

#[test]
fn two_attempts_of_one_user_at_a_time_are_wrong() {
    let mut story = Story::of(&["a"]);
    story.start(0, 1, 1);
    story.start(0, 1, 1);
    story.is_wrong("in flight for its user");
}

#[test]
fn a_step_back_and_a_needless_repeat_are_wrong() {
    let mut story = Story::of(&["a", "a"]);
    story.attempt(0, 1, DELIVERED, 1);
    story.attempt(1, 1, RETRY, 1);
    story.start(0, 1, 2);
    story.is_wrong("steps back");
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, DELIVERED, 1);
    story.start(0, 1, 2);
    story.is_wrong("knows it settled");
    let mut story = Story::of(&["a"]);
    story.owner(LIFE, PartitionState::at(1));
    story.start(0, 1, 1);
    story.is_wrong("the commit holds it");
}

#[test]
fn changed_bytes_are_wrong() {
    let mut story = Story::of(&["a"]);
    story.users[0] = "b";
    story.start(0, 1, 1);
    story.is_wrong("not what was appended");
}

#[test]
fn a_commit_that_claims_too_much_or_takes_back_is_wrong() {
    let mut story = Story::of(&["a", "b"]);
    story.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(0));
    story.is_wrong("claims 0");
    let mut story = Story::of(&["a", "b"]);
    story.attempt(0, 1, DELIVERED, 1);
    story.oracle.committed(
        Some(LIFE),
        0,
        &PartitionState { watermark: 1, settled: std::iter::once(2..9).collect(), moved: None },
        seconds(0),
    );
    story.is_wrong("past the end");
    let mut story = Story::of(&["a", "b"]);
    story.attempt(0, 1, DELIVERED, 1);
    story.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(0));
    story.oracle.committed(None, 0, &PartitionState::at(0), seconds(0));
    story.is_wrong("takes back 0");
}

#[test]
fn a_position_that_moves_unasked_or_twice_or_under_an_attempt_is_wrong() {
    let back = |id, to| OffsetReset { id, to: ResetTarget::Back(to) };
    let moved = |story: &mut Story, id, to| {
        story.oracle.committed(
            Some(LIFE),
            0,
            &PartitionState { moved: Some(id), ..PartitionState::at(to) },
            seconds(3),
        );
    };
    let delivered = || {
        let mut story = Story::of(&["a", "a"]);
        story.attempt(0, 1, DELIVERED, 1);
        story.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(1));
        story
    };
    let mut story = delivered();
    story.oracle.asked(0, back(1, 0));
    assert!(story.oracle.unfinished().is_some_and(|(_, _, why)| why.contains("to move")));
    moved(&mut story, 1, 0);
    story.attempt(0, 1, DELIVERED, 4);
    story.attempt(1, 1, DELIVERED, 5);
    moved(&mut story, 1, 2);
    story.is_fine();
    moved(&mut story, 1, 0);
    story.is_wrong("takes back 0");

    let mut story = delivered();
    moved(&mut story, 1, 0);
    story.is_wrong("None was asked for");

    let mut story = delivered();
    story.oracle.asked(0, back(1, 0));
    story.start(1, 1, 2);
    moved(&mut story, 1, 0);
    story.is_wrong("with attempt 1 in flight");

    let mut story = delivered();
    story.oracle.asked(0, back(1, 0));
    moved(&mut story, 1, 1);
    story.is_wrong("claims 0, which is not settled");
}

#[test]
fn a_handover_that_forgets_a_delivery_is_wrong() {
    let mut story = Story::of(&["a", "b"]);
    story.attempt(0, 1, DELIVERED, 1);
    story.oracle.taken(LIFE, 0, seconds(2));
    story.oracle.released(LIFE, 0, true);
    story.is_wrong("does not hold 0 as settled");
    let mut story = Story::of(&["a", "b"]);
    story.start(0, 1, 1);
    story.oracle.released(LIFE, 0, true);
    story.is_wrong("in flight");
}

#[test]
fn work_after_the_end_of_an_ownership_is_wrong() {
    let mut story = Story::of(&["a"]);
    story.oracle.released(LIFE, 0, true);
    story.start(0, 1, 1);
    story.is_wrong("let go or lost");
    let mut story = Story::of(&["a"]);
    story.oracle.lost(LIFE, 0, seconds(1));
    story.oracle.commit_tried(LIFE, 0, seconds(2));
    story.is_wrong("after it lost it");
}

#[test]
fn a_fetch_without_room_is_wrong() {
    let mut story = Story::of(&["a", "b", "c", "d", "e"]);
    let events: Vec<Event> = (0..4).map(|offset| story.event(offset)).collect();
    story.oracle.fetched(LIFE, 0, &events);
    story.oracle.fetch(LIFE, 0, 3, 100);
    story.is_fine();
    story.oracle.fetch(LIFE, 0, 4, 100);
    story.is_wrong("4 events");
}

#[test]
fn giving_up_without_cause_or_falsely_is_wrong() {
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, RETRY, 1);
    story.gives_up(0, 1, "exhausted");
    story.is_wrong("after 1 tries of 2");
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, Some(Verdict::Unreachable), 1);
    story.attempt(0, 2, Some(Verdict::Unreachable), 2);
    story.gives_up(0, 2, "exhausted");
    story.is_wrong("after 0 tries");
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, RETRY, 1);
    story.gives_up(0, 1, "refused");
    story.is_wrong("no refusal counts");
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, Some(Verdict::Refused), 1);
    story.oracle.gives_up(LIFE, 0, &letter("a", "0:0", 1, "refused", b"other"));
    story.is_wrong("payload of 0 differ");
    let mut story = Story::of(&["a", "a"]);
    story.oracle.dead_letter_stored(0, &letter("a", "0:1", 1, "refused", b"payload"), seconds(1));
    story.is_wrong("before an earlier event");
}

#[test]
fn patience_that_was_asked_for_is_kept() {
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, Some(Verdict::Busy { after: Some(seconds(3)) }), 1);
    story.start(0, 2, 3);
    story.is_wrong("the destination asked for");
}

/// Six users that fail together in a phase.
fn outage(verdict: Verdict) -> Story {
    let mut story = Story::of(&["a", "b", "c", "d", "e", "f"]);
    story.oracle.phase_begins();
    for offset in 0..6 {
        story.attempt(offset, 1, Some(verdict), 1 + offset as u64);
    }
    story
}

#[test]
fn giving_up_in_an_outage_is_wrong_and_before_anybody_could_tell_is_not() {
    let mut story = outage(Verdict::Refused);
    story.gives_up(0, 1, "refused");
    story.is_fine();
    story.gives_up(5, 1, "refused");
    story.is_wrong("in an outage that 5 users had told of");
}

#[test]
fn tries_of_an_outage_that_are_held_against_an_event_later_are_wrong() {
    let mut story = outage(Verdict::Retry { after: None });
    story.oracle.phase_ends();
    story.attempt(0, 2, RETRY, 20);
    story.gives_up(0, 2, "exhausted");
    story.is_wrong("after 1 tries of 2");
}

#[test]
fn an_end_with_something_left_is_wrong() {
    let mut story = Story::of(&["a"]);
    story.oracle.ended(LIFE, false);
    story.oracle.finished();
    story.is_wrong("not settled");
    let mut story = Story::of(&["a"]);
    story.attempt(0, 1, DELIVERED, 1);
    story.oracle.ended(LIFE, true);
    story.is_wrong("a drained stop");
}

fn world() -> Arc<World> {
    let limits = BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 };
    let rules = Rules {
        attempts: 1,
        window_events: 1_000,
        window_bytes: 1 << 20,
        concurrency: 1,
        limits,
        retry_after_max: seconds(1),
        drain: seconds(1),
        start_latest: false,
    };
    let topics = Topics::new(1, 0, 1_000);
    let oracle = Oracle::new(rules, 1);
    World::new(Random::new(1), oracle, topics, Members::new(1), Behaviour::default(), Rates::default())
}

#[tokio::test(start_paused = true)]
async fn the_log_in_memory_keeps_the_contract_of_a_log() {
    let world = world();
    let engine = MemoryEngine(world.begin_life(Role::Replay));
    let missing = engine.open("nowhere", None).await.unwrap_err();
    assert_eq!(missing, OpenError::Missing { topic: "nowhere".into() });
    let create = CreateTopic { partitions: 2, retention: None };
    for again in [2, 5] {
        let create = CreateTopic { partitions: again, ..create };
        let log = engine.open("side", Some(create)).await.unwrap();
        assert_eq!((log.topic(), log.partitions().await.unwrap()), ("side", 2), "it exists: any count is success");
    }
    let log = engine.open("side", None).await.unwrap();
    for round in 0..3 {
        let records = vec![record("a"), record("b")];
        assert_eq!(log.append(1, records).await.unwrap(), round * 2, "consecutive offsets, all or none");
    }
    assert_eq!((log.earliest(1).await.unwrap(), log.latest(1).await.unwrap()), (0, 6));
    let fetched = log.fetch(1, 2, 1, Duration::ZERO).await.unwrap();
    assert_eq!((fetched.events.len(), fetched.next, fetched.latest), (1, 3, 6), "at least one, whatever its size");
    let nothing = log.fetch(1, 6, 1_000, seconds(2)).await.unwrap();
    assert_eq!((nothing.events.len(), nothing.next), (0, 6), "waits, and answers with none");
    let beyond = log.fetch(1, 7, 1_000, Duration::ZERO).await.unwrap_err();
    assert_eq!(beyond, FetchError::OutOfRange { from: 7, earliest: 0, latest: 6 });
    assert!(log.append(1, Vec::new()).await.is_err(), "no records is an error");
    assert_eq!(log.offset_at(1, 8).await.unwrap(), None);
    assert_eq!(log.offset_at(1, 7).await.unwrap(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_waits_hears_of_an_append() {
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
    assert_eq!(world.now().as_secs(), 1, "at once, not when the time is over");
    assert_ne!(TOPIC, log.topic());
}
