//! Keeps tasks running until a drain: one task for each destination of `up`.

use crate::core::outcome::Ended;
use crate::limits::RESTART_AFTER;
use anyhow::anyhow;
use std::collections::HashMap;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

/// Tasks that run until the drain, one for each item. If a task panics before the drain, it is started again. If a task
/// ends with an error before the drain, this requests the end of the whole process.
pub(super) struct Supervisors<T, S> {
    tasks: JoinSet<anyhow::Result<Ended>>,
    items: HashMap<Id, T>,
    /// Becomes `true` when the tasks have to drain and end.
    drain: watch::Receiver<bool>,
    /// Set to `true` to request that the process drains and ends, because only a restart can help.
    request_end: watch::Sender<bool>,
    /// Makes the task of an item.
    supervise: S,
}

impl<T, S, F> Supervisors<T, S>
where
    S: Fn(&T) -> F,
    F: Future<Output = anyhow::Result<Ended>> + Send + 'static,
{
    pub(super) fn start(
        items: Vec<T>,
        drain: watch::Receiver<bool>,
        request_end: watch::Sender<bool>,
        supervise: S,
    ) -> Self {
        let mut started = Self { tasks: JoinSet::new(), items: HashMap::new(), drain, request_end, supervise };
        for item in items {
            let task = started.tasks.spawn((started.supervise)(&item)).id();
            started.items.insert(task, item);
        }
        started
    }

    /// Waits until all tasks have ended, even if one of them fails. The first error is returned and decides the exit code;
    /// the others are only logged.
    pub(super) async fn all_ended(&mut self) -> anyhow::Result<Ended> {
        let mut all = Ok(Ended::Drained);
        while let Some(joined) = self.tasks.join_next_with_id().await {
            let ended = match joined {
                Ok((_, ended)) => ended,
                Err(panicked) if *self.drain.borrow() => Err(anyhow!("the supervisor of a destination: {panicked}")),
                Err(panicked) => {
                    tracing::error!("the supervisor of a destination is started again: {panicked}");
                    self.start_again(panicked.id());
                    continue;
                }
            };
            if let Err(error) = &ended
                && !*self.drain.borrow()
                && !self.request_end.send_replace(true)
            {
                tracing::error!("the process drains and ends, because only a restart can help: {error:#}");
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
        let Some(item) = self.items.remove(&task) else { return };
        let (supervised, drain) = ((self.supervise)(&item), self.drain.clone());
        let restarted = self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(RESTART_AFTER) => supervised.await,
                () = is_set(drain) => Ok(Ended::Drained),
            }
        });
        self.items.insert(restarted.id(), item);
    }
}

/// Waits until the flag is `true`.
pub(super) async fn is_set(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|is_set| *is_set).await.is_err() {
        // The task that sets the flag is gone, and this task is about to be aborted, too.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_panics_is_started_again_and_the_others_continue() {
        let (start_drain, drain) = watch::channel(false);
        let starts: [Arc<AtomicU32>; 2] = Default::default();
        let supervise = |item: &usize| {
            let (item, starts, drain) = (*item, starts[*item].clone(), drain.clone());
            async move {
                let before = starts.fetch_add(1, Ordering::Relaxed);
                assert!(item == 0 || before >= 2, "on purpose");
                is_set(drain).await;
                Ok(if item == 0 { Ended::Drained } else { Ended::WorkLeft })
            }
        };
        let (request_end, end_requested) = watch::channel(false);
        let mut supervisors = Supervisors::start(vec![0, 1], drain.clone(), request_end, supervise);
        let until_third_start = async {
            while starts[1].load(Ordering::Relaxed) < 3 {
                tokio::time::sleep(RESTART_AFTER).await;
            }
            start_drain.send_replace(true);
        };
        let (ended, ()) = tokio::join!(supervisors.all_ended(), until_third_start);
        assert_eq!(ended.unwrap(), Ended::WorkLeft);
        assert!(!*end_requested.borrow(), "a panic does not end the process");
        assert_eq!(starts.map(|starts| starts.load(Ordering::Relaxed)), [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_panics_during_the_drain_is_an_error() {
        let (_start_drain, drain) = watch::channel(true);
        let supervise = |_: &()| async { panic!("on purpose") };
        let ended = Supervisors::start(vec![()], drain, watch::Sender::new(false), supervise).all_ended().await;
        assert!(ended.unwrap_err().to_string().contains("panicked"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_ends_with_an_error_requests_the_end_and_the_others_drain() {
        let (start_drain, drain) = watch::channel(false);
        let (request_end, end_requested) = watch::channel(false);
        let supervise = |fails: &bool| {
            let (fails, drain) = (*fails, drain.clone());
            async move {
                anyhow::ensure!(!fails, "on purpose");
                is_set(drain).await;
                Ok(Ended::Drained)
            }
        };
        let mut supervisors = Supervisors::start(vec![true, false], drain.clone(), request_end, supervise);
        let ingest = async {
            is_set(end_requested).await;
            start_drain.send_replace(true);
        };
        let (ended, ()) = tokio::join!(supervisors.all_ended(), ingest);
        assert!(ended.unwrap_err().to_string().contains("on purpose"));
    }
}
