//! The lock file of a destination on the embedded log: `<database>.<name>.lock`.
//!
//! The operating system releases the lock when its process ends, in whatever way. The file itself stays: if it were
//! removed at the end, two processes could hold locks on two files of the same name.

use crate::clock::now_ms;
use crate::core::outcome::{Failure, FailureCode};
use crate::group::{Holder, JoinError, WhenHeld};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a standby looks whether the lock is free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(200);

/// How much of a lock file is read to learn who holds it. What eventd writes is shorter than 200 bytes.
const LOCK_TEXT_BYTES_MAX: u64 = 4096;

/// Takes the lock of the destination `name`. `database` is the path of the database, with symbolic links resolved, so that
/// the lock is the same through whichever link the database was opened. Closing the file releases the lock.
pub(super) async fn acquire(database: &Path, name: &str, digest: &str, when_held: WhenHeld) -> Result<File, JoinError> {
    let path = path_of(database, name);
    loop {
        match try_acquire(&path, database, digest).map_err(|error| unusable(&path, &error))? {
            Ok(lock) => return Ok(lock),
            Err(holder) if when_held == WhenHeld::Fail => return Err(JoinError::Held { name: name.into(), holder }),
            Err(_) => tokio::time::sleep(STANDBY_INTERVAL).await,
        }
    }
}

/// Whether a process holds the lock of the destination. The lock is taken for a moment and given back, so that a process
/// that starts in this moment may find it held: ask seldom.
pub(super) fn is_held(database: &Path, name: &str) -> Result<bool, JoinError> {
    let path = path_of(database, name);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits() as i32).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(unusable(&path, &error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(unusable(&path, &error)),
    }
}

/// Removes the lock file of a destination that no process joins any more.
pub(super) fn remove(database: &Path, name: &str) -> Result<(), Failure> {
    let path = path_of(database, name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let detail = format!("cannot remove the lock {}: {error}", path.display());
            Err(Failure::refused(FailureCode::GroupUnavailable, detail))
        }
        _ => Ok(()),
    }
}

fn path_of(database: &Path, name: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(format!(".{name}.lock"));
    path.into()
}

fn unusable(path: &Path, error: &std::io::Error) -> JoinError {
    let detail = format!("cannot use the lock {}: {error}", path.display());
    match error.kind() {
        // A full disk may have room for a lock file later. Any other error needs a person.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            JoinError::Unavailable(Failure::refused(FailureCode::GroupUnavailable, detail))
        }
        _ => JoinError::Configuration(detail),
    }
}

/// Takes the lock and writes into the file which process holds it. The inner error is the current holder, if the file
/// says so.
fn try_acquire(path: &Path, database: &Path, digest: &str) -> std::io::Result<Result<File, Option<Holder>>> {
    let mut file = open(path, database)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(LOCK_TEXT_BYTES_MAX).read_to_string(&mut text)?;
            return Ok(Err(serde_json::from_str(&text).ok()));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let holder = Holder { pid: std::process::id(), started_ms: now_ms(), destination: digest.into() };
    // Only the lock itself matters. On a full disk the text cannot be written, and delivery must still run, because it is
    // what lets retention make room.
    if let Err(error) = write_holder(&mut file, &holder) {
        tracing::warn!(path = %path.display(), %error, "took the lock, but could not write into it which process holds it");
    }
    Ok(Ok(file))
}

/// Opens the lock file, or creates it with the permissions of the database.
///
/// Another user may be able to put something else at this path. So a symbolic link is not followed, a pipe is not waited
/// for, and only a regular file is written to.
fn open(path: &Path, database: &Path) -> std::io::Result<File> {
    let mode = std::fs::metadata(database)?.mode() & 0o666;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let wrong = |what| std::io::Error::new(ErrorKind::InvalidInput, format!("it is {what}. Remove it"));
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(wrong("not a regular file")),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Err(wrong("a symbolic link")),
        Err(error) => Err(error),
    }
}

fn write_holder(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(holder)?)
}
