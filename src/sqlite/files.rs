//! The three files of an open database, looked at around each transaction that is acknowledged.
//!
//! ```text
//!  eventd.db       the same file, and not shorter than it was
//!  eventd.db-wal   the same file, long enough for every frame that the -shm file counts, and written without holes
//!  eventd.db-shm   the same file
//! ```
//!
//! SQLite keeps its files open and never looks at their names again. If somebody removes or truncates one, SQLite goes
//! on in a file that no later process finds. So the writer looks before a group of writes, and refuses the group if a
//! file is gone; and it looks again before it acknowledges the group. If the next group waits already, the second look
//! is the first one of that group too. A look costs five system calls, so it must not happen once an event.
//!
//! What other processes do by right must not look like damage:
//!
//! - While a connection is open, no other process removes the -wal or the -shm file: that takes an exclusive lock on
//!   the database, and every open connection holds a shared one. So their inodes stay.
//! - A restarted WAL counts from frame 1 again and keeps its length; a truncated one counts 0 frames. So the length is
//!   compared with the frames that are counted now, and a file that changes meanwhile is looked at again.
//! - A checkpoint shortens the database after `VACUUM` only. Then its page count has fallen too.
//!
//! A second hard link to the database is harmless as long as nobody opens it by that name.

use super::checkpoint::checkpoint;
use super::file::beside;
use rusqlite::{Connection, ErrorCode};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a look that found something is repeated, and how long it waits: another process that restarts or truncates
/// the WAL is done within one system call.
const LOOK_AGAIN_MAX: u32 = 10;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// The file format of a write-ahead log: its header, and the header of each frame, which precedes a page.
const WAL_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// The first four bytes of a write-ahead log, without the lowest bit, which tells the byte order of its checksums.
const WAL_MAGIC: u32 = 0x377f_0682;

/// What makes two opens lead to the same file.
type Inode = (u64, u64);

fn inode(metadata: &Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

/// Which files the database is made of, to notice that somebody removed or replaced one.
#[derive(Debug, Clone)]
pub(super) struct FileIdentity {
    database: (PathBuf, Inode),
    wal: (PathBuf, Inode),
    shm: (PathBuf, Inode),
}

/// Why the files of a database cannot be trusted any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileDamage {
    pub(super) why: String,
    /// Only the name of the WAL is gone: the open file is whole, and the database is where it was.
    wal_is_whole: bool,
}

impl FileDamage {
    fn new(why: String) -> Self {
        Self { why, wal_is_whole: false }
    }
}

impl FileIdentity {
    /// The files of a database that was just opened and read from.
    pub(super) fn of(canonical: &Path) -> io::Result<Self> {
        let file = |ending: &str| {
            let path = beside(canonical, ending);
            std::fs::metadata(&path).map(|metadata| (path, inode(&metadata)))
        };
        Ok(Self { database: file("")?, wal: file("-wal")?, shm: file("-shm")? })
    }

    /// Why the database is not where it was.
    pub(super) fn gone(&self) -> Option<String> {
        [&self.database, &self.wal, &self.shm].into_iter().find_map(|file| look(file).err())
    }
}

/// The file at a path, or why it is not the one that was opened. `None`: it cannot be looked at just now, which says
/// nothing.
fn look((path, opened): &(PathBuf, Inode)) -> Result<Option<Metadata>, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if inode(&metadata) == *opened => Ok(Some(metadata)),
        Ok(_) => Err(format!("{} was replaced by another file while it was open", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("{} was removed while it was open", path.display()))
        }
        Err(_) => Ok(None),
    }
}

/// The writer's view of the files: what it knows to be written in them.
#[derive(Debug)]
pub(super) struct DatabaseFiles {
    identity: FileIdentity,
    /// The WAL itself. SQLite holds no lock on it, so closing another descriptor of it does no harm.
    wal: File,
    page_bytes: u64,
    database_bytes: u64,
    /// Frames in the WAL at the last look.
    frames: u64,
    /// Frames in the WAL after the last commit of this connection, or `NONE` once they were read.
    frames_committed: Arc<AtomicU64>,
}

const NONE: u64 = u64::MAX;

impl DatabaseFiles {
    /// The files of a database that was just opened and read from. `connection` is the one that writes; it reports the
    /// frames of each commit from now on.
    pub(super) fn of(canonical: &Path, connection: &mut Connection) -> io::Result<Self> {
        let identity = FileIdentity::of(canonical)?;
        let wal = File::open(&identity.wal.0)?;
        let database_bytes = std::fs::metadata(canonical)?.len();
        let page_bytes = number(connection, "PRAGMA page_size").map_err(io::Error::other)?;
        let frames_committed = Arc::new(AtomicU64::new(NONE));
        let committed = Arc::clone(&frames_committed);
        let report = move |_: &mut rusqlite::hooks::Wal, frames: std::ffi::c_int| {
            committed.store(u64::try_from(frames).unwrap_or(NONE), Ordering::Relaxed);
            Ok(())
        };
        connection.wal_hook(Some(report)).map_err(io::Error::other)?;
        Ok(Self { identity, wal, page_bytes, database_bytes, frames: 0, frames_committed })
    }

    /// How many frames the WAL held at the last look.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// How many frames the WAL holds. After a commit of this connection that is known already: SQLite compiles a
    /// `PRAGMA` anew each time, which takes as long as storing an event.
    pub(super) fn count_frames(&self, connection: &Connection) -> rusqlite::Result<u64> {
        match self.frames_committed.swap(NONE, Ordering::Relaxed) {
            NONE => frames(connection),
            frames => Ok(frames),
        }
    }

