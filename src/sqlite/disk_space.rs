//! Whether an error means that the disk is full.

use super::file::sibling;
use crate::limits::DATABASE_MODE;
use rusqlite::{Connection, ErrorCode};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of the file that is written as a test. More than one page, which is what SQLite writes at once.
const PROBE_BYTES: usize = 64 * 1024;

/// Whether the error means that the disk of the database is full. SQLite reports a full quota (EDQUOT) as an I/O error,
/// so in that case this function writes a file of its own to find out.
pub(super) fn is_full(connection: &Connection, error: &rusqlite::Error) -> bool {
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return true;
    }
    let is_write_error = |error: &rusqlite::ffi::Error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE;
    let database = connection.path().map(Path::new);
    match database.map(|database| sibling(database, &format!(".{}.probe", std::process::id()))) {
        Some(probe) if error.sqlite_error().is_some_and(is_write_error) => cannot_write(&probe),
        _ => false,
    }
}

/// Whether a small file cannot be written because the disk or the quota is full. Removes the file again.
fn cannot_write(probe: &Path) -> bool {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(DATABASE_MODE).open(probe)?;
        file.write_all(&[0; PROBE_BYTES])?;
        file.sync_data()
    };
    let written = write();
    if let Err(error) = std::fs::remove_file(probe)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %probe.display(), %error, "cannot remove the file that tested for free disk space");
    }
    written.is_err_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}
