//! One member of a group, by the classic protocol: who it is, what it has, and until when it may act upon that.
//!
//! ```text
//!        ┌──────────── rejoin, with the claims ─────────────┐
//!        ▼                                                  │ somebody joins or leaves; what was taken is let go
//!   JoinGroup ─▶ (the leader assigns) ─▶ SyncGroup ─▶ adopt ─▶ member ── Assigned, Revoked ──▶ dispatch
//!        ▲                                                  │
//!        └── drop everything, claim nothing ◀── Lost ───────┘ unknown, of an old generation, or silent for too long
//!
//!   heartbeats, beside all of it: each that is acknowledged moves the lease to its sending + the session's time-out
//! ```
//!
//! A JoinGroup waits at the broker for everybody, so heartbeats and commits go over other connections meanwhile, and the
//! partitions that stay are delivered on. The lease is read on a clock that goes on while the machine sleeps.
//!
//! Under an instance id (static membership) a broker gives a new process the assignment of the one before it, without a
//! rebalance. What that one had yet to let go would be nobody's from then on; and a leader that comes back so is not told
//! that it leads, before JoinGroup 9. So such a process adopts what it got, and joins once more with that as its claims.

mod joining;
#[cfg(test)]
#[path = "../../../../tests/simulation/membership/mod.rs"]
mod simulation;

use self::joining::Broken;
use super::clocks::Clocks;
use super::coordinator::Coordinator;
use super::member::{Heard, Member, News, Released, Told};
use crate::BoxFuture;
use crate::core::outcome::Failure;
use crate::group::Change;
use crate::kafka::{describe, response_error};
use crate::limits::{
    BROKER_CALL_MAX, HEARTBEAT_INTERVAL_MAX, PARTITION_COUNT_CHECK_INTERVAL, REJOIN_BACKOFF, REJOIN_BACKOFF_MAX,
};
use crate::log_limiter::LogLimiter;
use crate::vital::Vital;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{GroupId, HeartbeatRequest, LeaveGroupRequest};
use kafka_protocol::protocol::StrBytes;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a member that has let go of some partitions, and not yet of all that it was asked for, waits before it tells
/// the others. Each telling is a rebalance of the whole group, and most partitions drain within milliseconds.
const PARTIAL_NEWS_AFTER: Duration = Duration::from_millis(300);

/// What a member is told.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) group: String,
    pub(super) topic: String,
    /// Tells one destination under a name from another.
    pub(super) digest: String,
    pub(super) session_timeout: Duration,
    /// Static membership: a restarted process takes its own partitions back at once.
    pub(super) instance_id: Option<String>,
}

/// Under what a commit is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) member_id: String,
    pub(super) generation: i32,
    pub(super) instance_id: Option<String>,
}

impl Identity {
    /// As the protocol has it for somebody who is no member.
    pub(super) fn nobody() -> Self {
        Self { member_id: String::new(), generation: -1, instance_id: None }
    }
}

/// A membership. Dropped, its task ends; the broker notices after the session's time-out.
#[derive(Debug)]
pub(super) struct Membership {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shared {
    coordinator: Arc<dyn Coordinator>,
    /// What time it is.
    clock: fn() -> Clocks,
    settings: Settings,
    /// Partitions of the topic, as last seen.
    partitions: AtomicU32,
    member: Mutex<Member>,
    /// Told of every change, for who waits in [`Membership::changed`].
    changed: Notify,
    /// Told of what a heartbeat found, and of what was let go.
    attention: Notify,
    log_limiter: LogLimiter,
}

impl Membership {
    pub(super) fn start(coordinator: Arc<dyn Coordinator>, settings: Settings, partitions: u32) -> Self {
        Self::start_by(coordinator, settings, partitions, Clocks::now, |stays| tokio::spawn(stays).abort_handle())
    }

