//! The one writer of a process: a thread that puts everything that waits into one transaction, commits, and answers.
//!
//! ```text
//!  append, commit, topic, join ──▶ queue (entries and bytes bounded) ──▶ writer: BEGIN … COMMIT (fsync) ──▶ answers
//!                                                                          │ in between: trimming, checkpoints
//! ```
//!
//! # What an error means
//!
//! | error | these writes | afterwards |
//! |---|---|---|
//! | another process keeps the database busy | refused, `log-busy` | as before |
//! | disk or `--max-db-bytes` full | refused, `log-full`; commits and dead letters are tried again by themselves | as before, once there is room |
//! | damage that trimming meets | (none) | as before; the records stay |
//! | any other before `COMMIT` | refused, `log-lost`: without its last frame a transaction is nothing | lost |
//! | any other in `COMMIT` | unknown, `log-lost` | lost |
//! | a file of the database is gone, seen before the transaction | refused, `log-lost` | lost |
//! | the same, seen after `COMMIT` | unknown, `log-lost` | lost |
//!
//! Lost: what is on the disk is unknown, so nothing is written any more and the process has to end.

use super::checkpoint::Checkpointer;
use super::file::is_full;
use super::files::DatabaseFiles;
use super::hub::Hub;
use super::operations::{NextOffsets, Transaction, Write};
use super::trim::{ClockReading, Trimmer};
use crate::core::outcome::Failure;
use crate::limits::{
    WRITE_BATCH_BYTES_MAX, WRITE_BATCH_ENTRIES_MAX, WRITE_OVERHEAD_BYTES, WRITE_QUEUE_BYTES_MAX,
    WRITE_QUEUE_ENTRIES_MAX, WRITE_QUEUE_WAIT_MAX,
};
use crate::vital::{self, Lost};
use rusqlite::{Connection, ErrorCode};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

type Answer = Result<i64, Failure>;

/// What a group's writes are answered with, and the partitions that grew with their next offsets.
type Done = (Vec<Answer>, NextOffsets);

/// What reaches the writer.
enum WriterMessage {
    Write(QueuedWrite),
    /// Time to look for what is past its retention.
    Housekeeping,
    /// Write what waits, and end. Dropped when the database is closed.
    Close(oneshot::Sender<()>),
}

struct QueuedWrite {
    write: Write,
    reply: oneshot::Sender<Answer>,
    /// Its share of the queue's bytes, given back with the answer.
    room: OwnedSemaphorePermit,
}

/// The way to the writer. The thread ends when the last one is gone.
#[derive(Debug, Clone)]
pub(super) struct WriteQueue {
    messages: mpsc::Sender<WriterMessage>,
    bytes: Arc<Semaphore>,
}

/// What asks for housekeeping without keeping the writer alive.
#[derive(Debug)]
pub(super) struct Housekeeping(mpsc::WeakSender<WriterMessage>);

impl Housekeeping {
    /// `false`: there is no writer any more. A full queue is no reason to insist: the next time will do.
    pub(super) fn ask(&self) -> bool {
        self.0.upgrade().is_some_and(|messages| {
            !matches!(messages.try_send(WriterMessage::Housekeeping), Err(mpsc::error::TrySendError::Closed(_)))
        })
    }
}

impl WriteQueue {
    /// Writes, and waits for the answer. `bytes` is what the write holds in memory.
    pub(super) async fn write(&self, write: Write, bytes: usize) -> Answer {
        let room = (bytes + WRITE_OVERHEAD_BYTES).min(WRITE_QUEUE_BYTES_MAX) as u32;
        let (reply, answer) = oneshot::channel();
        let enter = async {
            let room = Arc::clone(&self.bytes).acquire_many_owned(room).await.map_err(|_| stopped())?;
            self.messages.send(WriterMessage::Write(QueuedWrite { write, reply, room })).await.map_err(|_| stopped())
        };
        tokio::time::timeout(WRITE_QUEUE_WAIT_MAX, enter)
            .await
            .map_err(|_| Failure::refused("log-busy", "too many writes are waiting for the log: try again later"))??;
        // The writer answers whatever it took; without an answer it broke off somewhere.
        answer.await.unwrap_or_else(|_| Err(Failure::unknown("log-lost", "the log's writer broke off")))
    }

