//! Behaviour, from outside: through the program, its public parts and `run(…, shutdown)`. One binary: it is linked once.

mod cli;
mod conformance;
mod crash;
mod destination_failures;
mod destination_file;
mod destination_http;
mod destination_support;
mod health;
mod ingest;
mod ingest_bad_input;
mod ingest_descriptors;
mod ingest_healthy;
mod ingest_trouble;
mod kafka;
mod layering;
mod names;
mod process;
mod replay;
mod sqlite;
mod support;
