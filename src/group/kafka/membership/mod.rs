//! One process's membership in a consumer group: it joins, takes over assignments, sends heartbeats and joins again.
//!
//! ```text
//!             ┌────────── join again, and announce what is owned ───────────────┐
//!             ▼                                                                 │ a member joined or left, or
//!   JoinGroup ──▶ (the leader assigns) ──▶ SyncGroup ──▶ first heartbeat ──▶ adopt: Assigned, Revoked ──▶ dispatch
//!             ▲                                                                 │ dispatch released a partition
//!             │                                                                 ▼
//!             └── join again, and announce nothing ◀── lose all: Lost ◀── unknown to the coordinator, or
//!                                                                         the lease has ended
//!
//!   in parallel: heartbeats. Each acknowledged one moves the lease to its sending + the session time-out
//! ```
//!
//! How a partition moves from member A to member B (cooperative-sticky):
//!
//! 1. B joins. The coordinator answers A's next heartbeat with "rebalance in progress", and A joins again. A says which
//!    partitions it owns, and keeps delivering all of them.
//! 2. The leader assigns some of A's partitions to no member yet, because A still owns them. Both members sync. A learns
//!    that they are revoked: dispatch starts no more attempts, lets those in flight end, commits, and releases them.
//! 3. A joins again without them. Now the leader assigns them to B, which reads A's commits and continues.
//!
//! Partitions drain at different speeds, so steps 2 and 3 may happen several times. Delivery of the partitions that stay
//! with A is never interrupted. If A dies, its session ends, and the leader treats its partitions as unowned.
//!
//! # Two members never work on one partition at the same time
//!
//! The coordinator removes a member that it has not heard from, and cannot tell it so. So each member gives up
//! its partitions by itself, before the coordinator can have removed it. That moment is the lease (`member::lease`).
//! Dispatch starts no attempt that could last beyond it, and nothing is committed after it. The lease is read on a clock
//! that continues while the machine sleeps.
//!
//! The coordinator believes the last JoinGroup that it receives of a member id. A JoinGroup does not say of which
//! generation it is, so the coordinator cannot refuse one that is delayed in the network. With it, a rebalance may end
//! without the partitions that the member was assigned meanwhile, and the leader assigns them to another member. So a
//! member never sends a JoinGroup while the answer to an earlier one is awaited, not even if its lease ends. If there is
//! no answer until the deadline, the member drops everything and asks for another member id.
//!
//! A JoinGroup waits at the broker until all members have joined. So heartbeats and commits use other connections, and
//! delivery of the partitions that stay is not interrupted by a rebalance.
//!
//! # Static membership
//!
//! If a process comes with an instance id that the coordinator knows, it gets the assignment of the process before it,
//! without a rebalance. Whatever that process was about to release would then belong to no member for ever. Also, before
//! JoinGroup version 9, a leader that comes back in this way is not told that it leads. So such a process adopts what it
//! got, and joins once more to announce it.
//!
//! # Why the classic protocol
//!
//! Kafka 4's own group protocol (KIP-848) needs Kafka 4, and eventd supports brokers from version 2.8 on. It also moves
//! the assignment into the broker. Here the leader assigns by rules of ours: a draining member gets nothing, and another
//! destination under the same name is refused. The classic protocol lets each member bring such rules along.

mod heartbeat;
mod join;
#[cfg(test)]
#[path = "../../../../tests/simulation/membership/mod.rs"]
mod simulation;

use self::join::JoinFailure;
use super::clocks::Clocks;
use super::coordinator::Coordinator;
use super::member::{CommitIdentity, MemberState, RejoinReason, RejoinUrgency, ReleaseOutcome};
use crate::BoxFuture;
use crate::core::outcome::{Failure, FailureCode};
use crate::group::Change;
use crate::kafka::describe;
use crate::limits::PARTITION_COUNT_CHECK_INTERVAL;
use crate::log_limiter::LogLimiter;
use crate::vital::Vital;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{GroupId, LeaveGroupRequest};
use kafka_protocol::protocol::StrBytes;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a member waits for further releases before it announces those that it has. Each announcement is a rebalance
/// of the whole group, and most partitions drain within milliseconds.
const RELEASE_ANNOUNCE_DELAY: Duration = Duration::from_millis(300);