    /// Starts it on a clock, and as a task, of the caller's.
    fn start_by(
        coordinator: Arc<dyn Coordinator>,
        settings: Settings,
        partitions: u32,
        clock: fn() -> Clocks,
        spawn: impl FnOnce(BoxFuture<'static, ()>) -> AbortHandle,
    ) -> Self {
        let member = Member::new(settings.session_timeout, settings.instance_id.clone());
        let shared = Arc::new(Shared {
            coordinator,
            clock,
            settings,
            partitions: AtomicU32::new(partitions),
            member: Mutex::new(member),
            changed: Notify::new(),
            attention: Notify::new(),
            log_limiter: LogLimiter::default(),
        });
        let member = Arc::clone(&shared);
        let task = spawn(Box::pin(async move {
            let panicking = Arc::clone(&member);
            // Else a caller of `changed` would wait for ever.
            let _vital = Vital::calling(move || {
                let why = "the membership panicked, which is a defect of eventd";
                panicking.end(Failure::refused("group-unavailable", why));
            });
            let failure = tokio::select! {
                biased;
                failure = member.stay() => failure,
                never = member.heartbeats() => match never {},
            };
            member.end(failure);
        }));
        Self { shared, task }
    }

    /// The next change. Dropping the future loses none.
    pub(super) async fn changed(&self) -> Result<Change, Failure> {
        loop {
            let changed = self.shared.changed.notified();
            let next = self.shared.member().next_change();
            match next {
                Some(change) => return change,
                None => changed.await,
            }
        }
    }

    /// Waits until every partition was given, and tells of each of them again.
    pub(super) async fn own_all(&self) -> Result<(), Failure> {
        let mut given = BTreeSet::new();
        while given.len() < self.partitions() as usize {
            match self.changed().await? {
                Change::Assigned(partition) => given.insert(partition),
                Change::Revoked(partition) => {
                    self.released(partition);
                    given.remove(&partition)
                }
                Change::Lost(partition) => given.remove(&partition),
            };
        }
        self.shared.member().tell_again(given.into_iter().map(Change::Assigned));
        Ok(())
    }

    pub(super) fn partitions(&self) -> u32 {
        self.shared.partitions.load(Ordering::Relaxed)
    }

    pub(super) fn released(&self, partition: u32) {
        let released = self.shared.member().released(partition);
        match released {
            Released::GivenBack => {
                self.shared.changed.notify_one();
                // It may have been the last one that something else, which was let go, had to wait for.
                self.shared.attention.notify_one();
            }
            Released::LetGo => self.shared.attention.notify_one(),
            Released::Lost => {}
        }
    }

    /// Takes every partition from dispatch, and nothing any more from the group.
    pub(super) fn drain(&self) {
        self.shared.member().drain();
        self.shared.changed.notify_one();
        self.shared.attention.notify_one();
    }

    /// Under what a commit of this partition is made now; `None`: it is not ours.
    pub(super) fn identity_for(&self, partition: u32) -> Option<Identity> {
        self.shared.member().identity_for(partition, (self.shared.clock)())
    }

    /// Becomes a member of a later generation: what was sent as this one, and comes late, is refused.
    pub(super) fn join_again(&self) {
        self.shared.member().join_again();
        self.shared.attention.notify_one();
    }

    pub(super) fn lease_deadline(&self) -> Instant {
        self.shared.member().lease_deadline((self.shared.clock)())
    }

    /// Ends the membership; tells the broker, unless a restart is to find its partitions where they were.
    pub(super) async fn leave(&self, tell: bool) {
        self.task.abort();
        let member_id = {
            let mut member = self.shared.member();
            member.leave();
            member.id().to_owned()
        };
        if member_id.is_empty() || !tell {
            return;
        }
        let member = MemberIdentity::default()
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(self.shared.instance_id());
        let request = LeaveGroupRequest::default().with_group_id(self.shared.group_id()).with_members(vec![member]);
        let deadline = Instant::now() + HEARTBEAT_INTERVAL_MAX * 10;
        // Untold, the broker notices after the session's time-out.
        if let Err(error) = self.shared.coordinator.leave_group(request, deadline).await {
            tracing::debug!(group = self.shared.settings.group, "left without telling: {error}");
        }
    }
}

impl Shared {
    /// Plain sets: nothing is half done in them where a holder panicked.
    fn end(&self, failure: Failure) {
        self.member().end(failure);
        self.changed.notify_one();
    }

