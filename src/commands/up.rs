//! `eventd up`: ingest and one delivery for each destination, in one process. A failure of one destination does not affect
//! the others.
//!
//! ```text
//!  signal ──▶ ingest finishes accepted requests ──▶ destinations finish attempts in progress ──▶ exit
//!               │                                     │
//!               ▼                                     ▼ one supervisor each: after an error or a panic it logs the
//!              log ────────────────────────────────▶   reason and starts the destination again a second later
//! ```
//!
//! If the topic was deleted and created again, no destination can read it before a restart. `up` then drains as it does
//! after a signal, and ends with an error: the next start opens the new topic.
//!
//! The main task owns the supervisors and waits for them. A supervisor that panics is started again, so that no
//! destination is ever without one.

use super::deliver::deliver;
use super::ingest::start;
use super::join::join;
use super::open::OpenLog;
use super::supervisors::{Supervisors, is_set};
use super::{descriptors, is_configuration, run_on, unless_stopped};
use crate::config::{DeliveryConfig, UpConfig};
use crate::core::outcome::Ended;
use crate::dispatch;
use crate::group::WhenHeld;
use crate::limits::{LOG_REMINDER_INTERVAL, LOG_REPEAT_INTERVAL, RESTART_AFTER};
use crate::signals::Signals;
use anyhow::{Context, anyhow};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Takes events in and delivers them until the first signal. Then drains in the direction in which data flows: first
/// ingest, then the destinations.
///
/// # Errors
/// The start failed, the log was lost, ingest failed, or a destination ended with an error that only a restart can
/// resolve.
pub async fn up(mut config: UpConfig, signals: &Signals) -> anyhow::Result<Ended> {
    descriptors::check(Some(&config.endpoint), &config.log, &config.deliveries)?;
    let start = start(&config.log, &mut config.endpoint, &mut config.deliveries);
    let Some((listeners, opened)) = unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    if config.deliveries.is_empty() {
        tracing::warn!("no destination: events are stored, but not delivered. Add --dest to deliver them");
    }

    // A second signal drops this future. That aborts the tasks and so stops everything at once.
    let (start_drain, drain) = watch::channel(false);
    let (request_end, end_requested) = watch::channel(false);
    let supervisor = |delivery: &DeliveryConfig| Supervisor {
        opened: opened.clone(),
        delivery: delivery.clone(),
        signals: signals.clone(),
        drain: drain.clone(),
        last_logged: None,
    };
    let supervise = |delivery: &DeliveryConfig| supervisor(delivery).run();
    let mut supervisors = Supervisors::start(config.deliveries, drain.clone(), request_end, supervise);
    let mut ingest = JoinSet::new();
    let signals = signals.clone();
    let stop_ingest = async move {
        tokio::select! {
            () = signals.stop() => {}
            () = is_set(end_requested) => {}
        }
    };
    ingest.spawn(crate::ingest::run(listeners, opened.log.clone(), config.endpoint.ingest, stop_ingest));

    let work = async {
        let ingested = async {
            let ended = match ingest.join_next().await.context("ingest was not started")? {
                Ok(ended) => ended,
                Err(panicked) => Err(anyhow!("ingest panicked: {panicked}")),
            };
            if let Err(error) = &ended {
                tracing::error!("ingest ended, so the destinations drain and the process ends: {error:#}");
            }
            start_drain.send_replace(true);
            ended
        };
        let (ingested, delivered) = tokio::join!(ingested, supervisors.all_ended());
        Ok(ingested?.and(delivered?))
    };
    run_on(Arc::clone(&opened.engine), work).await
}

/// Why one run of a destination ended.
struct RunFailure {
    error: anyhow::Error,
    /// Whether the run had started to deliver. If not, it left no work behind.
    had_started: bool,
}

/// Keeps one destination running until the drain, unless it is halted. It only ends earlier if the topic was deleted and
/// created again, with an error: its log would stay the old topic.
struct Supervisor {
    opened: OpenLog,
    delivery: DeliveryConfig,
    signals: Signals,
    /// Becomes `true` when the destinations have to drain.
    drain: watch::Receiver<bool>,
    /// The last reason that was logged, and when.
    last_logged: Option<(String, Instant)>,
}

impl Supervisor {
    async fn run(mut self) -> anyhow::Result<Ended> {
        loop {
            match self.run_once().await {
                Ok(ended) if *self.drain.borrow() => return Ok(ended),
                Err(RunFailure { error, .. }) if dispatch::is_halted(&error) => return Err(self.halted(error).await),
                Err(RunFailure { error, had_started: true })
                    if *self.drain.borrow() || dispatch::is_recreated(&error) =>
                {
                    return Err(error.context(format!("destination {:?}", self.delivery.spec.name)));
                }
                Ok(_) => self.log_failure("not running: it ended without a request to stop".into()),
                Err(RunFailure { error, .. }) => self.log_failure(format!("{error:#}")),
            }
            tokio::select! {
                () = tokio::time::sleep(RESTART_AFTER) => {}
                () = is_set(self.drain.clone()) => return Ok(Ended::Drained),
            }
        }
    }

    /// The destination has stopped for an operator. To run it again would attempt the same event again and again, so it
    /// stays stopped until the process ends, and a log line says so each minute. The others continue.
    async fn halted(&self, error: anyhow::Error) -> anyhow::Error {
        let destination = &self.delivery.spec.name;
        loop {
            tracing::error!(%destination, "{error:#}. The other destinations continue");
            tokio::select! {
                () = tokio::time::sleep(LOG_REMINDER_INTERVAL) => {}
                () = is_set(self.drain.clone()) => return error.context(format!("destination {destination:?}")),
            }
        }
    }

    /// Joins the group and delivers, in a task of its own, so that a panic only ends this run.
    async fn run_once(&self) -> Result<Ended, RunFailure> {
        let joined = join(&self.opened, &self.delivery, WhenHeld::Fail).await;
        let joined = joined.context("not started").map_err(|error| RunFailure { error, had_started: false })?;
        let (opened, delivery, signals) = (self.opened.clone(), self.delivery.clone(), self.signals.clone());
        let mut run = JoinSet::new();
        run.spawn(deliver(opened, joined, delivery, signals, is_set(self.drain.clone())));
        let ended = match run.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(panicked)) => Err(anyhow!("panicked: {panicked}")),
            None => Err(anyhow!("the task was not started")),
        };
        ended.map_err(|error| RunFailure { had_started: !is_configuration(&error), error })
    }

    /// Logs why the destination is not running. The same reason is logged again only after [`LOG_REPEAT_INTERVAL`].
    fn log_failure(&mut self, reason: String) {
        let is_repeated = |(logged, at): &(String, Instant)| *logged == reason && at.elapsed() < LOG_REPEAT_INTERVAL;
        if !self.last_logged.as_ref().is_some_and(is_repeated) {
            let destination = &self.delivery.spec.name;
            tracing::error!(%destination, "{reason}; trying again every {}", humantime::format_duration(RESTART_AFTER));
            self.last_logged = Some((reason, Instant::now()));
        }
    }
}
