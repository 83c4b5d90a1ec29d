//! `eventd` takes events of users in over HTTP, keeps them in a durable log, and delivers them to any number of
//! destinations: in order per user, at least once, each destination and each user isolated from the others.
//!
//! ```text
//!            HTTP                      durable log                       one per destination
//! clients ─────────▶ ingest ─────────▶ topic user-events ─▶ dispatch ─────────────▶ file / https / …
//!                    partition = hash(user)  P0 │ P1 │ P2   per-user lanes, retries, commit
//!                                                             │ gave up
//!                                                             ▼
//!                                                   topic user-events.<dest>.dead
//! ```
//!
//! The modules are listed in the order in which data flows. A module only names modules before it, which a test checks.

// `println!` and `eprintln!` panic if their reader has ended. The module `stderr` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod limits;

mod clock;
mod log_limiter;
mod small_file;

pub mod descriptors;
pub mod stderr;
pub mod vital;

pub mod core;

pub mod net;

pub mod sqlite;

pub mod kafka;

pub mod log;

pub mod group;

pub mod destination;

pub mod ingest;

pub mod dispatch;

pub mod replay;

pub mod environment;
pub mod signals;
pub mod telemetry;

pub mod cli;
pub mod config;

pub mod commands;

/// The future that a method of an object-safe trait returns. There is one for each batch or attempt, and not for each event,
/// so its allocation does not matter.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
