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
    fn request_reset<'a>(
        &'a self,
        name: &'a str,
        topic: &'a str,
        partition: u32,
        wanted: OffsetReset,
    ) -> BoxFuture<'a, bool>;

    /// Replaces the stored commit of a partition by this format digit and this text, as a newer version of eventd would, or
    /// as damage does. The group has no member.
    fn replace_commit<'a>(
        &'a self,
        name: &'a str,
        topic: &'a str,
        partition: u32,
        format: char,
        text: &'a str,
    ) -> BoxFuture<'a, ()>;
}

/// Makes one test of each promise.
macro_rules! suite {
    ($fixture:path) => {
        $crate::conformance::suite!($fixture, log:
            records_of_one_append_have_consecutive_offsets_in_order
            later_appends_have_higher_offsets
            concurrent_appenders_each_keep_their_order
            partitions_are_independent
            a_fetch_can_begin_at_any_offset
            a_fetch_respects_its_byte_limit_but_returns_at_least_one_record
            a_waiting_fetch_wakes_for_an_append
            a_fetch_without_records_ends_after_its_wait
            a_fetch_outside_the_log_reports_the_range_of_the_log
            a_record_that_is_too_large_is_refused_and_not_stored
            an_append_without_records_is_refused
            null_and_empty_values_stay_distinct
            payloads_and_headers_come_back_byte_for_byte
            an_offset_is_found_by_its_time
            a_new_topic_is_empty
            an_existing_topic_is_opened_with_any_partition_count
            a_missing_topic_is_an_error_that_names_it
            a_missing_partition_is_refused);
        $crate::conformance::suite!($fixture, group:
            a_single_member_is_assigned_every_partition_once
            a_new_group_has_committed_nothing
            a_commit_is_read_back_with_its_settled_map
            groups_and_topics_are_independent
            a_commit_survives_its_member
            a_requested_reset_is_applied_by_the_owner_or_at_once_without_one
            a_commit_past_the_end_is_refused_and_changes_nothing
            a_commit_that_cannot_be_read_is_final_and_named_and_the_other_partitions_are_read);
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