/// How often a member sends a heartbeat at least. It learns about a rebalance as soon as that.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_millis(300);

/// How long a failed join waits before the next one. The delay doubles from the first value to the second.
const REJOIN_BACKOFF: Duration = Duration::from_millis(50);
const REJOIN_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How long a request that nothing depends on may take: a LeaveGroup, or a look at the number of partitions.
const MINOR_REQUEST_MAX: Duration = Duration::from_secs(3);

const SESSION_EXPIRED: &str = "no heartbeat was acknowledged within the session time-out";

/// Which group a member joins, and as whom.
#[derive(Debug, Clone)]
pub(super) struct MembershipConfig {
    pub(super) group: String,
    pub(super) topic: String,
    /// Tells the destination from another destination under the same name.
    pub(super) digest: String,
    pub(super) session_timeout: Duration,
    /// Static membership: a process that restarts under this id gets its partitions back without a rebalance.
    pub(super) instance_id: Option<String>,
}

/// A handle to a membership. When it is dropped, its task ends. The coordinator then removes the member after the session
/// time-out.
#[derive(Debug)]
pub(super) struct Membership {
    shared: Arc<SharedMembership>,
    task: AbortHandle,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the handle and the task of a membership share.
#[derive(Debug)]
struct SharedMembership {
    coordinator: Arc<dyn Coordinator>,
    /// Reads the current time.
    clock: fn() -> Clocks,
    config: MembershipConfig,
    /// The number of partitions of the topic, when it was last looked up.
    partition_count: AtomicU32,
    member: Mutex<MemberState>,
    /// Wakes [`Membership::changed`].
    has_change: Notify,
    /// Wakes the task: a heartbeat or a release may require a join.
    check_rejoin: Notify,
    log_limiter: LogLimiter,
}

impl Membership {
    pub(super) fn start(coordinator: Arc<dyn Coordinator>, config: MembershipConfig, partition_count: u32) -> Self {
        Self::start_with(coordinator, config, partition_count, Clocks::now, |task| tokio::spawn(task).abort_handle())
    }

