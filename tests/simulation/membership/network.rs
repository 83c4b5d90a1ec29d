//! The network between members and the coordinator. Requests and answers arrive late or never, and the coordinator
//! moves.

use super::oracle::Life;
use super::{State, World};
use crate::group::kafka::assignment::Subscription;
use crate::group::kafka::coordinator::{Coordinator, CoordinatorFuture};
use crate::group::kafka::member::CommitIdentity;
use crate::kafka::Error;
use kafka_protocol::ResponseError::{self, NotCoordinator};
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot::{self, Sender};
use tokio::time::{Instant, sleep, timeout_at};

/// How long requests of a killed process may still arrive.
const IN_FLIGHT_MAX: Duration = Duration::from_millis(50);

/// The requests that a fault affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// JoinGroup and SyncGroup.
    Joins,
    Heartbeats,
    Others,
}

/// A network fault between one process and the coordinator.
#[derive(Debug, Clone, Copy)]
pub(super) struct NetworkFault {
    pub(super) until: Instant,
    /// The affected requests, or `None` for all.
    pub(super) kind: Option<RequestKind>,
    pub(super) requests: Transit,
    pub(super) answers: Transit,
}

/// What happens to a message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transit {
    Well,
    Slow,
    Lost,
}

/// The connection of one process to the coordinator.
#[derive(Debug)]
pub(super) struct Link {
    world: Arc<World>,
    life: Life,
    faults: Mutex<Vec<NetworkFault>>,
    gone: Mutex<Option<Instant>>,
    /// The number of JoinGroups that were sent.
    joins_sent: AtomicU64,
}

impl Link {
    pub(super) fn new(world: &Arc<World>, life: Life) -> Self {
        Self {
            world: Arc::clone(world),
            life,
            faults: Mutex::default(),
            gone: Mutex::default(),
            joins_sent: AtomicU64::new(0),
        }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Vec<NetworkFault>> {
        self.faults.lock().unwrap()
    }

    /// The process was killed.
    pub(super) fn is_gone(&self) {
        *self.gone.lock().unwrap() = Some(Instant::now());
    }

    fn fault_of(&self, kind: RequestKind) -> Option<NetworkFault> {
        let about = |fault: &NetworkFault| fault.kind.is_none_or(|affected| affected == kind);
        self.faults().iter().filter(|fault| fault.until > Instant::now()).copied().find(about)
    }

    /// How long the message takes, or `None` if it is lost.
    fn takes(&self, transit: Transit) -> Option<Duration> {
        let mut state = self.world.lock();
        let lost = state.loss;
        match transit {
            Transit::Lost => None,
            _ if state.random.chance(lost) => None,
            Transit::Slow => Some(state.random.millis(1, 2_000)),
            Transit::Well => Some(state.random.millis(1, 12)),
        }
    }

    fn carry<T: Send + 'static>(
        self: Arc<Self>,
        kind: RequestKind,
        deadline: Instant,
        elsewhere: fn(ResponseError) -> T,
        deliver: impl FnOnce(&mut State, Sender<T>, Instant) + Send + 'static,
    ) -> CoordinatorFuture<'static, T> {
        let (answer, answered) = oneshot::channel();
        // A sent request arrives even if no task waits for the answer.
        tokio::spawn(async move {
            let mut answer = answer;
            match self.travel(kind, elsewhere, deliver).await {
                Some(Ok(response)) => drop(answer.send(response)),
                // The connection is closed.
                Some(Err(())) => {}
                None => answer.closed().await,
            }
        });
        Box::pin(async move {
            match timeout_at(deadline, answered).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(Error::NoAnswer("the connection was closed".into())),
                Err(_) => Err(Error::NoAnswer("no answer until the deadline".into())),
            }
        })
    }

    /// Sends a request and returns the answer. `None` if either is lost.
    async fn travel<T>(
        &self,
        kind: RequestKind,
        elsewhere: fn(ResponseError) -> T,
        deliver: impl FnOnce(&mut State, Sender<T>, Instant),
    ) -> Option<Result<T, ()>> {
        let there = self.takes(self.fault_of(kind).map_or(Transit::Well, |fault| fault.requests))?;
        sleep(there).await;
        let now = Instant::now();
        if self.gone.lock().unwrap().is_some_and(|gone| gone + IN_FLIGHT_MAX <= now) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.world.lock();
            match state.moves_until.is_some_and(|until| now < until) {
                true if state.random.chance(50) => return None,
                true => drop(answer.send(elsewhere(NotCoordinator))),
                false => deliver(&mut state, answer, now),
            }
        }
        self.world.happened.notify_one();
        let answered = answered.await.map_err(drop);
        sleep(self.takes(self.fault_of(kind).map_or(Transit::Well, |fault| fault.answers))?).await;
        Some(answered)
    }

    /// Sends a commit. If the coordinator accepts it, the oracle is told.
    pub(super) fn commit(self: &Arc<Self>, identity: CommitIdentity, partition: u32) {
        let (link, life) = (Arc::clone(self), self.life);
        tokio::spawn(async move {
            let deliver = move |state: &mut State, answer: Sender<()>, now| {
                let CommitIdentity { member_id, generation, instance_id } = identity;
                match state.group.commit(&member_id, instance_id.as_deref(), generation, now) {
                    Ok(()) => state.oracle.committed(life, partition, now),
                    Err(_) => state.oracle.refused(),
                }
                _ = answer.send(());
            };
            // The next commit does not depend on the result of this one.
            link.travel(RequestKind::Others, |_| (), deliver).await
        });
    }
}