    fn member(&self) -> MutexGuard<'_, Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group_id(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.settings.group.clone()))
    }

    fn instance_id(&self) -> Option<StrBytes> {
        self.settings.instance_id.clone().map(StrBytes::from_string)
    }

    /// Joins again and again; gives the failure that ends it.
    async fn stay(&self) -> Failure {
        let mut failures = 0;
        loop {
            let round = tokio::select! {
                biased;
                // What we had may be somebody else's from now on, whatever the broker is waiting for.
                () = self.expired() => {
                    self.lost("no heartbeat was acknowledged within the session's time-out");
                    continue;
                }
                round = self.join() => round,
            };
            match round {
                Ok(assignment) => {
                    failures = 0;
                    self.adopt(&assignment);
                    self.be_a_member().await;
                }
                Err(Broken::NotLetIn(why)) if !self.member().has_worked() => {
                    return Failure::refused("group-refused", why);
                }
                Err(Broken::Again(why) | Broken::NotLetIn(why)) => {
                    if let Some(suppressed) = self.log_limiter.allows("join") {
                        tracing::warn!(group = self.settings.group, suppressed, "cannot join, trying again: {why}");
                    }
                    let delay = REJOIN_BACKOFF.saturating_mul(1 << failures.min(10)).min(REJOIN_BACKOFF_MAX);
                    failures += 1;
                    tokio::select! {
                        biased;
                        () = self.expired() => self.lost("no broker answered within the session's time-out"),
                        () = sleep(delay) => {}
                    }
                }
                Err(Broken::Forgotten(error)) => self.forgotten(error),
                Err(Broken::End(failure)) => return failure,
            }
        }
    }

    /// Until there is a reason to join again.
    async fn be_a_member(&self) {
        let mut grows = pin!(self.grows());
        let mut tell_at: Option<Instant> = None;
        loop {
            let attention = self.attention.notified();
            let (told, news) = {
                let mut member = self.member();
                (member.take_told(), member.news())
            };
            match (told, news) {
                (Some(Told::Rejoin), _) | (None, Some(News::Complete)) => return,
                (Some(Told::Forgotten(error)), _) => return self.forgotten(error),
                (None, Some(News::Partial)) => {
                    tell_at.get_or_insert_with(|| Instant::now() + PARTIAL_NEWS_AFTER);
                }
                (None, None) => {}
            }
            let tell = async {
                match tell_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.expired() => return self.lost("no heartbeat was acknowledged within the session's time-out"),
                () = attention => {}
                () = tell => return,
                () = &mut grows => return,
            }
        }
    }

    /// Ready once the topic has more partitions than it had, where it is for us to assign them.
    async fn grows(&self) {
        loop {
            sleep(PARTITION_COUNT_CHECK_INTERVAL).await;
            if self.has_grown().await && self.member().is_leader() {
                return;
            }
        }
    }

    /// Whether the topic has more partitions than it had: its leader then assigns anew.
    async fn has_grown(&self) -> bool {
        let deadline = Instant::now() + HEARTBEAT_INTERVAL_MAX * 10;
        match self.coordinator.partitions(&self.settings.topic, deadline).await {
            Ok(Some(now)) => self.partitions.fetch_max(now, Ordering::Relaxed) < now,
            // Fetches fail too, and say so.
            Ok(None) | Err(_) => false,
        }
    }

