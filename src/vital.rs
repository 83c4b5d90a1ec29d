//! Guards for threads and tasks that the process needs but that no other code joins.
//!
//! ```text
//!  the work panics ──▶ Vital is dropped while unwinding ──▶ the loss is reported ──▶ the process ends
//!                                                      └──▶ or a function informs the code that waits
//! ```
//!
//! Without a guard, a panic would end only the thread or task, and code that waits for its results would wait for ever.

use anyhow::Context as _;
use std::io;
use std::sync::Mutex;
use tokio::sync::watch;

/// Reports why something can no longer be used. The value is `None` as long as it can be used.
pub(crate) type Lost = watch::Sender<Option<String>>;

/// A value that the work holds until it ends. If the work panics, the guard calls a function.
pub(crate) struct Vital(Box<dyn FnMut() + Send>);

impl Vital {
    /// A guard that reports a panic of the work to `lost`. The message is "`work` panicked".
    pub(crate) fn new(work: impl Into<String>, lost: Lost) -> Self {
        let work = work.into();
        Self::calling(move || lose(&lost, format!("{work} panicked")))
    }

    /// A guard that calls `tell` if the work panics.
    pub(crate) fn calling(tell: impl FnMut() + Send + 'static) -> Self {
        Self(Box::new(tell))
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

/// Reports the reason of a loss. If a reason was reported before, this one is ignored: it is only a consequence.
pub(crate) fn lose(lost: &Lost, why: String) {
    lost.send_if_modified(|lost| {
        let is_first = lost.is_none();
        if is_first {
            *lost = Some(why);
        }
        is_first
    });
}

/// Waits for a loss and returns its reason. Waits for ever if the work ended without a loss.
pub(crate) async fn lost(mut lost: watch::Receiver<Option<String>>) -> String {
    let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

/// Starts a thread. A panic of `work` is reported to `lost`.
///
/// # Errors
/// The system refuses a thread, because of the limit of the user (`ulimit -u`) or of a control group (`pids.max`).
pub(crate) fn thread(name: &'static str, lost: Lost, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let started = std::thread::Builder::new().name(name.into()).spawn(move || {
        let _vital = Vital::new(format!("the thread {name}"), lost);
        work();
    });
    match started {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot start the thread {name}: {error}"))),
    }
}

/// Checks that this many threads can be started, by starting and ending them. Without this check, the runtime panics or
/// waits for ever if the system refuses it a thread.
///
/// # Errors
/// The system allows fewer threads, because of the limit of the user (`ulimit -u`) or of a control group (`pids.max`).
pub fn check_threads(threads: usize) -> anyhow::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // The threads wait for this lock, so that all of them exist at the same time. It is released at the end.
        let _closed = gate.lock();
        for started in 0..threads {
            let wait = || drop(gate.lock());
            std::thread::Builder::new().name("check".into()).spawn_scoped(scope, wait).with_context(|| {
                format!(
                    "cannot start thread {} of {threads} that eventd needs: raise the limit of the user (ulimit -u) or \
                     of the control group (pids.max)",
                    started + 1
                )
            })?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_panic_of_a_thread_is_reported_and_the_first_reason_stays() {
        let (sender, receiver) = watch::channel(None);
        thread("first", sender.clone(), || panic!("on purpose")).unwrap();
        assert_eq!(lost(receiver.clone()).await, "the thread first panicked");
        thread("second", sender.clone(), || panic!("on purpose")).unwrap();
        lose(&sender, "another reason".into());
        assert_eq!(lost(receiver).await, "the thread first panicked");
    }

    #[tokio::test]
    async fn work_that_ends_normally_reports_no_loss() {
        let (sender, mut receiver) = watch::channel(None);
        thread("short", sender, || {}).unwrap();
        assert!(receiver.changed().await.is_err(), "the sender was dropped without a report");
    }

    #[tokio::test]
    async fn the_panic_of_a_task_is_reported_but_its_abortion_is_not() {
        let (sender, receiver) = watch::channel(None);
        let vital = Vital::new("the task", sender.clone());
        let aborted = tokio::spawn(async move {
            let _vital = vital;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        aborted.abort();
        aborted.await.unwrap_err();
        assert_eq!(*receiver.borrow(), None);
        let vital = Vital::new("the task", sender);
        let panicking = tokio::spawn(async move {
            let _vital = vital;
            tokio::task::yield_now().await;
            panic!("on purpose");
        });
        assert_eq!(lost(receiver).await, "the task panicked");
        panicking.await.unwrap_err();
    }
}
