//! Behaviour, seen from outside: one binary, so that it is linked once.

mod support;

mod crash;
//! Behaviour, from the outside. One binary: it is linked once.

mod conformance;
mod sqlite;
