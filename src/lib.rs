//! eventd takes users' events in over HTTP, keeps them in a durable log, and delivers them to any number of destinations:
//! in order per user, at least once, with each destination and each user isolated from the others.
//!
//! ```text
//!            HTTP                      durable log                       one for each destination
//! clients ─────────▶ ingest ─────────▶ topic user-events ─▶ dispatch ─────────────▶ file / https / …
//!                    partition = hash(user)  P0 │ P1 │ P2   per-user lanes, retries, commit
//!                                                             │ gave up
//!                                                             ▼
//!                                                   topic user-events.<dest>.dead
//! ```
//!
//! This is the library behind the program `eventd`. Its interface follows the program and has no promise of stability.
//! `docs/ARCHITECTURE.md` explains how the parts work together. Each module has its own introduction:
//!
//! - [`ingest`] serves HTTP and appends to a [`log`].
//! - [`log`] is the contract of a durable log: [`log::sqlite`] is the embedded one, [`log::kafka`] a cluster of brokers.
//! - [`group`] says who owns which partition, and stores how far a destination got.
//! - [`dispatch`] delivers a topic to one [`destination`].
//! - [`replay`] delivers again what a destination had settled.
//! - [`control`] gives commands of operators to the processes that deliver.
//! - [`core`] has the pure rules: order, tries, progress, and whether the event or the destination is at fault.
//! - [`commands`] puts these parts together for the program.
//!
//! # A destination of your own
//!
//! A program can use the log and the delivery without HTTP and without a process of its own. This example appends two events
//! of one user to a database, and delivers them in order to a destination that it defines itself.
//!
//! ```
//! use eventd::BoxFuture;
//! use eventd::clock::WallClock;
//! use eventd::core::backoff::Backoff;
//! use eventd::core::event::Record;
//! use eventd::core::parking::ParkingLimits;
//! use eventd::core::tries::{OnExhausted, TryPolicy};
//! use eventd::core::verdict::Report;
//! use eventd::destination::{BatchLimits, DeliveryBatch, Destination};
//! use eventd::dispatch::{self, Config, OnGap, Parts, Start, WhenStopped};
//! use eventd::group::{WhenHeld, sqlite::join};
//! use eventd::log::sqlite::{Settings, Sqlite};
//! use eventd::log::{CreateTopic, Engine};
//! use std::sync::Arc;
//! use std::time::Duration;
//! use tokio::sync::mpsc;
//!
//! /// Sends the payload of each event through a channel.
//! #[derive(Debug)]
//! struct Channel(mpsc::UnboundedSender<String>);
//!
//! impl Destination for Channel {
//!     /// One event in each call, so that a report never covers only a part of a run.
//!     fn limits(&self) -> BatchLimits {
//!         BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 }
//!     }
//!
//!     fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
//!         let payload = batch.events[0].record.value().unwrap_or_default();
//!         self.0.send(String::from_utf8_lossy(payload).into_owned()).expect("the receiver waits for it");
//!         Box::pin(async { vec![Report { delivered: 1, failed: None }] })
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("eventd.db");
//! let engine = Sqlite::open(path, Settings { create: true, ..Settings::default() }).await?;
//! let topic = engine.open("user-events", Some(CreateTopic { partitions: 1, retention: None })).await?;
//! let event = |payload: &str| Record::new(Some(b"user-1"), Some(payload.as_bytes()), &[], 1_767_350_000_000);
//! // After this the events are durable.
//! topic.append(0, vec![event("first"), event("second")]).await.map_err(anyhow::Error::msg)?;
//!
//! let (sender, mut delivered) = mpsc::unbounded_channel();
//! let group = join(&engine, "my-destination", "user-events", "my-digest", WhenHeld::Fail).await?;
//! let destination = Arc::new(Channel(sender));
//! let parts = Parts { engine: engine.clone(), log: topic, group, destination, wall_clock: WallClock::system() };
//! let config = Config {
//!     tries: TryPolicy {
//!         attempts_max: None,
//!         give_up_after: Some(Duration::from_secs(24 * 3600)),
//!         on_exhausted: OnExhausted::DeadLetter,
//!         backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(300), true).map_err(anyhow::Error::msg)?,
//!         retry_after_max: Duration::from_secs(300),
//!     },
//!     attempt_timeout: Duration::from_secs(15),
//!     concurrency: 256,
//!     in_flight_events: 10_000,
//!     rate: None,
//!     window_events: 100_000,
//!     window_bytes: 64 << 20,
//!     parking: ParkingLimits { user_backlog: 100, users_max: 1_000_000, may_park: true },
//!     commit_interval: Duration::from_millis(200),
//!     start: Start::Earliest,
//!     on_gap: OnGap::Stop,
//!     when_stopped: WhenStopped::Stay,
//!     drain: Duration::from_secs(30),
//!     dead_retention: Duration::from_secs(30 * 24 * 3600),
//!     seed: 0,
//! };
//! // Runs until the shutdown is ready: here, until both events have arrived.
//! dispatch::run(parts, config, async {
//!     assert_eq!(delivered.recv().await.as_deref(), Some("first"));
//!     assert_eq!(delivered.recv().await.as_deref(), Some("second"));
//! })
//! .await?;
//! engine.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Ingest with a shutdown
//!
//! [`ingest::run`] takes listening sockets and a shutdown. The caller chooses the port and when to stop. A stop waits for the
//! requests that have begun.
//!
//! ```
//! use eventd::core::outcome::Ended;
//! use eventd::core::partition::Partitioner;
//! use eventd::ingest::{self, Config};
//! use eventd::log::sqlite::{Settings, Sqlite};
//! use eventd::log::{CreateTopic, Engine};
//! use std::time::Duration;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::{TcpListener, TcpStream};
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("eventd.db");
//! let engine = Sqlite::open(path, Settings { create: true, ..Settings::default() }).await?;
//! let topic = engine.open("user-events", Some(CreateTopic { partitions: 3, retention: None })).await?;
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! let config = Config {
//!     max_body_bytes: 4 << 20,
//!     max_event_bytes: 900 << 10,
//!     max_batch_events: 10_000,
//!     max_pending_bytes: 64 << 20,
//!     max_connections: 1_000,
//!     header_timeout: Duration::from_secs(10),
//!     body_timeout: Duration::from_secs(30),
//!     partitioner: Partitioner::Murmur2,
//!     allowed_hosts: Vec::new(),
//!     drain: Duration::from_secs(30),
//! };
//! let ended = ingest::run(vec![listener], topic, config, async {
//!     let body = r#"[{"UserID": "user-1", "Payload": "hello"}]"#;
//!     let request = format!(
//!         "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
//!         body.len()
//!     );
//!     let mut client = TcpStream::connect(address).await.expect("ingest listens");
//!     client.write_all(request.as_bytes()).await.expect("ingest reads the request");
//!     let mut answer = String::new();
//!     client.read_to_string(&mut answer).await.expect("ingest answers");
//!     assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
//! })
//! .await?;
//! assert_eq!(ended, Ended::Drained);
//! engine.close().await;
//! # Ok(())
//! # }
//! ```

// `println!` and `eprintln!` panic if their reader has ended. The module `stderr` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod limits;

pub mod clock;
mod log_limiter;
mod small_file;

pub mod descriptors;
pub mod stderr;
pub mod vital;

pub mod core;

pub mod net;

mod sqlite;

pub mod kafka;

pub mod log;

pub mod group;

pub mod destination;

pub mod ingest;

pub mod dispatch;

pub mod replay;

pub mod control;

pub mod environment;
pub mod signals;
pub mod telemetry;

pub mod cli;
pub mod config;

pub mod commands;

/// The future that a method of an object-safe trait returns. There is one for each batch or attempt, and not for each event,
/// so its allocation does not matter.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
