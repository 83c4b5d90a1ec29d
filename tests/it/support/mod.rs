//! What tests of the whole program share.

pub mod client;
pub mod delivered;
pub mod load;
pub mod program;
