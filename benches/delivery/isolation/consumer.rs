//! What delivers the events of a case: eventd with its own ingest, eventd alone, or the peer.

use crate::child::{Child, Helper, Usage};
use crate::options::Options;
use crate::peers::{Buffer, CONCURRENCY, Peer};
use crate::roles::now_ns;
use crate::run::{Run, Size, free_address};
use crate::store::{CommitWatch, Place, Store};
use anyhow::Context as _;
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
pub(crate) struct Running<'a> {
    delivers: Delivers,
    /// Starts another process that delivers.
    start: Box<dyn Fn() -> anyhow::Result<Delivers> + Send + 'a>,
    ingest: Option<Child>,
    /// Where events are sent.
    pub(crate) address: SocketAddr,
}

/// The process that delivers.
enum Delivers {
    Eventd(Child),
    Peer(Helper),
}

impl<'a> Running<'a> {
    /// Starts the processes, and the watch over the commits.
    pub(crate) fn start(
        run: &'a Run,
        options: &Options,
        store: &dyn Store,
        place: &'a Place,
        consumer: Consumer,
        peer: Option<&'a Peer>,
        sink: SocketAddr,
    ) -> anyhow::Result<(Self, CommitWatch)> {
        let (address, dest) = (free_address()?, format!("{}=http://{sink}/hook", place.destination));
        let listen = address.to_string();
        let log = ["--url", &place.url, "--topic", &place.topic];
        // Opens the log before its processes do, so that they do not compete for creating it.
        let commits = store.commits(place)?;
        let mut delivery = [&log[..], &["--dest", &dest]].concat();
        let window = window(options).map(|events| events.to_string());
        if let Some(window) = &window {
            delivery.extend(["--window", window]);
        }
        let up = [&["up", "--listen", &listen], &delivery[..]].concat();
        let ingest = [&["ingest", "--listen", &listen], &log[..]].concat();
        let ingest = (consumer != Consumer::Up).then(|| Child::eventd(&ingest, &run.log)).transpose()?;
        let dispatch = [&["dispatch"], &delivery[..]].concat();
        let (start, commits): (Box<dyn Fn() -> anyhow::Result<Delivers> + Send + 'a>, _) = match consumer {
            Consumer::Peer(buffer) => {
                let peer = peer.context("no peer was prepared")?;
                let start = move || Ok(Delivers::Peer(peer.start(place, sink, CONCURRENCY, buffer)?));
                (Box::new(start), peer.commits(place)?)
            }
            Consumer::Up => (eventd(run, &up), commits),
            Consumer::Dispatch => (eventd(run, &dispatch), commits),
        };
        Ok((Self { delivers: start()?, start, ingest, address }, commits))
    }

    /// What the process that delivers has used.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        match &self.delivers {
            Delivers::Eventd(child) => child.usage(),
            Delivers::Peer(helper) => helper.usage(),
        }
    }

    /// Kills the process that delivers, and starts another one. Returns the time between, in nanoseconds since the Unix
    /// epoch.
    pub(crate) fn kill_and_start(&mut self) -> anyhow::Result<u64> {
        match &mut self.delivers {
            Delivers::Eventd(child) => child.kill()?,
            Delivers::Peer(helper) => helper.kill()?,
        }
        let ended_ns = now_ns();
        self.delivers = (self.start)()?;
        Ok(ended_ns)
    }

    /// Stops the process that delivers, and starts another one. Returns the time between. A peer is killed.
    pub(crate) fn stop_and_start(&mut self) -> anyhow::Result<u64> {
        if let Delivers::Eventd(child) = &mut self.delivers {
            child.stop()?;
        }
        self.kill_and_start()
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

/// Starts eventd with these arguments, as often as it is called.
fn eventd<'a>(run: &'a Run, arguments: &[&str]) -> Box<dyn Fn() -> anyhow::Result<Delivers> + Send + 'a> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Box::new(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(Delivers::Eventd(Child::eventd(&arguments, &run.log)?))
    })
}
