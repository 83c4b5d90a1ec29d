//! Between members and the coordinator: a request arrives late or never, and so does its answer; the coordinator moves.

use super::oracle::Life;
use super::{State, World};
use crate::group::kafka::coordinator::{Answer, Coordinator};
use crate::group::kafka::membership::Identity;
use crate::kafka::Error;
use kafka_protocol::ResponseError::{self, NotCoordinator};
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot::{self, Sender};
use tokio::time::{Instant, sleep, timeout_at};

/// How long what a killed process has sent may still arrive.
const IN_FLIGHT_MAX: Duration = Duration::from_millis(50);

/// Which requests some trouble is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// JoinGroup and SyncGroup.
    Joins,
    Heartbeats,
    Others,
}

/// What goes wrong between one process and the coordinator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trouble {
    pub(super) until: Instant,
    /// `None`: all of them.
    pub(super) kind: Option<Kind>,
    pub(super) requests: Way,
    pub(super) answers: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Well,
    Slow,
    Lost,
}

/// One process's way to the coordinator.
#[derive(Debug)]
pub(super) struct Link {
    world: Arc<World>,
    life: Life,
    troubles: Mutex<Vec<Trouble>>,
    gone: Mutex<Option<Instant>>,
}

impl Link {
    pub(super) fn new(world: &Arc<World>, life: Life) -> Self {
        Self { world: Arc::clone(world), life, troubles: Mutex::default(), gone: Mutex::default() }
    }

    pub(super) fn troubles(&self) -> MutexGuard<'_, Vec<Trouble>> {
        self.troubles.lock().unwrap()
    }

    /// The process was killed.
    pub(super) fn is_gone(&self) {
        *self.gone.lock().unwrap() = Some(Instant::now());
    }

    fn trouble_of(&self, kind: Kind) -> Option<Trouble> {
        let about = |trouble: &Trouble| trouble.kind.is_none_or(|troubled| troubled == kind);
        self.troubles().iter().filter(|trouble| trouble.until > Instant::now()).copied().find(about)
    }

    /// How long this way takes; `None`: it is lost.
    fn takes(&self, way: Way) -> Option<Duration> {
        let mut state = self.world.lock();
        let lost = state.loss;
        match way {
            Way::Lost => None,
            _ if state.random.chance(lost) => None,
            Way::Slow => Some(state.random.millis(1, 2_000)),
            Way::Well => Some(state.random.millis(1, 12)),
        }
    }

    fn carry<T: Send + 'static>(
        self: Arc<Self>,
        kind: Kind,
        deadline: Instant,
        elsewhere: fn(ResponseError) -> T,
        deliver: impl FnOnce(&mut State, Sender<T>, Instant) + Send + 'static,
    ) -> Answer<'static, T> {
        let (answer, answered) = oneshot::channel();
        // What was sent arrives, whoever waits for the answer.
        tokio::spawn(async move {
            let mut answer = answer;
            match self.travel(kind, elsewhere, deliver).await {
                Some(Ok(given)) => drop(answer.send(given)),
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

    /// There and back; `None`: lost on the way.
    async fn travel<T>(
        &self,
        kind: Kind,
        elsewhere: fn(ResponseError) -> T,
        deliver: impl FnOnce(&mut State, Sender<T>, Instant),
    ) -> Option<Result<T, ()>> {
        let there = self.takes(self.trouble_of(kind).map_or(Way::Well, |trouble| trouble.requests))?;
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
        sleep(self.takes(self.trouble_of(kind).map_or(Way::Well, |trouble| trouble.answers))?).await;
        Some(answered)
    }

    /// Sends a commit, of which the oracle is told if it is taken.
    pub(super) fn commit(self: &Arc<Self>, identity: Identity, partition: u32) {
        let (link, life) = (Arc::clone(self), self.life);
        tokio::spawn(async move {
            let deliver = move |state: &mut State, answer: Sender<()>, now| {
                let Identity { member_id, generation, instance_id } = identity;
                match state.group.commit(&member_id, instance_id.as_deref(), generation, now) {
                    Ok(()) => state.oracle.committed(life, partition, now),
                    Err(_) => state.oracle.refused(),
                }
                _ = answer.send(());
            };
            // The next commit is made whatever became of this one.
            link.travel(Kind::Others, |_| (), deliver).await
        });
    }
}

impl Coordinator for Arc<Link> {
    fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> Answer<'_, JoinGroupResponse> {
        let elsewhere = |error: ResponseError| JoinGroupResponse::default().with_error_code(error.code());
        let deliver = move |state: &mut State, answer, now| state.group.join(&request, answer, now);
        Arc::clone(self).carry(Kind::Joins, deadline, elsewhere, deliver)
    }

    fn sync_group(&self, request: SyncGroupRequest, deadline: Instant) -> Answer<'_, SyncGroupResponse> {
        let elsewhere = |error: ResponseError| SyncGroupResponse::default().with_error_code(error.code());
        let deliver = move |state: &mut State, answer, now| state.group.sync(&request, answer, now);
        Arc::clone(self).carry(Kind::Joins, deadline, elsewhere, deliver)
    }

    fn heartbeat(&self, request: HeartbeatRequest, deadline: Instant) -> Answer<'_, HeartbeatResponse> {
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
        Arc::clone(self).carry(Kind::Heartbeats, deadline, elsewhere, deliver)
    }

    fn leave_group(&self, request: LeaveGroupRequest, deadline: Instant) -> Answer<'_, LeaveGroupResponse> {
        let elsewhere = |error: ResponseError| LeaveGroupResponse::default().with_error_code(error.code());
        let deliver = move |state: &mut State, answer: Sender<LeaveGroupResponse>, now| {
            let member = &request.members[0];
            // Whoever leaves goes, whatever the answer is.
            _ = state.group.leave(&member.member_id, member.group_instance_id.as_deref(), now);
            drop(answer.send(LeaveGroupResponse::default()));
        };
        Arc::clone(self).carry(Kind::Others, deadline, elsewhere, deliver)
    }

    fn partitions<'a>(&'a self, _: &'a str, deadline: Instant) -> Answer<'a, Option<u32>> {
        Box::pin(async move {
            let way = self.trouble_of(Kind::Others).map_or(Way::Well, |trouble| trouble.answers);
            let answer = async {
                match self.takes(way) {
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
