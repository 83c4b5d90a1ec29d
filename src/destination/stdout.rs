//! The lines of a file, to standard output.
//!
//! A write that fails may leave a torn line; the next begins with a line break, so that only that one is lost to the
//! reader. Where standard output is a regular file, the lines are synced before they count.
//!
//! A reader that closes the pipe makes every later attempt `Unreachable`, and since nobody can open it again, that
//! stays so: the events are kept in the log until the destination is started anew.

use super::writer::{Sink, Writer};
use super::{BatchLimits, ConfigurationError, DeliveryBatch, Destination, MANY};
use crate::BoxFuture;
use crate::core::verdict::Report;
use crate::vital;
use rustix::fs::{OFlags, fcntl_getfl, fstat};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use tokio::sync::watch;

#[derive(Debug)]
pub(super) struct Stdout {
    writer: Writer,
    lost: watch::Receiver<Option<String>>,
}

impl Stdout {
    /// Fails if there is no standard output.
    pub(super) fn open() -> Result<Self, ConfigurationError> {
        if was_closed(io::stdout().as_fd()) {
            return Err(ConfigurationError(
                "standard output is closed: nothing that is written there is kept. Open it, or use null: if that is meant"
                    .into(),
            ));
        }
        // A descriptor of its own: `std::io::stdout` looks through everything for line breaks and copies the rest.
        let opened = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        let (losing, lost) = watch::channel(None);
        let writer = opened.and_then(Output::new).and_then(|output| Writer::start(output, losing));
        let writer = writer.map_err(|error| ConfigurationError(format!("standard output cannot be used: {error}")))?;
        Ok(Self { writer, lost })
    }
}

impl Destination for Stdout {
    fn limits(&self) -> BatchLimits {
        MANY
    }

    fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(self.writer.write(hand_over))
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(vital::lost(self.lost.clone()))
    }
}

/// Whether standard output was closed when the process started. The runtime of Rust then opens `/dev/null` there for
/// reading and writing, so that each event would count as delivered and be lost. A shell's `>/dev/null` opens it for
/// writing only.
fn was_closed(output: BorrowedFd<'_>) -> bool {
    let is_for_both = fcntl_getfl(output).is_ok_and(|flags| flags.contains(OFlags::RDWR));
    let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
    let is_null = fstat(output).is_ok_and(|output| null.is_ok_and(|null| output.st_rdev == null));
    is_for_both && is_null
}

struct Output {
    file: File,
    /// A file on a disk, by redirection: it can be synced.
    is_regular: bool,
    /// The last write ended within a line.
    torn: bool,
}

impl Output {
    fn new(file: File) -> io::Result<Self> {
        let is_regular = file.metadata()?.is_file();
        Ok(Self { file, is_regular, torn: false })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Sink for Output {
    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        // What is written cannot be taken back: a torn line is ended, so that the next one is whole.
        let ended = if self.torn { self.write(b"\n") } else { Ok(()) };
        let written = ended.and_then(|()| self.write(lines));
        let kept = written.and_then(|()| if self.is_regular { self.file.sync_data() } else { Ok(()) });
        kept.map_err(|error| format!("standard output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_torn_line_is_ended_before_the_next_is_written() {
        let (output, mut reader) = UnixStream::pair().unwrap();
        output.set_nonblocking(true).unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut output = Output::new(File::from(OwnedFd::from(output))).unwrap();
        let long = vec![b'x'; 64 * 1024 * 1024];
        assert!(output.append(&long).is_err(), "more than a socket takes in");
        let mut seen = Vec::new();
        assert_eq!(reader.read_to_end(&mut seen).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(!seen.is_empty() && seen.len() < long.len());
        seen.clear();
        output.append(b"one\n").unwrap();
        output.append(b"two\n").unwrap();
        drop(output);
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"\none\ntwo\n");
    }
}
