//! The lines of a file, to standard output.
//!
//! A reader that closes the pipe makes every later attempt `Unreachable`, and since nobody can open it again, that
//! stays so: the events are kept in the log until the destination is started anew.

use super::writer::{Sink, Writer};
use super::{ConfigurationError, Destination, HandOver, HandOverLimits, MANY};
use crate::BoxFuture;
use crate::core::verdict::Report;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

#[derive(Debug)]
pub(super) struct Stdout {
    writer: Writer,
}

impl Stdout {
    /// Fails where there is no standard output.
    pub(super) fn open() -> Result<Self, ConfigurationError> {
        // A descriptor of its own: `std::io::stdout` looks through everything for line breaks and copies the rest.
        let opened = std::io::stdout().as_fd().try_clone_to_owned().map(File::from);
        let writer = opened.and_then(|output| Writer::start(Output(output)));
        let writer = writer.map_err(|error| ConfigurationError(format!("standard output cannot be used: {error}")))?;
        Ok(Self { writer })
    }
}

impl Destination for Stdout {
    fn limits(&self) -> HandOverLimits {
        MANY
    }

    fn deliver(&self, hand_over: HandOver) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(self.writer.write(hand_over))
    }
}

struct Output(File);

impl Sink for Output {
    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        self.0.write_all(lines).map_err(|error| format!("standard output: {error}"))
    }
}
