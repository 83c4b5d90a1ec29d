//! Appends lines to a file so that a failed append leaves nothing behind.

use crate::destination::batch_writer::LineSink;

/// The operations on a file that [`FileAppender`] needs. Tests replace the real file by one that fails.
pub(super) trait AppendFile: Send + 'static {
    /// Opens the file if it is closed or was deleted, repairs its last line, and returns its identity and length.
    fn open(&mut self) -> Result<FileSnapshot, String>;
    fn write(&mut self, lines: &[u8]) -> Result<(), String>;
    fn sync(&mut self) -> Result<(), String>;
    /// Cuts the file back to the length in the snapshot, and syncs it. Does nothing if the open file is another one, or
    /// is not longer.
    fn cut(&mut self, to: FileSnapshot) -> Result<(), String>;
    fn close(&mut self);
    /// Closes the file if its path now leads to another file, or to none.
    fn close_if_moved(&mut self);
}

/// Which file this is, and how long it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileSnapshot {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) len_bytes: u64,
}

impl FileSnapshot {
    pub(super) fn is_same_file(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Appends each block of lines as a whole, or not at all.
pub(super) struct FileAppender<F> {
    file: F,
    /// The file before the last append, if that append failed. The file must be cut back to it before the next append.
    cut_back_to: Option<FileSnapshot>,
}

impl<F: AppendFile> FileAppender<F> {
    pub(super) fn new(file: F) -> Self {
        Self { file, cut_back_to: None }
    }
}

impl<F: AppendFile> LineSink for FileAppender<F> {
    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        let mut before = self.file.open()?;
        if let Some(cut_back_to) = self.cut_back_to {
            self.file.cut(cut_back_to)?;
            before = self.file.open()?;
            self.cut_back_to = None;
        }
        self.file.write(lines).and_then(|()| self.file.sync()).inspect_err(|_| {
            self.cut_back_to = Some(before);
            // This cut helps if the file is moved away before it is opened again. Its result does not matter: the cut
            // before the next append is the one that counts.
            let _best_effort = self.file.cut(before);
            self.file.close();
        })
    }

    fn reopen(&mut self) {
        self.file.close_if_moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A file in memory, and the faults that its next operations have.
    #[derive(Default)]
    struct FakeDisk {
        kept: Vec<u8>,
        is_open: bool,
        /// The next write keeps only this many bytes and fails.
        short_write_bytes: Option<usize>,
        next_sync_fails: bool,
        next_cut_fails: bool,
        times_opened: usize,
    }

    #[derive(Clone, Default)]
    struct FakeFile(Arc<Mutex<FakeDisk>>);

    impl AppendFile for FakeFile {
        fn open(&mut self) -> Result<FileSnapshot, String> {
            let mut disk = self.0.lock().unwrap();
            disk.times_opened += usize::from(!disk.is_open);
            disk.is_open = true;
            Ok(FileSnapshot { device: 1, inode: 1, len_bytes: disk.kept.len() as u64 })
        }

        fn write(&mut self, lines: &[u8]) -> Result<(), String> {
            let mut disk = self.0.lock().unwrap();
            assert!(disk.is_open, "the appender wrote to a closed file");
            let short_bytes = disk.short_write_bytes.take();
            disk.kept.extend_from_slice(&lines[..short_bytes.unwrap_or(lines.len())]);
            short_bytes.map_or(Ok(()), |_| Err("no space left on device".into()))
        }

        fn sync(&mut self) -> Result<(), String> {
            match std::mem::take(&mut self.0.lock().unwrap().next_sync_fails) {
                true => Err("input/output error".into()),
                false => Ok(()),
            }
        }

        fn cut(&mut self, to: FileSnapshot) -> Result<(), String> {
            let mut disk = self.0.lock().unwrap();
            if std::mem::take(&mut disk.next_cut_fails) {
                return Err("cut failed".into());
            }
            disk.kept.truncate(to.len_bytes as usize);
            Ok(())
        }

        fn close(&mut self) {
            self.0.lock().unwrap().is_open = false;
        }

        fn close_if_moved(&mut self) {}
    }

    /// Appends `one`, then `two` with the fault, then `three`. Returns the content, and how often the file was opened.
    fn append_with_fault(set_fault: impl Fn(&mut FakeDisk)) -> (String, usize) {
        let file = FakeFile::default();
        let mut appender = FileAppender::new(file.clone());
        appender.append(b"one\n").unwrap();
        set_fault(&mut file.0.lock().unwrap());
        appender.append(b"two\n").unwrap_err();
        appender.append(b"three\n").or_else(|_| appender.append(b"three\n")).unwrap();
        let disk = file.0.lock().unwrap();
        (String::from_utf8(disk.kept.clone()).unwrap(), disk.times_opened)
    }

    #[test]
    fn a_short_write_is_cut_off_before_the_next_append() {
        assert_eq!(append_with_fault(|disk| disk.short_write_bytes = Some(2)), ("one\nthree\n".into(), 2));
    }

    #[test]
    fn lines_whose_sync_failed_are_cut_off_although_they_can_be_read() {
        assert_eq!(append_with_fault(|disk| disk.next_sync_fails = true), ("one\nthree\n".into(), 2));
    }

    #[test]
    fn a_cut_that_failed_is_repeated_before_the_next_append() {
        let sync_and_cut_fail = |disk: &mut FakeDisk| (disk.next_sync_fails, disk.next_cut_fails) = (true, true);
        assert_eq!(append_with_fault(sync_and_cut_fail).0, "one\nthree\n");
    }
}
