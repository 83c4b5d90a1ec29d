//! The promises that every log and every group keeps, as one suite that runs against each engine. An engine joins with
//! a [`Fixture`] and one line:
//!
//! ```text
//! crate::conformance::suite!(my_fixture);     // async fn my_fixture() -> impl Fixture
//! ```
//!
//! Each test has topics of its own, so that tests can share a broker. No test expects a particular first offset.

pub(crate) mod group;
pub(crate) mod log;

use crate::support::wait::PATIENCE;
use eventd::BoxFuture;
use eventd::core::event::Record;
use eventd::core::progress::OffsetReset;
use eventd::group::Group;
use eventd::log::{CreateTopic, Engine, Log};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One engine under test. Dropping the value ends it.
pub(crate) trait Fixture: Send + Sync {
    fn engine(&self) -> Arc<dyn Engine>;

    /// Joins a group that has no other member.
    fn join<'a>(&'a self, name: &'a str, topic: &'a str) -> BoxFuture<'a, Arc<dyn Group>>;

    /// Requests an offset reset in one partition. If no member owns the partition, applies it. Returns whether it was
    /// applied.
    fn moves<'a>(&'a self, name: &'a str, topic: &'a str, partition: u32, wanted: OffsetReset) -> BoxFuture<'a, bool>;
}

/// Makes one test of each promise.
macro_rules! suite {
    ($fixture:path) => {
        $crate::conformance::suite!($fixture, log:
            the_records_of_one_append_stand_together_in_their_order
            appends_one_after_the_other_have_growing_offsets
            each_of_many_appenders_keeps_its_own_order
            partitions_are_apart
            fetching_begins_anywhere
            a_fetch_keeps_to_its_bytes_and_gives_one_record_at_least
            a_waiting_fetch_wakes_for_an_append
            a_fetch_with_nothing_to_give_ends_with_its_wait
            a_fetch_outside_the_log_says_what_the_log_holds
            a_record_that_is_too_large_is_refused_and_leaves_nothing
            an_append_of_nothing_is_refused
            what_is_null_stays_null_and_what_is_empty_stays_empty
            payloads_and_headers_come_back_byte_for_byte
            an_offset_is_found_by_its_time
            a_new_topic_begins_and_ends_at_the_same_offset
            a_topic_that_exists_is_opened_whatever_its_partitions
            a_missing_topic_is_an_error_that_names_it
            a_partition_that_is_not_there_is_refused);
        $crate::conformance::suite!($fixture, group:
            a_member_alone_is_given_every_partition_once
            a_new_group_has_committed_nothing
            a_commit_comes_back_with_its_map
            groups_and_topics_are_apart
            a_commit_outlives_its_member
            what_is_asked_for_is_told_to_the_owner_and_applied_where_there_is_none
            a_commit_past_the_end_is_refused_and_changes_nothing);
    };
    ($fixture:path, $part:ident: $($name:ident)+) => {
        mod $part {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let fixture = $fixture().await;
                    $crate::conformance::$part::$name(&fixture).await;
                }
            )+
        }
    };
}
pub(crate) use suite;

/// A name that no other test and no other run uses.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Creates a topic that only this test uses.
pub(crate) async fn new_topic(fixture: &dyn Fixture, partitions: u32) -> Arc<dyn Log> {
    let create = CreateTopic { partitions, retention: None };
    fixture.engine().open(&unique("topic"), Some(create)).await.expect("a new topic opens")
}

pub(crate) fn record(user: &str, payload: &str) -> Record {
    Record::new(Some(user.as_bytes()), Some(payload.as_bytes()), &[], 1_700_000_000_000)
}

pub(crate) fn payload(record: &Record) -> &str {
    std::str::from_utf8(record.value().expect("a payload")).expect("text")
}

/// Every record from this offset to the end of the log.
pub(crate) async fn read_all(log: &dyn Log, partition: u32, from: i64) -> Vec<(i64, Record)> {
    let (mut at, mut found) = (from, Vec::new());
    let end = log.latest(partition).await.expect("the end is known");
    while at < end {
        let fetched = log.fetch(partition, at, 1 << 20, PATIENCE).await.expect("a fetch inside the log succeeds");
        assert!(fetched.next > at, "a fetch that gives records advances from {at}: {fetched:?}");
        at = fetched.next;
        found.extend(fetched.events.into_iter().map(|event| (event.offset, event.record)));
    }
    found
}
