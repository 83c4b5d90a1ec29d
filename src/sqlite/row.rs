//! A record as a row: its columns, and the checksum that SQLite does not have. A bit that flipped on the disk is an
//! error with an offset, never an event.

use crate::core::event::Record;

/// The columns that [`checked`] reads, in its order.
pub(super) const SELECT: &str = "SELECT offset, timestamp_ms, crc32c, key, value, headers FROM records
    WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND offset < ?4 ORDER BY offset";

/// CRC-32C over offset, timestamp, the three lengths (a null's is `u32::MAX`), then key, value and headers.
pub(super) fn checksum(
    offset: i64,
    timestamp_ms: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[u8],
) -> u32 {
    // Lengths beyond 4 GiB are refused long before (`RECORD_BYTES_MAX`).
    let len = |bytes: Option<&[u8]>| bytes.map_or(u32::MAX, |bytes| bytes.len() as u32);
    let mut head = [0; 28];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..16].copy_from_slice(&timestamp_ms.to_le_bytes());
    head[16..20].copy_from_slice(&len(key).to_le_bytes());
    head[20..24].copy_from_slice(&len(value).to_le_bytes());
    head[24..].copy_from_slice(&len(Some(headers)).to_le_bytes());
    [key.unwrap_or_default(), value.unwrap_or_default(), headers]
        .iter()
        .fold(crc32c::crc32c(&head), |crc, part| crc32c::crc32c_append(crc, part))
}

/// Binds a record to the statement `INSERT … VALUES (?1 … ?8)` of the writer and runs it.
pub(super) fn insert(
    statement: &mut rusqlite::Statement<'_>,
    (topic, partition, offset): (i64, u32, i64),
    record: &Record,
) -> rusqlite::Result<()> {
    let (key, value, headers) = (record.key(), record.value(), record.headers_encoded());
    let crc = checksum(offset, record.timestamp_ms, key, value, headers);
    statement.execute((topic, partition, offset, record.timestamp_ms, crc, key, value, headers))?;
    Ok(())
}

pub(super) const INSERT: &str = "INSERT INTO records
    (topic, partition, offset, timestamp_ms, crc32c, key, value, headers) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// What a row of [`SELECT`] turned out to be.
pub(super) enum Row {
    Record { offset: i64, record: Record },
    Damaged { offset: i64, detail: &'static str },
}

/// How many bytes of key, value and headers the row has, before anything is copied.
pub(super) fn size_bytes(row: &rusqlite::Row<'_>) -> rusqlite::Result<usize> {
    (3..6).map(|column| Ok(row.get_ref(column)?.as_bytes_or_null().ok().flatten().map_or(0, <[u8]>::len))).sum()
}

/// The record, if it is what was stored. `expected` is the offset that has to come: none is ever left out.
pub(super) fn checked(row: &rusqlite::Row<'_>, expected: i64) -> rusqlite::Result<Row> {
    let number = |column: usize| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_i64().ok());
    let part = |column: usize| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_bytes_or_null().ok());
    let damaged = |detail| Ok(Row::Damaged { offset: expected, detail });
    if number(0)? != Some(expected) {
        return damaged("it is missing");
    }
    let (Some(timestamp_ms), Some(crc)) = (number(1)?, number(2)?) else {
        return damaged("its columns are of another type");
    };
    let (Some(key), Some(value), Some(Some(headers))) = (part(3)?, part(4)?, part(5)?) else {
        return damaged("its columns are of another type");
    };
    if i64::from(checksum(expected, timestamp_ms, key, value, headers)) != crc {
        return damaged("its checksum differs from what was stored");
    }
    Ok(Row::Record { offset: expected, record: Record::from_parts(key, value, headers, timestamp_ms) })
}
