//! The embedded database file.
