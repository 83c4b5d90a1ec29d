//! The one writer of a process: a thread that puts a batch of queued writes into one transaction, commits it, and answers
//! each write.
//!
//! ```text
//!  append, commit, topic, join ──▶ queue (entries and bytes bounded) ──▶ writer: BEGIN … COMMIT (fsync) ──▶ answers
//!                                                                          │ in between: trimming, checkpoints
//! ```
//!
//! # What an error means
//!
//! | error | the writes of the batch | afterwards |
//! |---|---|---|
//! | another process keeps the database locked | refused, `log-busy` | continues |
//! | the disk is full, or `--max-db-bytes` is reached | refused, `log-full`; commits and dead letters are tried again on their own | continues, once there is room |
//! | trimming meets damaged records | (none) | continues; the records stay |
//! | any other error before `COMMIT` | refused, `log-lost`: a transaction without its last frame is not stored | lost |
//! | any other error in `COMMIT` | unknown, `log-lost` | lost |
//! | a file of the database is gone or damaged, seen before the transaction | refused, `log-lost` | lost |
//! | a file of the database is gone or damaged, seen after `COMMIT` | unknown, `log-lost` | lost |
//!
//! Lost means that it is unknown what is on the disk. The writer then writes nothing more, and the process has to end.

use super::checkpoint::Checkpointer;
use super::files::DatabaseFiles;
use super::hub::Hub;
use super::operations::{NextOffsets, Transaction};
use super::queue::{QueueMessage, QueuedWrite, WriteQueue, WriteResult};
use super::transaction::{TransactionError, in_transaction};
use super::trim::Trimmer;
use super::trusted_clock::ClockReading;
use crate::core::outcome::{Failure, FailureCode};
use crate::limits::{WRITE_BATCH_BYTES_MAX, WRITE_BATCH_ENTRIES_MAX};
use crate::vital::{self, Lost};
use rusqlite::{Connection, ErrorCode};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// The results of a batch, and the next offsets of the partitions that grew.
type CommittedBatch = (Vec<WriteResult>, NextOffsets);

/// The parts that the writer works with.
pub(super) struct WriterParts {
    pub(super) connection: Connection,
    pub(super) files: DatabaseFiles,
    pub(super) hub: Arc<Hub>,
    pub(super) checkpointer: Checkpointer,
    pub(super) trimmer: Trimmer,
    pub(super) max_bytes: Option<u64>,
    pub(super) lost: Lost,
}

/// Starts the writer thread.
pub(super) fn start(parts: WriterParts) -> std::io::Result<WriteQueue> {
    let (queue, inbox) = WriteQueue::new();
    let lost = parts.lost.clone();
    let mut writer =
        Writer { parts, inbox, waiting: VecDeque::new(), housekeeping: false, files_are_checked: false, closing: None };
    // If the thread panics, the log is lost. Otherwise its callers would wait for ever.
    vital::thread("log-writer", lost, move || {
        writer.serve();
        writer.close();
    })?;
    Ok(queue)
}

struct Writer {
    parts: WriterParts,
    inbox: mpsc::Receiver<QueueMessage>,
    waiting: VecDeque<QueuedWrite>,
    /// There may be records to trim.
    housekeeping: bool,
    /// The files were checked after the last commit. Since then, the writer has neither trimmed nor waited for a message.
    files_are_checked: bool,
    /// Set when the database is being closed. Dropped when the writer has ended.
    closing: Option<oneshot::Sender<()>>,
}

impl Writer {
    fn serve(&mut self) {
        while self.receive() && (self.closing.is_none() || !self.waiting.is_empty()) {
            let batch = self.next_batch();
            if !batch.is_empty() {
                self.write(batch);
                self.update_checkpointer();
            }
            if self.housekeeping {
                self.files_are_checked = false;
                self.housekeeping = self.parts.lost.borrow().is_none() && self.trim();
            }
        }
        self.parts.trimmer.log_all_losses();
    }

    /// Copies the write-ahead log into the database and closes it. If the log is lost, the files stay as they are: a copy
    /// could spread the damage.
    fn close(mut self) {
        // From now on, writes are refused because the writer has stopped.
        self.inbox.close();
        if self.parts.lost.borrow().is_none() {
            match self.check_files(false) {
                Ok(()) => {
                    let WriterParts { connection, checkpointer, .. } = self.parts;
                    checkpointer.close(connection);
                }
                Err(error) => self.mark_lost(&error),
            }
        }
        drop(self.closing);
    }

    /// Receives what is in the queue. Waits for a message only if there is nothing else to do. `false`: every sender is
    /// gone and nothing is left to write.
    fn receive(&mut self) -> bool {
        if self.waiting.is_empty() && !self.housekeeping && self.closing.is_none() {
            if self.inbox.is_empty() {
                self.files_are_checked = false;
            }
            match self.inbox.blocking_recv() {
                Some(message) => self.handle(message),
                None => return false,
            }
        }
        while self.waiting.len() < WRITE_BATCH_ENTRIES_MAX {
            match self.inbox.try_recv() {
                Ok(message) => self.handle(message),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return !self.waiting.is_empty(),
            }
        }
        true
    }

    fn handle(&mut self, message: QueueMessage) {
        match message {
            QueueMessage::Write(write) => self.waiting.push_back(write),
            QueueMessage::Housekeeping => self.housekeeping = true,
            QueueMessage::Close(closing) => self.closing = Some(closing),
        }
    }

