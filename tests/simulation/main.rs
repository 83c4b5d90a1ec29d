//! Simulations run the product's own code in an in-memory world, in simulated time, with seeded faults. This binary has
//! the one of dispatch and replay. The simulation of group members (`membership/`) is included by the library's tests,
//! because it needs private items.

mod dispatch;
mod harness;
#[path = "../support/memory_partition.rs"]
mod memory_partition;
