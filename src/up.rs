//! `eventd up`: ingest and a dispatch per destination in one process, each on its own.
//!
//! ```text
//!  signal ─▶ ingest ends what it accepted ─▶ the destinations end what is in flight ─▶ exit
//!              │                                │
//!              ▼                                ▼ one supervisor each: an error or a panic is told, and the
//!             log ───────────────────────────▶  destination starts again a second later; the others go on
//! ```
//!
//! If the topic was deleted and made again, no destination could read it before a restart. So `up` then drains like after
//! a signal, and ends with an error: a start opens the new topic.
//!
//! The main task owns the supervisors and waits for them as long as the process lives. One that panics is started
//! again, so no destination is ever without its supervisor.

use crate::config::{self, Delivery};
use crate::core::outcome::Ended;
use crate::dispatch;
use crate::group::WhenHeld;
use crate::limits;
use crate::modes::{self, OpenLog};
use crate::signals::Signals;
use anyhow::{Context, anyhow};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

/// Takes events in and delivers them until the first signal, then drains in the order of the data flow.
pub async fn up(mut config: config::Up, signals: &Signals) -> anyhow::Result<Ended> {
    modes::check_descriptors(Some(&config.endpoint), &config.log, &config.deliveries)?;
    let start = modes::start(&config.log, &mut config.endpoint, &mut config.deliveries);
    let Some((listeners, opened)) = modes::unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    if config.deliveries.is_empty() {
        tracing::warn!("no --dest: events are kept, and delivered to nobody");
    }

    // Dropped with this future, tasks are aborted: that is how a second signal stops everything at once.
    let (accepted_all, drain) = watch::channel(false);
    let (give_up, given_up) = watch::channel(false);
    let supervisor = |delivery: &Delivery| Supervisor {
        opened: opened.clone(),
        delivery: delivery.clone(),
        signals: signals.clone(),
        drain: drain.clone(),
        told: None,
    };
    let supervise = |delivery: &Delivery| supervisor(delivery).run();
    let mut supervisors = Supervisors::start(config.deliveries, drain.clone(), give_up, supervise);
    let mut ingest = JoinSet::new();
    let signals = signals.clone();
    let stop = async move {
        tokio::select! {
            () = signals.stop() => {}
            () = raised(given_up) => {}
        }
    };
    ingest.spawn(crate::ingest::run(listeners, opened.log.clone(), config.endpoint.ingest, stop));

    let flow = async {
        let ingested = async {
            let ended = match ingest.join_next().await.context("ingest was not started")? {
                Ok(ended) => ended,
                Err(panicked) => Err(anyhow!("ingest panicked: {panicked}")),
            };
            if let Err(error) = &ended {
                tracing::error!("ingest ended, and the destinations drain: {error:#}");
            }
            accepted_all.send_replace(true);
            ended
        };
        let (ingested, delivered) = tokio::join!(ingested, supervisors.all_ended());
        Ok(ingested?.and(delivered?))
    };
    let engine = Arc::clone(&opened.engine);
    let ended = tokio::select! {
        ended = flow => ended,
        why = engine.lost() => Err(modes::lost(&why)),
    };
    engine.close().await;
    ended
}

/// Why a life of a destination ended.
struct Failed {
    error: anyhow::Error,
    /// Whether it was delivering.
    began: bool,
}

/// Tasks that last until the drain, one for each of `parts`. One that panics before is started again. One that ends with
/// an error before asks for the drain.
struct Supervisors<P, S> {
    tasks: JoinSet<anyhow::Result<Ended>>,
    parts: HashMap<Id, P>,
    drain: watch::Receiver<bool>,
    /// Raised to have everything drained: only a restart of the process can help.
    give_up: watch::Sender<bool>,
    supervise: S,
}

impl<P, S, F> Supervisors<P, S>
where
    S: Fn(&P) -> F,
    F: Future<Output = anyhow::Result<Ended>> + Send + 'static,
{
    fn start(parts: Vec<P>, drain: watch::Receiver<bool>, give_up: watch::Sender<bool>, supervise: S) -> Self {
        let mut started = Self { tasks: JoinSet::new(), parts: HashMap::new(), drain, give_up, supervise };
        for part in parts {
            let task = started.tasks.spawn((started.supervise)(&part)).id();
            started.parts.insert(task, part);
        }
        started
    }

    /// Waits for all of them, also if one fails: the first failure is the exit code's.
    async fn all_ended(&mut self) -> anyhow::Result<Ended> {
        let mut all = Ok(Ended::Drained);
        while let Some(joined) = self.tasks.join_next_with_id().await {
            let ended = match joined {
                Ok((_, ended)) => ended,
                Err(panicked) if *self.drain.borrow() => Err(anyhow!("a destination's supervisor {panicked}")),
                Err(panicked) => {
                    tracing::error!("a destination's supervisor {panicked}; starting it again");
                    self.start_again(panicked.id());
                    continue;
                }
            };
            if let Err(error) = &ended
                && !*self.drain.borrow()
                && !self.give_up.send_replace(true)
            {
                tracing::error!("everything drains, and the process ends, since only a restart can help: {error:#}");
            }
            all = match (all, ended) {
                (Ok(all), ended) => ended.map(|one: Ended| all.and(one)),
                (Err(first), ended) => {
                    if let Err(error) = ended {
                        tracing::error!("{error:#}");
                    }
                    Err(first)
                }
            };
        }
        all
    }

    fn start_again(&mut self, task: Id) {
        let Some(part) = self.parts.remove(&task) else { return };
        let (supervised, drain) = ((self.supervise)(&part), self.drain.clone());
        let again = self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(limits::RESTART_AFTER) => supervised.await,
                () = raised(drain) => Ok(Ended::Drained),
            }
        });
        self.parts.insert(again.id(), part);
    }
}

