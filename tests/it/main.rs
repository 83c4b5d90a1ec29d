//! Behaviour, from outside: through the program, its public parts and `run(…, shutdown)`. One binary: it is linked once.

mod cli;
mod conformance;
mod control;
mod crash;
mod destination;
mod ingest;
mod kafka;
mod layering;
#[path = "../support/memory_partition.rs"]
mod memory_partition;
mod replay;
mod sqlite;
mod support;