    /// Ready once the lease has passed, while something is owned.
    async fn expired(&self) {
        loop {
            let lease = {
                let member = self.member();
                member.owns_any().then(|| member.lease_deadline((self.clock)()))
            };
            match lease {
                Some(lease) if lease <= Instant::now() => return,
                // In steps: it may come nearer, by what a heartbeat is told or while the machine sleeps.
                Some(lease) => sleep_until(lease.min(Instant::now() + HEARTBEAT_INTERVAL_MAX)).await,
                None => sleep(HEARTBEAT_INTERVAL_MAX).await,
            }
        }
    }

    fn lost(&self, why: &str) {
        tracing::warn!(group = self.settings.group, "every partition is given up: {why}");
        self.member().lose_all();
        self.changed.notify_one();
    }

    fn forgotten(&self, error: ResponseError) {
        if self.member().forgotten(error) {
            let why = describe(error);
            tracing::warn!(
                group = self.settings.group,
                "every partition is given up: the broker has another member in our place ({why})"
            );
            self.changed.notify_one();
        }
    }

    fn adopt(&self, assigned: &[u32]) {
        let (generation, (owned, leaving)) = {
            let mut member = self.member();
            member.adopt(assigned);
            (member.generation(), member.counts())
        };
        self.changed.notify_one();
        tracing::info!(group = self.settings.group, generation, owned, leaving, "partitions assigned");
    }

    async fn heartbeats(&self) -> std::convert::Infallible {
        loop {
            sleep((self.settings.session_timeout / 10).min(HEARTBEAT_INTERVAL_MAX)).await;
            self.heartbeat().await;
        }
    }

    /// One heartbeat, as who we are now. `false`: nobody answered who knows about us.
    async fn heartbeat(&self) -> bool {
        let Some(who) = self.member().sends_as() else { return false };
        let patience = (self.settings.session_timeout / 3).min(BROKER_CALL_MAX);
        let request = HeartbeatRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(who.generation)
            .with_member_id(StrBytes::from_string(who.id.clone()))
            .with_group_instance_id(self.instance_id());
        let (sent, deadline) = ((self.clock)(), Instant::now() + patience);
        let Ok(answer) = self.coordinator.heartbeat(request, deadline).await else { return false };
        let heard = self.member().heard(&who, sent, response_error(answer.error_code));
        match heard {
            Heard::Nothing => {}
            Heard::Attention => self.attention.notify_one(),
            Heard::Elsewhere => self.coordinator.forget_coordinator(&self.settings.group),
        }
        heard != Heard::Elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::super::coordinator::Answer;
    use super::*;
    use kafka_protocol::messages::{
        HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
    };

    /// A coordinator whose every answer is a panic.
    #[derive(Debug)]
    struct Broken;

    impl Coordinator for Broken {
        fn join_group(&self, _: JoinGroupRequest, _: Instant) -> Answer<'_, JoinGroupResponse> {
            panic!("on purpose")
        }

        fn sync_group(&self, _: SyncGroupRequest, _: Instant) -> Answer<'_, SyncGroupResponse> {
            panic!("on purpose")
        }

        fn heartbeat(&self, _: HeartbeatRequest, _: Instant) -> Answer<'_, HeartbeatResponse> {
            panic!("on purpose")
        }

        fn leave_group(&self, _: LeaveGroupRequest, _: Instant) -> Answer<'_, LeaveGroupResponse> {
            panic!("on purpose")
        }

        fn partitions<'a>(&'a self, _: &'a str, _: Instant) -> Answer<'a, Option<u32>> {
            panic!("on purpose")
        }

        fn forget_coordinator(&self, _: &str) {}
    }

    #[tokio::test]
    async fn a_membership_that_panics_ends_and_says_so() {
        let settings = Settings {
            group: "g".into(),
            topic: "t".into(),
            digest: String::new(),
            session_timeout: Duration::from_secs(10),
            instance_id: None,
        };
        let membership = Membership::start(Arc::new(Broken), settings, 3);
        let failure = membership.changed().await.unwrap_err();
        assert!(failure.detail.contains("panicked"), "{failure}");
    }
}
