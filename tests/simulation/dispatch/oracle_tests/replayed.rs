//! Tests of the oracle of a replay.

use super::{LIFE, dead_letter, record, rules, seconds};
use crate::dispatch::oracle::{DeliveredRun, Oracle};
use eventd::core::event::{Event, Record};
use eventd::core::progress::PartitionState;
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::BatchLimits;
use std::collections::BTreeMap;
use std::time::Duration;

const ID: &[u8] = b"20260102-030405-abcdef";

/// A case with a replay of one partition whose log ends at 10, built step by step.
struct Case {
    oracle: Oracle,
    events: BTreeMap<i64, Record>,
}

impl Case {
    /// A replay that takes these records and has started.
    fn of(events: &[(i64, Record)], dead: bool) -> Self {
        let rules = rules(BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 1_000 }, true);
        let events: BTreeMap<i64, Record> = events.iter().cloned().collect();
        let (id, live) = (std::str::from_utf8(ID).unwrap(), Oracle::new(rules.clone(), 1));
        let all = std::slice::from_ref(&events);
        let mut case = Self { oracle: Oracle::of_replay(rules, id, dead, all, &[10], &live, seconds(0)), events };
        let begins = PartitionState::at(0);
        case.oracle.assigned(LIFE, 0, seconds(0));
        case.oracle.committed(Some(LIFE), 0, &begins, seconds(0));
        case.oracle.began_with(LIFE, 0, Some(begins), Duration::ZERO);
        case
    }

    /// The destination gets a record with this offset, and accepts it.
    fn delivers(&mut self, offset: i64, record: Record) {
        let run = DeliveredRun { events: vec![Event { offset, record }], attempt: 1, gap: false };
        let runs = self.oracle.in_place(LIFE, 0, vec![run]);
        let id = self.oracle.started(LIFE, 0, &runs, seconds(9), seconds(1));
        if self.oracle.violation().is_none() {
            self.oracle.reported(id, &[Report { delivered: 1, failed: None }], seconds(1));
        }
    }

    #[track_caller]
    fn is_reported(&self, because: &str) {
        let violation = self.oracle.violation().unwrap_or("nothing");
        assert!(violation.contains(because), "the violation is {violation:?}, not {because:?}");
    }
}

fn sent(record: &Record) -> Record {
    record.with_header("eventd-replay", ID)
}

#[test]
fn a_replay_that_delivers_all_its_events_is_done() {
    let mut case = Case::of(&[(2, record("a")), (5, record("b"))], false);
    for (offset, record) in case.events.clone() {
        assert!(case.oracle.unfinished().is_some());
        case.delivers(offset, sent(&record));
    }
    case.oracle.committed(Some(LIFE), 0, &PartitionState::at(6), seconds(2));
    assert_eq!((case.oracle.violation(), case.oracle.unfinished()), (None, None));
}

#[test]
fn an_event_outside_the_replay_is_reported() {
    let mut case = Case::of(&[(2, record("a"))], false);
    case.delivers(3, sent(&record("a")));
    case.is_reported("3 is not in the log");
}

#[test]
fn an_event_without_the_id_of_its_replay_is_reported() {
    for wrong in
        [record("a"), record("a").with_header("eventd-replay", b"another"), sent(&record("a").with_header("x", b"y"))]
    {
        let mut case = Case::of(&[(2, record("a"))], false);
        case.delivers(2, wrong);
        case.is_reported("is not what was appended");
    }
}

#[test]
fn dead_letters_of_one_event_are_distinguished() {
    let one = |attempts| dead_letter("a", "0:7", attempts, "refused", b"payload");
    let mut case = Case::of(&[(0, one(1)), (4, one(2))], true);
    let made = |record: &Record| sent(&record.with_header("eventd-id", b"user-events-0-7"));
    case.delivers(7, made(&one(1)));
    assert_eq!((case.oracle.violation(), case.oracle.has_settled(0, 0)), (None, true));
    assert!(!case.oracle.has_settled(0, 4), "the second dead letter is not settled");
    case.delivers(7, made(&one(1)));
    case.is_reported("4 is not what was appended");
}

#[test]
fn a_dead_letter_that_fails_again_continues_its_attempt_count() {
    let first = dead_letter("a", "0:7", 3, "refused", b"payload");
    for (attempts, wrong) in [(4, None), (1, Some("1 attempts of 0, and 3 + 1 were seen to fail"))] {
        let mut case = Case::of(&[(0, first.clone())], true);
        let record = sent(&first.with_header("eventd-id", b"user-events-0-7"));
        let run = DeliveredRun { events: vec![Event { offset: 7, record }], attempt: 1, gap: false };
        let runs = case.oracle.in_place(LIFE, 0, vec![run]);
        let id = case.oracle.started(LIFE, 0, &runs, seconds(9), seconds(1));
        let refused = Failed::new(Verdict::Refused, "said");
        case.oracle.reported(id, &[Report { delivered: 0, failed: Some(refused) }], seconds(1));
        let again = sent(&dead_letter("a", "0:7", attempts, "refused", b"payload"));
        case.oracle.gives_up(LIFE, 0, &again, Duration::ZERO);
        match wrong {
            Some(wrong) => case.is_reported(wrong),
            None => assert_eq!(case.oracle.violation(), None),
        }
        case.oracle.dead_letter_stored(0, &again, seconds(2));
        assert!(case.oracle.has_settled(0, 0));
    }
}
