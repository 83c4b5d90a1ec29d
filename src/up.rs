//! `eventd up`: ingest and a dispatch per destination in one process, each on its own.
//!
//! ```text
//!  signal ─▶ ingest ends what it accepted ─▶ the destinations end what is in flight ─▶ exit
//!              │                                │
//!              ▼                                ▼ one supervisor each: an error or a panic is told, and the
//!             log ───────────────────────────▶  destination starts again a second later; the others go on
//! ```

use crate::config::{self, Delivery};
use crate::group::sqlite::WhenHeld;
use crate::limits;
use crate::log::Log;
use crate::modes::{self, Ended, Store};
use crate::signals::Signals;
use anyhow::{Context, anyhow};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Takes events in and delivers them until the first signal, then drains in the order of the data flow.
pub async fn up(config: config::Up, signals: &Signals) -> anyhow::Result<Ended> {
    let start = modes::start(&config.log, &config.endpoint);
    let Some((listeners, store, log)) = modes::unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    if config.deliveries.is_empty() {
        tracing::warn!("no --dest: events are kept, and delivered to nobody");
    }

    // Dropped with this future, tasks are aborted: that is how a second signal stops everything at once.
    let mut supervisors = JoinSet::new();
    let (accepted_all, drain) = watch::channel(false);
    for delivery in config.deliveries {
        let supervisor = Supervisor {
            store: store.clone(),
            log: log.clone(),
            delivery,
            signals: signals.clone(),
            drain: drain.clone(),
            told: None,
        };
        supervisors.spawn(supervisor.run());
    }
    let mut ingest = JoinSet::new();
    let stop = signals.clone();
    ingest.spawn(crate::ingest::run(listeners, log, config.endpoint.ingest, async move { stop.stop().await }));

    let flow = async {
        let ingest = match ingest.join_next().await.context("ingest was not started")? {
            Ok(ended) => ended.map(Ended::from),
            Err(panicked) => Err(anyhow!("ingest panicked: {panicked}")),
        };
        if let Err(error) = &ingest {
            tracing::error!("ingest ended, and the destinations drain: {error:#}");
        }
        accepted_all.send_replace(true);
        // All of them are waited for, also where one fails: the first failure is the exit code's.
        let mut deliveries = Ok(Ended::Drained);
        while let Some(ended) = supervisors.join_next().await {
            let ended = ended.context("a destination's supervisor ended").flatten();
            deliveries = match (deliveries, ended) {
                (Ok(all), ended) => ended.map(|one: Ended| all.and(one)),
                (Err(first), ended) => {
                    if let Err(error) = ended {
                        tracing::error!("{error:#}");
                    }
                    Err(first)
                }
            };
        }
        Ok(ingest?.and(deliveries?))
    };
    let engine = store.engine();
    tokio::select! {
        ended = flow => ended,
        why = engine.lost() => Err(modes::lost(&why)),
    }
}

/// Why a life of a destination ended.
struct Failed {
    error: anyhow::Error,
    /// Whether it was delivering.
    began: bool,
}

/// Keeps one destination going.
struct Supervisor {
    store: Store,
    log: Arc<dyn Log>,
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
                Err(Failed { error, began: true }) if *self.drain.borrow() => {
                    return Err(error.context(format!("destination {:?}", self.delivery.spec.name)));
                }
                Ok(_) => self.tell("not running: it ended without being told to".into()),
                Err(Failed { error, .. }) => self.tell(format!("{error:#}")),
            }
            tokio::select! {
                () = tokio::time::sleep(limits::RESTART_AFTER) => {}
                () = drained(self.drain.clone()) => return Ok(Ended::Drained),
            }
        }
    }

    /// One life of the destination, in a task of its own: a panic ends that task alone.
    async fn delivery_once(&self) -> Result<Ended, Failed> {
        let place = self.store.join(&self.log, &self.delivery, WhenHeld::Fail).await;
        let place = place.context("not started").map_err(|error| Failed { error, began: false })?;
        let (engine, log) = (self.store.engine(), self.log.clone());
        let (delivery, signals) = (self.delivery.clone(), self.signals.clone());
        let stop = drained(self.drain.clone());
        let mut life = JoinSet::new();
        life.spawn(modes::deliver(engine, log, place, delivery, signals, stop));
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

/// Ready once the destinations are told to drain.
async fn drained(mut drain: watch::Receiver<bool>) {
    if drain.wait_for(|drain| *drain).await.is_err() {
        // Whoever would tell is gone, and this task is about to be aborted with it.
        std::future::pending().await
    }
}
