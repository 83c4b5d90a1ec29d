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
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    state: Mutex<State>,
    /// Told of every change, for who waits in [`Membership::changed`].
    changed: Notify,
    /// Told of what a heartbeat found, and of what was let go.
    attention: Notify,
    quiet: Quiet,
}

#[derive(Debug, Default)]
struct State {
    member_id: String,
    /// Of the last join; -1: none.
    generation: i32,
    /// Of the last assignment that was adopted.
    claims_generation: i32,
    is_leader: bool,
    /// Given to dispatch, and not let go.
    owned: BTreeSet<u32>,
    /// Those of them that dispatch is asked to let go; `true`: it was given back meanwhile.
    leaving: BTreeMap<u32, bool>,
    /// Something was let go since our claims were last told: nobody gets it before we join again.
    let_go: bool,
    changes: VecDeque<Change>,
    /// When the last heartbeat that was acknowledged was sent.
    acknowledged: Option<Clocks>,
    told: Option<Told>,
    ended: Option<Failure>,
}

/// What a heartbeat was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Rejoin,
    Forgotten(ResponseError),
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
        let state = State { generation: -1, claims_generation: -1, ..State::default() };
        let shared = Arc::new(Shared {
            cluster,
            settings,
            partitions: AtomicU32::new(partitions),
            state: Mutex::new(state),
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
            member.lose_all();
            member.state().ended = Some(failure);
            member.changed.notify_one();
        });
        Self { shared, task: task.abort_handle() }
    }

    /// The next change. Dropping the future loses none.
    pub(super) async fn changed(&self) -> Result<Change, Failure> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut state = self.shared.state();
                if let Some(change) = state.changes.pop_front() {
                    return Ok(change);
                }
                if let Some(failure) = &state.ended {
                    return Err(failure.clone());
                }
            }
            changed.await;
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
        self.shared.state().changes.extend(given.into_iter().map(Change::Given));
        Ok(())
    }

    pub(super) fn partitions(&self) -> u32 {
        self.shared.partitions.load(Ordering::Relaxed)
    }

    pub(super) fn released(&self, partition: u32) {
        let mut state = self.shared.state();
        match state.leaving.remove(&partition) {
            Some(true) => {
                state.changes.push_back(Change::Given(partition));
                self.shared.changed.notify_one();
            }
            Some(false) => {
                state.owned.remove(&partition);
                state.let_go = true;
                self.shared.attention.notify_one();
            }
            // Lost meanwhile.
            None => {}
        }
    }

    /// Under what a commit of this partition is made now; `None`: it is not ours.
    pub(super) fn identity_for(&self, partition: u32) -> Option<Identity> {
        let state = self.shared.state();
        (state.owned.contains(&partition) && self.shared.fence_of(&state) > Instant::now()).then(|| Identity {
            member_id: state.member_id.clone(),
            generation: state.generation,
            instance_id: self.shared.settings.instance_id.clone(),
        })
    }

    /// Becomes a member of a later generation: what was sent as this one, and comes late, is refused.
    pub(super) fn join_again(&self) {
        self.shared.state().told.get_or_insert(Told::Rejoin);
        self.shared.attention.notify_one();
    }

    pub(super) fn fence(&self) -> Instant {
        self.shared.fence_of(&self.shared.state())
    }

    /// Ends the membership; tells the broker, unless a restart is to find its partitions where they were.
    pub(super) async fn leave(&self, tell: bool) {
        self.task.abort();
        let (member_id, instance_id) = {
            let mut state = self.shared.state();
            state.owned.clear();
            (state.member_id.clone(), self.shared.settings.instance_id.clone())
        };
        if member_id.is_empty() || !tell {
            return;
        }
        let member = MemberIdentity::default()
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(instance_id.map(StrBytes::from_string));
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
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group_id(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.settings.group.clone()))
    }

    fn instance_id(&self) -> Option<StrBytes> {
        self.settings.instance_id.clone().map(StrBytes::from_string)
    }

    fn fence_of(&self, state: &State) -> Instant {
        state.acknowledged.map_or_else(Instant::now, |sent| sent.after(self.settings.session_timeout))
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
            {
                let mut state = self.state();
                match state.told.take() {
                    Some(Told::Rejoin) => return,
                    Some(Told::Forgotten(error)) => {
                        drop(state);
                        return self.forgotten(error);
                    }
                    None => {}
                }
                // Others wait for what we were asked to let go.
                if state.let_go && state.leaving.is_empty() {
                    return;
                }
            }
            tokio::select! {
                () = attention => {}
                () = self.expired() => return self.lost("no heartbeat was acknowledged within the session's time-out"),
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + PARTITION_COUNT_CHECK_INTERVAL;
                    if self.has_grown().await && self.state().is_leader {
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
                let state = self.state();
                if state.owned.is_empty() { None } else { Some(self.fence_of(&state)) }
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
        self.lose_all();
    }

    fn forgotten(&self, error: ResponseError) {
        if error == ResponseError::UnknownMemberId {
            self.state().member_id.clear();
        }
        if !self.state().owned.is_empty() {
            self.lost(&format!("the broker has another member in our place ({})", describe(error)));
        }
        self.state().generation = -1;
    }

    /// Nothing of it is ours any more, and nothing is claimed when we join again.
    fn lose_all(&self) {
        let mut state = self.state();
        let owned = std::mem::take(&mut state.owned);
        state.leaving.clear();
        state.changes.extend(owned.into_iter().map(Change::Lost));
        (state.generation, state.claims_generation, state.acknowledged, state.told) = (-1, -1, None, None);
        self.changed.notify_one();
    }

    /// Takes over what was assigned; asks dispatch to let go of what was not.
    fn adopt(&self, assigned: &[u32]) {
        let mut state = self.state();
        let state = &mut *state;
        state.claims_generation = state.generation;
        for partition in &state.owned {
            match (assigned.contains(partition), state.leaving.get_mut(partition)) {
                (true, Some(back)) => *back = true,
                (false, Some(back)) => *back = false,
                (true, None) => {}
                (false, None) => {
                    state.leaving.insert(*partition, false);
                    state.changes.push_back(Change::Taken(*partition));
                }
            }
        }
        for partition in assigned {
            if state.owned.insert(*partition) {
                state.changes.push_back(Change::Given(*partition));
            }
        }
        self.changed.notify_one();
        let (group, generation, owned) = (&self.settings.group, state.generation, state.owned.len());
        tracing::info!(%group, generation, owned, leaving = state.leaving.len(), "partitions assigned");
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
        let mut state = self.state();
        // A heartbeat may have gone out since.
        if state.acknowledged.is_none_or(|last| last.timers < sent.timers) {
            state.acknowledged = Some(sent);
        }
        drop(state);
        Ok(assignment.partitions)
    }

    async fn join_group(&self) -> Result<JoinGroupResponse, Broken> {
        let (member_id, subscription) = {
            let mut state = self.state();
            state.let_go = false;
            let subscription = Subscription {
                topic: self.settings.topic.clone(),
                claims: state.owned.iter().copied().collect(),
                generation: state.claims_generation,
                digest: self.settings.digest.clone(),
            };
            (state.member_id.clone(), subscription)
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
                self.state().member_id = answer.member_id.to_string();
                return Box::pin(self.join_group()).await;
            }
            Some(error) => return Err(self.broken(error)),
        }
        let mut state = self.state();
        state.member_id = answer.member_id.to_string();
        (state.generation, state.is_leader) = (answer.generation_id, answer.leader == answer.member_id);
        // What a heartbeat was told before is answered by this.
        state.told = None;
        drop(state);
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
            let (member_id, generation) = {
                let state = self.state();
                (state.member_id.clone(), state.generation)
            };
            if generation < 0 {
                continue;
            }
            let request = HeartbeatRequest::default()
                .with_group_id(self.group_id())
                .with_generation_id(generation)
                .with_member_id(StrBytes::from_string(member_id.clone()))
                .with_group_instance_id(self.instance_id());
            let (sent, who) = (Clocks::now(), Who::Coordinator(&self.settings.group));
            let Ok(answer) = self.cluster.call(who, &request, Instant::now() + patience).await else { continue };
            let mut state = self.state();
            // A join in between made it a heartbeat of somebody else.
            if (&state.member_id, state.generation) != (&member_id, generation) {
                continue;
            }
            match refusal(answer.error_code) {
                None => state.acknowledged = Some(sent),
                Some(ResponseError::RebalanceInProgress) => {
                    (state.acknowledged, state.told) = (Some(sent), Some(Told::Rejoin));
                    self.attention.notify_one();
                }
                Some(
                    error @ (ResponseError::UnknownMemberId
                    | ResponseError::IllegalGeneration
                    | ResponseError::FencedInstanceId),
                ) => {
                    state.told = Some(Told::Forgotten(error));
                    // Others may be at work already, whatever a join that is under way will be told. (An old generation
                    // may be the doing of that join.)
                    if error != ResponseError::IllegalGeneration {
                        state.acknowledged = None;
                    }
                    self.attention.notify_one();
                }
                Some(_) => self.cluster.forget_coordinator(&self.settings.group),
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
