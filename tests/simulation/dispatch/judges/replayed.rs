//! The oracle of a replay, judged itself.

use super::{LIFE, letter, record, seconds};
use crate::dispatch::oracle::{Handed, Oracle, Rules};
use eventd::core::event::{Event, Record};
use eventd::core::progress::PartitionState;
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::BatchLimits;
use std::collections::BTreeMap;

const ID: &[u8] = b"20260102-030405-abcdef";

/// A replay of one partition, whose log ends at 10, told sentence by sentence.
struct Story {
    oracle: Oracle,
    taken: BTreeMap<i64, Record>,
}

impl Story {
    /// That takes these, and has begun.
    fn of(taken: &[(i64, Record)], dead: bool) -> Self {
        let limits = BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 1_000 };
        let rules = Rules {
            attempts: 2,
            window_events: 4,
            window_bytes: 10_000,
            concurrency: 8,
            limits,
            retry_after_max: seconds(5),
            drain: seconds(5),
            start_latest: true,
        };
        let taken: BTreeMap<i64, Record> = taken.iter().cloned().collect();
        let (id, live) = (std::str::from_utf8(ID).unwrap(), Oracle::new(rules.clone(), 1));
        let all = std::slice::from_ref(&taken);
        let mut story = Self { oracle: Oracle::of_replay(rules, id, dead, all, &[10], &live, seconds(0)), taken };
        let begins = PartitionState::at(0);
        story.oracle.given(LIFE, 0);
        story.oracle.committed(Some(LIFE), 0, &begins, seconds(0));
        story.oracle.began_with(LIFE, 0, Some(begins));
        story
    }

    /// The destination is given a record under this offset, and takes it.
    fn delivers(&mut self, offset: i64, record: Record) {
        let run = Handed { events: vec![Event { offset, record }], attempt: 1, gap: false };
        let runs = self.oracle.in_place(LIFE, 0, vec![run]);
        let id = self.oracle.started(LIFE, 0, &runs, seconds(9), seconds(1));
        if self.oracle.violation().is_none() {
            self.oracle.reported(id, &[Report { delivered: 1, failed: None }], seconds(1));
        }
    }

    #[track_caller]
    fn is_wrong(&self, because: &str) {
        let violation = self.oracle.violation().unwrap_or("nothing");
        assert!(violation.contains(because), "{violation:?} was said, {because:?} is wrong");
    }
}

fn sent(record: &Record) -> Record {
    record.with_header("eventd-replay", ID)
}

#[test]
fn what_is_taken_is_delivered_and_then_all_is_done() {
    let mut story = Story::of(&[(2, record("a")), (5, record("b"))], false);
    for (offset, record) in story.taken.clone() {
        assert!(story.oracle.unfinished().is_some());
        story.delivers(offset, sent(&record));
    }
    story.oracle.committed(Some(LIFE), 0, &PartitionState::at(6), seconds(2));
    assert_eq!((story.oracle.violation(), story.oracle.unfinished()), (None, None));
}

#[test]
fn what_is_not_taken_is_not_to_be_tried() {
    let mut story = Story::of(&[(2, record("a"))], false);
    story.delivers(3, sent(&record("a")));
    story.is_wrong("3 is not in the log");
}

#[test]
fn an_event_that_does_not_say_which_replay_it_is_of_is_not_what_was_to_be_sent() {
    for wrong in
        [record("a"), record("a").with_header("eventd-replay", b"another"), sent(&record("a").with_header("x", b"y"))]
    {
        let mut story = Story::of(&[(2, record("a"))], false);
        story.delivers(2, wrong);
        story.is_wrong("is not what was appended");
    }
}

#[test]
fn letters_of_one_event_are_told_apart() {
    let one = |attempts| letter("a", "0:7", attempts, "refused", b"payload");
    let mut story = Story::of(&[(0, one(1)), (4, one(2))], true);
    let made = |record: &Record| sent(&record.with_header("eventd-id", b"user-events-0-7"));
    story.delivers(7, made(&one(1)));
    assert_eq!((story.oracle.violation(), story.oracle.has_settled(0, 0)), (None, true));
    assert!(!story.oracle.has_settled(0, 4), "the second one is another letter");
    story.delivers(7, made(&one(1)));
    story.is_wrong("4 is not what was appended");
}

#[test]
fn a_letter_that_fails_again_counts_on() {
    let first = letter("a", "0:7", 3, "refused", b"payload");
    for (attempts, wrong) in [(4, None), (1, Some("1 attempts of 0, and 3 + 1 were seen to fail"))] {
        let mut story = Story::of(&[(0, first.clone())], true);
        let record = sent(&first.with_header("eventd-id", b"user-events-0-7"));
        let run = Handed { events: vec![Event { offset: 7, record }], attempt: 1, gap: false };
        let runs = story.oracle.in_place(LIFE, 0, vec![run]);
        let id = story.oracle.started(LIFE, 0, &runs, seconds(9), seconds(1));
        let refused = Failed::new(Verdict::Refused, "said");
        story.oracle.reported(id, &[Report { delivered: 0, failed: Some(refused) }], seconds(1));
        let again = sent(&letter("a", "0:7", attempts, "refused", b"payload"));
        story.oracle.gives_up(LIFE, 0, &again);
        match wrong {
            Some(wrong) => story.is_wrong(wrong),
            None => assert_eq!(story.oracle.violation(), None),
        }
        story.oracle.dead_letter_stored(0, &again, seconds(2));
        assert!(story.oracle.has_settled(0, 0));
    }
}
