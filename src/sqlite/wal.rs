//! The checkpoint commands of SQLite on the write-ahead log (WAL).

use rusqlite::Connection;

/// Copies frames of the write-ahead log into the database, as far as `mode` and other processes allow. `false`: not
/// everything was copied, because another process runs a checkpoint or a reader still needs the log.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (busy, frames, copied): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && frames == copied)
    })
}

/// How many frames the write-ahead log holds, whichever process wrote them.
pub(super) fn frames(connection: &Connection) -> rusqlite::Result<u64> {
    frames_and_copied(connection).map(|(frames, _)| frames)
}

/// How many frames the write-ahead log holds, and how many of them a checkpoint has copied into the database. `NOOP`
/// itself copies nothing.
pub(super) fn frames_and_copied(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let mut statement = connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?;
    let (frames, copied): (i64, i64) = statement.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))?;
    // -1 means that there is no write-ahead log yet.
    Ok((u64::try_from(frames).unwrap_or(0), u64::try_from(copied).unwrap_or(0)))
}