    /// Looks at all files. `Some`: nothing that is written from now on would be found again.
    pub(super) fn look(&mut self, connection: &Connection) -> rusqlite::Result<Option<FileDamage>> {
        let mut tries = 0;
        loop {
            // From the second try on, SQLite is asked: another process may have restarted the WAL since our commit.
            let frames = self.count_frames(connection)?;
            let found = self.look_once(connection, frames)?;
            tries += 1;
            if found.is_none() || tries == LOOK_AGAIN_MAX {
                self.frames = frames;
                return Ok(found);
            }
            std::thread::sleep(LOOK_AGAIN_AFTER);
        }
    }

    fn look_once(&mut self, connection: &Connection, frames: u64) -> rusqlite::Result<Option<FileDamage>> {
        match look(&self.identity.database) {
            Err(why) => return Ok(Some(FileDamage::new(why))),
            Ok(Some(metadata)) if metadata.len() < self.database_bytes => {
                // Pages go only by `VACUUM`, and then there are fewer of them.
                if !has_shrunk(connection, self.database_bytes / self.page_bytes)? {
                    return Ok(Some(self.shortened(&self.identity.database.0, self.database_bytes, metadata.len())));
                }
                self.database_bytes = metadata.len();
            }
            Ok(Some(metadata)) => self.database_bytes = metadata.len(),
            Ok(None) => {}
        }
        if let Err(why) = look(&self.identity.shm) {
            return Ok(Some(FileDamage::new(why)));
        }
        let named = look(&self.identity.wal);
        // If the name still leads to the open file, its length is known without another system call.
        let len = match &named {
            Ok(Some(metadata)) => Some(metadata.len()),
            Ok(None) | Err(_) => self.wal.metadata().ok().map(|metadata| metadata.len()),
        };
        if let Some(gone) = len.and_then(|len| self.damage_of_wal(frames, len)) {
            return Ok(Some(gone));
        }
        Ok(named.err().map(|why| FileDamage { why, wal_is_whole: true }))
    }

    /// Says what is wrong with the open WAL, which should hold this many frames and has this many bytes.
    fn damage_of_wal(&self, frames: u64, len: u64) -> Option<FileDamage> {
        // If the WAL was restarted or truncated, the next frame is written together with a new header.
        let known = self.frames.min(frames).max(1);
        let path = &self.identity.wal.0;
        if frames == 0 {
            return None;
        }
        let needed = self.end_of_frame(frames);
        if len < needed {
            return Some(self.shortened(path, needed, len));
        }
        let (mut header, mut frame) = ([0; WAL_HEADER_BYTES as usize], [0; FRAME_HEADER_BYTES as usize]);
        // The last frame that was there at the look before: a hole in the file ends behind it, if there is one.
        let read = self
            .wal
            .read_exact_at(&mut header, 0)
            .and_then(|()| self.wal.read_exact_at(&mut frame, self.end_of_frame(known - 1)));
        match read {
            Ok(()) if is_header(&header) && frame[8..16] == header[16..24] => None,
            Ok(()) => {
                Some(FileDamage::new(format!("{} was truncated or overwritten while it was open", path.display())))
            }
            // What cannot be read just now says nothing.
            Err(_) => None,
        }
    }

    /// The length of a WAL with so many frames.
    fn end_of_frame(&self, frames: u64) -> u64 {
        WAL_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + self.page_bytes)
    }

    fn shortened(&self, path: &Path, from: u64, to: u64) -> FileDamage {
        FileDamage::new(format!("{} was shortened from {from} bytes or more to {to} while it was open", path.display()))
    }

    /// Copies what is only in a WAL without a name into the database, which is where it was.
    pub(super) fn rescue(&self, connection: &Connection, gone: &FileDamage) {
        if !gone.wal_is_whole {
            return;
        }
        let path = self.identity.wal.0.display();
        match checkpoint(connection, "PASSIVE") {
            Ok(true) => tracing::warn!(%path, "the write-ahead log is gone; all events of it are in the database now"),
            Ok(false) => {
                tracing::error!(%path, "the write-ahead log is gone, and another process is at its checkpoint")
            }
            Err(error) => tracing::error!(%path, %error, "the write-ahead log is gone, and cannot be copied any more"),
        }
    }
}

/// Whether the database has fewer pages than this.
fn has_shrunk(connection: &Connection, pages: u64) -> rusqlite::Result<bool> {
    match number(connection, "PRAGMA page_count") {
        Ok(now) => Ok(now < pages),
        // What is left of the file is not a database.
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Ok(false),
            _ => Err(error),
        },
    }
}

fn is_header(header: &[u8; WAL_HEADER_BYTES as usize]) -> bool {
    u32::from_be_bytes([header[0], header[1], header[2], header[3]]) & !1 == WAL_MAGIC
}

/// How many frames the WAL holds, whoever wrote them. `NOOP` copies nothing.
fn frames(connection: &Connection) -> rusqlite::Result<u64> {
    let frames: i64 = connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?.query_row([], |row| row.get(1))?;
    // -1: there is no WAL yet.
    Ok(u64::try_from(frames).unwrap_or(0))
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    let number: i64 = connection.prepare_cached(pragma)?.query_row([], |row| row.get(0))?;
    Ok(number.unsigned_abs())
}
