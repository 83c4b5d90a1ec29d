//! Appends events as JSON lines to a file, or to one file for each partition.
//!
//! ```text
//!  FileDestination ── DeliveryBatch ─▶ BatchWriter (one thread a file) ── lines ─▶ FileAppender ─▶ DiskFile
//!                                                                                 │                │ opens, locks, syncs
//!                                                                                 └ cuts off        └ repairs the last
//!                                                                                   failed appends    line (last_line)
//! ```
//!
//! An event counts as delivered once its line is synced. The file only grows, except for two repairs:
//!
//! - After a failed write or sync, the content of the disk is unknown and the page cache cannot be trusted. So eventd
//!   closes the file, opens it again, and cuts it back to its length before the failed append. Only then it appends again.
//! - A crash can leave a last line without its line break. If only the line break is missing, eventd adds it. If the line
//!   is incomplete, eventd cuts it off. If the line was not written by eventd, opening the file is an error.
//!
//! An exclusive lock protects a regular file, because two writers would cut off each other's lines. Pipes and devices are
//! not locked, cut or synced.
//!
//! `{partition}` in the file's name makes one file for each partition. Each is opened with its first event, so several
//! processes can write to the files of different partitions at the same time.

mod appender;
mod disk;
mod failure_text;
mod last_line;

use super::batch_writer::BatchWriter;
use super::{BatchLimits, ConfigurationError, DeliveryBatch, Destination, LINE_WRITER_LIMITS, none_delivered};
use crate::BoxFuture;
use crate::core::verdict::{Report, Verdict};
use crate::vital::{self, Lost};
use appender::FileAppender;
use disk::DiskFile;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The part of a file's name that is replaced by the number of the partition.
const PARTITION_PLACEHOLDER: &str = "{partition}";

/// Whether the path has `{partition}` in it, which makes one file for each partition.
pub(super) fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(PARTITION_PLACEHOLDER)
}

#[derive(Debug)]
pub(super) struct FileDestination {
    /// The absolute path, with `{partition}` as typed.
    path: PathBuf,
    writers: FileWriters,
    /// Holds the reason if a writer's thread ended because of a defect.
    lost: Lost,
}

#[derive(Debug)]
enum FileWriters {
    One(BatchWriter),
    /// At most one writer for each partition of the topic.
    OnePerPartition {
        pattern: String,
        mode: u32,
        writers: Mutex<HashMap<u32, BatchWriter>>,
    },
}

impl FileDestination {
    /// Opens, checks and locks the file. New files get the permissions `mode`.
    ///
    /// A full disk, for example, is an outage and not an error here: the delivery attempts report it.
    pub(super) fn open(path: &Path, mode: u32) -> Result<Self, ConfigurationError> {
        let path = std::path::absolute(path)
            .map_err(|error| ConfigurationError(format!("cannot use the path {}: {error}", path.display())))?;
        let Some(name) = path.file_name() else { return Err(disk::is_a_directory(&path)) };
        let lost = Lost::default();
        if !is_pattern(&path) {
            let writer = start_writer(DiskFile::open(&path, mode)?, &lost).map_err(ConfigurationError)?;
            return Ok(Self { path, writers: FileWriters::One(writer), lost });
        }
        let pattern = path.to_string_lossy().into_owned();
        let count = |text: &str| text.matches(PARTITION_PLACEHOLDER).count();
        if count(&pattern) != count(&name.to_string_lossy()) {
            return Err(ConfigurationError(format!(
                "{pattern} has {PARTITION_PLACEHOLDER} in the name of a directory: use it only in the name of the file"
            )));
        }
        disk::check_directory(&path)?;
        let writers = FileWriters::OnePerPartition { pattern, mode, writers: Mutex::default() };
        Ok(Self { path, writers, lost })
    }

    fn writer(&self, partition: u32) -> Result<BatchWriter, String> {
        match &self.writers {
            FileWriters::One(writer) => Ok(writer.clone()),
            FileWriters::OnePerPartition { pattern, mode, writers } => {
                let mut writers = lock(writers);
                if let Some(writer) = writers.get(&partition) {
                    return Ok(writer.clone());
                }
                let path = PathBuf::from(pattern.replace(PARTITION_PLACEHOLDER, &partition.to_string()));
                let writer = start_writer(DiskFile::closed(&path, *mode), &self.lost)?;
                writers.insert(partition, writer.clone());
                Ok(writer)
            }
        }
    }
}

fn start_writer(file: DiskFile, lost: &Lost) -> Result<BatchWriter, String> {
    BatchWriter::start(FileAppender::new(file), lost.clone())
        .map_err(|error| format!("cannot start the thread that writes the file: {error}"))
}

impl Destination for FileDestination {
    fn limits(&self) -> BatchLimits {
        LINE_WRITER_LIMITS
    }

    fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        match self.writer(batch.partition) {
            Ok(writer) => Box::pin(async move { writer.write(batch).await }),
            Err(why) => Box::pin(std::future::ready(none_delivered(batch.runs.len(), Verdict::Unreachable, &why))),
        }
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(vital::lost(self.lost.subscribe()))
    }

    fn address(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }

    fn released(&self, partition: u32) {
        if let FileWriters::OnePerPartition { writers, .. } = &self.writers {
            // The writer's thread first finishes the batches that it has. Then it closes the file, which ends the lock.
            lock(writers).remove(&partition);
        }
    }

    fn reopen(&self) {
        match &self.writers {
            FileWriters::One(writer) => writer.reopen(),
            FileWriters::OnePerPartition { writers, .. } => lock(writers).values().for_each(BatchWriter::reopen),
        }
    }
}

fn lock(writers: &Mutex<HashMap<u32, BatchWriter>>) -> MutexGuard<'_, HashMap<u32, BatchWriter>> {
    writers.lock().unwrap_or_else(PoisonError::into_inner)
}
