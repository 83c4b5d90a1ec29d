//! A record as a row of the table `records`, with its checksum. SQLite has no checksums of its own. With ours, a bit that
//! flipped on the disk becomes an error that names the offset, and never an event.

use crate::core::event::Record;

/// Selects the columns of [`RecordRow`], in its order.
pub(super) const SELECT: &str = "SELECT offset, timestamp_ms, crc32c, key, value, headers FROM records
    WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND offset < ?4 ORDER BY offset";

/// CRC-32C over offset, timestamp, the three lengths (`u32::MAX` for null), then key, value and headers.
pub(super) fn checksum(
    offset: i64,
    timestamp_ms: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[u8],
) -> u32 {
    // No length reaches 4 GiB: the log refuses records above `RECORD_BYTES_MAX`.
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

/// Inserts a record with the prepared statement [`INSERT`].
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

/// A row of [`SELECT`] as it was found. It borrows the bytes of SQLite and is not checked yet. A column with a wrong type is
/// `None`. A column that is null is `Some(None)`.
pub(super) struct RecordRow<'r> {
    offset: Option<i64>,
    timestamp_ms: Option<i64>,
    crc: Option<i64>,
    key: Option<Option<&'r [u8]>>,
    value: Option<Option<&'r [u8]>>,
    headers: Option<Option<&'r [u8]>>,
}

impl<'r> RecordRow<'r> {
    /// Reads each column exactly once, because that is most of the cost of reading a small record.
    pub(super) fn new(row: &'r rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let number = |column: usize| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_i64().ok());
        let part = |column: usize| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_bytes_or_null().ok());
        Ok(Self {
            offset: number(0)?,
            timestamp_ms: number(1)?,
            crc: number(2)?,
            key: part(3)?,
            value: part(4)?,
            headers: part(5)?,
        })
    }

    /// The bytes of key, value and headers together.
    pub(super) fn size_bytes(&self) -> usize {
        [self.key, self.value, self.headers].iter().map(|part| part.flatten().map_or(0, <[u8]>::len)).sum()
    }

    /// Checks that this is the record that was stored at `expected`, the next offset. Otherwise says what is wrong. Offsets
    /// have no gaps, so a higher offset means that a record is missing.
    pub(super) fn checked(&self, expected: i64) -> Result<Record, &'static str> {
        if self.offset != Some(expected) {
            return Err("it is missing");
        }
        let (Some(timestamp_ms), Some(crc), Some(key), Some(value), Some(Some(headers))) =
            (self.timestamp_ms, self.crc, self.key, self.value, self.headers)
        else {
            return Err("its columns are of another type");
        };
        if i64::from(checksum(expected, timestamp_ms, key, value, headers)) != crc {
            return Err("its checksum differs from what was stored");
        }
        Ok(Record::from_parts(key, value, headers, timestamp_ms))
    }
}
