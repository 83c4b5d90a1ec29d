//! The output streams of a replay.

use crate::stderr;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Where a replay prints.
pub trait Streams: Send + Sync + fmt::Debug {
    /// Prints a result, for the operator and for programs: the plan and the summary.
    fn out(&self, text: &str) -> io::Result<()>;

    /// Prints a message for the operator only.
    fn err(&self, text: &str) -> io::Result<()>;

    /// Whether [`Streams::err`] prints on a terminal.
    fn has_terminal(&self) -> bool;
}

/// Standard output and standard error of the process.
#[derive(Debug, Clone, Copy)]
pub struct StandardStreams;

impl Streams for StandardStreams {
    fn out(&self, text: &str) -> io::Result<()> {
        // On a terminal, both streams appear together. What was written to standard error before must come first.
        stderr::flush(stderr::FLUSH_MAX);
        io::stdout().write_all(text.as_bytes())
    }

    fn err(&self, text: &str) -> io::Result<()> {
        stderr::write(text.as_bytes());
        Ok(())
    }

    fn has_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }
}
