//! Checks the three files of an open database around each transaction that is acknowledged.
//!
//! ```text
//!  eventd.db       the same file as before, and not shorter
//!  eventd.db-wal   the same file as before, long enough for every frame that the -shm file counts, and without holes
//!  eventd.db-shm   the same file as before
//! ```
//!
//! SQLite keeps its files open and never looks at their names again. If a person or a program removes or truncates one,
//! SQLite continues to write into a file that no later process finds. So the writer checks the files before a batch of
//! writes, and refuses the batch if a file is gone. It checks them again before it acknowledges the batch. If the next batch
//! is waiting already, the second check is also the first one of that batch. A check costs five system calls, so it must
//! not happen once for each event.
//!
//! What other processes do rightfully must not look like damage:
//!
//! - While a connection is open, no other process of SQLite removes the -wal or the -shm file. That takes an exclusive
//!   lock on the database, and every open connection holds a shared one. So their inodes do not change.
//! - A restarted log counts from frame 1 again and keeps its length, and a truncated one counts 0 frames. So the length is
//!   compared with the frames that are counted now, and a file that changes in between is checked again.
//! - After `VACUUM`, a checkpoint shortens the database. A later commit adds pages again, and they are in the log until the
//!   next checkpoint. So a shorter database is whole if each page after its end is in a frame that no checkpoint has copied.
//!
//! A second hard link to the database does no harm as long as no process opens the database by that name.

use super::file::sibling;
use super::wal::{checkpoint, frames, frames_and_copied};
use rusqlite::{Connection, ErrorCode};
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a check that found damage is repeated, and after which delay. Another process that restarts or truncates the
/// log needs only one system call for it.
const CHECKS_MAX: u32 = 10;
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// Sizes in the file format of a write-ahead log: its header, and the header of each frame. A page follows each of those.
const WAL_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// The page at this offset holds SQLite's locks, and is never written.
const LOCK_BYTE_OFFSET: u64 = 1 << 30;

/// The first four bytes of a write-ahead log. The lowest bit is left out: it is the byte order of the checksums.
const WAL_MAGIC: u32 = 0x377f_0682;

/// Device and inode number. Two paths with the same pair lead to the same file.
pub(super) type Inode = (u64, u64);

pub(super) fn inode(metadata: &Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

/// The files of the database, so that a removed or replaced one is noticed.
#[derive(Debug, Clone)]
pub(super) struct FileIdentity {
    database: (PathBuf, Inode),
    wal: (PathBuf, Inode),
    shm: (PathBuf, Inode),
}

/// A file of the database is gone or damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileDamage {
    pub(super) why: String,
    /// Only the name of the log is gone. The open file is whole, and so is the database.
    wal_is_whole: bool,
}

impl FileDamage {
    fn new(why: String) -> Self {
        Self { why, wal_is_whole: false }
    }
}

impl FileIdentity {
    /// Remembers the files of a database. Call it when the database was just opened and read from.
    pub(super) fn of(canonical: &Path) -> io::Result<Self> {
        let file = |ending: &str| {
            let path = sibling(canonical, ending);
            std::fs::metadata(&path).map(|metadata| (path, inode(&metadata)))
        };
        Ok(Self { database: file("")?, wal: file("-wal")?, shm: file("-shm")? })
    }

    /// Why a file is not the one that was opened. `None`: all three are.
    pub(super) fn gone(&self) -> Option<String> {
        [&self.database, &self.wal, &self.shm].into_iter().find_map(|file| look(file).err())
    }
}

/// The metadata of the file at a path, or why it is not the file that was opened. `None`: the metadata cannot be read now,
/// which is not a sign of damage.
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

/// What the writer knows about the files.
#[derive(Debug)]
pub(super) struct DatabaseFiles {
    identity: FileIdentity,
    /// The write-ahead log. SQLite has no lock on it, so that closing this descriptor does no harm.
    wal: File,
    page_bytes: u64,
    database_bytes: u64,
    /// Frames in the log at the last check.
    frames: u64,
    /// Frames in the log after the last commit of this connection, or [`UNKNOWN_FRAMES`] once that number was used.
    frames_committed: Arc<AtomicU64>,
}

/// The frame count is not known without asking SQLite.
const UNKNOWN_FRAMES: u64 = u64::MAX;