    /// Starts a membership that reads the time from `clock`, in a task that `spawn` starts.
    fn start_with(
        coordinator: Arc<dyn Coordinator>,
        config: MembershipConfig,
        partition_count: u32,
        clock: fn() -> Clocks,
        spawn: impl FnOnce(BoxFuture<'static, ()>) -> AbortHandle,
    ) -> Self {
        let member = MemberState::new(config.session_timeout, config.instance_id.clone());
        let shared = Arc::new(SharedMembership {
            coordinator,
            clock,
            config,
            partition_count: AtomicU32::new(partition_count),
            member: Mutex::new(member),
            has_change: Notify::new(),
            check_rejoin: Notify::new(),
            log_limiter: LogLimiter::default(),
        });
        let running = Arc::clone(&shared);
        let task = spawn(Box::pin(async move {
            let panicking = Arc::clone(&running);
            // Without this, a caller of `changed` would wait for ever after a panic of this task.
            let _vital = Vital::calling(move || {
                let why = "the membership panicked, which is a defect of eventd";
                panicking.end(Failure::refused(FailureCode::GroupUnavailable, why));
            });
            let failure = tokio::select! {
                biased;
                failure = running.run() => failure,
                never = running.send_heartbeats() => match never {},
            };
            running.end(failure);
        }));
        Self { shared, task }
    }

    /// Waits for the next change of what this member owns. Dropping the future loses no change.
    pub(super) async fn changed(&self) -> Result<Change, Failure> {
        loop {
            let has_change = self.shared.has_change.notified();
            let next = self.shared.member().next_change();
            match next {
                Some(change) => return change,
                None => has_change.await,
            }
        }
    }

    /// Waits until this member owns every partition. [`changed`](Self::changed) then reports each of them again.
    pub(super) async fn own_all(&self) -> Result<(), Failure> {
        let mut assigned = BTreeSet::new();
        while assigned.len() < self.partition_count() as usize {
            match self.changed().await? {
                Change::Assigned(partition) => assigned.insert(partition),
                Change::Revoked(partition) => {
                    self.released(partition);
                    assigned.remove(&partition)
                }
                Change::Lost(partition) => assigned.remove(&partition),
            };
        }
        self.shared.member().push_changes(assigned.into_iter().map(Change::Assigned));
        Ok(())
    }

    pub(super) fn partition_count(&self) -> u32 {
        self.shared.partition_count.load(Ordering::Relaxed)
    }

    /// Dispatch has released a revoked partition.
    pub(super) fn released(&self, partition: u32) {
        let outcome = self.shared.member().released(partition);
        match outcome {
            ReleaseOutcome::Reassigned => {
                self.shared.has_change.notify_one();
                // This may have been the last release that the announcement of an earlier one had to wait for. Unchecked,
                // that announcement would be made at the end of `RELEASE_ANNOUNCE_DELAY`.
                self.shared.check_rejoin.notify_one();
            }
            ReleaseOutcome::Free => self.shared.check_rejoin.notify_one(),
            ReleaseOutcome::NotOwned => {}
        }
    }

    /// Has dispatch release every partition, and adopts none from now on.
    pub(super) fn drain(&self) {
        self.shared.member().drain();
        self.shared.has_change.notify_one();
        self.shared.check_rejoin.notify_one();
    }

    /// The identity of a commit of this partition. `None` if this member does not own the partition now.
    pub(super) fn commit_identity(&self, partition: u32) -> Option<CommitIdentity> {
        self.shared.member().commit_identity(partition, (self.shared.clock)())
    }

    /// Joins again, which starts a new generation. A request of the old generation that arrives late is then refused.
    pub(super) fn request_rejoin(&self) {
        self.shared.member().request_rejoin();
        self.shared.check_rejoin.notify_one();
    }

    pub(super) fn lease_deadline(&self) -> Instant {
        self.shared.member().lease_deadline((self.shared.clock)())
    }

    /// Ends the membership. With `tell_broker`, the coordinator removes the member at once. Without it, a process that
    /// restarts under the same instance id finds its partitions unchanged.
    pub(super) async fn leave(&self, tell_broker: bool) {
        self.task.abort();
        let member_id = {
            let mut member = self.shared.member();
            member.leave();
            member.member_id().to_owned()
        };
        if member_id.is_empty() || !tell_broker {
            return;
        }
        let member = MemberIdentity::default()
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(self.shared.instance_id());
        let request = LeaveGroupRequest::default().with_group_id(self.shared.group_id()).with_members(vec![member]);
        let deadline = Instant::now() + MINOR_REQUEST_MAX;
        // If the request fails, the coordinator removes the member after the session time-out.
        if let Err(error) = self.shared.coordinator.leave_group(request, deadline).await {
            tracing::debug!(group = self.shared.config.group, "left the group without telling the broker: {error}");
        }
    }
}

impl SharedMembership {
    fn end(&self, failure: Failure) {
        self.member().end(failure);
        self.has_change.notify_one();
    }

    fn member(&self) -> MutexGuard<'_, MemberState> {
        // A holder that panicked leaves no half-made change: every method of the state ends in a valid one.
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group_id(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.config.group.clone()))
    }

    fn instance_id(&self) -> Option<StrBytes> {
        self.config.instance_id.clone().map(StrBytes::from_string)
    }

    /// Joins, and joins again whenever there is a reason. Returns the failure that ends the membership.
    async fn run(&self) -> Failure {
        let mut failures = 0;
        loop {
            let Some(joined) = self.join_within_lease().await else { continue };
            match joined {
                Ok(assignment) => {
                    failures = 0;
                    self.adopt(&assignment);
                    self.wait_for_rejoin().await;
                }
                Err(JoinFailure::NotAllowed(why)) if !self.member().was_ever_assigned() => {
                    return Failure::refused(FailureCode::GroupRefused, why);
                }
                Err(JoinFailure::Retry(why) | JoinFailure::NotAllowed(why)) => {
                    if let Some(suppressed) = self.log_limiter.allows("join") {
                        tracing::warn!(
                            group = self.config.group,
                            suppressed,
                            "cannot join the group, trying again: {why}"
                        );
                    }
                    let delay = REJOIN_BACKOFF.saturating_mul(1 << failures.min(10)).min(REJOIN_BACKOFF_MAX);
                    failures += 1;
                    tokio::select! {
                        biased;
                        () = self.lease_ended() => self.lose_all("no broker answered within the session time-out"),
                        () = sleep(delay) => {}
                    }
                }
                Err(JoinFailure::Removed(error)) => self.removed(error),
                Err(JoinFailure::Fatal(failure)) => return failure,
            }
        }
    }

