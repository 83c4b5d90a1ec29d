//! What delivers the events of a case: eventd with its own ingest, eventd alone, or the peer.

use crate::child::{Child, Helper, Usage};
use crate::options::Options;
use crate::peers::{Buffer, CONCURRENCY, Peer};
use crate::run::{Run, Size, free_address};
use crate::store::{CommitLag, Place, Store};
use std::fmt;
use std::net::SocketAddr;

/// `--window` of a quick run, so that events fill it within the time of a case.
const QUICK_WINDOW: u32 = 2_000;

/// What delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consumer {
    /// `eventd up`: ingest and delivery in one process.
    Up,
    /// `eventd dispatch`, next to an `eventd ingest` that also serves the peer.
    Dispatch,
    Peer(Buffer),
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up | Self::Dispatch => f.write_str("eventd"),
            Self::Peer(Buffer::Default) => f.write_str("parallel-consumer"),
            Self::Peer(Buffer::Events(events)) => write!(f, "parallel-consumer, buffer {events}"),
        }
    }
}

/// `--window` of eventd, if it is not the default.
pub(super) fn window(options: &Options) -> Option<u32> {
    options.window.or((options.size == Size::Quick).then_some(QUICK_WINDOW))
}

/// The processes of a case.
pub(crate) struct Running {
    delivers: Delivers,
    ingest: Option<Child>,
    /// Where events are sent.
    pub(crate) address: SocketAddr,
}

/// The process that delivers.
enum Delivers {
    Eventd(Child),
    Peer(Helper),
}

impl Running {
    /// Starts the processes, and the watch over the commits.
    pub(crate) fn start(
        run: &Run,
        options: &Options,
        store: &dyn Store,
        place: &Place,
        consumer: Consumer,
        peer: Option<&Peer>,
        sink: SocketAddr,
    ) -> anyhow::Result<(Self, CommitLag)> {
        let (address, dest) = (free_address()?, format!("{}=http://{sink}/hook", place.destination));
        let listen = address.to_string();
        let log = ["--url", &place.url, "--topic", &place.topic];
        // Opens the log before its processes do, so that they do not compete for creating it.
        let lag = store.commit_lag(place)?;
        let tries = u32::MAX.to_string();
        let mut delivery = vec!["--dest", &dest, "--attempts", &tries];
        let window = window(options).map(|events| events.to_string());
        if let Some(window) = &window {
            delivery.extend(["--window", window]);
        }
        if consumer == Consumer::Up {
            let up = [&["up", "--listen", &listen], &log[..], &delivery].concat();
            let delivers = Delivers::Eventd(Child::eventd(&up, &run.log)?);
            return Ok((Self { delivers, ingest: None, address }, lag));
        }
        let ingest = Child::eventd(&[&["ingest", "--listen", &listen], &log[..]].concat(), &run.log)?;
        let (delivers, lag) = match (consumer, peer) {
            (Consumer::Peer(buffer), Some(peer)) => {
                let helper = peer.start(place, sink, CONCURRENCY, buffer)?;
                (Delivers::Peer(helper), peer.commit_lag(place)?)
            }
            _ => {
                let dispatch = [&["dispatch"], &log[..], &delivery].concat();
                (Delivers::Eventd(Child::eventd(&dispatch, &run.log)?), lag)
            }
        };
        Ok((Self { delivers, ingest: Some(ingest), address }, lag))
    }

    /// What the process that delivers has used.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        match &self.delivers {
            Delivers::Eventd(child) => child.usage(),
            Delivers::Peer(helper) => helper.usage(),
        }
    }

    /// Ends the processes. Fails if one of them has ended by itself.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        if let Some(mut ingest) = self.ingest.take() {
            ingest.assert_running()?;
            ingest.terminate()?;
        }
        match self.delivers {
            Delivers::Eventd(mut child) => {
                child.assert_running()?;
                child.terminate()
            }
            // It is killed, because what it would still do does not matter.
            Delivers::Peer(mut helper) => helper.assert_running(),
        }
    }
}