    /// A queue without a writer: everything is refused.
    pub(super) fn stopped() -> Self {
        Self { messages: mpsc::channel(1).0, bytes: Arc::new(Semaphore::new(WRITE_QUEUE_BYTES_MAX)) }
    }

    /// Has everything written that waits, and the database closed.
    pub(super) async fn close(&self) {
        let (closing, closed) = oneshot::channel();
        if self.messages.send(WriterMessage::Close(closing)).await.is_ok() {
            // It is never answered: it is dropped with the connection.
            let _ = closed.await;
        }
    }

    pub(super) fn housekeeping(&self) -> Housekeeping {
        Housekeeping(self.messages.downgrade())
    }
}

fn stopped() -> Failure {
    Failure::refused("log-lost", "the log's writer has stopped")
}

/// What the writer works with.
pub(super) struct WriterParts {
    pub(super) connection: Connection,
    pub(super) files: DatabaseFiles,
    pub(super) hub: Arc<Hub>,
    pub(super) checkpoints: Checkpointer,
    pub(super) trimmer: Trimmer,
    pub(super) max_bytes: Option<u64>,
    pub(super) lost: Lost,
}

/// Starts the thread.
pub(super) fn start(parts: WriterParts) -> std::io::Result<WriteQueue> {
    let (messages, inbox) = mpsc::channel(WRITE_QUEUE_ENTRIES_MAX);
    let bytes = Arc::new(Semaphore::new(WRITE_QUEUE_BYTES_MAX));
    let lost = parts.lost.clone();
    let mut writer =
        Writer { parts, inbox, waiting: VecDeque::new(), housekeeping: false, files_are_checked: false, closing: None };
    // A defect that panics must not look like a writer that is merely slow.
    vital::thread("log-writer", lost, move || {
        writer.serve();
        writer.leave();
    })?;
    Ok(WriteQueue { messages, bytes })
}

struct Writer {
    parts: WriterParts,
    inbox: mpsc::Receiver<WriterMessage>,
    waiting: VecDeque<QueuedWrite>,
    /// There may be something to trim.
    housekeeping: bool,
    /// The files were looked at after the last commit, and the writer has done nothing else since.
    files_are_checked: bool,
    /// Set once the database is being closed: told when the thread is done.
    closing: Option<oneshot::Sender<()>>,
}

/// How a transaction failed.
enum TransactionError {
    Busy,
    Full,
    /// Surely not stored.
    Before(rusqlite::Error),
    /// Perhaps stored.
    InCommit(rusqlite::Error),
    /// A file of the database is gone. `committed`: the transaction may have gone with it.
    FileDamage {
        why: String,
        committed: bool,
    },
}

impl TransactionError {
    fn before(connection: &Connection, error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ if is_full(connection, &error) => Self::Full,
            _ => Self::Before(error),
        }
    }

    /// Busy and full leave the transaction without its last frame, as before a commit.
    fn in_commit(connection: &Connection, error: rusqlite::Error) -> Self {
        match Self::before(connection, error) {
            Self::Before(error) => Self::InCommit(error),
            known => known,
        }
    }

    fn failure(&self) -> Failure {
        match self {
            Self::Busy => Failure::refused("log-busy", "another process keeps the database locked: try again later"),
            Self::Full => Failure::refused("log-full", "the disk of the database is full: make room on it"),
            Self::Before(error) => Failure::refused("log-lost", format!("the database failed: {error}")),
            Self::InCommit(error) => Failure::unknown("log-lost", format!("the database failed in a commit: {error}")),
            Self::FileDamage { why, committed: false } => {
                Failure::refused("log-lost", format!("the log is lost: {why}"))
            }
            Self::FileDamage { why, committed: true } => {
                Failure::unknown("log-lost", format!("the log is lost: {why}"))
            }
        }
    }
}

impl Writer {
    /// The end: the database is left whole, unless nobody knows what is on the disk.
    fn leave(mut self) {
        // Whoever writes from now on is told that the writer has stopped.
        self.inbox.close();
        if self.parts.lost.borrow().is_none() {
            match self.look(false) {
                Ok(()) => {
                    let WriterParts { connection, checkpoints, .. } = self.parts;
                    checkpoints.leave(connection);
                }
                Err(failed) => self.note(&failed),
            }
        }
        drop(self.closing);
    }