impl DatabaseFiles {
    /// Remembers the files of a database. Call it when the database was just opened and read from. `connection` is the one
    /// that writes. From now on it reports the frames of each commit.
    pub(super) fn of(canonical: &Path, connection: &mut Connection) -> io::Result<Self> {
        let identity = FileIdentity::of(canonical)?;
        let wal = File::open(&identity.wal.0)?;
        let database_bytes = std::fs::metadata(canonical)?.len();
        let page_bytes = number(connection, "PRAGMA page_size").map_err(io::Error::other)?;
        let frames_committed = Arc::new(AtomicU64::new(UNKNOWN_FRAMES));
        let committed = Arc::clone(&frames_committed);
        let report = move |_: &mut rusqlite::hooks::Wal, frames: std::ffi::c_int| {
            committed.store(u64::try_from(frames).unwrap_or(UNKNOWN_FRAMES), Ordering::Relaxed);
            Ok(())
        };
        connection.wal_hook(Some(report)).map_err(io::Error::other)?;
        Ok(Self { identity, wal, page_bytes, database_bytes, frames: 0, frames_committed })
    }

    /// How many frames the log held at the last check.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// How many frames the log holds. After a commit of this connection the number is known. Otherwise SQLite is asked
    /// with a `PRAGMA`, which it compiles anew each time. That takes as long as storing an event.
    pub(super) fn count_frames(&self, connection: &Connection) -> rusqlite::Result<u64> {
        match self.frames_committed.swap(UNKNOWN_FRAMES, Ordering::Relaxed) {
            UNKNOWN_FRAMES => frames(connection),
            frames => Ok(frames),
        }
    }

    /// Checks all files. `Some`: a later process would not find what is written from now on.
    pub(super) fn look(&mut self, connection: &Connection) -> rusqlite::Result<Option<FileDamage>> {
        let mut tries = 0;
        loop {
            // From the second try on, SQLite is asked: another process may have restarted the log since our commit.
            let frames = self.count_frames(connection)?;
            let found = self.look_once(connection, frames)?;
            tries += 1;
            if found.is_none() || tries == CHECKS_MAX {
                self.frames = frames;
                return Ok(found);
            }
            std::thread::sleep(CHECK_AGAIN_AFTER);
        }
    }

