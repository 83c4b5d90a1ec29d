//! JSON lines, appended to a file that is never truncated, but for what a failure left of them.
//!
//! A hand-over is answered once its lines are synced. After a failed or short write, or a failed sync, nobody knows
//! what of it is on the disk, and the page cache is not believed: the file is closed, opened again and cut back to the
//! length that it had before, and only then appended to. A last line without its line break, which a crash left, is cut
//! in the same way, unless it lacks nothing else: then it gets its line break. A last line that is not ours is an error.
//!
//! The file is held by an exclusive lock, since two writers would cut each other's lines. A pipe or a device is
//! neither locked, nor cut, nor synced. `{partition}` in the file's name makes one file a partition, each opened with
//! its first event, so that the owners of different partitions can write side by side.

use super::disk::{Disk, Mark};
use super::writer::{Sink, Writer};
use super::{BatchLimits, ConfigurationError, DeliveryBatch, Destination, MANY, none_delivered};
use crate::BoxFuture;
use crate::core::verdict::{Report, Verdict};
use crate::vital::{self, Lost};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const PARTITION: &str = "{partition}";

/// Whether the path has `{partition}` in it, which makes one file for each partition.
pub(super) fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(PARTITION)
}

#[derive(Debug)]
pub(super) struct File {
    /// As an absolute path, with `{partition}` as typed.
    path: PathBuf,
    files: Files,
    /// Says why one of the writers ended, if it was a defect.
    lost: Lost,
}

#[derive(Debug)]
enum Files {
    One(Writer),
    /// One a partition: as many as the topic has, at most.
    OnePerPartition {
        pattern: String,
        mode: u32,
        writers: Mutex<HashMap<u32, Writer>>,
    },
}

impl File {
    /// Opens, checks and locks the file. An outage (a full disk, say) is left to the attempts.
    /// A file that is made gets these permissions.
    pub(super) fn open(path: &Path, mode: u32) -> Result<Self, ConfigurationError> {
        let path = std::path::absolute(path)
            .map_err(|error| ConfigurationError(format!("the path {} cannot be used: {error}", path.display())))?;
        let lost = Lost::default();
        let Some(name) = path.file_name() else {
            return Err(ConfigurationError(format!("{} is a directory: name a file in it", path.display())));
        };
        let pattern = path.to_string_lossy();
        if !is_pattern(&path) {
            let disk = Disk::open(&path, mode)?;
            let writer = start(Appender::new(disk), &lost).map_err(ConfigurationError)?;
            return Ok(Self { path, files: Files::One(writer), lost });
        }
        if pattern.matches(PARTITION).count() != name.to_string_lossy().matches(PARTITION).count() {
            let why = format!("{pattern}: {PARTITION} may stand in the file's name, not in a directory's");
            return Err(ConfigurationError(why));
        }
        Disk::check_directory(&path)?;
        let files = Files::OnePerPartition { pattern: pattern.into_owned(), mode, writers: Mutex::default() };
        Ok(Self { path, files, lost })
    }

    fn writer(&self, partition: u32) -> Result<Writer, String> {
        match &self.files {
            Files::One(writer) => Ok(writer.clone()),
            Files::OnePerPartition { pattern, mode, writers } => {
                let mut writers = writers.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(writer) = writers.get(&partition) {
                    return Ok(writer.clone());
                }
                let path = PathBuf::from(pattern.replace(PARTITION, &partition.to_string()));
                let writer = start(Appender::new(Disk::closed(&path, *mode)), &self.lost)?;
                writers.insert(partition, writer.clone());
                Ok(writer)
            }
        }
    }
}

fn start(appender: Appender<Disk>, lost: &Lost) -> Result<Writer, String> {
    Writer::start(appender, lost.clone()).map_err(|error| error.to_string())
}

impl Destination for File {
    fn limits(&self) -> BatchLimits {
        MANY
    }

    fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        match self.writer(hand_over.partition) {
            Ok(writer) => Box::pin(async move { writer.write(hand_over).await }),
            Err(why) => Box::pin(std::future::ready(none_delivered(hand_over.runs.len(), Verdict::Unreachable, &why))),
        }
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(vital::lost(self.lost.subscribe()))
    }

    fn address(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }

    fn released(&self, partition: u32) {
        if let Files::OnePerPartition { writers, .. } = &self.files {
            // The file is closed, and its lock gone, once its writer has ended what it was given.
            writers.lock().unwrap_or_else(PoisonError::into_inner).remove(&partition);
        }
    }

    fn reopen(&self) {
        match &self.files {
            Files::One(writer) => writer.reopen(),
            Files::OnePerPartition { writers, .. } => {
                writers.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(Writer::reopen);
            }
        }
    }
}

