//! Writes events as JSON lines to standard output.
//!
//! A failed write may leave an incomplete line. The next write then begins with a line break, so that the reader loses
//! only that line. If standard output is a regular file, lines count as delivered once they are synced.
//!
//! If the reader closes its end of a pipe, every later attempt is `Unreachable`. eventd cannot open the pipe again, so the
//! events stay in the log until eventd is restarted with a new reader.

use super::batch_writer::{BatchWriter, LineSink};
use super::{BatchLimits, ConfigurationError, DeliveryBatch, Destination, LINE_WRITER_LIMITS};
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
pub(super) struct StdoutDestination {
    writer: BatchWriter,
    lost: watch::Receiver<Option<String>>,
}

impl StdoutDestination {
    /// Takes over standard output. Fails if it is closed.
    pub(super) fn open() -> Result<Self, ConfigurationError> {
        if was_closed(io::stdout().as_fd()) {
            return Err(ConfigurationError(
                "standard output is closed, so every event would be lost: open it, or use null: to discard events on purpose"
                    .into(),
            ));
        }
        // `std::io::stdout` would search all bytes for line breaks and buffer the rest. A descriptor of its own does not.
        let opened = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        let (losing, lost) = watch::channel(None);
        let writer = opened.and_then(StdoutSink::new).and_then(|output| BatchWriter::start(output, losing));
        let writer = writer.map_err(|error| ConfigurationError(format!("cannot use standard output: {error}")))?;
        Ok(Self { writer, lost })
    }
}

impl Destination for StdoutDestination {
    fn limits(&self) -> BatchLimits {
        LINE_WRITER_LIMITS
    }

    fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(self.writer.write(batch))
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(vital::lost(self.lost.clone()))
    }
}

/// Whether standard output was closed when the process started.
///
/// Rust's runtime opens `/dev/null` for reading and writing if standard output is closed. Each event would then count as
/// delivered and be lost. A shell's `>/dev/null` is on purpose; it opens the device for writing only.
fn was_closed(output: BorrowedFd<'_>) -> bool {
    let is_read_write = fcntl_getfl(output).is_ok_and(|flags| flags.contains(OFlags::RDWR));
    let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
    let is_null = fstat(output).is_ok_and(|output| null.is_ok_and(|null| output.st_rdev == null));
    is_read_write && is_null
}

struct StdoutSink {
    file: File,
    /// Standard output is redirected to a file on a disk, which can be synced.
    is_regular: bool,
    /// The last write ended inside a line.
    is_in_line: bool,
}

impl StdoutSink {
    fn new(file: File) -> io::Result<Self> {
        let is_regular = file.metadata()?.is_file();
        Ok(Self { file, is_regular, is_in_line: false })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.is_in_line = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl LineSink for StdoutSink {
    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        // Written bytes cannot be taken back. A line break ends the incomplete line, so that the next line is whole.
        let ended = if self.is_in_line { self.write(b"\n") } else { Ok(()) };
        let written = ended.and_then(|()| self.write(lines));
        let synced = written.and_then(|()| if self.is_regular { self.file.sync_data() } else { Ok(()) });
        synced.map_err(|error| format!("cannot write to standard output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_incomplete_line_gets_a_line_break_before_the_next_line_is_written() {
        let (output, mut reader) = UnixStream::pair().unwrap();
        output.set_nonblocking(true).unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut output = StdoutSink::new(File::from(OwnedFd::from(output))).unwrap();
        let long = vec![b'x'; 64 * 1024 * 1024];
        assert!(output.append(&long).is_err(), "the lines are longer than the buffer of the socket");
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