    fn look_once(&mut self, connection: &Connection, frames: u64) -> rusqlite::Result<Option<FileDamage>> {
        match look(&self.identity.database) {
            Err(why) => return Ok(Some(FileDamage::new(why))),
            Ok(Some(metadata)) if metadata.len() < self.database_bytes => {
                if !self.has_all_pages(connection, metadata.len())? {
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
        if let Some(damage) = len.and_then(|len| self.damage_of_wal(frames, len)) {
            return Ok(Some(damage));
        }
        Ok(named.err().map(|why| FileDamage { why, wal_is_whole: true }))
    }

    /// What is wrong with the open log, which must hold this many frames and has this many bytes.
    fn damage_of_wal(&self, frames: u64, len: u64) -> Option<FileDamage> {
        // If the log was restarted or truncated, the next frame is written together with a new header.
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
        // Read the last frame that was there at the last check. If the file has a hole, this frame is in it.
        let read = self
            .wal
            .read_exact_at(&mut header, 0)
            .and_then(|()| self.wal.read_exact_at(&mut frame, self.end_of_frame(known - 1)));
        match read {
            Ok(()) if is_header(&header) && frame[8..16] == header[16..24] => None,
            Ok(()) => {
                Some(FileDamage::new(format!("{} was truncated or overwritten while it was open", path.display())))
            }
            // A failed read is not a sign of damage.
            Err(_) => None,
        }
    }

    /// Whether every page of a database with this length is there: in the file, or in a frame of the log that no
    /// checkpoint has copied yet.
    fn has_all_pages(&self, connection: &Connection, len: u64) -> rusqlite::Result<bool> {
        let pages = match number(connection, "PRAGMA page_count") {
            Ok(pages) => pages,
            // The rest of the file is not a database, so SQLite did not shorten it.
            Err(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => return Ok(false),
                _ => return Err(error),
            },
        };
        let (frames, copied) = frames_and_copied(connection)?;
        let mut in_log = HashSet::new();
        for frame in copied..frames {
            let mut page = [0; 4];
            match self.wal.read_exact_at(&mut page, self.end_of_frame(frame)) {
                Ok(()) => in_log.insert(u64::from(u32::from_be_bytes(page))),
                // The log was restarted in between, or is damaged too. The next check tells.
                Err(_) => return Ok(false),
            };
        }
        let lock_page = LOCK_BYTE_OFFSET / self.page_bytes + 1;
        let missing = len / self.page_bytes + 1..=pages;
        Ok(missing.into_iter().all(|page| page == lock_page || in_log.contains(&page)))
    }

    /// The length of a log with this many frames.
    fn end_of_frame(&self, frames: u64) -> u64 {
        WAL_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + self.page_bytes)
    }

    fn shortened(&self, path: &Path, from: u64, to: u64) -> FileDamage {
        FileDamage::new(format!("{} was shortened from {from} bytes or more to {to} while it was open", path.display()))
    }

    /// Copies the frames of a log that has lost its name into the database.
    pub(super) fn rescue(&self, connection: &Connection, gone: &FileDamage) {
        if !gone.wal_is_whole {
            return;
        }
        let path = self.identity.wal.0.display();
        match checkpoint(connection, "PASSIVE") {
            Ok(true) => {
                tracing::warn!(%path, "the write-ahead log was removed; its events are copied into the database")
            }
            Ok(false) => {
                tracing::error!(%path, "the write-ahead log was removed, and its events are not copied: another process runs a checkpoint")
            }
            Err(error) => {
                tracing::error!(%path, %error, "the write-ahead log was removed, and its events cannot be copied into the database")
            }
        }
    }
}

fn is_header(header: &[u8; WAL_HEADER_BYTES as usize]) -> bool {
    u32::from_be_bytes([header[0], header[1], header[2], header[3]]) & !1 == WAL_MAGIC
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    let number: i64 = connection.prepare_cached(pragma)?.query_row([], |row| row.get(0))?;
    Ok(number.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of several pages, all of them in the file, and the connection that checks it.
    struct Scene {
        writer: Connection,
        other: Connection,
        files: DatabaseFiles,
        database: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let database = folder.path().join("a.db");
            let open = || Connection::open(&database).unwrap();
            let (mut writer, other) = (open(), open());
            writer
                .execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (a);")
                .unwrap();
            other.execute_batch("CREATE TABLE junk (a)").unwrap();
            let files = DatabaseFiles::of(&database, &mut writer).unwrap();
            let mut scene = Self { writer, other, files, database, _folder: folder };
            scene.add(&scene.other, "junk", 20);
            scene.checkpoint();
            assert_eq!(scene.look(), None);
            assert!(scene.files.database_bytes >= 80_000, "{} bytes", scene.files.database_bytes);
            scene
        }

        fn add(&self, connection: &Connection, table: &str, rows: usize) {
            for _ in 0..rows {
                connection.execute(&format!("INSERT INTO {table} VALUES (zeroblob(4000))"), []).unwrap();
            }
        }

        fn vacuum(&self) {
            self.other.execute_batch("DELETE FROM junk; VACUUM").unwrap();
        }

        fn checkpoint(&self) {
            assert!(checkpoint(&self.other, "TRUNCATE").unwrap(), "no other connection reads or writes");
        }

        fn look(&mut self) -> Option<String> {
            self.files.look(&self.writer).unwrap().map(|damage| damage.why)
        }
    }

    #[test]
    fn a_database_that_grows_again_after_vacuum_and_checkpoint_is_whole() {
        let mut scene = Scene::new();
        scene.vacuum();
        scene.checkpoint();
        let bytes = std::fs::metadata(&scene.database).unwrap().len();
        assert!(bytes < scene.files.database_bytes, "the checkpoint has shortened the database");
        // The page count is that of the last check again, or higher, while the file is still short.
        scene.add(&scene.writer, "t", 30);
        assert_eq!(scene.look(), None);
        scene.checkpoint();
        assert_eq!(scene.look(), None);
    }

    #[test]
    fn a_database_that_was_cut_is_damaged_whether_its_log_is_full_or_empty() {
        for rows in [0, 1] {
            let mut scene = Scene::new();
            scene.add(&scene.writer, "t", rows);
            let file = File::options().write(true).open(&scene.database).unwrap();
            file.set_len(scene.files.database_bytes - 3 * scene.files.page_bytes).unwrap();
            let why = scene.look().expect("pages are neither in the file nor in the log");
            assert!(why.contains("was shortened from"), "{why}");
        }
    }
}
