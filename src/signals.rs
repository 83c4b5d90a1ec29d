//! Signals of the operating system: stop (SIGTERM, SIGINT), stop at once (the second of these), reopen files (SIGHUP).

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// SIGXFSZ, for which tokio has no name. The system sends it if a write exceeds the limit of a file's size (`ulimit -f`).
const FILE_TOO_LARGE: i32 = 25;

/// The signals that the process got. Cheap to clone; every clone sees all signals.
#[derive(Debug, Clone)]
pub struct Signals {
    /// How many signals to stop came.
    stops: watch::Receiver<u32>,
    /// How many signals to reopen files came.
    hang_ups: watch::Receiver<u32>,
}

impl Signals {
    /// Installs handlers for the signals of this process. Has to be called inside a runtime.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn of_process() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let hang_up = signal(SignalKind::hangup())?;
        // The handler stays after the drop. With a handler, SIGXFSZ does not end the process: the write fails instead, as
        // on a full disk, and is handled like that.
        drop(signal(SignalKind::from_raw(FILE_TOO_LARGE))?);
        let (stop, stops) = watch::channel(0);
        let (reopen, hang_ups) = watch::channel(0);
        tokio::spawn(forward(terminate, interrupt, hang_up, stop, reopen));
        Ok(Self { stops, hang_ups })
    }

    /// Waits for the first signal to stop: accept no new work, and finish work in progress.
    pub async fn stop(&self) {
        self.stopped(1).await;
    }

    /// Waits for the second signal to stop: drop all work.
    pub async fn stop_at_once(&self) {
        self.stopped(2).await;
    }

    /// Waits until signals can no longer be received, because the task that forwards them panicked.
    pub async fn lost(&self) {
        let mut stops = self.stops.clone();
        while stops.changed().await.is_ok() {}
    }

    async fn stopped(&self, times: u32) {
        let mut stops = self.stops.clone();
        if stops.wait_for(|stops| *stops >= times).await.is_err() {
            // The task that forwards signals panicked. `main` waits for `lost`, and ends the process.
            std::future::pending().await
        }
    }

    /// The requests to reopen files that come from now on.
    pub fn reopens(&self) -> Reopens {
        let mut hang_ups = self.hang_ups.clone();
        hang_ups.mark_unchanged();
        Reopens(hang_ups)
    }
}

/// Requests to reopen files. A program that rotates files sends one after it has renamed a file.
#[derive(Debug)]
pub struct Reopens(watch::Receiver<u32>);

impl Reopens {
    /// Waits for the next request. Several requests that came meanwhile count as one.
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
            1 => tracing::info!("stopping: waiting for work in progress; a second signal stops at once"),
            _ => tracing::warn!("stopping at once: work in progress is dropped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_second_signal_stops_at_once() {
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