    fn serve(&mut self) {
        while self.gather() && (self.closing.is_none() || !self.waiting.is_empty()) {
            let group = self.next_group();
            if !group.is_empty() {
                self.write(group);
                self.mind_the_wal();
            }
            if self.housekeeping {
                self.files_are_checked = false;
                self.housekeeping = self.parts.lost.borrow().is_none() && self.trim();
            }
        }
        self.parts.trimmer.tell_all();
    }

    /// Takes in what waits, at least one message unless there is something else to do. `false`: nobody is left.
    fn gather(&mut self) -> bool {
        if self.waiting.is_empty() && !self.housekeeping && self.closing.is_none() {
            if self.inbox.is_empty() {
                self.files_are_checked = false;
            }
            match self.inbox.blocking_recv() {
                Some(message) => self.take(message),
                None => return false,
            }
        }
        while self.waiting.len() < WRITE_BATCH_ENTRIES_MAX {
            match self.inbox.try_recv() {
                Ok(message) => self.take(message),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return !self.waiting.is_empty(),
            }
        }
        true
    }

    fn take(&mut self, message: WriterMessage) {
        match message {
            WriterMessage::Write(waiting) => self.waiting.push_back(waiting),
            WriterMessage::Housekeeping => self.housekeeping = true,
            WriterMessage::Close(closing) => self.closing = Some(closing),
        }
    }

    fn next_group(&mut self) -> Vec<QueuedWrite> {
        let mut bytes = 0;
        let fits = self.waiting.iter().take(WRITE_BATCH_ENTRIES_MAX).take_while(|waiting| {
            bytes += waiting.room.num_permits();
            bytes <= WRITE_BATCH_BYTES_MAX
        });
        let entries = fits.count().max(1).min(self.waiting.len());
        self.waiting.drain(..entries).collect()
    }

    /// Writes the group and answers it.
    fn write(&mut self, group: Vec<QueuedWrite>) {
        if let Some(failure) = self.out_of_service() {
            return refuse(group, &failure);
        }
        let failed = match self.commit(&group) {
            Ok((answers, grown)) => return self.answer(group, answers, &grown),
            Err(failed) => failed,
        };
        self.note(&failed);
        let failure = failed.failure();
        if !matches!(failed, TransactionError::Full) {
            return refuse(group, &failure);
        }
        // What has to go on for the disk to become free again gets a second try, without what fills it.
        self.parts.checkpoints.restart_soon(&mut self.parts.connection);
        let (giving_way, others): (Vec<_>, Vec<_>) = group.into_iter().partition(|waiting| waiting.write.gives_way());
        let nothing_gave_way = giving_way.is_empty();
        refuse(giving_way, &failure);
        if nothing_gave_way || others.is_empty() {
            return refuse(others, &failure);
        }
        match self.commit(&others) {
            Ok((answers, grown)) => self.answer(others, answers, &grown),
            Err(failed) => {
                self.note(&failed);
                refuse(others, &failed.failure());
            }
        }
    }

    /// Writes the group between two looks at the files: it is not acknowledged if it went into files that are gone.
    ///
    /// If this group waited already when the group before it was committed, the look after that commit counts as the
    /// first one. A file that goes in between is then found by the second look, and the group is unknown instead of
    /// refused.
    fn commit(&mut self, group: &[QueuedWrite]) -> Result<Done, TransactionError> {
        if !std::mem::take(&mut self.files_are_checked) {
            self.look(false)?;
        }
        let max_bytes = self.parts.max_bytes;
        let done = in_transaction(&self.parts.connection, |connection| {
            let mut transaction = Transaction::new(connection, max_bytes)?;
            let answers =
                group.iter().map(|waiting| transaction.apply(&waiting.write)).collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((answers, transaction.finish()?))
        })?;
        self.look(true)?;
        self.files_are_checked = true;
        Ok(done)
    }

