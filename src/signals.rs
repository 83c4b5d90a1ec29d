//! What the outside tells a process: stop (SIGTERM, SIGINT), stop at once (the second of them), reopen (SIGHUP).

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// SIGXFSZ, for which tokio has no name: a write would make a file larger than the process may (`ulimit -f`).
const FILE_TOO_LARGE: i32 = 25;

/// How far the process was told to stop, and how often to reopen. Cheap to clone; every clone sees everything.
#[derive(Debug, Clone)]
pub struct Signals {
    stops: watch::Receiver<u32>,
    hang_ups: watch::Receiver<u32>,
}

impl Signals {
    /// Takes the process's signals over. Has to be called inside a runtime.
    pub fn of_process() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let hang_up = signal(SignalKind::hangup())?;
        // A handler stays once it is there. The signal then ends nothing: the write fails, as on a full disk.
        drop(signal(SignalKind::from_raw(FILE_TOO_LARGE))?);
        let (stop, stops) = watch::channel(0);
        let (reopen, hang_ups) = watch::channel(0);
        tokio::spawn(forward(terminate, interrupt, hang_up, stop, reopen));
        Ok(Self { stops, hang_ups })
    }

    /// Ready once the process was told to stop: accept nothing new, end what is under way.
    pub async fn stop(&self) {
        self.stopped(1).await;
    }

    /// Ready once it was told to stop for the second time: drop everything.
    pub async fn stop_at_once(&self) {
        self.stopped(2).await;
    }

    /// Ready if signals cannot be heard any more, since the task that forwards them panicked.
    pub async fn lost(&self) {
        let mut stops = self.stops.clone();
        while stops.changed().await.is_ok() {}
    }

    async fn stopped(&self, times: u32) {
        let mut stops = self.stops.clone();
        if stops.wait_for(|stops| *stops >= times).await.is_err() {
            // The end of the process is on its way: `main` waits for `lost`.
            std::future::pending().await
        }
    }

    /// Follows the requests to reopen that come from now on.
    pub fn reopens(&self) -> Reopens {
        let mut hang_ups = self.hang_ups.clone();
        hang_ups.mark_unchanged();
        Reopens(hang_ups)
    }
}

/// Requests to reopen files: what a rotation of logs sends.
#[derive(Debug)]
pub struct Reopens(watch::Receiver<u32>);

impl Reopens {
    /// Waits for the next one; several at once are one.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

async fn forward(
    mut terminate: Signal,
    mut interrupt: Signal,
    mut hang_up: Signal,
    stop: watch::Sender<u32>,
    reopen: watch::Sender<u32>,
) {
    loop {
        tokio::select! {
            Some(()) = terminate.recv() => {},
            Some(()) = interrupt.recv() => {},
            Some(()) = hang_up.recv() => {
                reopen.send_modify(|reopens| *reopens += 1);
                continue;
            }
            else => return,
        }
        stop.send_modify(|stops| *stops += 1);
        match *stop.borrow() {
            1 => tracing::info!("stopping: waiting for what is under way; a second signal stops at once"),
            _ => tracing::warn!("stopping at once"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_stop_is_told_apart_from_the_first() {
        let (stop, stops) = watch::channel(0);
        let (_reopen, hang_ups) = watch::channel(0);
        let signals = Signals { stops, hang_ups };
        stop.send_replace(1);
        signals.stop().await;
        assert!(tokio::time::timeout(std::time::Duration::ZERO, signals.stop_at_once()).await.is_err());
        stop.send_replace(2);
        signals.stop_at_once().await;
    }
}
