//! Helper processes next to `eventd`. They are processes of their own, so that their processor time is counted apart:
//!
//! - `server LATENCY_MS`: a bare hyper server that reads each body and answers. It is the limit of ingest, and the sink
//!   of the HTTP destination. It answers `stats` with [`Seen`].
//! - `client ADDRESS COUNT CONCURRENCY`: a bare hyper client that posts the payload. It is the limit of the HTTP
//!   destination.
//! - `isolation-sink …`: the sink of the cases of isolation, see `isolation/sink.rs`.
//! - `broker`: keeps a broker running and is not measured, see `store/broker.rs`.

use crate::report::percentile;
use crate::users::PAYLOAD_BYTES;
use crate::{isolation, store, users};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::fmt;
use std::io::BufRead as _;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};

/// The digits at the start of a payload that say when it was sent, in nanoseconds since the Unix epoch.
pub(crate) const STAMP_DIGITS: usize = 20;

/// What a server has seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    /// When the first and the last request arrived, in nanoseconds since the Unix epoch. All processes share this
    /// clock.
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    /// The number of payloads with a stamp.
    pub(crate) stamped: u64,
    /// The time from the stamp in a payload to its arrival, or 0 if payloads have no stamp.
    pub(crate) latency_p50_us: u64,
    pub(crate) latency_p99_us: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, first_ns, last_ns, stamped, latency_p50_us, latency_p99_us } = self;
        write!(f, "{requests} {first_ns} {last_ns} {stamped} {latency_p50_us} {latency_p99_us}")
    }
}

impl FromStr for Seen {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let numbers = line.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [requests, first_ns, last_ns, stamped, latency_p50_us, latency_p99_us] = numbers[..] else {
            bail!("not six: {line:?}")
        };
        Ok(Self { requests, first_ns, last_ns, stamped, latency_p50_us, latency_p99_us })
    }
}

/// The time now, in nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs the role that the arguments name until standard input ends.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    // eventd has as many workers as cores too.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["server", latency_ms] => {
            let latency = Duration::from_millis(latency_ms.parse()?);
            let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
            println!("{}", listener.local_addr()?);
            let counts = Arc::new(Counts::default());
            runtime.spawn(serve(listener, latency, Arc::clone(&counts)));
            for question in std::io::stdin().lock().lines() {
                match question?.as_str() {
                    "stats" => println!("{}", counts.seen()),
                    other => bail!("unknown question: {other:?}"),
                }
            }
        }
        ["client", address, count, concurrency] => {
            runtime.block_on(post(address, count.parse()?, concurrency.parse()?))?;
            println!("{}", now_ns());
            // The process stays until it is told to end, so that its resource use can be read.
            std::io::stdin().lock().lines().count();
        }
        ["isolation-sink", failing, user_0_wait_ms, healthy_from] => {
            isolation::run_sink(&runtime, failing, user_0_wait_ms, healthy_from)?;
        }
        ["broker"] => store::keep_broker()?,
        _ => bail!("unknown role: {arguments:?}"),
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    /// When the first request arrived, or 0 if there was none.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    latencies_us: Mutex<Vec<u32>>,
}

impl Counts {
    fn seen(&self) -> Seen {
        let mut latencies = self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.sort_unstable();
        Seen {
            requests: self.requests.load(Ordering::SeqCst),
            first_ns: self.first_ns.load(Ordering::SeqCst),
            last_ns: self.last_ns.load(Ordering::SeqCst),
            stamped: latencies.len() as u64,
            latency_p50_us: percentile(&latencies, 0.50).into(),
            latency_p99_us: percentile(&latencies, 0.99).into(),
        }
    }

    fn count(&self, body: &[u8]) {
        let now = now_ns();
        let stamp = body.get(..STAMP_DIGITS).and_then(|head| std::str::from_utf8(head).ok()?.parse::<u64>().ok());
        if let Some(sent) = stamp {
            let us = u32::try_from(now.saturating_sub(sent) / 1000).unwrap_or(u32::MAX);
            self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner).push(us);
        }
        if self.first_ns.load(Ordering::Relaxed) == 0 {
            // Fails if another request was first.
            let _ = self.first_ns.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.last_ns.fetch_max(now, Ordering::SeqCst);
        self.requests.fetch_add(1, Ordering::SeqCst);
    }
}

async fn serve(listener: TcpListener, latency: Duration, counts: Arc<Counts>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, latency, Arc::clone(&counts)));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, latency: Duration, counts: Arc<Counts>) {
    let service = service_fn(|request: Request<Incoming>| {
        let counts = &counts;
        async move {
            if let Ok(body) = request.into_body().collect().await {
                counts.count(&body.to_bytes());
            }
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{}"))))
        }
    });
    let served = match stream.set_nodelay(true) {
        Ok(()) => {
            // Without a timer there is no header time-out either. This is the least that a server costs.
            let server = hyper::server::conn::http1::Builder::new();
            server.serve_connection(TokioIo::new(stream), service).await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    // A stopped client closes its connections, which is not an error.
    drop(served);
}

/// Posts the payload `count` times, `concurrency` at a time.
async fn post(address: &str, count: u64, concurrency: usize) -> anyhow::Result<()> {
    let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(concurrency).build(connector);
    let (payload, left) = (Bytes::from(users::payload(PAYLOAD_BYTES)), Arc::new(AtomicU64::new(count)));
    let uri: http::Uri = format!("http://{address}/hook").parse()?;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (client, payload, left, uri) = (client.clone(), payload.clone(), Arc::clone(&left), uri.clone());
        tasks.spawn(async move {
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                let request = Request::post(uri.clone())
                    .header("content-type", "text/plain; charset=utf-8")
                    .body(Full::new(payload.clone()))?;
                let response = client.request(request).await.context("post")?;
                response.into_body().collect().await.context("read the answer")?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}
