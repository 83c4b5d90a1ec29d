//! One member of a group, by the classic protocol: who it is, what it has, and until when it may act upon that.
//!
//! ```text
//!        ┌──────────── rejoin, with the claims ─────────────┐
//!        ▼                                                  │ somebody joins or leaves; what was taken is let go
//!   JoinGroup ─▶ (the leader assigns) ─▶ SyncGroup ─▶ adopt ─▶ member ── Given, Taken ──▶ dispatch
//!        ▲                                                  │
//!        └── drop everything, claim nothing ◀── Lost ───────┘ unknown, of an old generation, or silent for too long
//!
//!   heartbeats, beside all of it: each that is acknowledged moves the fence to its sending + the session's time-out
//! ```
//!
//! A JoinGroup waits at the broker for everybody, so heartbeats and commits go over other connections meanwhile, and the
//! partitions that stay are delivered on. The fence is counted from when a heartbeat was *sent*: the broker counts from
//! when it came, which is later, so whoever gets the partition next begins after our fence. It is read on a clock that
//! goes on while the machine sleeps.

use super::clocks::Clocks;
use super::leader;
use super::member::{Heard, Member, Released, Told};
use super::subscription::{Assignment, Subscription};
use crate::core::outcome::Failure;
use crate::group::Change;
use crate::kafka::{self, Cluster, Who, describe, refusal};
use crate::limits::{
    BROKER_CALL_MAX, HEARTBEAT_INTERVAL_MAX, PARTITION_COUNT_CHECK_INTERVAL, REBALANCE_MAX, REJOIN_BACKOFF,
    REJOIN_BACKOFF_MAX,
};
use crate::quiet::Quiet;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// Kafka's own consumers have this type, and its tools show what its members have.
const PROTOCOL_TYPE: &str = "consumer";
/// Of our own assignor: a program that does not know it is refused by the broker.
const PROTOCOL: &str = "eventd-cooperative-sticky";

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
    cluster: Arc<Cluster>,
    settings: Settings,
    /// Partitions of the topic, as last seen.
    partitions: AtomicU32,
    member: Mutex<Member>,
    /// Told of every change, for who waits in [`Membership::changed`].
    changed: Notify,
    /// Told of what a heartbeat found, and of what was let go.
    attention: Notify,
    quiet: Quiet,
}

/// Why a round did not end with an assignment.
enum Broken {
    /// Try again, with the same claims.
    Again(String),
    /// The broker does not know us, or only as somebody older: claim nothing.
    Forgotten(ResponseError),
    /// For ever.
    End(Failure),
}

impl Membership {
    pub(super) fn start(cluster: Arc<Cluster>, settings: Settings, partitions: u32) -> Self {
        let member = Member::new(settings.session_timeout, settings.instance_id.clone());
        let shared = Arc::new(Shared {
            cluster,
            settings,
            partitions: AtomicU32::new(partitions),
            member: Mutex::new(member),
            changed: Notify::new(),
            attention: Notify::new(),
            quiet: Quiet::default(),
        });
        let member = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let failure = tokio::select! {
                failure = member.stay() => failure,
                never = member.heartbeats() => match never {},
            };
            member.member().end(failure);
            member.changed.notify_one();
        });
        Self { shared, task: task.abort_handle() }
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
                Change::Given(partition) => given.insert(partition),
                Change::Taken(partition) => {
                    self.released(partition);
                    given.remove(&partition)
                }
                Change::Lost(partition) => given.remove(&partition),
            };
        }
        self.shared.member().tell_again(given.into_iter().map(Change::Given));
        Ok(())
    }

    pub(super) fn partitions(&self) -> u32 {
        self.shared.partitions.load(Ordering::Relaxed)
    }

    pub(super) fn released(&self, partition: u32) {
        let released = self.shared.member().released(partition);
        match released {
            Released::GivenBack => self.shared.changed.notify_one(),
            Released::LetGo => self.shared.attention.notify_one(),
            Released::Lost => {}
        }
    }

    /// Under what a commit of this partition is made now; `None`: it is not ours.
    pub(super) fn identity_for(&self, partition: u32) -> Option<Identity> {
        self.shared.member().identity_for(partition, Clocks::now())
    }

    /// Becomes a member of a later generation: what was sent as this one, and comes late, is refused.
    pub(super) fn join_again(&self) {
        self.shared.member().join_again();
        self.shared.attention.notify_one();
    }

    pub(super) fn fence(&self) -> Instant {
        self.shared.member().fence(Clocks::now())
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
        let who = Who::Coordinator(&self.shared.settings.group);
        // Untold, the broker notices after the session's time-out.
        if let Err(error) = self.shared.cluster.call(who, &request, Instant::now() + HEARTBEAT_INTERVAL_MAX * 10).await
        {
            tracing::debug!(group = self.shared.settings.group, "left without telling: {error}");
        }
    }
}