    /// The next writes that fit into one transaction. One write may be larger than the bound.
    fn next_batch(&mut self) -> Vec<QueuedWrite> {
        let mut bytes = 0;
        let fits = self.waiting.iter().take(WRITE_BATCH_ENTRIES_MAX).take_while(|write| {
            bytes += write.bytes();
            bytes <= WRITE_BATCH_BYTES_MAX
        });
        let entries = fits.count().max(1).min(self.waiting.len());
        self.waiting.drain(..entries).collect()
    }

    /// Writes the batch and answers it.
    fn write(&mut self, batch: Vec<QueuedWrite>) {
        if let Some(failure) = self.out_of_service() {
            return refuse(batch, &failure);
        }
        let error = match self.commit(&batch) {
            Ok((results, next_offsets)) => return self.answer(batch, results, &next_offsets),
            Err(error) => error,
        };
        self.mark_lost(&error);
        let failure = error.failure();
        if !matches!(error, TransactionError::Full) {
            return refuse(batch, &failure);
        }
        // Commits and dead letters let events settle, so that retention can free space. They get a second try without the
        // new events that fill the disk.
        self.parts.checkpointer.restart_soon(&mut self.parts.connection);
        let (new_events, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|queued| queued.write.is_refused_first_if_full());
        let had_new_events = !new_events.is_empty();
        refuse(new_events, &failure);
        if !had_new_events || others.is_empty() {
            return refuse(others, &failure);
        }
        match self.commit(&others) {
            Ok((results, next_offsets)) => self.answer(others, results, &next_offsets),
            Err(error) => {
                self.mark_lost(&error);
                refuse(others, &error.failure());
            }
        }
    }

    /// Writes the batch between two checks of the files. A batch that went into files that are gone is not acknowledged.
    ///
    /// If this batch was waiting when the batch before it was committed, the check after that commit is also the first
    /// one of this batch. A file that is removed in between is found by the second check, and the outcome of the batch is
    /// then unknown instead of refused.
    fn commit(&mut self, batch: &[QueuedWrite]) -> Result<CommittedBatch, TransactionError> {
        if !std::mem::take(&mut self.files_are_checked) {
            self.check_files(false)?;
        }
        let max_bytes = self.parts.max_bytes;
        let committed = in_transaction(&self.parts.connection, |connection| {
            let mut transaction = Transaction::new(connection, max_bytes)?;
            let results =
                batch.iter().map(|queued| transaction.apply(&queued.write)).collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((results, transaction.finish()?))
        })?;
        self.check_files(true)?;
        self.files_are_checked = true;
        Ok(committed)
    }

    fn check_files(&mut self, committed: bool) -> Result<(), TransactionError> {
        let WriterParts { connection, files, .. } = &mut self.parts;
        match files.look(connection) {
            Ok(None) => Ok(()),
            Ok(Some(damage)) => {
                files.rescue(connection, &damage);
                Err(TransactionError::FileDamage { why: damage.why, committed })
            }
            Err(error) if committed => Err(TransactionError::InCommit(error)),
            Err(error) => Err(TransactionError::before(connection, error)),
        }
    }

    fn answer(&self, batch: Vec<QueuedWrite>, results: Vec<WriteResult>, next_offsets: &NextOffsets) {
        for ((topic, partition), next) in next_offsets {
            self.parts.hub.advance(*topic, *partition, *next);
        }
        for (queued, result) in batch.into_iter().zip(results) {
            queued.answer(result);
        }
    }

    /// Why no write can be served now.
    fn out_of_service(&mut self) -> Option<Failure> {
        if let Some(why) = self.parts.lost.borrow().as_ref() {
            return Some(Failure::refused(FailureCode::LogLost, format!("the log is lost: {why}")));
        }
        self.parts.checkpointer.refusal(&mut self.parts.connection)
    }

    /// Trims one step. `true`: there may be more to trim.
    fn trim(&mut self) -> bool {
        let WriterParts { connection, trimmer, .. } = &mut self.parts;
        let now = ClockReading::now();
        let removed = match trimmer.next_step(connection, now) {
            Ok(None) => {
                trimmer.log_losses(now);
                return false;
            }
            Ok(Some(step)) => in_transaction(connection, |connection| trimmer.remove(connection, step)),
            Err(error) => Err(TransactionError::before(connection, error)),
        };
        match removed {
            Ok(losses) => {
                trimmer.add_losses(losses);
                self.update_checkpointer();
                true
            }
            // The step was rolled back and no caller waits for it. Only these records stay, and the log continues.
            Err(TransactionError::Before(error)) if is_damage(&error) && connection.is_autocommit() => {
                trimmer.mark_damaged(&error)
            }
            Err(error) => {
                self.mark_lost(&error);
                false
            }
        }
    }

    fn update_checkpointer(&mut self) {
        if self.parts.lost.borrow().is_some() {
            return;
        }
        let WriterParts { connection, checkpointer, files, .. } = &mut self.parts;
        // The check after the commit has counted the frames.
        let frames = if self.files_are_checked { Ok(files.frames()) } else { files.count_frames(connection) };
        if let Err(error) = frames.and_then(|frames| checkpointer.after_commit(connection, frames)) {
            let error = TransactionError::before(connection, error);
            self.mark_lost(&error);
        }
    }

    /// Marks the log as lost, if the error leaves the disk in an unknown state.
    fn mark_lost(&self, error: &TransactionError) {
        if let Some(why) = error.lost_reason() {
            vital::lose(&self.parts.lost, why);
        }
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
}

fn refuse(batch: Vec<QueuedWrite>, failure: &Failure) {
    for queued in batch {
        queued.answer(Err(failure.clone()));
    }
}
