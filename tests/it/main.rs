//! Behaviour, seen from outside: one binary, so that it is linked once.

mod support;

mod cli;
mod crash;
//! Behaviour, from the outside. One binary: it is linked once.

mod conformance;
mod sqlite;
//! Behaviour through the program and through `run(…, shutdown)`: one binary for all.

mod ingest;
mod ingest_bad_input;
mod ingest_trouble;
mod support;
//! Behaviour through the program and its public parts, in one binary.

mod destination_file;
mod destination_http;
mod destination_support;
