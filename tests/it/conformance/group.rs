//! The promises of [`Group`](eventd::group::Group) to a group's only member.

use super::{Fixture, new_topic, record, unique};
use crate::support::wait::PATIENCE;
use eventd::core::outcome::{Certainty, FailureCode};
use eventd::core::progress::{OffsetReset, PartitionState, ResetTarget};
use eventd::group::{Change, Group, is_final};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Waits until the member was assigned this many partitions. Only the owner of a partition may commit.
async fn own(group: &dyn Group, partitions: usize) {
    for _ in 0..partitions {
        let change = timeout(PATIENCE, group.changed()).await.expect("every partition is assigned").unwrap();
        assert!(matches!(change, Change::Assigned(_)), "a single member loses no partition: {change:?}");
    }
}

/// A state with this watermark and these settled ranges `(start, end)` above it.
fn state(watermark: i64, settled: &[(i64, i64)]) -> PartitionState {
    PartitionState {
        settled: settled.iter().map(|(start, end)| *start..*end).collect(),
        ..PartitionState::at(watermark)
    }
}

pub(crate) async fn a_single_member_is_assigned_every_partition_once(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 3).await;
    let group = fixture.join(&unique("group"), log.topic()).await;
    let mut given = BTreeSet::new();
    while given.len() < 3 {
        match timeout(PATIENCE, group.changed()).await.expect("every partition is assigned").unwrap() {
            Change::Assigned(partition) => assert!(given.insert(partition), "{partition} is assigned twice"),
            other => panic!("a single member loses no partition: {other:?}"),
        }
    }
    assert_eq!(given, BTreeSet::from([0, 1, 2]));
    // This waits for the absence of a change, so it needs a fixed time.
    let more = timeout(Duration::from_millis(300), group.changed()).await;
    assert!(more.is_err(), "{more:?}");
    group.leave().await;
}

pub(crate) async fn a_new_group_has_committed_nothing(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let group = fixture.join(&unique("group"), log.topic()).await;
    assert_eq!(group.committed(0).await, Ok(None));
    group.leave().await;
}

pub(crate) async fn a_commit_is_read_back_with_its_settled_map(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 2).await;
    let first = log.append(1, (0..100).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
    let group = fixture.join(&unique("group"), log.topic()).await;
    own(&*group, 2).await;
    for stored in [
        state(first, &[]),
        state(first + 3, &[(first + 5, first + 6), (first + 40, first + 100)]),
        state(first + 2, &[(first + 50, first + 60)]),
        state(first + 100, &[]),
    ] {
        group.commit(1, stored.clone()).await.unwrap();
        assert_eq!(group.committed(1).await, Ok(Some(stored)));
    }
    assert_eq!(group.committed(0).await, Ok(None));
    group.leave().await;
}

pub(crate) async fn groups_and_topics_are_independent(fixture: &dyn Fixture) {
    let (one, two) = (new_topic(fixture, 1).await, new_topic(fixture, 1).await);
    let end = one.append(0, (0..9).map(|n| record("user", &n.to_string())).collect()).await.unwrap() + 9;
    let (name, other) = (unique("group"), unique("group"));
    let group = fixture.join(&name, one.topic()).await;
    own(&*group, 1).await;
    group.commit(0, state(end, &[])).await.unwrap();
    assert_eq!(group.name(), name);
    group.leave().await;
    let group = fixture.join(&other, one.topic()).await;
    own(&*group, 1).await;
    assert_eq!(group.committed(0).await, Ok(None));
    group.leave().await;
    let group = fixture.join(&name, two.topic()).await;
    own(&*group, 1).await;
    assert_eq!(group.committed(0).await, Ok(None));
    group.leave().await;
}