    /// Joins, and loses everything if the lease ends meanwhile. `None`: the member has to join again.
    async fn join_within_lease(&self) -> Option<Result<Vec<u32>, JoinFailure>> {
        let mut join = pin!(self.join());
        loop {
            tokio::select! {
                biased;
                // A JoinGroup may wait for other members for longer than the lease.
                () = self.lease_ended() => {
                    let awaits_join = self.member().awaits_join();
                    self.lose_all(SESSION_EXPIRED);
                    // A second JoinGroup could overtake the one under way, so its answer is waited for. It may claim
                    // partitions that are lost now. If another member was assigned such a partition meanwhile, the claim of
                    // that member has a later generation, which wins. Else this member's next JoinGroup says that it is free.
                    if !awaits_join {
                        return None;
                    }
                }
                joined = &mut join => return Some(joined),
            }
        }
    }

    /// Waits until there is a reason to join again, or the membership is lost.
    async fn wait_for_rejoin(&self) {
        let mut topic_grew = pin!(self.topic_grew());
        let mut announce_at: Option<Instant> = None;
        loop {
            let check_rejoin = self.check_rejoin.notified();
            let (reason, urgency) = {
                let mut member = self.member();
                (member.take_rejoin_reason(), member.rejoin_urgency())
            };
            match (reason, urgency) {
                (Some(RejoinReason::Rebalance), _) | (None, Some(RejoinUrgency::Now)) => return,
                (Some(RejoinReason::Removed(error)), _) => return self.removed(error),
                (None, Some(RejoinUrgency::Soon)) => {
                    announce_at.get_or_insert_with(|| Instant::now() + RELEASE_ANNOUNCE_DELAY);
                }
                (None, None) => {}
            }
            let announce = async {
                match announce_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.lease_ended() => return self.lose_all(SESSION_EXPIRED),
                () = check_rejoin => {}
                () = announce => return,
                () = &mut topic_grew => return,
            }
        }
    }

    /// Waits until the topic has more partitions than before and this member is the leader, which has to assign them.
    async fn topic_grew(&self) {
        loop {
            sleep(PARTITION_COUNT_CHECK_INTERVAL).await;
            if self.update_partition_count().await && self.member().is_leader() {
                return;
            }
        }
    }

    /// Looks up how many partitions the topic has. `true` if there are more than before.
    async fn update_partition_count(&self) -> bool {
        let deadline = Instant::now() + MINOR_REQUEST_MAX;
        match self.coordinator.partition_count(&self.config.topic, deadline).await {
            Ok(Some(now)) => self.partition_count.fetch_max(now, Ordering::Relaxed) < now,
            // If the topic or the brokers are gone, fetches fail too and report that.
            Ok(None) | Err(_) => false,
        }
    }

    /// Waits until the lease of an owned partition has ended.
    async fn lease_ended(&self) {
        loop {
            let deadline = {
                let member = self.member();
                member.owns_any().then(|| member.lease_deadline((self.clock)()))
            };
            match deadline {
                Some(deadline) if deadline <= Instant::now() => return,
                // In short steps, because the deadline may come closer: after a heartbeat was refused, or the machine slept.
                Some(deadline) => sleep_until(deadline.min(Instant::now() + HEARTBEAT_INTERVAL_MAX)).await,
                None => sleep(HEARTBEAT_INTERVAL_MAX).await,
            }
        }
    }

    fn lose_all(&self, why: &str) {
        tracing::warn!(group = self.config.group, "lost all partitions: {why}");
        self.member().lose_all();
        self.has_change.notify_one();
    }

