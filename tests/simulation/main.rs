//! Simulations: the product's own code over an in-memory world, in simulated time, with seeded faults.

mod dispatch;
