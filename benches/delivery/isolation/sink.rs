//! The sink of the cases of isolation, as a process of its own. It keeps every arrival, and answers one line to each of:
//!
//! - `count`: the number of events of healthy users that have arrived, without repeats
//! - `away`: refuses connections and cuts the open ones, until `back`
//! - `dump PATH`: writes all arrivals to a file
//!
//! It answers 500 to the first users, and user 0 waits longer for each answer than the others.

use super::case::ANSWER_MS;
use super::load::Stamp;
use crate::roles::now_ns;
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// Arrivals that are kept. A case has some millions at most.
const ARRIVALS_MAX: usize = 16_000_000;

/// Bytes of an arrival in a file.
const ARRIVAL_BYTES: usize = 24;

/// A request that has arrived completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) stamp: Stamp,
    /// When it arrived, in nanoseconds since the Unix epoch.
    pub(crate) arrived_ns: u64,
}

impl Arrival {
    fn bytes(&self) -> [u8; ARRIVAL_BYTES] {
        let mut bytes = [0; ARRIVAL_BYTES];
        bytes[..8].copy_from_slice(&self.stamp.intended_ns.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.arrived_ns.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.stamp.user.to_le_bytes());
        bytes[20..].copy_from_slice(&self.stamp.number.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ARRIVAL_BYTES]) -> Self {
        let long = |from: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[from + index]));
        let short = |from: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[from + index]));
        Self { stamp: Stamp { intended_ns: long(0), user: short(16), number: short(20) }, arrived_ns: long(8) }
    }
}

/// Reads what `dump` wrote.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Arrival>> {
    let mut file = std::io::BufReader::new(std::fs::File::open(path)?);
    let (mut arrivals, mut bytes) = (Vec::new(), [0; ARRIVAL_BYTES]);
    let whole = usize::try_from(file.get_ref().metadata()?.len())? / ARRIVAL_BYTES;
    for _ in 0..whole {
        file.read_exact(&mut bytes)?;
        arrivals.push(Arrival::from_bytes(&bytes));
    }
    Ok(arrivals)
}

/// How users are treated, and what has arrived.
#[derive(Debug)]
struct Sink {
    /// Users below this number get the status 500.
    failing: u32,
    user_0_wait: Duration,
    /// Users from this number on are healthy.
    healthy_from: u32,
    arrivals: Mutex<Arrivals>,
}

#[derive(Debug, Default)]
struct Arrivals {
    all: Vec<Arrival>,
    /// The next new number of each user.
    next: Vec<u32>,
    /// Events of healthy users, without repeats.
    healthy: u64,
}

impl Arrivals {
    fn add(&mut self, arrival: Arrival, healthy_from: u32) {
        let Stamp { user, number, .. } = arrival.stamp;
        self.all.push(arrival);
        if self.next.len() <= user as usize {
            self.next.resize(user as usize + 1, 0);
        }
        let next = &mut self.next[user as usize];
        if number >= *next {
            *next = number + 1;
            self.healthy += u64::from(user >= healthy_from);
        }
    }
}

impl Sink {
    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> StatusCode {
        let Ok(body) = request.into_body().collect().await else { return StatusCode::BAD_REQUEST };
        let arrived_ns = now_ns();
        // Only the events of a backlog have no stamp, and their users always fail.
        let Some(stamp) = Stamp::parse(&body.to_bytes()) else { return StatusCode::INTERNAL_SERVER_ERROR };
        self.arrivals().add(Arrival { stamp, arrived_ns }, self.healthy_from);
        let wait = if stamp.user == 0 { self.user_0_wait } else { Duration::from_millis(ANSWER_MS.into()) };
        tokio::time::sleep(wait).await;
        if stamp.user < self.failing { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }
    }
}

/// The role `isolation-sink FAILING USER_0_WAIT_MS HEALTHY_FROM`: serves until standard input ends.
pub(crate) fn run(runtime: &Runtime, failing: &str, user_0_wait_ms: &str, healthy_from: &str) -> anyhow::Result<()> {
    let sink = Arc::new(Sink {
        failing: failing.parse()?,
        user_0_wait: Duration::from_millis(user_0_wait_ms.parse()?),
        healthy_from: healthy_from.parse()?,
        arrivals: Mutex::default(),
    });
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
    let address = listener.local_addr()?;
    println!("{address}");
    let mut serving = Some(runtime.spawn(serve(listener, Arc::clone(&sink))));
    for question in std::io::stdin().lock().lines() {
        let question = question?;
        ensure!(sink.arrivals().all.len() < ARRIVALS_MAX, "over {ARRIVALS_MAX} arrivals");
        match question.split_once(' ').unwrap_or((&question, "")) {
            ("count", _) => println!("{}", sink.arrivals().healthy),
            ("away", _) => {
                stop(runtime, serving.take());
                println!("away");
            }
            ("back", _) => {
                let listener = runtime.block_on(TcpListener::bind(address))?;
                serving = Some(runtime.spawn(serve(listener, Arc::clone(&sink))));
                println!("back");
            }
            ("dump", path) => {
                let mut file = std::io::BufWriter::new(std::fs::File::create(path).context("create the dump")?);
                for arrival in &sink.arrivals().all {
                    file.write_all(&arrival.bytes())?;
                }
                file.flush()?;
                println!("dumped");
            }
            (other, _) => bail!("unknown question: {other:?}"),
        }
    }
    stop(runtime, serving);
    Ok(())
}

/// Closes the listening socket and all connections.
fn stop(runtime: &Runtime, serving: Option<JoinHandle<()>>) {
    if let Some(serving) = serving {
        serving.abort();
        // It ends with the error that it was aborted.
        let _ = runtime.block_on(serving);
    }
}

/// Serves connections. They end with this future.
async fn serve(listener: TcpListener, sink: Arc<Sink>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&sink)));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, sink: Arc<Sink>) {
    let service = service_fn(|request| {
        let sink = &sink;
        async move {
            let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
            *response.status_mut() = sink.answer(request).await;
            Ok::<_, Infallible>(response)
        }
    });
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("no delay: {error}");
        return;
    }
    // A client that closes its connection is not an error.
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

/// The address of a sink, from its first line.
pub(crate) fn address(line: &str) -> anyhow::Result<SocketAddr> {
    line.parse().with_context(|| format!("the address of the sink: {line:?}"))
}