    /// The call of a JoinGroup has ended, with an answer or without one.
    fn join_call_ended(&self, may_arrive_late: bool) {
        if self.member().join_call_ended(may_arrive_late) {
            tracing::warn!(
                group = self.config.group,
                "lost all partitions: the broker did not answer a JoinGroup in time"
            );
            self.has_change.notify_one();
        }
    }

    /// The coordinator has removed this member.
    fn removed(&self, error: ResponseError) {
        if self.member().removed(error) {
            let why = describe(error);
            tracing::warn!(
                group = self.config.group,
                "lost all partitions: the broker removed this member from the group ({why})"
            );
            self.has_change.notify_one();
        }
    }

    fn adopt(&self, assigned: &[u32]) {
        let (generation, (owned, revoking)) = {
            let mut member = self.member();
            member.adopt(assigned);
            (member.generation(), member.partition_counts())
        };
        self.has_change.notify_one();
        tracing::info!(group = self.config.group, generation, owned, revoking, "partitions assigned");
    }
}

#[cfg(test)]
mod tests {
    use super::super::assignment::Assignment;
    use super::super::coordinator::CoordinatorFuture;
    use super::*;
    use kafka_protocol::messages::{
        HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupResponse, SyncGroupRequest,
        SyncGroupResponse,
    };
    use std::sync::atomic::{AtomicBool, AtomicI32};
    use tokio::time::timeout_at;

    /// A coordinator that panics at every request.
    #[derive(Debug)]
    struct PanickingCoordinator;

    impl Coordinator for PanickingCoordinator {
        fn join_group(&self, _: JoinGroupRequest, _: Instant) -> CoordinatorFuture<'_, JoinGroupResponse> {
            panic!("on purpose")
        }