/// Keeps one destination going, until the drain. It ends before with an error if the topic was made again: its log stays
/// the old one.
struct Supervisor {
    opened: OpenLog,
    delivery: Delivery,
    signals: Signals,
    /// Whether the destinations are told to drain.
    drain: watch::Receiver<bool>,
    /// What was last told of a failure, and when.
    told: Option<(String, Instant)>,
}

impl Supervisor {
    async fn run(mut self) -> anyhow::Result<Ended> {
        loop {
            match self.delivery_once().await {
                Ok(ended) if *self.drain.borrow() => return Ok(ended),
                // One that delivered and failed; one that never began has left nothing undone.
                Err(Failed { error, began: true }) if *self.drain.borrow() || dispatch::is_recreated(&error) => {
                    return Err(error.context(format!("destination {:?}", self.delivery.spec.name)));
                }
                Ok(_) => self.tell("not running: it ended without being told to".into()),
                Err(Failed { error, .. }) => self.tell(format!("{error:#}")),
            }
            tokio::select! {
                () = tokio::time::sleep(limits::RESTART_AFTER) => {}
                () = raised(self.drain.clone()) => return Ok(Ended::Drained),
            }
        }
    }

    /// One life of the destination, in a task of its own: a panic ends that task alone.
    async fn delivery_once(&self) -> Result<Ended, Failed> {
        let joined = modes::join(&self.opened, &self.delivery, WhenHeld::Fail).await;
        let joined = joined.context("not started").map_err(|error| Failed { error, began: false })?;
        let opened = self.opened.clone();
        let (delivery, signals) = (self.delivery.clone(), self.signals.clone());
        let stop = raised(self.drain.clone());
        let mut life = JoinSet::new();
        life.spawn(modes::deliver(opened, joined, delivery, signals, stop));
        let ended = match life.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(panicked)) => Err(anyhow!("panicked: {panicked}")),
            None => Err(anyhow!("its task was not started")),
        };
        ended.map_err(|error| Failed { began: !modes::is_configuration(&error), error })
    }

    fn tell(&mut self, what: String) {
        let again = |(told, at): &(String, Instant)| *told == what && at.elapsed() < limits::LOG_REPEAT_INTERVAL;
        if !self.told.as_ref().is_some_and(again) {
            let destination = &self.delivery.spec.name;
            tracing::error!(%destination, "{what}; trying again every {:?}", limits::RESTART_AFTER);
            self.told = Some((what, Instant::now()));
        }
    }
}

/// Ready once the flag is raised.
async fn raised(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|is_raised| *is_raised).await.is_err() {
        // The task that would raise it is gone, and this task is about to be aborted with it.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_panics_is_started_again_and_the_others_go_on() {
        let (accepted_all, drain) = watch::channel(false);
        let begun: [Arc<AtomicU32>; 2] = Default::default();
        let supervise = |part: &usize| {
            let (part, begun, drain) = (*part, begun[*part].clone(), drain.clone());
            async move {
                let before = begun.fetch_add(1, Ordering::Relaxed);
                assert!(part == 0 || before >= 2, "on purpose");
                raised(drain).await;
                Ok(if part == 0 { Ended::Drained } else { Ended::WorkLeft })
            }
        };
        let (give_up, given_up) = watch::channel(false);
        let mut supervisors = Supervisors::start(vec![0, 1], drain.clone(), give_up, supervise);
        let until = async {
            while begun[1].load(Ordering::Relaxed) < 3 {
                tokio::time::sleep(limits::RESTART_AFTER).await;
            }
            accepted_all.send_replace(true);
        };
        let (ended, ()) = tokio::join!(supervisors.all_ended(), until);
        assert_eq!(ended.unwrap(), Ended::WorkLeft);
        assert!(!*given_up.borrow(), "a panic is no reason to end the process");
        assert_eq!(begun.map(|begun| begun.load(Ordering::Relaxed)), [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_panics_during_the_drain_is_an_error() {
        let (_accepted_all, drain) = watch::channel(true);
        let supervise = |_: &()| async { panic!("on purpose") };
        let ended = Supervisors::start(vec![()], drain, watch::Sender::new(false), supervise).all_ended().await;
        assert!(ended.unwrap_err().to_string().contains("panicked"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_ends_with_an_error_asks_for_the_drain_and_the_others_end_in_order() {
        let (accepted_all, drain) = watch::channel(false);
        let (give_up, given_up) = watch::channel(false);
        let supervise = |fails: &bool| {
            let (fails, drain) = (*fails, drain.clone());
            async move {
                anyhow::ensure!(!fails, "on purpose");
                raised(drain).await;
                Ok(Ended::Drained)
            }
        };
        let mut supervisors = Supervisors::start(vec![true, false], drain.clone(), give_up, supervise);
        let ingest = async {
            raised(given_up).await;
            accepted_all.send_replace(true);
        };
        let (ended, ()) = tokio::join!(supervisors.all_ended(), ingest);
        assert!(ended.unwrap_err().to_string().contains("on purpose"));
    }
}