    fn look(&mut self, committed: bool) -> Result<(), TransactionError> {
        let WriterParts { connection, files, .. } = &mut self.parts;
        match files.look(connection) {
            Ok(None) => Ok(()),
            Ok(Some(gone)) => {
                files.rescue(connection, &gone);
                Err(TransactionError::FileDamage { why: gone.why, committed })
            }
            Err(error) if committed => Err(TransactionError::InCommit(error)),
            Err(error) => Err(TransactionError::before(connection, error)),
        }
    }

    fn answer(&self, group: Vec<QueuedWrite>, answers: Vec<Answer>, grown: &NextOffsets) {
        for ((topic, partition), next) in grown {
            self.parts.hub.advance(*topic, *partition, *next);
        }
        for (waiting, answer) in group.into_iter().zip(answers) {
            // Nobody waits for the answer any more: that is the caller's to decide.
            let _ = waiting.reply.send(answer);
        }
    }

    fn out_of_service(&mut self) -> Option<Failure> {
        if let Some(why) = self.parts.lost.borrow().as_ref() {
            return Some(Failure::refused("log-lost", format!("the log is lost: {why}")));
        }
        self.parts.checkpoints.refusal(&mut self.parts.connection)
    }

    /// One step of trimming. `true`: there is more.
    fn trim(&mut self) -> bool {
        let WriterParts { connection, trimmer, .. } = &mut self.parts;
        let now = ClockReading::read();
        let removed = match trimmer.next_step(connection, now) {
            Ok(None) => {
                trimmer.tell(now);
                return false;
            }
            Ok(Some(step)) => in_transaction(connection, |connection| trimmer.remove(connection, step)),
            Err(error) => Err(TransactionError::before(connection, error)),
        };
        match removed {
            Ok(losses) => {
                trimmer.removed(losses);
                self.mind_the_wal();
                true
            }
            // Rolled back, and nobody was promised anything: the log goes on, and only these records stay.
            Err(TransactionError::Before(error)) if is_damage(&error) && connection.is_autocommit() => {
                trimmer.damaged(&error)
            }
            Err(failed) => {
                self.note(&failed);
                false
            }
        }
    }

    fn mind_the_wal(&mut self) {
        if self.parts.lost.borrow().is_some() {
            return;
        }
        let WriterParts { connection, checkpoints, files, .. } = &mut self.parts;
        // The look after the commit has counted the frames.
        let frames = if self.files_are_checked { Ok(files.frames()) } else { files.count_frames(connection) };
        if let Err(error) = frames.and_then(|frames| checkpoints.after_commit(connection, frames)) {
            let failed = TransactionError::before(connection, error);
            self.note(&failed);
        }
    }

    /// Ends the log's life where an error leaves the disk unknown.
    fn note(&self, failed: &TransactionError) {
        let why = match failed {
            TransactionError::Busy | TransactionError::Full => return,
            TransactionError::Before(error) | TransactionError::InCommit(error) => error.to_string(),
            TransactionError::FileDamage { why, .. } => why.clone(),
        };
        vital::lose(&self.parts.lost, why);
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
}

fn refuse(group: Vec<QueuedWrite>, failure: &Failure) {
    for waiting in group {
        // Nobody waits for the answer any more: that is the caller's to decide.
        let _ = waiting.reply.send(Err(failure.clone()));
    }
}

/// Runs `work` between `BEGIN IMMEDIATE` and `COMMIT`; after an error nothing of it is left open.
fn in_transaction<'c, T>(
    connection: &'c Connection,
    work: impl FnOnce(&'c Connection) -> rusqlite::Result<T>,
) -> Result<T, TransactionError> {
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]);
    let before = |error| TransactionError::before(connection, error);
    run("BEGIN IMMEDIATE").map_err(before)?;
    let done = match work(connection) {
        Ok(done) => run("COMMIT").map(|_| done).map_err(|error| TransactionError::in_commit(connection, error)),
        Err(error) => Err(before(error)),
    };
    if done.is_err() && !connection.is_autocommit() {
        // SQLite has rolled back some errors by itself. If this fails too, the database is beyond use.
        run("ROLLBACK").map_err(|error| match &done {
            Err(TransactionError::InCommit(_)) => TransactionError::InCommit(error),
            _ => TransactionError::Before(error),
        })?;
    }
    done
}