/// What the member says about its partitions, for the trace.
fn claims_of(request: &JoinGroupRequest) -> String {
    match Subscription::decode(request.protocols[0].metadata.clone()) {
        Ok(subscription) => format!("{:?}", subscription.owned),
        Err(why) => why,
    }
}

impl Coordinator for Arc<Link> {
    fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, JoinGroupResponse> {
        let elsewhere = |error: ResponseError| JoinGroupResponse::default().with_error_code(error.code());
        let (life, number) = (self.life, self.joins_sent.fetch_add(1, Ordering::Relaxed));
        let deliver = move |state: &mut State, answer, now| {
            let id = request.member_id.as_str();
            state.note(format_args!("{life} joins as {id:?}, with {}", claims_of(&request)));
            state.oracle.joins(life, id, number);
            state.group.join(&request, answer, now);
        };
        Arc::clone(self).carry(RequestKind::Joins, deadline, elsewhere, deliver)
    }

    fn sync_group(&self, request: SyncGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, SyncGroupResponse> {
        let elsewhere = |error: ResponseError| SyncGroupResponse::default().with_error_code(error.code());
        let life = self.life;
        let deliver = move |state: &mut State, answer, now| {
            let (id, generation) = (request.member_id.as_str(), request.generation_id);
            state.note(format_args!("{life} syncs as {id:?} of generation {generation}"));
            state.group.sync(&request, answer, now);
        };
        Arc::clone(self).carry(RequestKind::Joins, deadline, elsewhere, deliver)
    }

    fn heartbeat(&self, request: HeartbeatRequest, deadline: Instant) -> CoordinatorFuture<'_, HeartbeatResponse> {
        let elsewhere = |error: ResponseError| HeartbeatResponse::default().with_error_code(error.code());
        let deliver = move |state: &mut State, answer: Sender<HeartbeatResponse>, now| {
            let heard = state.group.heartbeat(
                &request.member_id,
                request.group_instance_id.as_deref(),
                request.generation_id,
                now,
            );
            drop(answer.send(heard.map_or_else(elsewhere, |()| HeartbeatResponse::default())));
        };
        Arc::clone(self).carry(RequestKind::Heartbeats, deadline, elsewhere, deliver)
    }

    fn leave_group(&self, request: LeaveGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, LeaveGroupResponse> {
        let elsewhere = |error: ResponseError| LeaveGroupResponse::default().with_error_code(error.code());
        let deliver = move |state: &mut State, answer: Sender<LeaveGroupResponse>, now| {
            let member = &request.members[0];
            // A member that leaves is gone whatever the answer is.
            _ = state.group.leave(&member.member_id, member.group_instance_id.as_deref(), now);
            drop(answer.send(LeaveGroupResponse::default()));
        };
        Arc::clone(self).carry(RequestKind::Others, deadline, elsewhere, deliver)
    }

    fn partition_count<'a>(&'a self, _: &'a str, deadline: Instant) -> CoordinatorFuture<'a, Option<u32>> {
        Box::pin(async move {
            let transit = self.fault_of(RequestKind::Others).map_or(Transit::Well, |fault| fault.answers);
            let answer = async {
                match self.takes(transit) {
                    Some(time) => sleep(time).await,
                    None => std::future::pending().await,
                }
                self.world.lock().partitions
            };
            let answer = timeout_at(deadline, answer).await;
            answer.map(Some).map_err(|_| Error::NoAnswer("no answer until the deadline".into()))
        })
    }

    fn forget_coordinator(&self, _: &str) {}
}