pub(crate) async fn a_commit_survives_its_member(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let first = log.append(0, (0..9).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
    let (name, stored) = (unique("group"), state(first + 4, &[(first + 6, first + 8)]));
    let group = fixture.join(&name, log.topic()).await;
    own(&*group, 1).await;
    group.commit(0, stored.clone()).await.unwrap();
    group.leave().await;
    drop(group);
    let group = fixture.join(&name, log.topic()).await;
    own(&*group, 1).await;
    assert_eq!(group.committed(0).await, Ok(Some(stored)));
    group.commit(0, state(first + 9, &[])).await.unwrap();
    group.leave().await;
}

pub(crate) async fn a_requested_reset_is_applied_by_the_owner_or_at_once_without_one(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 2).await;
    let first = log.append(1, (0..9).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
    let (name, topic) = (unique("group"), log.topic());
    let stored = state(first + 6, &[(first + 7, first + 8)]);
    let back = |id, by| OffsetReset { id, to: ResetTarget::Back(first + by) };
    let group = fixture.join(&name, topic).await;
    own(&*group, 2).await;
    group.commit(1, stored.clone()).await.unwrap();
    assert_eq!(group.requested_reset(1).await, Ok(None));
    for wanted in [back(5, 3), OffsetReset { id: 6, to: ResetTarget::Ahead(first + 8) }, back(8, 2)] {
        assert!(!fixture.request_reset(&name, topic, 1, wanted).await, "the owner has to apply it");
        // The owner learns of a request with a delay: an engine may cache for a while that there is none.
        let deadline = Instant::now() + PATIENCE;
        while group.requested_reset(1).await != Ok(Some(wanted)) {
            assert!(Instant::now() < deadline, "{wanted:?}, and {:?}", group.requested_reset(1).await);
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(group.requested_reset(0).await, Ok(None), "the request is for the other partition");
    }
    assert_eq!(group.committed(1).await, Ok(Some(stored.clone())), "only the owner applies it");
    let moved = stored.with_reset(&back(8, 2));
    group.commit(1, moved.clone()).await.unwrap();
    group.leave().await;
    drop(group);

    assert!(fixture.request_reset(&name, topic, 1, back(8, 2)).await);
    assert!(fixture.request_reset(&name, topic, 1, back(9, 1)).await);
    let group = fixture.join(&name, topic).await;
    own(&*group, 2).await;
    assert_eq!(
        group.committed(1).await,
        Ok(Some(moved.with_reset(&back(9, 1)))),
        "a reset that is already done changes nothing"
    );
    group.leave().await;
}

pub(crate) async fn a_commit_past_the_end_is_refused_and_changes_nothing(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let end = log.append(0, (0..9).map(|n| record("user", &n.to_string())).collect()).await.unwrap() + 9;
    let group = fixture.join(&unique("group"), log.topic()).await;
    own(&*group, 1).await;
    group.commit(0, state(end, &[])).await.unwrap();
    for past in [state(end + 1, &[]), state(end - 5, &[(end - 3, end + 1)])] {
        let failure = group.commit(0, past).await.unwrap_err();
        assert_eq!((failure.certainty, failure.code), (Certainty::Refused, FailureCode::CommitPastEnd), "{failure}");
    }
    assert_eq!(group.committed(0).await, Ok(Some(state(end, &[]))));
    group.leave().await;
}

pub(crate) async fn a_commit_that_cannot_be_read_is_final_and_named_and_the_other_partitions_are_read(
    fixture: &dyn Fixture,
) {
    let log = new_topic(fixture, 2).await;
    let first = log.append(1, (0..9).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
    let (name, topic) = (unique("group"), log.topic());
    for (format, text, why) in [
        ('9', "AAAA", "a newer version of eventd has written it, in format 9"),
        ('1', "no base64url", "not base64url"),
        ('1', "AA", "ends early or is out of range"),
    ] {
        let group = fixture.join(&name, topic).await;
        own(&*group, 2).await;
        for partition in 0..2 {
            group.commit(partition, PartitionState::at(0)).await.unwrap();
        }
        group.commit(1, state(first + 4, &[])).await.unwrap();
        group.leave().await;
        drop(group);
        fixture.replace_commit(&name, topic, 0, format, text).await;

        let group = fixture.join(&name, topic).await;
        own(&*group, 2).await;
        let failure = group.committed(0).await.unwrap_err();
        assert_eq!((failure.certainty, failure.code), (Certainty::Refused, FailureCode::CommitUnreadable), "{failure}");
        assert!(is_final(&failure), "no later read succeeds");
        let (said, named) = (failure.to_string(), format!("commit of {name:?} in partition 0"));
        for expected in [&*named, why, "--start earliest or --start latest"] {
            assert!(said.contains(expected), "{expected:?} in {said}");
        }
        assert_eq!(group.committed(1).await, Ok(Some(state(first + 4, &[]))));
        // The owner may replace it.
        group.commit(0, PartitionState::at(0)).await.unwrap();
        assert_eq!(group.committed(0).await, Ok(Some(PartitionState::at(0))));
        group.leave().await;
    }
}
