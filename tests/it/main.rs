//! Behaviour, seen from outside: one binary, so that it is linked once.

mod support;

mod crash;
