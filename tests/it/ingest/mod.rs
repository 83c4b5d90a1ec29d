//! Ingest: what it accepts, what it refuses, and how it behaves when clients, the log or the machine are in trouble.

mod accepted;
mod bad_input;
mod descriptors;
mod healthy;
mod smuggling;
mod trouble;
