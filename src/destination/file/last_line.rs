//! Decides how a file ends, so that a line which a crash left incomplete can be repaired.
//!
//! Nothing that another program wrote may be changed. So a last line without a line break counts as eventd's only if both
//! this line and the first line of the file begin as eventd's lines do.

use crate::destination::json_line::LINE_PREFIXES;
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes that one read takes while eventd searches for the last line break.
const CHUNK_BYTES: usize = 64 * 1024;

/// How far back eventd searches for the start of an incomplete last line. It is longer than the largest event of a
/// broker after escaping, so a file with a longer last line was not written by eventd.
const TORN_LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How a file ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LastLine {
    /// With a line break, or the file is empty.
    Whole,
    /// With a complete line of eventd that only lacks its line break.
    LacksLineBreak,
    /// With the first part of a line of eventd. `start` is the offset of that line in the file.
    Torn { start: u64 },
    /// With text that eventd did not write, and no line break.
    Foreign,
}

/// Examines the end of a file of this length.
pub(super) fn examine(file: &File, len: u64) -> io::Result<LastLine> {
    let start = last_line_start(file, len)?;
    if start == len {
        return Ok(LastLine::Whole);
    }
    let is_ours = len - start < TORN_LINE_BYTES_MAX && first_line_is_ours(file, start)? && is_torn(file, start..len)?;
    if !is_ours {
        return Ok(LastLine::Foreign);
    }
    Ok(if is_json(file, start..len)? { LastLine::LacksLineBreak } else { LastLine::Torn { start } })
}

/// The offset after the last line break. If there is none in the last `TORN_LINE_BYTES_MAX` bytes, the result is at
/// least that far from the end.
fn last_line_start(file: &File, len: u64) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut end = len;
    while end > 0 && len - end < TORN_LINE_BYTES_MAX {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = &mut chunk[..(end - start) as usize];
        file.read_exact_at(chunk, start)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(end)
}

/// Whether the file's first complete line begins as eventd's do. True if the file has no complete line, because the
/// torn line may be the only one.
fn first_line_is_ours(file: &File, complete_bytes: u64) -> io::Result<bool> {
    let beginning = beginning(file, &(0..complete_bytes))?;
    Ok(complete_bytes == 0 || LINE_PREFIXES.iter().any(|prefix| beginning.starts_with(prefix)))
}

/// Whether an incomplete line begins as eventd's do.
///
/// A crash may leave zeros in place of bytes that were not written. If zeros begin inside the prefix, the prefix alone
/// cannot show that the line is eventd's. Then everything after the first zero must be zeros too.
fn is_torn(file: &File, line: Range<u64>) -> io::Result<bool> {
    let beginning = beginning(file, &line)?;
    let first_zero = beginning.iter().position(|byte| *byte == 0);
    let written = &beginning[..first_zero.unwrap_or(beginning.len())];
    if !LINE_PREFIXES.iter().any(|prefix| prefix.starts_with(written) || written.starts_with(prefix)) {
        return Ok(false);
    }
    first_zero.map_or(Ok(true), |zero| is_zeros(file, line.start + zero as u64..line.end))
}

/// Whether these bytes are one complete JSON value.
fn is_json(file: &File, range: Range<u64>) -> io::Result<bool> {
    let bytes = BufReader::with_capacity(CHUNK_BYTES, FileRange { file, range });
    match serde_json::from_reader::<_, IgnoredAny>(bytes) {
        Ok(_) => Ok(true),
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// Reads a range of a file from its beginning.
struct FileRange<'f> {
    file: &'f File,
    range: Range<u64>,
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.range.start)?;
        self.range.start += read as u64;
        Ok(read)
    }
}

/// The first bytes of the range: as many as the longest prefix of eventd's lines has.
fn beginning(file: &File, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let longest = LINE_PREFIXES.iter().map(|prefix| prefix.len()).max().unwrap_or_default() as u64;
    let mut bytes = vec![0; longest.min(range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

fn is_zeros(file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for start in range.clone().step_by(CHUNK_BYTES) {
        let chunk = &mut chunk[..(range.end - start).min(CHUNK_BYTES as u64) as usize];
        file.read_exact_at(chunk, start)?;
        if chunk.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn ending_of(content: &[u8]) -> LastLine {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        examine(&file, content.len() as u64).unwrap()
    }

    #[test]
    fn a_file_that_is_empty_or_ends_with_a_line_break_is_whole_whatever_it_holds() {
        for content in [b"".as_slice(), b"\n", b"text of another program\n", b"{\"user\":\"a\"}\n"] {
            assert_eq!(ending_of(content), LastLine::Whole, "{}", content.escape_ascii());
        }
    }

    #[test]
    fn a_complete_line_lacks_only_its_line_break_and_an_incomplete_one_is_torn() {
        assert_eq!(ending_of(b"{\"user\":\"a\"}"), LastLine::LacksLineBreak);
        assert_eq!(ending_of(b"{\"user\":\"a\"}\n{\"payload\":1}"), LastLine::LacksLineBreak);
        assert_eq!(ending_of(b"{\"us"), LastLine::Torn { start: 0 });
        assert_eq!(ending_of(b"{\"user\":\"a\"}\n{\"payload\":\"b"), LastLine::Torn { start: 13 });
    }

    #[test]
    fn zeros_that_a_crash_left_belong_to_a_torn_line_only_if_nothing_follows_them() {
        assert_eq!(ending_of(b"{\"user\":\"a\"}\n{\"u\0\0\0"), LastLine::Torn { start: 13 });
        assert_eq!(ending_of(b"{\"user\":\"a\"}\n{\"u\0\0x"), LastLine::Foreign);
    }

    #[test]
    fn a_line_of_another_program_is_foreign() {
        assert_eq!(ending_of(b"text"), LastLine::Foreign);
        assert_eq!(ending_of(b"text\n{\"user\":\"a\""), LastLine::Foreign, "the first line is not eventd's");
        assert_eq!(ending_of(b"{\"user\":\"a\"}\ntext"), LastLine::Foreign);
    }
}