impl Shared {
    /// Plain sets: nothing is half done in them where a holder panicked.
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
                round = self.join() => round,
                // What we had may be somebody else's from now on, whatever the broker is waiting for.
                () = self.expired() => {
                    self.lost("no heartbeat was acknowledged within the session's time-out");
                    continue;
                }
            };
            match round {
                Ok(assignment) => {
                    failures = 0;
                    self.adopt(&assignment);
                    self.be_a_member().await;
                }
                Err(Broken::Again(why)) => {
                    if let Some(more) = self.quiet.allows("join") {
                        tracing::warn!(group = self.settings.group, more, "cannot join, trying again: {why}");
                    }
                    let delay = REJOIN_BACKOFF.saturating_mul(1 << failures.min(10)).min(REJOIN_BACKOFF_MAX);
                    failures += 1;
                    tokio::select! {
                        () = sleep(delay) => {}
                        () = self.expired() => self.lost("no broker answered within the session's time-out"),
                    }
                }
                Err(Broken::Forgotten(error)) => self.forgotten(error),
                Err(Broken::End(failure)) => return failure,
            }
        }
    }

    /// Until there is a reason to join again.
    async fn be_a_member(&self) {
        let mut look_at = Instant::now() + PARTITION_COUNT_CHECK_INTERVAL;
        loop {
            let attention = self.attention.notified();
            let (told, has_let_go) = {
                let mut member = self.member();
                (member.take_told(), member.has_let_go())
            };
            match told {
                Some(Told::Rejoin) => return,
                Some(Told::Forgotten(error)) => return self.forgotten(error),
                None if has_let_go => return,
                None => {}
            }
            tokio::select! {
                () = attention => {}
                () = self.expired() => return self.lost("no heartbeat was acknowledged within the session's time-out"),
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + PARTITION_COUNT_CHECK_INTERVAL;
                    if self.has_grown().await && self.member().is_leader() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the topic has more partitions than it had: its leader then assigns anew.
    async fn has_grown(&self) -> bool {
        match self.cluster.topic(&self.settings.topic, Instant::now() + HEARTBEAT_INTERVAL_MAX * 10).await {
            Ok(Some(topic)) => {
                let now = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
                self.partitions.fetch_max(now, Ordering::Relaxed) < now
            }
            // Fetches fail too, and say so.
            Ok(None) | Err(_) => false,
        }
    }

    /// Ready once the fence has passed, while something is owned.
    async fn expired(&self) {
        loop {
            let fence = {
                let member = self.member();
                member.owns_any().then(|| member.fence(Clocks::now()))
            };
            match fence {
                Some(fence) if fence <= Instant::now() => return,
                // In steps: it may come nearer, by what a heartbeat is told or while the machine sleeps.
                Some(fence) => sleep_until(fence.min(Instant::now() + HEARTBEAT_INTERVAL_MAX)).await,
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

    async fn join(&self) -> Result<Vec<u32>, Broken> {
        let joined = self.join_group().await?;
        let assignments =
            if joined.leader == joined.member_id { self.assign(&joined.members).await? } else { Vec::new() };
        let (sent, who) = (Clocks::now(), Who::Coordinator(&self.settings.group));
        let request = SyncGroupRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(joined.generation_id)
            .with_member_id(joined.member_id.clone())
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
            .with_protocol_name(Some(StrBytes::from_static_str(PROTOCOL)))
            .with_assignments(assignments);
        let answer = self.cluster.call(who, &request, Instant::now() + REBALANCE_MAX).await.map_err(again)?;
        if let Some(error) = refusal(answer.error_code) {
            return Err(self.broken(error));
        }
        let assignment = Assignment::decode(&self.settings.topic, answer.assignment)
            .map_err(|why| Broken::Again(format!("an assignment that cannot be read: {why}")))?;
        if !assignment.refusal.is_empty() {
            return Err(Broken::End(Failure::refused("group-refused", assignment.refusal)));
        }
        self.member().acknowledge(sent);
        Ok(assignment.partitions)
    }

    async fn join_group(&self) -> Result<JoinGroupResponse, Broken> {
        let (member_id, subscription) = {
            let mut member = self.member();
            let (claims, generation) = member.claims();
            let (topic, digest) = (self.settings.topic.clone(), self.settings.digest.clone());
            (member.id().to_owned(), Subscription { topic, claims, generation, digest })
        };
        let metadata = subscription.encode().map_err(Broken::Again)?;
        let millis = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        let protocol = JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str(PROTOCOL));
        let request = JoinGroupRequest::default()
            .with_group_id(self.group_id())
            .with_session_timeout_ms(millis(self.settings.session_timeout))
            .with_rebalance_timeout_ms(millis(self.settings.session_timeout))
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
            .with_protocols(vec![protocol.with_metadata(metadata)]);
        let deadline = Instant::now() + self.settings.session_timeout + REBALANCE_MAX;
        let who = Who::Coordinator(&self.settings.group);
        let answer = self.cluster.call(who, &request, deadline).await.map_err(again)?;
        match refusal(answer.error_code) {
            None => {}
            // The first answer to a new member is its id.
            Some(ResponseError::MemberIdRequired) => {
                self.member().is_called(answer.member_id.to_string());
                return Box::pin(self.join_group()).await;
            }
            Some(error) => return Err(self.broken(error)),
        }
        let is_leader = answer.leader == answer.member_id;
        self.member().joined(answer.member_id.to_string(), answer.generation_id, is_leader);
        Ok(answer)
    }

    /// What each member gets.
    async fn assign(&self, members: &[JoinGroupResponseMember]) -> Result<Vec<SyncGroupRequestAssignment>, Broken> {
        let mut by_topic: BTreeMap<String, Vec<(String, Subscription)>> = BTreeMap::new();
        for member in members {
            let said = Subscription::decode(member.metadata.clone())
                .map_err(|why| Broken::Again(format!("member {} says what cannot be read: {why}", member.member_id)))?;
            by_topic.entry(said.topic.clone()).or_default().push((member.member_id.to_string(), said));
        }
        let mut assignments = Vec::new();
        for (topic, members) in by_topic {
            let partitions = self.partitions_of(&topic).await?;
            for (id, assignment) in leader::share(&self.settings.group, &topic, &members, partitions) {
                let bytes = assignment.encode().map_err(Broken::Again)?;
                let id = StrBytes::from_string(id);
                assignments.push(SyncGroupRequestAssignment::default().with_member_id(id).with_assignment(bytes));
            }
        }
        Ok(assignments)
    }

    /// A destination of one name may be there for several topics: one group, whose members share each topic apart.
    async fn partitions_of(&self, topic: &str) -> Result<u32, Broken> {
        if topic == self.settings.topic {
            self.has_grown().await;
            return Ok(self.partitions.load(Ordering::Relaxed));
        }
        match self.cluster.topic(topic, Instant::now() + BROKER_CALL_MAX).await {
            Ok(found) => Ok(found.map_or(0, |topic| u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX))),
            Err(error) => Err(Broken::Again(error.to_string())),
        }
    }

    fn broken(&self, error: ResponseError) -> Broken {
        let group = &self.settings.group;
        let end = |detail: String| Broken::End(Failure::refused("group-refused", detail));
        match error {
            ResponseError::UnknownMemberId | ResponseError::IllegalGeneration => Broken::Forgotten(error),
            ResponseError::FencedInstanceId => end(format!(
                "another process has joined the group {group:?} with the same --instance-id: each needs its own"
            )),
            ResponseError::InconsistentGroupProtocol => end(format!(
                "another program is in the group {group:?}, with a protocol that is not eventd's: choose another --name"
            )),
            ResponseError::InvalidSessionTimeout => end(format!(
                "the broker allows no --session-timeout of {:?} (group.min.session.timeout.ms and .max.)",
                self.settings.session_timeout
            )),
            ResponseError::GroupAuthorizationFailed
            | ResponseError::GroupMaxSizeReached
            | ResponseError::InvalidGroupId => {
                end(format!("the group {group:?} cannot be joined: {}", describe(error)))
            }
            error => {
                self.cluster.forget_coordinator(group);
                Broken::Again(describe(error))
            }
        }
    }

    async fn heartbeats(&self) -> std::convert::Infallible {
        let interval = (self.settings.session_timeout / 10).min(HEARTBEAT_INTERVAL_MAX);
        let patience = (self.settings.session_timeout / 3).min(BROKER_CALL_MAX);
        loop {
            sleep(interval).await;
            let Some(who) = self.member().sends_as() else { continue };
            let request = HeartbeatRequest::default()
                .with_group_id(self.group_id())
                .with_generation_id(who.generation)
                .with_member_id(StrBytes::from_string(who.id.clone()))
                .with_group_instance_id(self.instance_id());
            let (sent, whom) = (Clocks::now(), Who::Coordinator(&self.settings.group));
            let Ok(answer) = self.cluster.call(whom, &request, Instant::now() + patience).await else { continue };
            let heard = self.member().heard(&who, sent, refusal(answer.error_code));
            match heard {
                Heard::Nothing => {}
                Heard::Attention => self.attention.notify_one(),
                Heard::Elsewhere => self.cluster.forget_coordinator(&self.settings.group),
            }
        }
    }
}

fn again(error: kafka::Error) -> Broken {
    match error {
        kafka::Error::Configuration(detail) => Broken::End(Failure::refused("group-refused", detail)),
        error => Broken::Again(error.to_string()),
    }
}