        fn sync_group(&self, _: SyncGroupRequest, _: Instant) -> CoordinatorFuture<'_, SyncGroupResponse> {
            panic!("on purpose")
        }

        fn heartbeat(&self, _: HeartbeatRequest, _: Instant) -> CoordinatorFuture<'_, HeartbeatResponse> {
            panic!("on purpose")
        }

        fn leave_group(&self, _: LeaveGroupRequest, _: Instant) -> CoordinatorFuture<'_, LeaveGroupResponse> {
            panic!("on purpose")
        }

        fn partition_count<'a>(&'a self, _: &'a str, _: Instant) -> CoordinatorFuture<'a, Option<u32>> {
            panic!("on purpose")
        }

        fn forget_coordinator(&self, _: &str) {}
    }

    /// A coordinator that assigns partition 0 to its only member. During a rebalance it keeps back the answer to each
    /// JoinGroup.
    #[derive(Debug, Default)]
    struct SlowCoordinator {
        generation: AtomicI32,
        is_rebalancing: AtomicBool,
        rebalanced: Notify,
        /// The member id of each JoinGroup.
        joins: Mutex<Vec<String>>,
    }

    impl SlowCoordinator {
        fn joins(&self) -> Vec<String> {
            self.joins.lock().unwrap().clone()
        }

        fn error(&self) -> i16 {
            let rebalancing = self.is_rebalancing.load(Ordering::Relaxed);
            if rebalancing { ResponseError::RebalanceInProgress.code() } else { 0 }
        }

        fn end_rebalance(&self) {
            self.is_rebalancing.store(false, Ordering::Relaxed);
            self.rebalanced.notify_one();
        }
    }

    impl Coordinator for SlowCoordinator {
        fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, JoinGroupResponse> {
            self.joins.lock().unwrap().push(request.member_id.to_string());
            let named = JoinGroupResponse::default().with_member_id(StrBytes::from_static_str("m"));
            if request.member_id.is_empty() && request.group_instance_id.is_none() {
                let response = named.with_error_code(ResponseError::MemberIdRequired.code());
                return Box::pin(async { Ok(response) });
            }
            Box::pin(async move {
                if self.is_rebalancing.load(Ordering::Relaxed)
                    && timeout_at(deadline, self.rebalanced.notified()).await.is_err()
                {
                    return Err(crate::kafka::Error::NoAnswer("no answer in time".into()));
                }
                Ok(named.with_generation_id(self.generation.fetch_add(1, Ordering::Relaxed) + 1))
            })
        }

        fn sync_group(&self, _: SyncGroupRequest, _: Instant) -> CoordinatorFuture<'_, SyncGroupResponse> {
            let assignment = Assignment { topic: "t".into(), partitions: vec![0], refusal: String::new() };
            let response = SyncGroupResponse::default().with_assignment(assignment.encode().unwrap());
            Box::pin(async { Ok(response) })
        }

        fn heartbeat(&self, _: HeartbeatRequest, _: Instant) -> CoordinatorFuture<'_, HeartbeatResponse> {
            let response = HeartbeatResponse::default().with_error_code(self.error());
            Box::pin(async { Ok(response) })
        }

        fn leave_group(&self, _: LeaveGroupRequest, _: Instant) -> CoordinatorFuture<'_, LeaveGroupResponse> {
            Box::pin(async { Ok(LeaveGroupResponse::default()) })
        }

        fn partition_count<'a>(&'a self, _: &'a str, _: Instant) -> CoordinatorFuture<'a, Option<u32>> {
            Box::pin(async { Ok(Some(1)) })
        }

        fn forget_coordinator(&self, _: &str) {}
    }

    fn config(instance_id: Option<&str>) -> MembershipConfig {
        MembershipConfig {
            group: "g".into(),
            topic: "t".into(),
            digest: String::new(),
            session_timeout: Duration::from_secs(2),
            instance_id: instance_id.map(Into::into),
        }
    }

    /// A member that owned partition 0 and lost it, because a rebalance lasted for longer than its lease.
    async fn member_that_lost_its_lease_during_a_join(instance_id: Option<&str>) -> (Arc<SlowCoordinator>, Membership) {
        let coordinator = Arc::new(SlowCoordinator::default());
        let spawn = |task| tokio::spawn(task).abort_handle();
        let asked: Arc<dyn Coordinator> = Arc::<SlowCoordinator>::clone(&coordinator);
        let membership = Membership::start_with(asked, config(instance_id), 1, Clocks::of_timers, spawn);
        assert_eq!(membership.changed().await.unwrap(), Change::Assigned(0));
        coordinator.is_rebalancing.store(true, Ordering::Relaxed);
        assert_eq!(membership.changed().await.unwrap(), Change::Lost(0));
        (coordinator, membership)
    }

    #[tokio::test(start_paused = true)]
    async fn a_join_that_outlasts_the_lease_is_overtaken_by_no_second_one() {
        let (coordinator, membership) = member_that_lost_its_lease_during_a_join(None).await;
        assert_eq!(coordinator.joins(), ["", "m", "m"]);
        sleep(Duration::from_secs(6)).await;
        assert_eq!(coordinator.joins(), ["", "m", "m"], "the coordinator may still receive the third one");
        coordinator.end_rebalance();
        assert_eq!(membership.changed().await.unwrap(), Change::Assigned(0));
        // One more join tells the leader what was lost.
        while coordinator.joins().len() < 4 {
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(coordinator.joins(), ["", "m", "m", "m"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_join_that_is_never_answered_costs_a_member_without_an_instance_id_its_member_id() {
        let next_join = async |instance_id, before: usize| {
            let (coordinator, _membership) = member_that_lost_its_lease_during_a_join(instance_id).await;
            while coordinator.joins().len() <= before {
                sleep(Duration::from_millis(100)).await;
            }
            coordinator.joins()[before].clone()
        };
        assert_eq!(next_join(None, 3).await, "", "a late JoinGroup of \"m\" must not speak for this member");
        assert_eq!(next_join(Some("one"), 3).await, "m", "without its id, it would replace a process with its name");
    }

    #[tokio::test]
    async fn a_membership_that_panics_ends_and_reports_it() {
        let membership = Membership::start(Arc::new(PanickingCoordinator), config(None), 3);
        let failure = membership.changed().await.unwrap_err();
        assert!(failure.detail.contains("panicked"), "{failure}");
    }
}
