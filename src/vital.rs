//! Threads and tasks that are not joined by anyone, and that the process cannot do without.
//!
//! ```text
//!  the work panics ──▶ Vital is dropped while unwinding ──▶ `lost` says which work it was ──▶ the process ends
//!                                                      └──▶ or a function tells those that wait for the work
//! ```
//!
//! Without this a panic would end the work alone, and everybody who waits for it would wait for ever.

use anyhow::Context as _;
use std::io;
use std::sync::Mutex;
use tokio::sync::watch;

/// Why something cannot be used any more. `None` as long as it can.
pub(crate) type Lost = watch::Sender<Option<String>>;

/// Held by the work for as long as it lasts. If the work panics, it calls a function.
pub(crate) struct Vital(Box<dyn FnMut() + Send>);

impl Vital {
    /// If the work panics, `lost` says so. `work` is the subject of "… panicked".
    pub(crate) fn new(work: impl Into<String>, lost: Lost) -> Self {
        let work = work.into();
        Self::calling(move || lose(&lost, format!("{work} panicked")))
    }

    /// If the work panics, `tell` is called.
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

/// Says why it is lost, unless that was said before: the first reason is the one that counts.
pub(crate) fn lose(lost: &Lost, why: String) {
    lost.send_if_modified(|lost| {
        let is_first = lost.is_none();
        if is_first {
            *lost = Some(why);
        }
        is_first
    });
}

/// Waits until it is lost, and says why. It waits for ever if whatever could be lost ended in order.
pub(crate) async fn lost(mut lost: watch::Receiver<Option<String>>) -> String {
    let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

/// Starts a thread. If `work` panics, `lost` says so.
///
/// # Errors
/// The system has no thread left, by its own limit or that of a control group (`pids.max`).
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

/// Looks whether this many threads can be started, by starting them all and letting them end. The runtime panics or
/// waits for ever if it gets none.
///
/// # Errors
/// The system gives fewer, by its own limit or that of a user or a control group.
pub fn check_threads(threads: usize) -> anyhow::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // Opens when this function has seen enough: until then all of them exist at the same time.
        let _closed = gate.lock();
        for started in 0..threads {
            let wait = || drop(gate.lock());
            std::thread::Builder::new().name("check".into()).spawn_scoped(scope, wait).with_context(|| {
                format!(
                    "cannot start thread {} of the {threads} that are needed: raise the limit of the user (ulimit -u) \
                     or of the control group (pids.max)",
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
    async fn a_thread_that_panics_says_so_and_the_first_reason_counts() {
        let (sender, receiver) = watch::channel(None);
        thread("first", sender.clone(), || panic!("on purpose")).unwrap();
        assert_eq!(lost(receiver.clone()).await, "the thread first panicked");
        thread("second", sender.clone(), || panic!("on purpose")).unwrap();
        lose(&sender, "another reason".into());
        assert_eq!(lost(receiver).await, "the thread first panicked");
    }

    #[tokio::test]
    async fn work_that_ends_in_order_loses_nothing() {
        let (sender, mut receiver) = watch::channel(None);
        thread("short", sender, || {}).unwrap();
        assert!(receiver.changed().await.is_err(), "its sender is gone, and nothing was said");
    }

    #[tokio::test]
    async fn a_task_that_panics_says_so_and_one_that_is_aborted_does_not() {
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