/// What a file can do, so that its failures can be played in a test.
pub(super) trait Medium: Send + 'static {
    /// Opens it where it is closed or was deleted, cuts a torn last line and tells how long it is.
    fn open(&mut self) -> Result<Mark, String>;
    fn write(&mut self, lines: &[u8]) -> Result<(), String>;
    fn sync(&mut self) -> Result<(), String>;
    /// Shortens it durably to what it was. Does nothing to another file, or to one that is not longer.
    fn cut(&mut self, to: Mark) -> Result<(), String>;
    fn close(&mut self);
    /// Closes it if something else, or nothing, lies at the path.
    fn close_if_moved(&mut self);
}

/// Appends whole rounds of lines, or nothing.
struct Appender<M> {
    medium: M,
    /// An append failed: the file as it was before.
    known_synced: Option<Mark>,
}

impl<M: Medium> Appender<M> {
    fn new(medium: M) -> Self {
        Self { medium, known_synced: None }
    }
}

impl<M: Medium> Sink for Appender<M> {
    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        let mut before = self.medium.open()?;
        if let Some(known_synced) = self.known_synced {
            self.medium.cut(known_synced)?;
            before = self.medium.open()?;
            self.known_synced = None;
        }
        self.medium.write(lines).and_then(|()| self.medium.sync()).inspect_err(|_| {
            self.known_synced = Some(before);
            // Tried now too, for a file that is moved away before it is opened again. What counts is the second time.
            let _tried = self.medium.cut(before);
            self.medium.close();
        })
    }

    fn reopen(&mut self) {
        self.medium.close_if_moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A disk on which the next write keeps only so many bytes, or the next sync fails and forgets what it likes.
    #[derive(Default)]
    struct Fake {
        kept: Vec<u8>,
        open: bool,
        short_write: Option<usize>,
        failing_sync: bool,
        cut_fails: bool,
        opened: usize,
    }

    #[derive(Clone, Default)]
    struct FakeMedium(Arc<Mutex<Fake>>);

    impl Medium for FakeMedium {
        fn open(&mut self) -> Result<Mark, String> {
            let mut fake = self.0.lock().unwrap();
            fake.opened += usize::from(!fake.open);
            fake.open = true;
            Ok(Mark { device: 1, inode: 1, len: fake.kept.len() as u64 })
        }

        fn write(&mut self, lines: &[u8]) -> Result<(), String> {
            let mut fake = self.0.lock().unwrap();
            assert!(fake.open, "written while closed");
            let taken = fake.short_write.take();
            fake.kept.extend_from_slice(&lines[..taken.unwrap_or(lines.len())]);
            taken.map_or(Ok(()), |_| Err("no space left on device".into()))
        }

        fn sync(&mut self) -> Result<(), String> {
            match std::mem::take(&mut self.0.lock().unwrap().failing_sync) {
                true => Err("input/output error".into()),
                false => Ok(()),
            }
        }

        fn cut(&mut self, to: Mark) -> Result<(), String> {
            let mut fake = self.0.lock().unwrap();
            if std::mem::take(&mut fake.cut_fails) {
                return Err("cut failed".into());
            }
            fake.kept.truncate(to.len as usize);
            Ok(())
        }

        fn close(&mut self) {
            self.0.lock().unwrap().open = false;
        }

        fn close_if_moved(&mut self) {}
    }

    fn after(fault: impl Fn(&mut Fake)) -> (String, usize) {
        let medium = FakeMedium::default();
        let mut appender = Appender::new(medium.clone());
        appender.append(b"one\n").unwrap();
        fault(&mut medium.0.lock().unwrap());
        appender.append(b"two\n").unwrap_err();
        appender.append(b"three\n").or_else(|_| appender.append(b"three\n")).unwrap();
        let fake = medium.0.lock().unwrap();
        (String::from_utf8(fake.kept.clone()).unwrap(), fake.opened)
    }

    #[test]
    fn a_short_write_is_cut_off_before_the_next_append() {
        assert_eq!(after(|fake| fake.short_write = Some(2)), ("one\nthree\n".into(), 2));
    }

    #[test]
    fn lines_whose_sync_failed_are_cut_off_although_they_can_be_read() {
        assert_eq!(after(|fake| fake.failing_sync = true), ("one\nthree\n".into(), 2));
    }

    #[test]
    fn a_cut_that_fails_is_made_up_for_before_the_next_append() {
        let twice = |fake: &mut Fake| (fake.failing_sync, fake.cut_fails) = (true, true);
        assert_eq!(after(twice).0, "one\nthree\n");
    }
}
